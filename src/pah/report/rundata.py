"""A run folder as a report needs it: what is there is read and checked, what is not there is named."""

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
from pah.learner.store import LEARNER, WEIGHTS
from pah.runs.folder import CHECKPOINT, CONFIG, DIAGNOSIS, LOG, METRICS, MODEL, PREDICTIONS, PROTOTYPES
from pah.runs.results import TaskPrototypes, read_predictions, read_prototypes
from pah.training import checkpoint, metrics
from pah.training.evaluation import Answers
from pah.training.state import TrainState

NEEDED = {"benchmark", "method", "seed", "evaluated_on", "accuracy_matrix", "class_incremental_accuracy", "seconds"}
DIAGNOSED = ("then", "now", "refitted_then", "refitted_now", "lost", "feature_drift", "head_drift")
IN_MODEL, IN_CHECKPOINT = "heads.prototypes.tasks.", "method/network.heads.prototypes.tasks."


class Epoch(NamedTuple):
    """A line of the log."""

    task: int
    epoch: int
    terms: Mapping[str, float]
    seconds: float
    images_per_second: float
    peak_memory_mb: float | None  # an older run's log has none


@dataclass(frozen=True)
class Run:
    """What a run folder tells; T tasks are learned so far.

    Args:
        folder: Where it lies.
        config: As `config.yaml` has it, perhaps of an older pah.
        finished: Whether the run came to its end.
        metrics: As `metrics.json` has them; of a run that is not finished, what is known so far.
        tasks: How many the run has in all; None where only its end would tell.
        names: Of the classes of each task learned; of older results, their labels; None where nothing tells them.
        log: A line an epoch; empty where there is none.
        answers: To the test images of each task; None where they were not kept.
        diagnosis: What `pah diagnose` found; None where it was not asked.
        prototypes: What was recorded of each task's; None for a task of which nothing was.
        prototypes_now: (C, channels, s, s) of each task; empty of a method without prototypes.
    """

    folder: Path
    config: Mapping[str, Any]
    finished: bool
    metrics: Mapping[str, Any]
    tasks: int | None
    names: Sequence[Sequence[str]] | None
    log: Sequence[Epoch]
    answers: Sequence[Answers] | None
    diagnosis: Mapping[str, Any] | None
    prototypes: Sequence[TaskPrototypes | None]
    prototypes_now: Sequence[Tensor]

    @property
    def matrix(self) -> list[list[float]]:
        """T rows, row i with i + 1 accuracies in percent."""
        found: list[list[float]] = self.metrics["accuracy_matrix"]
        return found

    @property
    def method(self) -> str:
        """The method's name."""
        return str(self.metrics["method"])

    @property
    def missing(self) -> list[str]:
        """What the folder lacks, and what therefore cannot be shown."""
        has_prototypes = self.method == "pah"
        lacking = {
            f"{LOG}: loss terms, seconds, speed and memory of each task": not self.log,
            f"{PREDICTIONS}: accuracies of classes and confusions": self.answers is None,
            f"{MODEL}/{LEARNER}: the names of the classes": not (self.folder / MODEL / LEARNER).is_file(),
            f"{MODEL}/{WEIGHTS}: the prototypes as they are now": has_prototypes and not self.prototypes_now,
            f"{PROTOTYPES}/: what prototypes started from and were after their own task": has_prototypes
            and not any(self.prototypes),
            f"{DIAGNOSIS}: where forgetting comes from (a run with --snapshots true, then pah diagnose)": len(
                self.matrix
            )
            > 1
            and self.diagnosis is None,
        }
        return [what for what, lacks in lacking.items() if lacks]


def read_run(folder: Path) -> Run:
    """All that a run folder tells.

    Raises:
        InputError: it is no run folder, no task is learned yet, or a file in it is damaged.
    """
    if not (folder / CONFIG).is_file():
        raise InputError(f"{folder}: expected a run folder, which holds {CONFIG}, found none")
    config = files.read_yaml(folder / CONFIG)
    finished = (folder / METRICS).is_file()
    known = read_metrics(folder) if finished else _so_far(folder, config)
    learned = len(known["accuracy_matrix"])
    recorded = [folder / PROTOTYPES / f"{k}.safetensors" for k in range(learned)]
    return Run(
        folder=folder,
        config=config,
        finished=finished,
        metrics=known,
        tasks=learned if finished else _planned(config),
        names=_class_names(folder, known),
        log=_log(folder / LOG),
        answers=read_predictions(folder / PREDICTIONS) if (folder / PREDICTIONS).is_file() else None,
        diagnosis=_diagnosis(folder / DIAGNOSIS) if (folder / DIAGNOSIS).is_file() else None,
        prototypes=[read_prototypes(path) if path.is_file() else None for path in recorded],
        prototypes_now=_prototypes_now(folder, finished)[:learned],
    )


