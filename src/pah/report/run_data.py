"""Read a run folder for a report: check the files that exist, and list those that are missing."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from torch import Tensor

from pah.core import files
from pah.core.config import InputError
from pah.data.benchmarks import BENCHMARKS
from pah.learner.store import LEARNER_FILE, WEIGHTS_FILE
from pah.runs.folder import CHECKPOINT, CONFIG, DIAGNOSIS, LOG, METRICS, MODEL, PREDICTIONS, PROTOTYPES
from pah.runs.results import TaskPrototypes, read_predictions, read_prototypes
from pah.training import checkpoint, metrics
from pah.training.evaluation import TaskPredictions
from pah.training.state import TrainState

REQUIRED_KEYS = {
    "benchmark",
    "method",
    "seed",
    "evaluated_on",
    "accuracy_matrix",
    "class_incremental_accuracy",
    "seconds",
}
DIAGNOSED = ("then", "now", "refitted_then", "refitted_now", "lost", "feature_drift", "head_drift")
MODEL_PREFIX = "heads.prototypes.tasks."  # of the prototypes among the tensors of a model
CHECKPOINT_PREFIX = "method/network.heads.prototypes.tasks."


class Epoch(NamedTuple):
    """One epoch: a line of the log."""

    task: int
    epoch: int
    terms: Mapping[str, float]
    seconds: float
    images_per_second: float
    peak_memory_mb: float | None  # None in logs of older versions


@dataclass(frozen=True)
class Run:
    """The content of a run folder; T tasks are learned so far.

    Args:
        folder: The run folder.
        config: Content of `config.yaml`, possibly written by an older version of pah.
        finished: Whether the run is finished.
        metrics: Content of `metrics.json`; of an unfinished run, the part that is known so far.
        tasks: Number of tasks of the whole run; None if it is unknown before the end.
        names: Class names of each task learned; of older results, the labels; None if neither is known.
        log: One entry per epoch; empty if there is no log.
        answers: Predictions for the test images of each task; None if they were not stored.
        diagnosis: Result of `pah diagnose`; None if it was not run.
        prototypes: Recorded prototypes of each task; None for a task without a record.
        prototypes_now: (C, channels, s, s) of each task; empty for a method without prototypes.
    """

    folder: Path
    config: Mapping[str, Any]
    finished: bool
    metrics: Mapping[str, Any]
    tasks: int | None
    names: Sequence[Sequence[str]] | None
    log: Sequence[Epoch]
    answers: Sequence[TaskPredictions] | None
    diagnosis: Mapping[str, Any] | None
    prototypes: Sequence[TaskPrototypes | None]
    prototypes_now: Sequence[Tensor]

    @property
    def matrix(self) -> list[list[float]]:
        """Return T rows; row i has i + 1 accuracies in percent, nan for a task without test images."""
        return [[math.nan if value is None else value for value in row] for row in self.metrics["accuracy_matrix"]]

    @property
    def method(self) -> str:
        """Return the method's name."""
        return str(self.metrics["method"])

    @property
    def missing(self) -> list[str]:
        """Return the missing files, each with what the report therefore cannot show."""
        has_prototypes = self.method == "pah"
        several_tasks = len(self.matrix) > 1
        checks = {
            f"{LOG}: loss terms, seconds, speed and memory of each task": not self.log,
            f"{PREDICTIONS}: accuracies of classes and confusions": self.answers is None,
            f"{MODEL}/{LEARNER_FILE}: the names of the classes": not (self.folder / MODEL / LEARNER_FILE).is_file(),
            f"{MODEL}/{WEIGHTS_FILE}: the present prototypes": has_prototypes and not self.prototypes_now,
            f"{PROTOTYPES}/: prototypes at their start and after their own task": has_prototypes
            and not any(self.prototypes),
            f"{DIAGNOSIS}: where forgetting comes from (a run with --snapshots true, then pah diagnose)": several_tasks
            and self.diagnosis is None,
        }
        return [description for description, is_missing in checks.items() if is_missing]


def read_run(folder: Path) -> Run:
    """Read a run folder.

    Raises:
        InputError: the folder is no run folder, no task is learned yet, or a file is damaged.
    """
    if not (folder / CONFIG).is_file():
        raise InputError(f"{folder}: expected a run folder, which holds {CONFIG}, found none")
    config = files.read_yaml(folder / CONFIG)
    finished = (folder / METRICS).is_file()
    run_metrics = read_metrics(folder) if finished else _metrics_so_far(folder, config)
    learned = len(run_metrics["accuracy_matrix"])
    recorded = [folder / PROTOTYPES / f"{k}.safetensors" for k in range(learned)]
    return Run(
        folder=folder,
        config=config,
        finished=finished,
        metrics=run_metrics,
        tasks=learned if finished else _planned_tasks(config),
        names=_class_names(folder, run_metrics, config),
        log=_read_log(folder / LOG),
        answers=read_predictions(folder / PREDICTIONS) if (folder / PREDICTIONS).is_file() else None,
        diagnosis=_read_diagnosis(folder / DIAGNOSIS) if (folder / DIAGNOSIS).is_file() else None,
        prototypes=[read_prototypes(path) if path.is_file() else None for path in recorded],
        prototypes_now=_read_present_prototypes(folder, finished)[:learned],
    )


