"""A learner folder: `model.safetensors` with a network's weights, and `learner.json`, which describes them.

The files contain no code, and both carry checksums. The folder `model/` of a run is a learner folder, too.
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
from pah.data.image import MAX_MEGAPIXELS, AnyImages, Pixels, to_pixel_array
from pah.data.preprocessing import DEFAULT_RESIZING, Resizing
from pah.data.task import Normalization
from pah.data.vectors import MAX_NUMBERS
from pah.learner.privacy import public_old_note, public_origin
from pah.training.config import OPTION_GROUPS, RunConfig

WEIGHTS_FILE, LEARNER_FILE = "model.safetensors", "learner.json"
FORMAT = 4  # version of both files; format 4 says on which images an accuracy was measured
FORMAT_WITHOUT_CHECKSUM = 1  # it had no training options, no history and no checksum of learner.json either
FORMAT_WITH_STATISTICS = 3  # earlier formats have no class statistics, and their drift is another quantity
FORMAT_WITHOUT_PATHS = 4  # notes of earlier formats may name files by absolute paths
NEXT_WEIGHTS = f".{WEIGHTS_FILE}.next"  # complete new weights, until learner.json refers to them
STATISTICS_PREFIX = "statistics."  # of the names of tensors that are class statistics and not weights
OPTION_KEYS = ("method", "backbone", "seed", *OPTION_GROUPS)  # the keys of a configuration that a learner stores


@dataclass(frozen=True)
class TaughtTask:
    """A learner's record of one task.

    Args:
        name: Name of the task.
        classes: Names of its C classes; the position is the label within the task.
        labels: Labels of the classes in the data set.
        taught: Time of the lesson, ISO 8601 in UTC; None if unknown.
        data: Source of the images: a hub id, a relative path as it was given, or the last part of another path. An
            absolute path is never kept.
        images: Number of training images.
        temperature: Divisor of the task's logits that calibrates probabilities.
        quantiles: Quantiles of the scores of its validation images, by kind of score (`pah.learner.task_inference`).
            They serve to infer the task and to predict "none of these". Empty without validation images. The quantiles
            among all tasks refer to the tasks known at the time of the lesson.
    """

    name: str
    classes: tuple[str, ...]
    labels: tuple[int, ...]
    taught: str | None = None
    data: str | None = None
    images: int | None = None
    temperature: float = 1.0
    quantiles: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.data, str):
            object.__setattr__(self, "data", public_origin(self.data))


@dataclass(frozen=True)
class Lesson:
    """The results of a lesson.

    Args:
        name: Name of the task.
        taught: Time of the lesson, ISO 8601 in UTC; None if unknown.
        accuracies: Accuracy on each task measured after the lesson, in percent, by task name: the new task on its test
            images, old tasks on the images that the caller held out.
        drift: For each old task with class statistics, by name, the estimated share of its images that are classified
            worse than before, 0 to 1 (`pah.models.class_statistics.estimate_accuracy_drops`).
        seconds: Duration.
        notes: Changes that were made to the images, and what the lesson could not do.
        before: Accuracy on each held-out task before the lesson, in percent, on the same images as in `accuracies`.
        images: Number of images of each accuracy, by task name.
        fingerprints: Fingerprint of these images and their classes, by task name (`pah.learner.measurements`). Two
            accuracies may be compared if their fingerprints are equal. Older formats have none.
    """

    name: str
    taught: str | None
    accuracies: Mapping[str, float]
    drift: Mapping[str, float] = field(default_factory=dict)
    seconds: float | None = None
    notes: tuple[str, ...] = ()
    before: Mapping[str, float] = field(default_factory=dict)
    images: Mapping[str, int] = field(default_factory=dict)
    fingerprints: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Record:
    """The content of `learner.json`."""

    config: RunConfig
    image_shape: tuple[int, int, int]  # channels, height, width; D, 1, 1 for vectors
    normalization: Normalization
    tasks: tuple[TaughtTask, ...] = ()
    history: tuple[Lesson, ...] = ()
    resizing: Resizing = DEFAULT_RESIZING

    @property
    def numbers(self) -> int | None:
        """D, the length of the vectors that the learner takes; None for images."""
        return self.image_shape[0] if self.config.takes_vectors else None

    @property
    def inputs(self) -> str:
        """What the learner takes, in words, such as "vectors of 64 numbers"."""
        channels, height, width = self.image_shape
        return f"vectors of {channels} numbers" if self.config.takes_vectors else f"images of {width}x{height}"

    @property
    def class_order(self) -> list[int]:
        """The data sets' labels in the order in which the classes were learned."""
        return [label for task in self.tasks for label in task.labels]

    @property
    def preprocessing(self) -> dict[str, Any]:
        """What becomes of an image before the network, in terms of JSON; mean and std are those of pixels in 0..1."""
        return {"image_size": self.image_shape[1], **asdict(self.normalization), **asdict(self.resizing)}

    def decode(self, images: AnyImages, max_megapixels: int = MAX_MEGAPIXELS) -> Pixels:
        """Return images of any size as pixels (N, channels, height, width) of the learner.

        Args:
            images: As in `pah.data.image.to_pixel_array`.
            max_megapixels: A larger image is refused.

        Raises:
            InputError: an image cannot be read.
        """
        return to_pixel_array(images, self.image_shape, max_megapixels, self.resizing)


