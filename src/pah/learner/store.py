"""A learner folder: `model.safetensors`, a network's weights, and `learner.json`, which says what they are.

Nothing in it is code, and nothing is trusted: both files carry checksums. A run's `model/` is such a folder.
"""

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, nn

from pah.core.config import InputError, require_types
from pah.core.files import read_json, write_file, write_json
from pah.data.task import Normalization
from pah.training.config import GROUPS, RunConfig

WEIGHTS, LEARNER = "model.safetensors", "learner.json"
FORMAT = 3  # of learner.json and the weights
FIRST = 1  # had no options of training, no history and no checksum of its own
ESTIMATES = 3  # the first with class statistics; drift was the movement of prototypes' answers before it
NEXT = f".{WEIGHTS}.next"  # weights that are written whole, before learner.json says that they are the learner's
STATISTICS = "statistics."  # what the names of tensors that are no weights of the network begin with
OPTIONS = ("method", "backbone", "seed", *GROUPS)  # of a configuration, as far as a learner has them


@dataclass(frozen=True)
class TaughtTask:
    """What a learner keeps of a task beside its head.

    Args:
        name: By which it is asked.
        classes: Their names, C of them; position = label within the task.
        labels: The classes' labels in the data set.
        taught: When, ISO 8601 in UTC; None where it is not known.
        data: Where its images came from.
        images: How many it was learned from.
        temperature: By which its logits are divided, so that probabilities are calibrated.
        quantiles: Of its validation images' scores, by kind of score (`pah.learner.task_inference`), by which a task is
            found and "none of these" is told; empty without validation images. Those among all tasks are of the tasks
            known then.
    """

    name: str
    classes: tuple[str, ...]
    labels: tuple[int, ...]
    taught: str | None = None
    data: str | None = None
    images: int | None = None
    temperature: float = 1.0
    quantiles: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Lesson:
    """What a lesson did.

    Args:
        name: Of the task that was taught.
        taught: When, ISO 8601 in UTC; None where it is not known.
        accuracies: Of each task measured after the lesson, in percent: the new one on its test part, others on what
            the owner held out.
        drift: Of each task known before: the share of its images, 0 to 1, that are estimated to be answered worse than
            before (`pah.models.class_statistics.estimated_losses`); tasks of which no statistics are kept are left out.
        seconds: That it took.
        notes: What had to be changed of the images.
    """

    name: str
    taught: str | None
    accuracies: Mapping[str, float]
    drift: Mapping[str, float] = field(default_factory=dict)
    seconds: float | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Record:
    """What `learner.json` holds."""

    config: RunConfig
    image_shape: tuple[int, int, int]
    normalization: Normalization
    tasks: tuple[TaughtTask, ...] = ()
    history: tuple[Lesson, ...] = ()

    @property
    def class_order(self) -> list[int]:
        """The data sets' labels in the order in which the classes were learned."""
        return [label for task in self.tasks for label in task.labels]


def save(folder: Path, record: Record, network: nn.Module, statistics: Mapping[str, Tensor] | None = None) -> None:
    """Replace the learner in `folder`: at any moment, even a power cut, it holds all of the old or all of the new.

    `statistics` are the tensors of what is known of each class's features, if anything is.

    Raises:
        InputError: the disk is full, or the folder cannot be written; the old learner is untouched.
    """
    weights = weights_of(network, {STATISTICS + name: tensor for name, tensor in (statistics or {}).items()})
    config = record.config.as_dict()
    content = {
        "format": FORMAT,
        "sha256": hashlib.sha256(weights).hexdigest(),
        **{key: config[key] for key in OPTIONS},
        "image_shape": record.image_shape,
        "normalization": asdict(record.normalization),
        "class_order": record.class_order,
        "tasks": [vars(task) for task in record.tasks],
        "history": [vars(lesson) for lesson in record.history],
    }
    _finish(folder)
    try:
        write_file(folder / NEXT, weights)
        write_json(folder / LEARNER, content | {"checksum": _checksum(content)})  # from here on the new one counts
    finally:
        _finish(folder)
        (folder / NEXT).unlink(missing_ok=True)


def _finish(folder: Path) -> None:
    """Finish a save that was cut off in its last moment: the weights that `learner.json` speaks of get their name."""
    try:
        wanted = json.loads((folder / LEARNER).read_bytes())["sha256"]
        if hashlib.sha256((folder / NEXT).read_bytes()).hexdigest() == wanted:
            os.replace(folder / NEXT, folder / WEIGHTS)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # nothing there to finish
        return


def weights_of(network: nn.Module, more: Mapping[str, Tensor] | None = None) -> bytes:
    """A network's weights and buffers, and more tensors, as safetensors."""
    tensors = {**network.state_dict(), **(more or {})}
    return safetensors.torch.save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})


