"""Diagnosis of forgetting: how much accuracy the features lost, how much the heads lost, and how far features moved.

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

from pah.core.config import InputError
from pah.core.files import read_json
from pah.data.stream import Stream
from pah.data.task import Examples, Task
from pah.methods.base import Method
from pah.models.modes import evaluating
from pah.models.network import GeneratedHeads, TaskNetwork
from pah.runs.folder import METRICS, SNAPSHOTS
from pah.runs.provenance import require_data_place, require_same_data
from pah.runs.saved_state import checkpoint_facts
from pah.training.config import RunConfig, build_method, load_stream

Features = NDArray[np.float64]  # (N, D)

MAX_FIT_IMAGES = 2000  # training images of a task to which a new head is fitted
BATCH = 500  # images


@dataclass(frozen=True)
class TaskDiagnosis:
    """The diagnosis of one old task. All accuracies are percent of its test images.

    `lost` = `then` - `now` = `feature_drift` + `head_drift`.

    Attributes:
        task: Index of the task.
        then: Accuracy right after the task was learned.
        now: Accuracy after the last task.
        refitted_then: Accuracy of a new linear head on the features right after the task was learned.
        refitted_now: Accuracy of a new linear head on the features after the last task.
        similarity: Linear CKA of the task's features right after it was learned with those after it and after each
            later task, 0 to 1.
        prototype_drift: Distance that the task's prototypes moved since, relative to their norm; None without
            prototypes.
    """

    task: int
    then: float
    now: float
    refitted_then: float
    refitted_now: float
    similarity: list[float]
    prototype_drift: float | None

    @property
    def lost(self) -> float:
        """Lost accuracy, in percentage points."""
        return self.then - self.now

    @property
    def feature_drift(self) -> float:
        """Accuracy that the features lost: a new head does not recover it. In percentage points."""
        return self.refitted_then - self.refitted_now

    @property
    def head_drift(self) -> float:
        """Accuracy that only the head lost: a new head recovers it. In percentage points."""
        return self.lost - self.feature_drift


def diagnose(config: RunConfig, folder: Path) -> list[TaskDiagnosis]:
    """Return the diagnosis of each task of a finished run except the last.

    Args:
        config: The run's configuration.
        folder: The run folder.

    Raises:
        InputError: the run is not finished, has no snapshots (`pah run --snapshots true`), or its data have changed.
    """
    metrics = read_json(folder / METRICS)
    require_data_place(config, checkpoint_facts(folder), folder)
    stream = load_stream(config)
    require_same_data(metrics, stream, folder)
    methods = [load_snapshot(config, stream, folder, k) for k in range(len(stream.tasks))]
    flip = config.training.flip_test
    measured = [task for task in stream.tasks[:-1] if len(task.test)]
    if len(stream.tasks) > 1 and not measured:
        raise InputError(f"{folder}: expected test images of an old task, got none")
    return [_diagnose_task(task, methods, metrics["accuracy_matrix"], flip) for task in measured]


def load_snapshot(config: RunConfig, stream: Stream, folder: Path, task: int) -> Method:
    """Return the method as it was after a task.

    Raises:
        InputError: the run has no snapshot of this task.
    """
    path = folder / SNAPSHOTS / f"{task}.safetensors"
    if not path.is_file():
        raise InputError(f"{path}: expected the network after task {task + 1}, found none; --snapshots true keeps it")
    method = build_method(config, stream.image_shape)
    for seen in stream.tasks[: task + 1]:
        method.network.grow(len(seen.class_names))
    method.network.load_state_dict(safetensors.torch.load_file(path), strict=True)
    return method


def _diagnose_task(
    task: Task, methods: Sequence[Method], matrix: Sequence[Sequence[float]], flip: bool
) -> TaskDiagnosis:
    """Return the diagnosis of one task; `methods[k]` is the method after task k."""
    k, last = task.index, len(methods) - 1
    test_features = [features(method, task, task.test, flip) for method in methods[k:]]
    refitted = []
    for method, method_test_features in ((methods[k], test_features[0]), (methods[last], test_features[-1])):
        rows = torch.randperm(len(task.train), generator=torch.Generator().manual_seed(k))[:MAX_FIT_IMAGES]
        train = Examples(task.train.pixels, task.train.rows[rows], task.train.labels[rows])
        train_features = features(method, task, train)
        refitted.append(fresh_head_accuracy(train_features, train.labels, method_test_features, task.test.labels))
    return TaskDiagnosis(
        task=k,
        then=matrix[k][k],
        now=matrix[last][k],
        refitted_then=refitted[0],
        refitted_now=refitted[1],
        similarity=[linear_cka(test_features[0], later) for later in test_features],
        prototype_drift=prototype_drift(methods[k], methods[last], k),
    )


def features(method: Method, task: Task, examples: Examples, flip: bool = False) -> Features:
    """Return a task's features (N, D) of images, as at test time.

    With `flip`, features are the mean over an image and its mirror image. For a linear head this gives the mean of
    their logits.
    """
    network = method.network

    def compute(x: Tensor) -> Tensor:
        return network.features(x, task.index) if isinstance(network, TaskNetwork) else network.backbone(x)

    batches: list[Tensor] = []
    with torch.inference_mode(), evaluating(network):
        for rows in examples.rows.split(BATCH):
            x = task.normalization(examples.pixels[rows])
            batches.append((compute(x) + compute(x.flip(-1))) / 2 if flip else compute(x))
    return torch.cat(batches).double().numpy()


def fresh_head_accuracy(
    train_features: Features, train_labels: Tensor, test_features: Features, test_labels: Tensor
) -> float:
    """Return the test accuracy, in percent, of a linear head fitted to the training features.

    The head is a logistic regression with ridge penalty 1 on standardized features.
    """
    from sklearn.linear_model import LogisticRegression  # the import takes seconds, and only a diagnosis needs it
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(train_features)
    head = LogisticRegression(max_iter=2000).fit(scaler.transform(train_features), train_labels.numpy())
    return 100 * float(head.score(scaler.transform(test_features), test_labels.numpy()))


def linear_cka(a: Features, b: Features) -> float:
    """Return the similarity of two sets of features of the same images, 0 to 1, independent of rotation and scale.

    Linear centred kernel alignment (Kornblith et al., ICML 2019): ‖Bᵀ A‖² / (‖Aᵀ A‖ ‖Bᵀ B‖), centred, Frobenius norms.

    Args:
        a: (N, D).
        b: (N, D'), of the same images.
    """
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    cross = np.square(np.linalg.norm(b.T @ a))
    return float(cross / (np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b)))


def prototype_drift(then: Method, now: Method, task: int) -> float | None:
    """Return the distance that a task's prototypes moved, relative to their norm; None without prototypes."""
    old_heads, new_heads = then.network.heads, now.network.heads
    if not (isinstance(old_heads, GeneratedHeads) and isinstance(new_heads, GeneratedHeads)):
        return None
    with torch.no_grad():
        before, after = old_heads.prototypes.tasks[task], new_heads.prototypes.tasks[task]
        return float((after - before).norm() / before.norm())


def as_dict(diagnoses: Sequence[TaskDiagnosis]) -> dict[str, Any]:
    """Return the content of `diagnosis.json`."""
    keys = ("task", "then", "now", "refitted_then", "refitted_now", "lost", "feature_drift", "head_drift")
    return {
        "tasks": [
            {key: getattr(diagnosis, key) for key in keys}
            | {"similarity": diagnosis.similarity, "prototype_drift": diagnosis.prototype_drift}
            for diagnosis in diagnoses
        ],
        "mean": {key: float(np.mean([getattr(diagnosis, key) for diagnosis in diagnoses])) for key in keys[1:]},
    }