def save(folder: Path, record: Record, network: nn.Module, statistics: Mapping[str, Tensor] | None = None) -> None:
    """Replace the learner in a folder.

    At any moment, even after a power cut, the folder holds either the complete old learner or the complete new one.

    Args:
        folder: The learner folder; created if it is missing.
        record: The content of `learner.json`.
        network: The network.
        statistics: Tensors of the class statistics by name, if there are any.

    Raises:
        InputError: the disk is full, or the folder cannot be written. The old learner is unchanged.
    """
    weights = serialize_weights(network, {STATISTICS_PREFIX + name: x for name, x in (statistics or {}).items()})
    config = record.config.as_dict()
    if config["backbone"].get("weights"):
        config["backbone"]["weights"] = public_origin(config["backbone"]["weights"])
    content = {
        "format": FORMAT,
        "sha256": hashlib.sha256(weights).hexdigest(),
        **{key: config[key] for key in OPTION_KEYS},
        "image_shape": record.image_shape,
        "normalization": asdict(record.normalization),
        "preprocessing": record.preprocessing,
        "class_order": record.class_order,
        "tasks": [vars(task) for task in record.tasks],
        "history": [vars(lesson) for lesson in record.history],
    }
    _finish_interrupted_save(folder)
    try:
        write_file(folder / NEXT_WEIGHTS, weights)
        write_json(folder / LEARNER_FILE, content | {"checksum": _checksum(content)})  # now the new learner is valid
    finally:
        _finish_interrupted_save(folder)
        (folder / NEXT_WEIGHTS).unlink(missing_ok=True)


def _finish_interrupted_save(folder: Path) -> None:
    """Give new weights their final name if `learner.json` already refers to them."""
    try:
        expected = json.loads((folder / LEARNER_FILE).read_bytes())["sha256"]
        if hashlib.sha256((folder / NEXT_WEIGHTS).read_bytes()).hexdigest() == expected:
            os.replace(folder / NEXT_WEIGHTS, folder / WEIGHTS_FILE)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # no save was interrupted at this point
        return


def serialize_weights(network: nn.Module, extra: Mapping[str, Tensor] | None = None) -> bytes:
    """Return a network's weights and buffers, and extra tensors, in the safetensors format."""
    tensors = {**network.state_dict(), **(extra or {})}
    return safetensors.torch.save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})


def fingerprint(folder: Path) -> str | None:
    """Return a hash that identifies the learner in a folder and its state; None if there is no learner."""
    path = folder / LEARNER_FILE
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def load(folder: Path) -> tuple[Record, dict[str, Tensor]]:
    """Return the record and the tensors of the learner in a folder.

    Raises:
        InputError: there is no learner, its format is newer, or its checksums do not fit.
    """
    path = folder / LEARNER_FILE
    if not path.is_file():
        raise InputError(f"{folder}: expected a learner folder, which holds {LEARNER_FILE}, found none")
    content = read_json(path)
    version = content.get("format") if isinstance(content, dict) else None
    if not isinstance(version, int):
        raise InputError(f"{path}: expected a learner, got JSON of something else")
    if version > FORMAT:
        raise InputError(f"{path}: expected format {FORMAT} or older, got {version}: a newer pah wrote it; update pah")
    if version > FORMAT_WITHOUT_CHECKSUM and content.pop("checksum", None) != _checksum(content):
        raise InputError(f"{path}: expected a learner that fits its checksum, got one that was changed or damaged")
    try:
        json.dumps(content, ensure_ascii=False).encode()  # JSON may contain half a surrogate pair, which is no text
        record = _parse_record(content)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{path}: expected a learner of format {version}, got one that lacks or has too much: {error}"
        ) from None
    return record, _load_weights(folder, content["sha256"])


