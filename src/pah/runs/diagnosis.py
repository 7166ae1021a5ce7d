"""Where forgetting comes from: how much of it a new head on today's features would undo, and how far features moved.

T: tasks, N: images of a task, D: features.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from pah.core.files import read_json
from pah.core.config import InputError
from pah.data.stream import Stream
from pah.data.task import Examples, Task
from pah.methods.base import Method
from pah.models.modes import evaluating
from pah.models.network import GeneratedHeads, TaskNetwork
from pah.training.config import RunConfig, build_method, load_stream
from pah.runs.folder import METRICS, SNAPSHOTS

Features = NDArray[np.float64]

FITTED_ON = 2000  # training images of a task, at most, that a head is fitted anew on
BATCH = 500


@dataclass(frozen=True)
class TaskDiagnosis:
    """One old task, all accuracies in percent on its test images.

    `lost` = `then` - `now` = `feature_drift` + `head_drift`.
    """

    task: int
    then: float  # right after it was learned
    now: float  # after the last task
    refitted_then: float  # with a linear head fitted anew to the features right after it was learned
    refitted_now: float  # with one fitted to the features after the last task
    similarity: list[float]  # linear CKA of its features then with those after each task from its own on, 0 to 1
    prototype_drift: float | None  # distance that its prototypes moved since, relative to their norm; None without

    @property
    def lost(self) -> float:
        """Percentage points of accuracy."""
        return self.then - self.now

    @property
    def feature_drift(self) -> float:
        """What the features lost: a head fitted anew does not bring it back."""
        return self.refitted_then - self.refitted_now

    @property
    def head_drift(self) -> float:
        """The rest: the features still hold it, the head no longer reads it."""
        return self.lost - self.feature_drift


def diagnose(config: RunConfig, folder: Path) -> list[TaskDiagnosis]:
    """The diagnosis of every task of a finished run but the last.

    Raises:
        InputError: the run is not finished, or kept no snapshots (`pah run --snapshots true`).
    """
    metrics = read_json(folder / METRICS)
    stream = load_stream(config)
    methods = [snapshot(config, stream, folder, k) for k in range(len(stream.tasks))]
    flip = config.training.flip_test
    return [_of_task(task, methods, metrics["accuracy_matrix"], flip) for task in stream.tasks[:-1]]


def snapshot(config: RunConfig, stream: Stream, folder: Path, task: int) -> Method:
    """The method as it stood when a task had been learned."""
    path = folder / SNAPSHOTS / f"{task}.safetensors"
    if not path.is_file():
        raise InputError(f"{path}: expected the network after task {task + 1}, found none; --snapshots true keeps it")
    method = build_method(config, stream.image_shape)
    for seen in stream.tasks[: task + 1]:
        method.network.grow(len(seen.class_names))
    method.network.load_state_dict(safetensors.torch.load_file(path), strict=True)
    return method


def _of_task(task: Task, methods: Sequence[Method], matrix: Sequence[Sequence[float]], flip: bool) -> TaskDiagnosis:
    """The diagnosis of one task, given the method as it stood after each."""
    k, last = task.index, len(methods) - 1
    test = [features(method, task, task.test, flip) for method in methods[k:]]  # after each task from its own on
    refitted = []
    for method, of_test in ((methods[k], test[0]), (methods[last], test[-1])):
        rows = torch.randperm(len(task.train), generator=torch.Generator().manual_seed(k))[:FITTED_ON]
        part = Examples(task.train.pixels, task.train.rows[rows], task.train.labels[rows])
        refitted.append(fresh_head_accuracy(features(method, task, part), part.labels, of_test, task.test.labels))
    return TaskDiagnosis(
        task=k,
        then=matrix[k][k],
        now=matrix[last][k],
        refitted_then=refitted[0],
        refitted_now=refitted[1],
        similarity=[linear_cka(test[0], later) for later in test],
        prototype_drift=prototype_drift(methods[k], methods[last], k),
    )


def features(method: Method, task: Task, part: Examples, flip: bool = False) -> Features:
    """The task's features of images, (N, D), as at test time.

    With `flip` the mean of an image's and its mirror image's: a linear head answers it with the mean of their logits.
    """
    network = method.network

    def of(x: Tensor) -> Tensor:
        return network.features(x, task.index) if isinstance(network, TaskNetwork) else network.backbone(x)

    found: list[Tensor] = []
    with torch.inference_mode(), evaluating(network):
        for rows in part.rows.split(BATCH):
            x = task.normalization(part.pixels[rows])
            found.append((of(x) + of(x.flip(-1))) / 2 if flip else of(x))
    return torch.cat(found).double().numpy()


def fresh_head_accuracy(train: Features, labels: Tensor, test: Features, test_labels: Tensor) -> float:
    """Test accuracy, in percent, of a linear head fitted to training features: logistic regression, ridge 1."""
    from sklearn.linear_model import LogisticRegression  # seconds to import, and only a diagnosis has a use for it
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(train)
    head = LogisticRegression(max_iter=2000).fit(scaler.transform(train), labels.numpy())
    return 100 * float(head.score(scaler.transform(test), test_labels.numpy()))


def linear_cka(a: Features, b: Features) -> float:
    """How alike two sets of features of the same images are, (N, D) twice -> 0 to 1, whatever their rotation or scale.

    Linear centred kernel alignment (Kornblith et al., ICML 2019): ‖Bᵀ A‖² / (‖Aᵀ A‖ ‖Bᵀ B‖), centred, Frobenius norms.
    """
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    cross = np.square(np.linalg.norm(b.T @ a))
    return float(cross / (np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b)))


def prototype_drift(then: Method, now: Method, task: int) -> float | None:
    """How far a task's prototypes have moved, relative to their norm; None for a method without prototypes."""
    heads, later = then.network.heads, now.network.heads
    if not (isinstance(heads, GeneratedHeads) and isinstance(later, GeneratedHeads)):
        return None
    with torch.no_grad():
        before, after = heads.prototypes.tasks[task], later.prototypes.tasks[task]
        return float((after - before).norm() / before.norm())


def as_dict(found: Sequence[TaskDiagnosis]) -> dict[str, Any]:
    """What `diagnosis.json` holds."""
    keys = ("task", "then", "now", "refitted_then", "refitted_now", "lost", "feature_drift", "head_drift")
    return {
        "tasks": [
            {key: getattr(of, key) for key in keys}
            | {"similarity": of.similarity, "prototype_drift": of.prototype_drift}
            for of in found
        ],
        "mean": {key: float(np.mean([getattr(of, key) for of in found])) for key in keys[1:]},
    }