def read_metrics(folder: Path) -> dict[str, Any]:
    """Return a finished run's `metrics.json`; InputError if a required key is missing or the matrix is invalid."""
    path = folder / METRICS
    content = files.read_json(path)
    if not isinstance(content, dict) or not content.keys() >= REQUIRED_KEYS:
        absent = sorted(REQUIRED_KEYS - content.keys()) if isinstance(content, dict) else sorted(REQUIRED_KEYS)
        raise InputError(f"{path}: expected a run's metrics, got none of {', '.join(absent)}")
    try:
        matrix = [[None if value is None else float(value) for value in row] for row in content["accuracy_matrix"]]
    except (TypeError, ValueError):
        matrix = []
    known = [value for row in matrix for value in row if value is not None]
    if not known or any(len(row) != i for i, row in enumerate(matrix, 1)) or not all(map(math.isfinite, known)):
        raise InputError(f"{path}: expected an accuracy matrix whose row i has i numbers, got another")
    curve = content.get("class_incremental_curve", matrix)  # runs of older versions have none
    if not isinstance(curve, list) or len(curve) != len(matrix):
        raise InputError(f"{path}: expected a class-incremental curve of {len(matrix)} numbers, got {curve!r:.80}")
    return content | {"accuracy_matrix": matrix} | metrics.summary(matrix)


def _metrics_so_far(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of `metrics.json` that the checkpoint of an unfinished run holds."""
    if not (folder / CHECKPOINT / checkpoint.FILE).is_file():
        raise InputError(f"{folder}: expected a run that has learned a task, got one that has only begun")
    saved = checkpoint.load(folder / CHECKPOINT)[1]
    try:
        state = TrainState(**saved["state"])
        facts_of_config = {
            "benchmark": config["benchmark"],
            "method": config["method"]["name"],
            "seed": config["seed"],
            "evaluated_on": config["training"]["evaluate_on"],
        }
    except (KeyError, TypeError) as error:
        raise InputError(f"{folder}: expected a checkpoint and options of this pah, got: {error}") from None
    if not state.matrix:
        position = f"in task {state.task + 1} (epochs done: {state.epoch}, steps of the next: {state.step})"
        raise InputError(f"{folder}: expected a run that has learned a task, got one that is still {position}")
    if all(accuracy is None for accuracy in state.matrix[-1]):
        raise InputError(f"{folder}: expected a run that has learned a task with test images, got none yet")
    return facts_of_config | {
        "accuracy_matrix": state.matrix,
        **metrics.summary(state.matrix),
        "class_incremental_accuracy": state.class_incremental[-1],
        "class_incremental_curve": state.class_incremental,
        "average_class_incremental_accuracy": metrics.mean_or_none(state.class_incremental),
        "seconds": state.seconds,
    }


def _planned_tasks(config: Mapping[str, Any]) -> int | None:
    """Return the number of tasks of the run, if its configuration determines it."""
    stream, bench = config["stream"], BENCHMARKS.get(config["benchmark"])
    planned: int | None = stream.get("first") or stream.get("tasks") or len(stream.get("sizes") or ())
    return planned or (bench.tasks if bench else None)


def _class_names(folder: Path, run_metrics: Mapping[str, Any], config: Mapping[str, Any]) -> list[list[str]] | None:
    """Return the class names of each task from the model, or else the labels in the data set from the metrics."""
    path, learned = folder / MODEL / LEARNER_FILE, len(run_metrics["accuracy_matrix"])
    if path.is_file():
        try:
            names = [[str(name) for name in task["classes"]] for task in files.read_json(path)["tasks"]]
        except (KeyError, TypeError):
            raise InputError(f"{path}: expected a learner, got JSON of something else") from None
        if len(names) >= learned:  # otherwise the run goes on to more tasks than this model has
            return names
    if "class_order" not in run_metrics:
        return None
    labels = iter(run_metrics["class_order"])
    count = len(run_metrics["class_order"])
    equal = [count // learned + (k < count % learned) for k in range(learned)]  # as the stream divides the classes
    sizes = config.get("stream", {}).get("sizes") or equal
    return [[f"class {label}" for label in islice(labels, size)] for size in sizes[:learned]]


def _read_log(path: Path) -> list[Epoch]:
    """Return the complete lines of the log; the last line may be incomplete after an interruption."""
    epochs: list[Epoch] = []
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            entry = json.loads(line)
            known = {key: entry[key] for key in Epoch._fields if key in entry}
            epochs.append(Epoch(**{"peak_memory_mb": None} | known))
        except (ValueError, KeyError, TypeError):
            break
    return epochs


def _read_diagnosis(path: Path) -> dict[str, Any]:
    """Return the result of `pah diagnose`; InputError if a key is missing."""
    content = files.read_json(path)
    try:
        missing = [key for key in DIAGNOSED for part in (*content["tasks"], content["mean"]) if key not in part]
        missing += [key for key in ("task", "similarity") for task in content["tasks"] if key not in task]
    except (KeyError, TypeError):
        missing = ["tasks", "mean"]
    if missing:
        raise InputError(f"{path}: expected what pah diagnose writes, got JSON without {missing[0]}")
    return dict(content)


def _read_present_prototypes(folder: Path, finished: bool) -> list[Tensor]:
    """Return each task's prototypes from the model or, of an unfinished run, from the checkpoint."""
    path, prefix = folder / CHECKPOINT / checkpoint.FILE, CHECKPOINT_PREFIX
    if finished:
        path, prefix = folder / MODEL / WEIGHTS_FILE, MODEL_PREFIX
    if not path.is_file():
        return []
    try:
        with safe_open(str(path), framework="pt") as file:
            count = sum(name.startswith(prefix) for name in file.keys())  # noqa: SIM118 - no mapping
            return [file.get_tensor(f"{prefix}{k}") for k in range(count)]
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: expected weights, got: {' '.join(str(error).split())}") from None
