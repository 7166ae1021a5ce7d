"""A prediction for one image, and the ranking of the classes."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class ClassProbability(NamedTuple):
    """A class and its probability.

    Attributes:
        label: Name of the class.
        probability: Calibrated probability of the class among those of its task, 0 to 1.
    """

    label: str
    probability: float


class _Answer(NamedTuple):
    label: str | None
    task: str
    probability: float
    task_probability: float


class Prediction(_Answer):
    """A prediction for one image. It unpacks into the first four of its attributes.

    Attributes:
        label: Name of the class; None for "none of these".
        task: Name of the class's task.
        probability: Calibrated probability of the class among those of its task, 0 to 1.
        task_probability: Share of the task in the scores that chose it, 0 to 1; 1 if the task was given.
        top: The most likely classes of `task`, best first, if `predict` was asked for them. For "none of these" they
            are the classes that the image is most like.
    """

    top: tuple[ClassProbability, ...] = ()


def rank_classes(probabilities: Sequence[Tensor], tasks: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Return the most likely classes of each image's task, best first, and their probabilities.

    Args:
        probabilities: Of the classes of each task, (B, C) each.
        tasks: Position in `probabilities` of each image's task, (B,).
        top: Number of classes, at least 0.

    Returns:
        Classes and probabilities, (B, K), where K is `top` or the number of classes of the largest task if that is
        smaller. A task with fewer classes is filled up with class -1.
    """
    width = min(top, max(p.shape[1] for p in probabilities))
    if width == 0:
        return torch.empty(len(tasks), 0, dtype=torch.long), torch.empty(len(tasks), 0)
    rows = torch.arange(len(tasks))
    ranked = [p.sort(dim=1, descending=True, stable=True) for p in probabilities]
    missing = [max(0, width - p.shape[1]) for p in probabilities]
    classes = [F.pad(r.indices[:, :width], (0, n), value=-1) for r, n in zip(ranked, missing, strict=True)]
    values = [F.pad(r.values[:, :width], (0, n)) for r, n in zip(ranked, missing, strict=True)]
    return torch.stack(classes, dim=1)[rows, tasks], torch.stack(values, dim=1)[rows, tasks]
