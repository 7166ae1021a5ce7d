"""Continual-learning metrics from the accuracy matrix.

`R[i][j]` is the test accuracy, in percent, on task j after learning task i; row i has i + 1 numbers.
Definitions: Lopez-Paz and Ranzato 2017 (backward transfer), Chaudhry et al. 2018 (forgetting).
"""

from collections.abc import Sequence

Matrix = Sequence[Sequence[float]]


def average_accuracy(matrix: Matrix) -> float:
    """Return AA, the mean of the last row."""
    return _mean(matrix[-1])


def forgetting(matrix: Matrix) -> float:
    """Return FM, the mean over old tasks j of max_i<T `R[i][j]` - `R[T][j]`; negative if accuracies rose."""
    last = len(matrix) - 1
    return _mean([max(matrix[i][j] for i in range(j, last)) - matrix[last][j] for j in range(last)])


def backward_transfer(matrix: Matrix) -> float:
    """Return BWT, the mean over old tasks j of `R[T][j]` - `R[j][j]`; negative if tasks are forgotten."""
    last = len(matrix) - 1
    return _mean([matrix[last][j] - matrix[j][j] for j in range(last)])


def learning_accuracy(matrix: Matrix) -> float:
    """Return LA, the mean of `R[j][j]`: each task's accuracy right after it was learned."""
    return _mean([row[-1] for row in matrix])


def summary(matrix: Matrix) -> dict[str, float]:
    """Return all four metrics under their names in `metrics.json`."""
    return {
        "average_accuracy": average_accuracy(matrix),
        "forgetting": forgetting(matrix),
        "backward_transfer": backward_transfer(matrix),
        "learning_accuracy": learning_accuracy(matrix),
    }


def _mean(values: Sequence[float]) -> float:
    """Return the mean, or 0.0 without values: after a single task, nothing can have been forgotten."""
    return sum(values) / len(values) if values else 0.0