def state_of(folder: Path) -> str | None:
    """What tells the learner in `folder` from any other, before or after; None if it holds none."""
    path = folder / LEARNER
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def load(folder: Path) -> tuple[Record, dict[str, Tensor]]:
    """The record and the weights of the learner in `folder`.

    Raises:
        InputError: there is none, it is of a newer format, or its checksums do not fit.
    """
    path = folder / LEARNER
    if not path.is_file():
        raise InputError(f"{folder}: expected a learner folder, which holds {LEARNER}, found none")
    content = read_json(path)
    version = content.get("format") if isinstance(content, dict) else None
    if not isinstance(version, int):
        raise InputError(f"{path}: expected a learner, got JSON of something else")
    if version > FORMAT:
        raise InputError(f"{path}: expected format {FORMAT} or older, got {version}: a newer pah wrote it; update pah")
    if version > FIRST and content.pop("checksum", None) != _checksum(content):
        raise InputError(f"{path}: expected a learner that fits its checksum, got one that was changed or damaged")
    try:
        json.dumps(content, ensure_ascii=False).encode()  # half a character can be read, and not be printed
        record = _record(content)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{path}: expected a learner of format {version}, got one that lacks or has too much: {error}"
        ) from None
    return record, _weights(folder, content["sha256"])


def _weights(folder: Path, sha256: str) -> dict[str, Tensor]:
    """The weights with that checksum: a save that was cut off in its last moment left them under another name."""
    for name in (WEIGHTS, NEXT):
        try:
            data = (folder / name).read_bytes()
            if hashlib.sha256(data).hexdigest() == sha256:
                return dict(safetensors.torch.load(data))
        except FileNotFoundError:
            continue
        except (OSError, SafetensorError) as error:
            raise InputError(f"{folder / name}: expected weights, got: {error}") from None
    raise InputError(f"{folder / WEIGHTS}: expected weights that fit the checksum in {LEARNER}, got none that do")


def _record(content: Mapping[str, Any]) -> Record:
    tasks, labels = [], list(content["class_order"])
    for written in content["tasks"]:
        task = _tuples(written)
        task.setdefault("labels", tuple(labels[: len(task["classes"])]))  # format 1 has them in the class order alone
        task.setdefault("data", content.get("data"))
        labels = labels[len(task["classes"]) :]
        tasks.append(TaughtTask(**task))
    image_shape = _tuples(content["image_shape"])
    statistics = _tuples(content["normalization"])
    config = RunConfig.from_dict({key: content[key] for key in OPTIONS if key in content})
    record = Record(
        config=config,
        image_shape=image_shape,
        normalization=Normalization(statistics["mean"], statistics["std"]),
        tasks=tuple(tasks),
        history=tuple(_lesson(_tuples(lesson), content["format"]) for lesson in content.get("history", ())),
    )
    _require_sound(record)
    return dataclasses.replace(record, config=dataclasses.replace(config, benchmark="split", image_size=image_shape[1]))


def _lesson(written: dict[str, Any], version: int) -> Lesson:
    """A lesson as it was written; without its drift where that was another quantity."""
    return Lesson(**(written if version >= ESTIMATES else written | {"drift": {}}))


def _require_sound(record: Record) -> None:
    """Raise TypeError or ValueError for what no learner can have."""
    for part in (record, record.config, record.normalization, *record.tasks, *record.history):
        require_types(part)
    channels, height, width = record.image_shape
    if channels not in (1, 3) or min(height, width) < 1:
        raise ValueError(f"image_shape: expected 1 or 3 channels, height and width, got {record.image_shape}")
    numbers = [*record.normalization.mean, *record.normalization.std, *(task.temperature for task in record.tasks)]
    if not all(map(math.isfinite, numbers)) or min(record.normalization.std) <= 0:
        raise ValueError("normalization and temperatures: expected finite numbers, those divided by above 0")
    if {len(record.normalization.mean), len(record.normalization.std)} != {channels}:
        raise ValueError(f"normalization: expected {channels} channels")
    names = [task.name for task in record.tasks]
    if not names or len(set(names)) < len(names):
        raise ValueError("tasks: expected at least one, each name once")
    for task in record.tasks:
        if len(task.classes) < 2 or len(task.labels) != len(task.classes) or task.temperature <= 0:
            raise ValueError(
                f"task {task.name!r}: expected at least 2 classes, a label each, and a temperature above 0"
            )


def _tuples(value: Any) -> Any:
    """JSON's lists as tuples, however deep."""
    if isinstance(value, dict):
        return {key: _tuples(part) for key, part in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _checksum(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