def _load_weights(folder: Path, sha256: str) -> dict[str, Tensor]:
    """Return the tensors with that checksum, also if an interrupted save left them under their temporary name."""
    for name in (WEIGHTS_FILE, NEXT_WEIGHTS):
        try:
            data = (folder / name).read_bytes()
            if hashlib.sha256(data).hexdigest() == sha256:
                return dict(safetensors.torch.load(data))
        except FileNotFoundError:
            continue
        except (OSError, SafetensorError) as error:
            raise InputError(f"{folder / name}: expected weights, got: {error}") from None
    raise InputError(
        f"{folder / WEIGHTS_FILE}: expected weights that fit the checksum in {LEARNER_FILE}, got none that do"
    )


def _parse_record(content: Mapping[str, Any]) -> Record:
    """Return the record that the content of `learner.json` describes."""
    tasks, labels = [], list(content["class_order"])
    for stored in content["tasks"]:
        task = _to_tuples(stored)
        task.setdefault("labels", tuple(labels[: len(task["classes"])]))  # format 1 has labels in class_order alone
        task.setdefault("data", content.get("data"))
        labels = labels[len(task["classes"]) :]
        tasks.append(TaughtTask(**task))
    image_shape = _to_tuples(content["image_shape"])
    normalization = _to_tuples(content["normalization"])
    preprocessing = content.get("preprocessing", {})  # older learners have none
    config = RunConfig.from_dict({key: content[key] for key in OPTION_KEYS if key in content})
    record = Record(
        config=config,
        image_shape=image_shape,
        normalization=Normalization(normalization["mean"], normalization["std"]),
        tasks=tuple(tasks),
        history=tuple(_parse_lesson(_to_tuples(lesson), content["format"]) for lesson in content.get("history", ())),
        resizing=Resizing(**{name: preprocessing[name] for name in asdict(DEFAULT_RESIZING) if name in preprocessing}),
    )
    _require_valid(record)
    image_size = None if config.takes_vectors else image_shape[1]
    return dataclasses.replace(record, config=dataclasses.replace(config, benchmark="split", image_size=image_size))


def _parse_lesson(stored: dict[str, Any], version: int) -> Lesson:
    """Return a stored lesson.

    Older formats lose their drift, which was another quantity, and the absolute paths in their notes.
    """
    if version < FORMAT_WITH_STATISTICS:
        stored |= {"drift": {}}
    if version < FORMAT_WITHOUT_PATHS:
        stored |= {"notes": tuple(public_old_note(note) for note in stored.get("notes", ()))}
    return Lesson(**stored)


def _require_valid(record: Record) -> None:
    """Raise TypeError or ValueError for values that no learner can have."""
    for part in (record, record.config, record.normalization, record.resizing, *record.tasks, *record.history):
        require_types(part)
    channels = _valid_channels(record)
    numbers = [*record.normalization.mean, *record.normalization.std, *(task.temperature for task in record.tasks)]
    if not all(map(math.isfinite, numbers)) or min(record.normalization.std) <= 0:
        raise ValueError("normalization and temperatures: expected finite numbers, and divisors above 0")
    if {len(record.normalization.mean), len(record.normalization.std)} != {channels}:
        raise ValueError(f"normalization: expected {channels} channels")
    names = [task.name for task in record.tasks]
    if not names or len(set(names)) < len(names):
        raise ValueError("tasks: expected at least one, each name once")
    for task in record.tasks:
        if not task.classes or len(task.labels) != len(task.classes) or task.temperature <= 0:
            raise ValueError(
                f"task {task.name!r}: expected at least one class, a label each, and a temperature above 0"
            )


def _valid_channels(record: Record) -> int:
    """Return the number of channels; ValueError for a shape that no images, or no vectors, have."""
    channels, height, width = record.image_shape
    if record.config.takes_vectors and not (1 <= channels <= MAX_NUMBERS and (height, width) == (1, 1)):
        raise ValueError(f"image_shape: expected 1 to {MAX_NUMBERS} numbers, 1 and 1, got {record.image_shape}")
    if not record.config.takes_vectors and (channels not in (1, 3) or min(height, width) < 1):
        raise ValueError(f"image_shape: expected 1 or 3 channels, height and width, got {record.image_shape}")
    return channels


def _to_tuples(value: Any) -> Any:
    """Return a JSON value with tuples in place of lists, at every depth."""
    if isinstance(value, dict):
        return {key: _to_tuples(part) for key, part in value.items()}
    return tuple(map(_to_tuples, value)) if isinstance(value, list) else value


def _checksum(content: object) -> str:
    """Return the checksum of a JSON value."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
