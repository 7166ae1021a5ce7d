"""Answers of the last accepted learner, whatever is taught meanwhile."""

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from pah.app.uploads import DECODING
from pah.core.config import InputError
from pah.data.image import Images, to_pixels
from pah.learner.learner import ContinualLearner
from pah.learner.predictor import Predictor
from pah.learner.store import LEARNER
from pah.models.network import GeneratedHeads

MOST = 64  # images in a question
SHOWN = 5  # classes whose probabilities are told, the likeliest first


class Share(NamedTuple):
    """A class of the answer's task and its probability, 0 to 1."""

    label: str
    probability: float


@dataclass(frozen=True)
class Answer:
    """What is on one image: as `Prediction`, with the likeliest classes of the task."""

    label: str | None
    task: str
    probability: float
    task_probability: float
    shares: tuple[Share, ...]


class Accepted:
    """The learner in a folder, read again when another one stands there. For use by many threads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._learner: ContinualLearner | None = None
        self._seen: tuple[int, int, int] | None = None
        self._loading, self._answering = threading.Lock(), threading.Lock()

    @property
    def learner(self) -> ContinualLearner | None:
        """The learner, not to be changed; None as long as there is none."""
        seen = self._state()
        if seen != self._seen:
            with self._loading:
                if seen != self._seen:
                    learner = ContinualLearner.load(self.folder) if seen else None
                    self._learner, self._seen = learner, seen
        return self._learner

    def _state(self) -> tuple[int, int, int] | None:
        try:
            found = os.stat(self.folder / LEARNER)
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino

    def ask(self, images: Images, task: str | None = None, unknown: bool = False) -> list[Answer]:
        """What is on each image; among all tasks unless one is given, "none of these" only if `unknown`.

        Raises:
            InputError: nothing was taught yet, there are no images or more than `MOST`, or one cannot be read.
        """
        learner = self.learner
        if learner is None:
            raise InputError("learner: expected one that was taught a lesson, got a new one: teach it first")
        if not 0 < len(images) <= MOST:
            raise InputError(f"images: expected 1 to {MOST}, got {len(images)}")
        with DECODING:
            pixels = to_pixels(images, learner.taught.record.image_shape)
        with self._answering:  # a network answers one question at a time: on few cores that is as fast
            found = learner.predict(pixels.transpose(0, 2, 3, 1), task, unknown=unknown)
            shares = _shares(learner.taught, torch.from_numpy(pixels), [one.task for one in found])
        return [Answer(*one, of) for one, of in zip(found, shares, strict=True)]


def _shares(taught: Predictor, pixels: torch.Tensor, tasks: Sequence[str]) -> list[tuple[Share, ...]]:
    """The likeliest classes of each image's task."""
    found: list[tuple[Share, ...]] = [()] * len(tasks)
    with torch.inference_mode():
        for name in dict.fromkeys(tasks):
            rows = [row for row, task in enumerate(tasks) if task == name]
            k = taught.index(name)
            (logits,) = taught.logits(pixels[rows], [k])
            for row, probabilities in zip(rows, logits.softmax(dim=1), strict=True):
                best = probabilities.topk(min(SHOWN, len(probabilities)))
                classes = taught.record.tasks[k].classes
                pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
                found[row] = tuple(Share(classes[c], p) for c, p in pairs)
    return found


def prototypes_of(taught: Predictor) -> list[torch.Tensor]:
    """Each task's prototypes as they are today, (C, channels, s, s); empty for a network that has none."""
    heads = taught.method.network.heads
    return [p.detach() for p in heads.prototypes.tasks] if isinstance(heads, GeneratedHeads) else []
