"""Answers about images from the last accepted learner, also while another lesson is being taught."""

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from pah.app.messages import plain, shortened
from pah.app.uploads import DECODING_LOCK
from pah.core.config import InputError
from pah.data.image import ImageInput, Pixels
from pah.learner.learner import ContinualLearner
from pah.learner.predictor import Predictor
from pah.learner.store import LEARNER_FILE

MAX_IMAGES = 64  # in one question
MAX_CLASSES = 5  # whose probabilities an answer holds


class ClassProbability(NamedTuple):
    """A class of the answer's task and its probability, 0 to 1."""

    label: str
    probability: float


@dataclass(frozen=True)
class Answer:
    """The answer for one image: the fields of `Prediction`, and the most probable classes of the task, best first."""

    label: str | None
    task: str
    probability: float
    task_probability: float
    shares: tuple[ClassProbability, ...]


@dataclass(frozen=True)
class Refusal:
    """What is wrong with an image that cannot be read, in one line that begins with its name."""

    reason: str


class AcceptedLearner:
    """The learner in a folder, which is loaded again when its file changes. Many threads may use it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._learner: ContinualLearner | None = None
        self._loaded_version: tuple[int, int, int] | None = None
        self._loading, self._answering = threading.Lock(), threading.Lock()

    @property
    def learner(self) -> ContinualLearner | None:
        """The learner, which callers must not change; None if the folder has none.

        Raises:
            InputError: the learner is damaged, or takes vectors and not images.
        """
        version = self._file_version()
        if version != self._loaded_version:
            with self._loading:
                if version != self._loaded_version:
                    learner = ContinualLearner.load(self.folder) if version else None
                    if learner and (numbers := learner.predictor.record.numbers) is not None:
                        raise InputError(
                            f"{self.folder}: expected a learner of images, got one that takes vectors of {numbers} "
                            "numbers, which the page cannot show; pah predict and Python answer about them"
                        )
                    self._learner, self._loaded_version = learner, version
        return self._learner

    def _file_version(self) -> tuple[int, int, int] | None:
        """Return the time, size and inode of the learner's file, which change when it is replaced."""
        try:
            status = os.stat(self.folder / LEARNER_FILE)
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino

    def ask(self, images: ImageInput, task: str | None = None, unknown: bool = False) -> list[Answer]:
        """Return an answer for each image.

        Args:
            images: 1 to `MAX_IMAGES` images.
            task: Answer with classes of this task; without it the task is inferred.
            unknown: Whether "none of these" is a possible answer.

        Raises:
            InputError: no lesson was taught yet, the number of images is out of range, or an image cannot be read.
        """
        learner = self._require_learner(len(images))
        with DECODING_LOCK:
            pixels = learner.predictor.record.decode(images)
        return self._answer(learner, pixels, task, unknown)

    def ask_each(self, files: Sequence[str], task: str | None = None, unknown: bool = False) -> list[Answer | Refusal]:
        """Return an answer for each image file, or what is wrong with it. Arguments and errors are those of `ask`."""
        learner = self._require_learner(len(files))
        arrays: list[Pixels | Refusal] = []
        for file in files:
            try:
                with DECODING_LOCK:
                    arrays.append(learner.predictor.record.decode([file]))
            except InputError as error:
                arrays.append(Refusal(str(error).replace(file, plain(shortened(Path(file).name)))))
        readable = [pixels for pixels in arrays if not isinstance(pixels, Refusal)]
        answers = iter(self._answer(learner, np.concatenate(readable), task, unknown) if readable else ())
        return [pixels if isinstance(pixels, Refusal) else next(answers) for pixels in arrays]

    def _require_learner(self, count: int) -> ContinualLearner:
        """Return the learner for a question about this number of images."""
        learner = self.learner
        if learner is None:
            raise InputError("learner: expected one that was taught a lesson, got a new one: teach it first")
        if not 0 < count <= MAX_IMAGES:
            raise InputError(f"images: expected 1 to {MAX_IMAGES}, got {count}")
        return learner

    def _answer(self, learner: ContinualLearner, pixels: Pixels, task: str | None, unknown: bool) -> list[Answer]:
        """Return the answers for pixels (N, C, H, W) of the learner's size."""
        with self._answering:  # one question at a time: on few cores, parallel answers would not be faster
            predictions = learner.predict(pixels.transpose(0, 2, 3, 1), task, unknown=unknown)
            tasks = [prediction.task for prediction in predictions]
            shares = _class_probabilities(learner.predictor, torch.from_numpy(pixels), tasks)
        return [
            Answer(p.label, p.task, p.probability, p.task_probability, classes)
            for p, classes in zip(predictions, shares, strict=True)
        ]


def _class_probabilities(
    predictor: Predictor, pixels: torch.Tensor, tasks: Sequence[str]
) -> list[tuple[ClassProbability, ...]]:
    """Return the most probable classes of each image within its task."""
    results: list[tuple[ClassProbability, ...]] = [()] * len(tasks)
    with torch.inference_mode():
        for name in dict.fromkeys(tasks):
            rows = [row for row, task in enumerate(tasks) if task == name]
            k = predictor.index(name)
            (logits,) = predictor.logits(pixels[rows], [k])
            for row, probabilities in zip(rows, logits.softmax(dim=1), strict=True):
                best = probabilities.topk(min(MAX_CLASSES, len(probabilities)))
                classes = predictor.record.tasks[k].classes
                pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
                results[row] = tuple(ClassProbability(classes[c], p) for c, p in pairs)
    return results
