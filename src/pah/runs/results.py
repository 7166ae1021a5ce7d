"""The files of a finished run: its metrics, predictions, model, snapshots and prototypes."""

import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from pah.core import distributed, files
from pah.core.config import InputError
from pah.core.devices import device_name
from pah.data.sources import Images
from pah.data.stream import Stream
from pah.data.task import Normalization
from pah.learner import store
from pah.learner.calibration import calibrate, calibrate_among_all
from pah.learner.measurements import fingerprint
from pah.learner.predictor import Predictor
from pah.learner.store import Lesson, Record, TaughtTask
from pah.methods.base import Method
from pah.methods.pah import PAH
from pah.training import metrics
from pah.training.config import RunConfig, build_method
from pah.training.evaluation import TaskPredictions
from pah.training.loop import begin
from pah.training.state import TrainState
from pah.training.transfer import measure_readiness

Moment = Literal["start", "learned"]  # before and after a task's own training


def save_network(path: Path, method: Method) -> None:
    """Write the network's weights and buffers as safetensors."""
    files.write_file(path, store.serialize_weights(method.network))


def save_model(folder: Path, config: RunConfig, stream: Stream, method: Method, matrix: metrics.Matrix) -> None:
    """Write the finished network as a learner, with its tasks and accuracies.

    It is calibrated if the run has validation images. It holds no dates, so equal runs write equal files.
    """
    names = [task.name for task in stream.tasks]
    measured = [task.test if config.training.evaluate_on == "test" else task.validation for task in stream.tasks]
    counts = [len(part) for part in measured]
    fingerprints = [
        fingerprint(Images(part.pixels[part.rows], part.labels), task.class_names)
        for task, part in zip(stream.tasks, measured, strict=True)
    ]
    record = Record(
        config=config,
        image_shape=stream.image_shape,
        normalization=stream.normalization,
        resizing=config.backbone_options.resizing,
        tasks=tuple(
            TaughtTask(task.name, task.class_names, task.labels, None, stream.origin, len(task.train))
            for task in stream.tasks
        ),
        history=tuple(
            Lesson(
                name,
                None,
                {old: value for old, value in zip(names, accuracies, strict=False) if value is not None},
                images=dict(zip(names[: len(accuracies)], counts, strict=False)),
                fingerprints=dict(zip(names[: len(accuracies)], fingerprints, strict=False)),
            )
            for name, accuracies in zip(names, matrix, strict=True)
        ),
    )
    predictor = Predictor(record, method)
    for task in stream.tasks:
        predictor = calibrate(predictor, task.index, task.validation)
    for task in stream.tasks:
        predictor = calibrate_among_all(predictor, task.index, task.validation)
    store.save(folder, predictor.record, method.network)


def save_predictions(path: Path, predictions: Sequence[TaskPredictions]) -> None:
    """Write labels and predictions as int16 (N,): `label/<k>`, `given/<k>` and `not_given/<k>` for each task k."""
    tensors: dict[str, Tensor] = {}
    for k, task in enumerate(predictions):
        tensors[f"label/{k}"] = task.labels.to(torch.int16)
        tensors[f"given/{k}"] = task.task_given.to(torch.int16)
        tensors[f"not_given/{k}"] = task.task_not_given.to(torch.int16)
    files.write_file(path, safetensors.torch.save(tensors))


