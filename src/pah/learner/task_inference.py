"""Answers when no task is given, and how sure they are: rules that need no stored sample.

B: images, T: tasks, C: classes of a task, P = Σ C: prototypes of all tasks, D: features.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Score = Literal["softmax", "energy", "contrast", "prototypes"]
Rule = Literal["softmax", "energy", "contrast", "prototypes", "combined"]

RULE: Rule = "contrast"  # how a task is found, and
KNOWN: Score = "contrast"  # what tells known images from others, unless said otherwise: chosen on validation images
AMONG_ALL = "among all"  # the best score of all tasks by KNOWN: what it is of known images when no task is given
COMBINED: tuple[Score, ...] = ("contrast", "energy", "prototypes")
SCORES: tuple[Score, ...] = ("softmax", "energy", "contrast", "prototypes")
TEMPERATURES = (0.05, 20.0)
SHARES = np.linspace(0, 0.5, 51)  # of a task's validation images, whose scores fall below the quantiles that are kept
USUAL = 0.05  # the share between which and the median lies a score's spread

Quantiles = Mapping[str, Sequence[float]]  # of each score, at SHARES; empty where nothing was held out


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The T for which softmax(logits / T) has the least cross entropy: logits (N, C), labels (N,).

    Temperature scaling (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017).
    """
    from scipy.optimize import minimize_scalar  # half a second to import, which not every start has to spend

    def loss(log_temperature: float) -> float:
        return F.cross_entropy(logits.double() / float(np.exp(log_temperature)), labels).item()

    found = minimize_scalar(loss, bounds=np.log(TEMPERATURES), method="bounded")
    return float(np.exp(found.x))


def quantiles(scores: Tensor) -> tuple[float, ...]:
    """Of a task's validation images, (N,): the scores at `SHARES`, to four places: a hundred images tell no more."""
    return tuple(np.quantile(scores.double().numpy(), SHARES).round(4).tolist())


def threshold(kept: Sequence[float], share: float) -> float:
    """The score below which that share of known images falls, 0 to 0.5."""
    return float(np.interp(share, SHARES, kept))


def task_scores(rule: Rule, logits: Sequence[Tensor], nearness: Tensor | None, kept: Sequence[Quantiles]) -> Tensor:
    """How well each task fits each image, (B, T): a score or a sum of scores, in units of what is usual there.

    From a score the median of the task's own validation images is taken: without that, tasks of few classes would win
    too often by their softmax, and too seldom by their energy. The unit, the same for all tasks, is how far the lowest
    5 % of these images lie below the median.

    Args:
        rule: softmax, energy, contrast or prototypes (see `score`); combined adds up contrast, energy and prototypes.
        logits: (B, C) for each task, divided by the task's temperature.
        nearness: what `nearness_to` gives, for rules that ask prototypes.
        kept: each task's quantiles; where any has none, scores stay as they are.
    """
    parts = COMBINED if rule == "combined" else (rule,)
    return torch.stack([_in_usual_units(part, score(part, logits, nearness), kept) for part in parts]).sum(dim=0)


def score(kind: Score, logits: Sequence[Tensor], nearness: Tensor | None) -> Tensor:
    """One score of each task for each image, (B, T).

    softmax: the largest log probability; energy: log Σ exp(logit); contrast: by how much the largest logit exceeds the
    mean of the task's; prototypes: the largest cosine of the image's features with those of the task's prototypes.
    """
    if kind == "softmax":
        return torch.stack([F.log_softmax(z, dim=1).amax(dim=1) for z in logits], dim=1)
    if kind == "energy":
        return torch.stack([z.logsumexp(dim=1) for z in logits], dim=1)
    if kind == "contrast":
        return torch.stack([z.amax(dim=1) - z.mean(dim=1) for z in logits], dim=1)
    assert nearness is not None, "whoever asks prototypes has measured how near they are"
    return nearness


def nearness_to(features: Tensor, of_prototypes: Tensor, sizes: Sequence[int]) -> Tensor:
    """The largest cosine with a prototype of each task: features (B, D) and (P, D) -> (B, T)."""
    cosines = F.normalize(features) @ F.normalize(of_prototypes).T  # (B, P)
    return torch.stack([of_task.amax(dim=1) for of_task in cosines.split(list(sizes), dim=1)], dim=1)


def _in_usual_units(kind: Score, scores: Tensor, kept: Sequence[Quantiles]) -> Tensor:
    """Scores (B, T) less the task's median, divided by its mean distance from the lowest 5 %."""
    if not all(kind in of for of in kept):
        return scores
    median = torch.tensor([of[kind][-1] for of in kept])
    spread = fmean(of[kind][-1] - threshold(of[kind], USUAL) for of in kept)
    return (scores - median) / max(spread, 1e-6)
