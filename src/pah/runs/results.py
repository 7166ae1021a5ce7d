"""What a finished run leaves: its metrics with where they came from, and its model."""

import platform
import resource
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from pah.core import files, distributed
from pah.learner import store
from pah.training import metrics
from pah.core.config import InputError
from pah.data.stream import Stream
from pah.data.task import Normalization
from pah.core.devices import name_of
from pah.training.evaluation import Answers
from pah.learner.store import Lesson, Record, TaughtTask
from pah.methods.base import Method
from pah.methods.pah import PAH
from pah.training.config import RunConfig
from pah.learner.predictor import Predictor
from pah.training.state import TrainState

Moment = Literal["start", "learned"]


def save_network(path: Path, method: Method) -> None:
    """The network's weights and buffers as safetensors."""
    files.write_file(path, store.weights_of(method.network))


def save_model(folder: Path, config: RunConfig, stream: Stream, method: Method, matrix: list[list[float]]) -> None:
    """The finished network as a learner: tasks and accuracies, calibrated where the run kept validation images.

    Without dates: the same run writes the same files.
    """
    names = [task.name for task in stream.tasks]
    record = Record(
        config=config,
        image_shape=stream.image_shape,
        normalization=stream.normalization,
        tasks=tuple(
            TaughtTask(task.name, task.class_names, task.labels, None, stream.where, len(task.train))
            for task in stream.tasks
        ),
        history=tuple(
            Lesson(name, None, dict(zip(names, accuracies, strict=False)))
            for name, accuracies in zip(names, matrix, strict=True)
        ),
    )
    taught = Predictor(record, method)
    for task in stream.tasks:
        taught = taught.calibrated(task.index, task.validation)
    for task in stream.tasks:
        taught = taught.calibrated_among_all(task.index, task.validation)
    store.save(folder, taught.record, method.network)


def save_predictions(path: Path, found: Sequence[Answers]) -> None:
    """The answers to each task's images, int16 (N,): `label/<k>`, `given/<k>` and `not_given/<k>` of task k."""
    tensors = {
        f"{name}/{k}": tensor.to(torch.int16)
        for k, of_task in enumerate(found)
        for name, tensor in (("label", of_task.labels), ("given", of_task.given), ("not_given", of_task.not_given))
    }
    files.write_file(path, safetensors.torch.save(tensors))


def read_predictions(path: Path) -> list[Answers]:
    """What `save_predictions` wrote; InputError if it cannot be read."""
    try:
        tensors = {name: tensor.long() for name, tensor in safetensors.torch.load(path.read_bytes()).items()}
        tasks = range(len(tensors) // 3)
        return [Answers(tensors[f"label/{k}"], tensors[f"given/{k}"], tensors[f"not_given/{k}"]) for k in tasks]
    except (OSError, SafetensorError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: expected a run's predictions, got: {reason}") from None


@dataclass(frozen=True)
class TaskPrototypes:
    """A task's prototypes, (C, channels, s, s) in normalised pixel units, at two moments; None where not recorded.

    `images`, uint8 (C, channels, H, W), are those that semantic prototypes started from.
    """

    normalization: Normalization
    start: Tensor | None
    learned: Tensor | None
    images: Tensor | None


def save_prototypes(path: Path, method: Method, normalization: Normalization, moment: Moment) -> None:
    """Put the current task's prototypes down as they stand before (`start`) or after (`learned`) their own task.

    The second adds to the file of the first. A method without prototypes writes none.
    """
    if not isinstance(method, PAH):
        return
    tensors = safetensors.torch.load(path.read_bytes()) if moment == "learned" and path.is_file() else {}
    tensors |= {"mean": torch.tensor(normalization.mean), "std": torch.tensor(normalization.std)}
    tensors[moment] = method.heads.prototypes.tasks[method.task].detach().contiguous()
    if method.first_images is not None:
        tensors["images"] = method.first_images.contiguous()
    files.write_file(path, safetensors.torch.save(tensors))


def read_prototypes(path: Path) -> TaskPrototypes:
    """What `save_prototypes` wrote; InputError if it cannot be read."""
    try:
        tensors = safetensors.torch.load(path.read_bytes())
        normalization = Normalization(tuple(tensors["mean"].tolist()), tuple(tensors["std"].tolist()))
    except (OSError, SafetensorError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: expected a task's prototypes, got: {reason}") from None
    return TaskPrototypes(normalization, *(tensors.get(name) for name in ("start", "learned", "images")))


def results(
    config: RunConfig, stream: Stream, method: Method, state: TrainState, revision: str | None
) -> dict[str, Any]:
    """What `metrics.json` holds."""
    parameters = method.network.footprint()
    return {
        "benchmark": config.benchmark,
        "method": config.method,
        "seed": config.seed,
        "evaluated_on": config.training.evaluate_on,
        "class_order": stream.class_order,
        "task_names": [task.name for task in stream.tasks],
        "accuracy_matrix": state.matrix,
        **metrics.summary(state.matrix),
        "class_incremental_accuracy": state.class_incremental[-1],
        "parameters": parameters
        | {"total": parameters["backbone"] + parameters["hypernetwork"] + sum(parameters["per_task"])},
        "stored_samples": method.stored_samples,
        "seconds": round(state.seconds, 3),
        "images_per_second": round(state.images / state.train_seconds, 1),
        "peak_memory_mb": round(peak_memory_mb(), 1),
        "device": name_of(method.device),
        "processes": distributed.count(),
        "versions": versions(),
        "commit": revision,
    }


def versions() -> dict[str, str]:
    """The versions that a result depends on, and the threads: their number decides the order of sums."""
    packages = ("pah", "torch", "numpy", "datasets", "pillow", "scikit-learn")
    found = {"python": platform.python_version(), **{name: version(name) for name in packages}}
    return found | {"threads": str(torch.get_num_threads())}


def commit() -> str | None:
    """The commit of the source that runs, with "+changes" if files differ from it; None outside a checkout."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", str(here))
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def peak_memory_mb() -> float:
    """The most memory this process has held, in MB (2^20 bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
