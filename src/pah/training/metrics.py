"""Continual-learning metrics from the accuracy matrix.

`R[i][j]` is the test accuracy, in percent, on task j after learning task i; row i has i + 1 numbers. It is None for a
task without test images, and every mean leaves such a task out.
Definitions: Lopez-Paz and Ranzato 2017 (backward and forward transfer), Chaudhry et al. 2018 (forgetting), Rebuffi et
al. 2017, iCaRL (average incremental accuracy).
"""

from collections.abc import Iterable, Sequence
from typing import Any

Accuracy = float | Any  # in percent; None without images. As Any, it needs no check where there surely are images
Matrix = Sequence[Sequence[Accuracy]]


def average_accuracy(matrix: Matrix) -> float:
    """Return AA, the mean of the last row."""
    return _mean(matrix[-1])


def average_accuracies(matrix: Matrix) -> list[Accuracy]:
    """Return the average accuracy over the tasks seen, after each task; None if none of them has test images."""
    return [mean_or_none(row) for row in matrix]


def average_incremental_accuracy(matrix: Matrix) -> float:
    """Return AIA, the mean over t of the average accuracy after task t: mean_t mean_{j<=t} `R[t][j]`."""
    return _mean(average_accuracies(matrix))


def forgetting(matrix: Matrix) -> float:
    """Return FM, the mean over old tasks j of max_i<T `R[i][j]` - `R[T][j]`; negative if accuracies rose."""
    last = len(matrix) - 1
    columns = ([matrix[i][j] for i in range(j, last)] for j in range(last))
    best = [max(values) if (values := _present(column)) else None for column in columns]
    return _mean(map(_difference, best, matrix[last]))


def backward_transfer(matrix: Matrix) -> float:
    """Return BWT, the mean over old tasks j of `R[T][j]` - `R[j][j]`; negative if tasks are forgotten."""
    return _mean(_difference(matrix[-1][j], row[-1]) for j, row in enumerate(matrix[:-1]))


def forward_transfer(before: Sequence[Accuracy], untrained: Sequence[Accuracy]) -> Accuracy:
    """Return FWT, the mean over later tasks j > 0 of `R[j-1][j]` - `b[j]`; None if there is none.

    Args:
        before: `R[j-1][j]`, the accuracy on each task j before it is learned.
        untrained: `b[j]`, that of an untrained network.
    """
    return mean_or_none(map(_difference, before[1:], untrained[1:]))


def learning_accuracy(matrix: Matrix) -> float:
    """Return LA, the mean of `R[j][j]`: each task's accuracy right after it was learned."""
    return _mean([row[-1] for row in matrix])


def summary(matrix: Matrix) -> dict[str, float]:
    """Return all metrics of the matrix under their names in `metrics.json`."""
    return {
        "average_accuracy": average_accuracy(matrix),
        "forgetting": forgetting(matrix),
        "backward_transfer": backward_transfer(matrix),
        "learning_accuracy": learning_accuracy(matrix),
        "average_incremental_accuracy": average_incremental_accuracy(matrix),
    }


def mean_or_none(values: Iterable[Accuracy]) -> Accuracy:
    """Return the mean of the values that are not None; None if there is none."""
    present = _present(values)
    return sum(present) / len(present) if present else None


def _mean(values: Iterable[Accuracy]) -> float:
    """Return the mean, or 0.0 without values: after a single task, nothing can have been forgotten."""
    mean = mean_or_none(values)
    return 0.0 if mean is None else mean


def _present(values: Iterable[Accuracy]) -> list[float]:
    return [value for value in values if value is not None]


def _difference(one: Accuracy, other: Accuracy) -> Accuracy:
    return None if one is None or other is None else one - other