def read_predictions(path: Path) -> list[TaskPredictions]:
    """Return what `save_predictions` wrote; raise InputError if it cannot be read."""
    try:
        tensors = {name: tensor.long() for name, tensor in safetensors.torch.load(path.read_bytes()).items()}
        tasks = range(len(tensors) // 3)
        return [TaskPredictions(tensors[f"label/{k}"], tensors[f"given/{k}"], tensors[f"not_given/{k}"]) for k in tasks]
    except (OSError, SafetensorError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: expected a run's predictions, got: {reason}") from None


@dataclass(frozen=True)
class TaskPrototypes:
    """A task's prototypes before and after its training, (C, channels, s, s) in normalized pixel units.

    Attributes:
        normalization: Mean and standard deviation of the pixels.
        start: The initial prototypes; None if they were not recorded.
        learned: The prototypes after the task's training; None if they were not recorded.
        images: The images from which semantic prototypes start, uint8 (C, channels, H, W); None without them.
    """

    normalization: Normalization
    start: Tensor | None
    learned: Tensor | None
    images: Tensor | None


def save_prototypes(path: Path, method: Method, normalization: Normalization, moment: Moment) -> None:
    """Write the current task's prototypes before (`start`) or after (`learned`) its training.

    The second call adds to the file of the first. A method without prototypes writes no file, and prototypes that are
    vectors have no pictures.
    """
    if not isinstance(method, PAH) or method.network.backbone.takes_vectors:
        return
    tensors = safetensors.torch.load(path.read_bytes()) if moment == "learned" and path.is_file() else {}
    tensors |= {"mean": torch.tensor(normalization.mean), "std": torch.tensor(normalization.std)}
    tensors[moment] = method.heads.prototypes.tasks[method.task].detach().contiguous()
    if method.prototype_source_images is not None:
        tensors["images"] = method.prototype_source_images.contiguous()
    files.write_file(path, safetensors.torch.save(tensors))


def read_prototypes(path: Path) -> TaskPrototypes:
    """Return what `save_prototypes` wrote; raise InputError if it cannot be read."""
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
    """Return the content of `metrics.json`.

    Args:
        config: The run's configuration.
        stream: The tasks.
        method: The trained method.
        state: The state at the end of training.
        revision: The commit of the source code, if known.
    """
    parameters = method.network.count_parameters()
    validated = {"epochs_trained": state.epochs_trained, "best_epochs": state.best_epochs}
    return {
        "benchmark": config.benchmark,
        "method": config.method,
        "seed": config.seed,
        "evaluated_on": config.training.evaluate_on,
        "class_order": stream.class_order,
        "classes_left_out": stream.classes_left_out,
        "task_names": [task.name for task in stream.tasks],
        "accuracy_matrix": state.matrix,
        **metrics.summary(state.matrix),
        "class_incremental_accuracy": state.class_incremental[-1],
        "class_incremental_curve": state.class_incremental,
        "average_class_incremental_accuracy": metrics.mean_or_none(state.class_incremental),
        **(_forward_transfer(config, stream, method, state) if config.training.measure_transfer else {}),
        "parameters": parameters
        | {"total": parameters["backbone"] + parameters["hypernetwork"] + sum(parameters["per_task"])},
        "stored_samples": method.stored_samples,
        "seconds": round(state.seconds, 3),
        "images_per_second": round(state.images / state.train_seconds, 1),
        "peak_memory_mb": None if (peak := peak_memory_mb()) is None else round(peak, 1),
        "device": device_name(method.device),
        "processes": distributed.world_size(),
        "versions": versions(),
        "commit": revision,
        **(validated if config.training.validates else {}),
    }


def _forward_transfer(config: RunConfig, stream: Stream, method: Method, state: TrainState) -> dict[str, Any]:
    """Return the part of `metrics.json` on forward transfer; it measures an untrained network."""
    untrained = build_method(config, stream.image_shape).to(method.device)
    measured = []
    for task in stream.tasks:
        untrained.release()
        begin(untrained, task, config.seed)
        measured.append(measure_readiness(untrained, task, config.training))
    heads, features = zip(*measured, strict=True)
    return {
        "forward_transfer": metrics.forward_transfer(state.head_before, heads),
        "feature_forward_transfer": metrics.forward_transfer(state.features_before, features),
        "accuracy_before_learning": state.head_before,
        "accuracy_untrained": list(heads),
        "feature_accuracy_before_learning": state.features_before,
        "feature_accuracy_untrained": list(features),
    }


def versions() -> dict[str, str]:
    """Return the versions of the packages that a result depends on, and the number of threads.

    The number of threads decides the order in which numbers are added.
    """
    packages = ("pah", "torch", "numpy", "datasets", "pillow", "scikit-learn")
    package_versions = {"python": platform.python_version(), **{name: version(name) for name in packages}}
    return package_versions | {"threads": str(torch.get_num_threads())}


@cache
def commit() -> str | None:
    """Return the commit of the source code, with "+changes" if files differ from it; None outside a git checkout.

    It is looked up once, because the source files may change later, but not what this process has loaded of them.
    """
    source_folder = Path(__file__).parents[1]  # of the package pah

    def git(*arguments: str) -> str:
        process = subprocess.run(
            ["git", "-C", str(source_folder), *arguments], capture_output=True, text=True, check=True
        )
        return process.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", str(source_folder))
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def peak_memory_mb() -> float | None:
    """Return the peak memory of this process, in MB (2^20 bytes); None on Windows, where Python cannot tell."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
