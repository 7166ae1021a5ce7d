"""The paired bootstrap: how far the difference of two methods may be chance."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pah.core.config import InputError, derived_seed, require

Correct = NDArray[np.bool_]  # (N,): whether each test image of a task was answered correctly
Pair = tuple[Correct, Correct]  # of the method and of the reference, on the same images


@dataclass(frozen=True)
class Interval:
    """A difference in average accuracy, method minus reference, in percentage points, with its bootstrap interval."""

    difference: float
    low: float
    high: float
    level: float = 0.95
    seeds: int = 1  # that both methods finished, from which it was made


def paired_bootstrap(
    pairs: Sequence[Sequence[Pair]], resamples: int = 10_000, seed: int = 0, level: float = 0.95
) -> Interval:
    """The difference in average accuracy (AA) of a method and a reference, and its percentile interval.

    A resample draws seeds with replacement, then, for each drawn seed, images with replacement within each task, the
    same ones for both methods (percentile bootstrap: Efron and Tibshirani 1993).

    What the interval covers: the choice of test images and, from two seeds on, that of seeds (class order, initial
    weights, order of batches). From a single seed it says nothing of how another training would have come out. From a
    few it is rough: S seeds show only (S - 1) / S of their own variance, so it is too narrow where seeds differ far
    more than images do; where only images differ, they count in both levels and it is too wide. Images are drawn
    afresh for each seed, as if each had a test set of its own: an image on which a method does better in all seeds
    counts as several.

    Args:
        pairs: for each seed, for each task, the boolean arrays (N,) of the method and of the reference; N > 0 may
            differ from task to task.
        resamples: how many, at least 1.
        seed: of the random draws; the same one gives the same interval.
        level: in (0, 1).

    Raises:
        InputError: no seed or task, seeds with different numbers of tasks, or arrays that do not fit one another.
    """
    require(resamples >= 1, "resamples", "at least 1", resamples)
    require(0 < level < 1, "level", "a number between 0 and 1", level)
    counts = _all_counts(pairs)
    rng = np.random.default_rng(derived_seed(seed, "bootstrap"))
    chosen = rng.integers(len(counts), size=(resamples, len(counts)))
    drawn = np.empty(chosen.shape)
    for index, tasks in enumerate(counts):
        here = chosen == index
        drawn[here] = _resampled(tasks, int(here.sum()), rng)
    low, high = np.quantile(drawn.mean(axis=1), ((1 - level) / 2, (1 + level) / 2))
    difference = np.mean([_difference(each) for tasks in counts for each in tasks])
    return Interval(float(difference), float(low), float(high), level, len(counts))


def _resampled(tasks: Sequence[NDArray[np.int64]], size: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """The difference in AA of one seed in `size` resamples of its images, in percentage points: (size,).

    An image's difference is -1, 0 or +1, so how often each occurs among N draws with replacement is multinomial: to
    draw the three counts is to draw N images.
    """
    means = [_difference(rng.multinomial(each.sum(), each / each.sum(), size)) for each in tasks]
    return np.mean(means, axis=0)  # type: ignore[no-any-return]


def _difference(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """The mean difference, in percentage points, from how many images have -1, 0 and +1: (..., 3) -> (...)."""
    return 100 * (counts[..., 2] - counts[..., 0]) / counts.sum(axis=-1)  # type: ignore[no-any-return]


def _all_counts(pairs: Sequence[Sequence[Pair]]) -> list[list[NDArray[np.int64]]]:
    """For each seed, for each task, how many images have the difference -1, 0 and +1."""
    lengths = sorted({len(tasks) for tasks in pairs})
    require(len(lengths) == 1 and lengths[0] > 0, "pairs", "one number of tasks in all seeds, at least 1", lengths)
    return [[_counts(pair, f"seed {s}, task {k}") for k, pair in enumerate(tasks)] for s, tasks in enumerate(pairs)]


def _counts(pair: Pair, where: str) -> NDArray[np.int64]:
    """How many images of a task have the difference -1, 0 and +1: (3,)."""
    method, reference = pair
    if (
        any(each.ndim != 1 or each.dtype != np.bool_ for each in pair)
        or len(method) != len(reference)
        or not method.size
    ):
        came = " and ".join(f"{each.dtype} {each.shape}" for each in pair)
        raise InputError(f"pairs, {where}: expected two boolean arrays (N,) over the same images, got {came}")
    return np.bincount(1 + method.astype(np.int64) - reference, minlength=3)
