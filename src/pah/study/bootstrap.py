"""The paired bootstrap: an interval for the difference in accuracy between two methods."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pah.core.config import InputError, derived_seed, require

CorrectMask = NDArray[np.bool_]  # (N,): whether each test image of a task was answered correctly
Pair = tuple[CorrectMask, CorrectMask]  # of the method and of the reference, on the same images


@dataclass(frozen=True)
class Interval:
    """A difference in average accuracy, method minus reference, in percentage points, with its bootstrap interval."""

    difference: float
    low: float
    high: float
    level: float = 0.95
    seeds: int = 1  # number of seeds that both methods finished


def paired_bootstrap(
    pairs: Sequence[Sequence[Pair]], resamples: int = 10_000, seed: int = 0, level: float = 0.95
) -> Interval:
    """Return the difference in average accuracy (AA) of a method and a reference with its percentile interval.

    A resample draws seeds with replacement. For each drawn seed it draws images with replacement within each task, the
    same images for both methods (percentile bootstrap: Efron and Tibshirani 1993).

    The interval covers the choice of test images and, from two seeds on, the choice of seeds (class order, initial
    weights, order of batches). From a single seed it does not cover the variation between trainings. From a few seeds
    it is rough: S seeds show only (S - 1) / S of their variance. It is therefore too narrow where seeds differ far more
    than images do, and too wide where only images differ, because image noise then counts in both levels. Images are
    drawn anew for each seed, as if each seed had its own test set. An image on which a method is better in all seeds
    therefore counts several times.

    Args:
        pairs: for each seed, for each task, the boolean arrays (N,) of the method and of the reference; N > 0 may
            differ between tasks.
        resamples: number of resamples, at least 1.
        seed: seed of the random draws.
        level: confidence level in (0, 1).

    Raises:
        InputError: no seed or task, seeds with different numbers of tasks, or arrays that do not match.
    """
    require(resamples >= 1, "resamples", "at least 1", resamples)
    require(0 < level < 1, "level", "a number between 0 and 1", level)
    counts = _all_counts(pairs)
    rng = np.random.default_rng(derived_seed(seed, "bootstrap"))
    chosen = rng.integers(len(counts), size=(resamples, len(counts)))
    drawn = np.empty(chosen.shape)
    for index, tasks in enumerate(counts):
        is_seed = chosen == index
        drawn[is_seed] = _resampled_differences(tasks, int(is_seed.sum()), rng)
    low, high = np.quantile(drawn.mean(axis=1), ((1 - level) / 2, (1 + level) / 2))
    difference = np.mean([_difference(task) for tasks in counts for task in tasks])
    return Interval(float(difference), float(low), float(high), level, len(counts))


def _resampled_differences(
    tasks: Sequence[NDArray[np.int64]], size: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Return one seed's difference in AA in `size` resamples of its images, in percentage points: (size,).

    The difference on one image is -1, 0 or +1. The numbers of each among N draws with replacement are multinomial, so
    drawing these three numbers is the same as drawing N images.
    """
    means = [_difference(rng.multinomial(counts.sum(), counts / counts.sum(), size)) for counts in tasks]
    return np.mean(means, axis=0)  # type: ignore[no-any-return]


def _difference(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the mean difference in percentage points from the numbers of -1, 0 and +1: (..., 3) -> (...)."""
    return 100 * (counts[..., 2] - counts[..., 0]) / counts.sum(axis=-1)  # type: ignore[no-any-return]


def _all_counts(pairs: Sequence[Sequence[Pair]]) -> list[list[NDArray[np.int64]]]:
    """Return, for each seed and task, the number of images with the difference -1, 0 and +1."""
    lengths = sorted({len(tasks) for tasks in pairs})
    require(len(lengths) == 1 and lengths[0] > 0, "pairs", "one number of tasks in all seeds, at least 1", lengths)
    return [[_counts(pair, f"seed {s}, task {k}") for k, pair in enumerate(tasks)] for s, tasks in enumerate(pairs)]


def _counts(pair: Pair, location: str) -> NDArray[np.int64]:
    """Return the number of a task's images with the difference -1, 0 and +1: (3,)."""
    method, reference = pair
    valid = all(mask.ndim == 1 and mask.dtype == np.bool_ for mask in pair)
    if not valid or len(method) != len(reference) or not method.size:
        received = " and ".join(f"{mask.dtype} {mask.shape}" for mask in pair)
        raise InputError(f"pairs, {location}: expected two boolean arrays (N,) over the same images, got {received}")
    return np.bincount(1 + method.astype(np.int64) - reference, minlength=3)