def read_metrics(folder: Path) -> dict[str, Any]:
    """A finished run's `metrics.json`; InputError if it lacks what every run's has."""
    path = folder / METRICS
    found = files.read_json(path)
    if not isinstance(found, dict) or not found.keys() >= NEEDED:
        absent = sorted(NEEDED - found.keys()) if isinstance(found, dict) else sorted(NEEDED)
        raise InputError(f"{path}: expected a run's metrics, got none of {', '.join(absent)}")
    try:
        matrix = [[float(accuracy) for accuracy in row] for row in found["accuracy_matrix"]]
    except (TypeError, ValueError):
        matrix = []
    if not matrix or any(len(row) != i or not all(map(math.isfinite, row)) for i, row in enumerate(matrix, 1)):
        raise InputError(f"{path}: expected an accuracy matrix whose row i has i numbers, got another")
    return found | {"accuracy_matrix": matrix} | metrics.summary(matrix)


def _so_far(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """What `metrics.json` will hold, as far as the checkpoint of an unfinished run knows it."""
    if not (folder / CHECKPOINT / checkpoint.FILE).is_file():
        raise InputError(f"{folder}: expected a run that has learned a task, got one that has only begun")
    facts = checkpoint.load(folder / CHECKPOINT)[1]
    try:
        state = TrainState(**facts["state"])
        known = {
            "benchmark": config["benchmark"],
            "method": config["method"]["name"],
            "seed": config["seed"],
            "evaluated_on": config["training"]["evaluate_on"],
        }
    except (KeyError, TypeError) as error:
        raise InputError(f"{folder}: expected a checkpoint and options of this pah, got: {error}") from None
    if not state.matrix:
        where = f"in task {state.task + 1} (epochs done: {state.epoch}, steps of the next: {state.step})"
        raise InputError(f"{folder}: expected a run that has learned a task, got one that is still {where}")
    return known | {
        "accuracy_matrix": state.matrix,
        **metrics.summary(state.matrix),
        "class_incremental_accuracy": state.class_incremental[-1],
        "seconds": state.seconds,
    }


def _planned(config: Mapping[str, Any]) -> int | None:
    """How many tasks the run is to learn, if its configuration tells."""
    stream, bench = config["stream"], BENCHMARKS.get(config["benchmark"])
    planned: int | None = stream.get("first") or stream.get("tasks")
    return planned or (bench.tasks if bench else None)


def _class_names(folder: Path, known: Mapping[str, Any]) -> list[list[str]] | None:
    """By task; the model's, else the labels in the data set, where the metrics tell them."""
    path, learned = folder / MODEL / LEARNER, len(known["accuracy_matrix"])
    if path.is_file():
        try:
            return [[str(name) for name in task["classes"]] for task in files.read_json(path)["tasks"]]
        except (KeyError, TypeError):
            raise InputError(f"{path}: expected a learner, got JSON of something else") from None
    if "class_order" not in known:
        return None
    labels = iter(known["class_order"])
    count = len(known["class_order"])
    sizes = [count // learned + (k < count % learned) for k in range(learned)]  # as the stream was cut
    return [[f"class {label}" for label in islice(labels, size)] for size in sizes]


def _log(path: Path) -> list[Epoch]:
    """The log's whole lines: the last may have been cut while it was written."""
    found: list[Epoch] = []
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            entry = json.loads(line)
            found.append(Epoch(**{"peak_memory_mb": None} | {key: entry[key] for key in Epoch._fields if key in entry}))
        except (ValueError, KeyError, TypeError):
            break
    return found


def _diagnosis(path: Path) -> dict[str, Any]:
    found = files.read_json(path)
    try:
        lacking = [key for key in DIAGNOSED for of in (*found["tasks"], found["mean"]) if key not in of]
        lacking += [key for key in ("task", "similarity") for of in found["tasks"] if key not in of]
    except (KeyError, TypeError):
        lacking = ["tasks", "mean"]
    if lacking:
        raise InputError(f"{path}: expected what pah diagnose writes, got JSON without {lacking[0]}")
    return dict(found)


def _prototypes_now(folder: Path, finished: bool) -> list[Tensor]:
    """The prototypes in the model or, of an unfinished run, in the checkpoint."""
    path, prefix = (
        (folder / MODEL / WEIGHTS, IN_MODEL) if finished else (folder / CHECKPOINT / checkpoint.FILE, IN_CHECKPOINT)
    )
    if not path.is_file():
        return []
    try:
        with safe_open(str(path), framework="pt") as file:
            count = sum(name.startswith(prefix) for name in file.keys())  # noqa: SIM118 - no mapping
            return [file.get_tensor(f"{prefix}{k}") for k in range(count)]
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: expected weights, got: {' '.join(str(error).split())}") from None
