"""Inference of an image's task when none is given, without stored samples.

B: images, N: images of a data set, T: tasks, C: classes of a task, P = Σ C: prototypes of all tasks, D: features.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pah.core.config import require

Score = Literal["softmax", "energy", "contrast", "prototypes"]
Rule = Literal["softmax", "energy", "contrast", "prototypes", "combined"]
RULES: tuple[str, ...] = get_args(Rule)

DEFAULT_RULE: Rule = "contrast"  # infers the task; chosen on validation images
KNOWN_SCORE: Score = "contrast"  # separates images of known classes from others; chosen on validation images
AMONG_ALL = "among all"  # key of the quantiles of the largest KNOWN_SCORE among all tasks
COMBINED_SCORES: tuple[Score, ...] = ("contrast", "energy", "prototypes")
SCORES: tuple[Score, ...] = ("softmax", "energy", "contrast", "prototypes")
TEMPERATURES = (0.05, 20.0)  # smallest and largest
QUANTILE_SHARES = np.linspace(0, 0.5, 51)  # shares of a task's validation images at which score quantiles are stored
SPREAD_SHARE = 0.05  # the spread of a score is the distance from this quantile to the median

Quantiles = Mapping[str, Sequence[float]]  # of each score, at QUANTILE_SHARES; empty without validation images


def require_rule(rule: object) -> None:
    """Raise InputError, naming the known rules, unless this is a rule by which a task is inferred."""
    require(isinstance(rule, str) and rule in RULES, "rule", f"one of {', '.join(RULES)}", rule)


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the temperature T that minimizes the cross entropy of softmax(logits / T).

    Temperature scaling (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017).

    Args:
        logits: (N, C).
        labels: (N,).
    """
    from scipy.optimize import minimize_scalar  # the import takes half a second, which most commands do not need

    def loss(log_temperature: float) -> float:
        return F.cross_entropy(logits.double() / float(np.exp(log_temperature)), labels).item()

    minimum = minimize_scalar(loss, bounds=np.log(TEMPERATURES), method="bounded")
    return float(np.exp(minimum.x))


def score_quantiles(scores: Tensor) -> tuple[float, ...]:
    """Return the quantiles of validation scores (N,) at `QUANTILE_SHARES`.

    They have four decimals, because about a hundred images give no more precision.
    """
    return tuple(np.quantile(scores.double().numpy(), QUANTILE_SHARES).round(4).tolist())


def threshold(quantiles: Sequence[float], share: float) -> float:
    """Return the score below which that share of known images falls, 0 to 0.5."""
    return float(np.interp(share, QUANTILE_SHARES, quantiles))


def task_scores(
    rule: Rule,
    logits: Sequence[Tensor],
    similarity: Tensor | None,
    task_quantiles: Sequence[Quantiles],
    distances: Tensor | None = None,
) -> Tensor:
    """Return how well each task fits each image, (B, T).

    The median score of the task's own validation images is subtracted from each score. Without that, tasks of few
    classes would be chosen too often by their softmax, and too seldom by their energy. The result is divided by the
    mean spread of all tasks: the distance from the 5 % quantile of these images to their median.

    A head of one class gives all images the same answer, so no rule can use it. By every rule, a task of one class is
    chosen if the image is nearer to the mean of this class than to that of any other class.

    Args:
        rule: softmax, energy, contrast or prototypes (see `score`); combined is the sum of contrast, energy and
            prototypes.
        logits: (B, C) for each task, divided by the task's temperature.
        similarity: The result of `largest_cosine_per_task`, for rules that use prototypes.
        task_quantiles: Each task's quantiles. If one of them is empty, scores are not rescaled.
        distances: Distances of the images from the class means of each task, (B, T); needed if a task has one class.
    """
    several = [k for k, z in enumerate(logits) if z.shape[1] > 1]
    if len(several) < len(logits):
        assert distances is not None, "a task of one class needs distances"
        scores = None
        if several:
            own_similarity = None if similarity is None else similarity[:, several]
            scores = task_scores(
                rule, [logits[k] for k in several], own_similarity, [task_quantiles[k] for k in several]
            )
        return _with_single_classes(scores, distances, several)
    kinds = COMBINED_SCORES if rule == "combined" else (rule,)
    return torch.stack([_rescale(kind, score(kind, logits, similarity), task_quantiles) for kind in kinds]).sum(dim=0)


def _with_single_classes(scores: Tensor | None, distances: Tensor, several: Sequence[int]) -> Tensor:
    """Return the scores of all tasks, (B, T), with those of tasks of one class.

    The score of a task of one class is the best score of the tasks of several classes, plus how much nearer the image
    is to its mean than to the nearest other mean. If these other means are not all known, it is never chosen.

    Args:
        scores: Scores of the tasks of several classes, in their order; None if there are none.
        distances: Distances of the images from the class means of each task, (B, T).
        several: Positions of the tasks of several classes.
    """
    if scores is None:
        return -distances
    result = torch.full_like(distances, -torch.inf)
    result[:, several] = scores.to(distances.dtype)
    if not torch.isfinite(distances[:, several]).all():
        return result
    for k in set(range(distances.shape[1])) - set(several):
        others = [other for other in range(distances.shape[1]) if other != k]
        result[:, k] = scores.amax(dim=1) + distances[:, others].amin(dim=1) - distances[:, k]
    return result


def known_scores(
    logits: Sequence[Tensor], task_quantiles: Sequence[Quantiles], distances: Tensor | None = None
) -> Tensor:
    """Return how likely each image shows a known class, (B,).

    With one task it is the task's `KNOWN_SCORE`, otherwise the largest one of all tasks in units of their validation
    images. For a task of one class it is minus the distance of the image from the mean of the class.

    Args:
        logits: (B, C) for each task, divided by the task's temperature.
        task_quantiles: Each task's quantiles.
        distances: Distances of the images from the class means of each task, (B, T); needed if a task has one class.
    """
    several = [k for k, z in enumerate(logits) if z.shape[1] > 1]
    if len(logits) == 1:
        if several:
            return score(KNOWN_SCORE, logits, None)[:, 0]
        assert distances is not None, "a task of one class needs distances"
        return -distances[:, 0]
    columns = []
    if several:
        quantiles = [task_quantiles[k] for k in several]
        columns.append(task_scores(KNOWN_SCORE, [logits[k] for k in several], None, quantiles))
    for k in set(range(len(logits))) - set(several):
        assert distances is not None, "a task of one class needs distances"
        columns.append(_rescale(KNOWN_SCORE, -distances[:, k : k + 1], [task_quantiles[k]]))
    return torch.cat(columns, dim=1).amax(dim=1)


def score(kind: Score, logits: Sequence[Tensor], similarity: Tensor | None) -> Tensor:
    """Return one score of each task for each image, (B, T).

    softmax: the largest log probability. energy: log Σ exp(logit). contrast: the largest logit minus the mean of the
    task's logits. prototypes: the largest cosine of the image's features with those of the task's prototypes.
    """
    if kind == "softmax":
        return torch.stack([F.log_softmax(z, dim=1).amax(dim=1) for z in logits], dim=1)
    if kind == "energy":
        return torch.stack([z.logsumexp(dim=1) for z in logits], dim=1)
    if kind == "contrast":
        return torch.stack([z.amax(dim=1) - z.mean(dim=1) for z in logits], dim=1)
    assert similarity is not None, "a rule that uses prototypes needs their similarity"
    return similarity


def largest_cosine_per_task(features: Tensor, prototypes: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return the largest cosine of each image with a prototype of each task, (B, T).

    Args:
        features: Features of the images, (B, D).
        prototypes: Features of the prototypes, (P, D), task after task.
        sizes: Number of prototypes of each task, T of them.
    """
    cosines = F.normalize(features) @ F.normalize(prototypes).T  # (B, P)
    return torch.stack([of_task.amax(dim=1) for of_task in cosines.split(list(sizes), dim=1)], dim=1)


def _rescale(kind: Score, scores: Tensor, task_quantiles: Sequence[Quantiles]) -> Tensor:
    """Return scores (B, T) minus each task's median, divided by the mean spread of all tasks."""
    if not all(kind in quantiles for quantiles in task_quantiles):
        return scores
    medians = torch.tensor([quantiles[kind][-1] for quantiles in task_quantiles])
    spread = fmean(quantiles[kind][-1] - threshold(quantiles[kind], SPREAD_SHARE) for quantiles in task_quantiles)
    return (scores - medians) / max(spread, 1e-6)
