"""The metrics on matrices small enough to compute by hand."""

import pytest

from pah.training.metrics import summary


def test_metrics_by_hand() -> None:
    # task 1: best earlier 90, last 60; task 2: best earlier 80, last 85 (it gained)
    matrix = [[90.0], [70.0, 80.0], [60.0, 85.0, 100.0]]
    assert summary(matrix) == pytest.approx(
        {
            "average_accuracy": 245 / 3,
            "forgetting": (30 - 5) / 2,
            "backward_transfer": (-30 + 5) / 2,
            "learning_accuracy": 90.0,
        }
    )


def test_forgetting_counts_from_the_best_row_not_from_the_first() -> None:
    assert summary([[50.0], [90.0, 80.0], [60.0, 80.0, 70.0]])["forgetting"] == pytest.approx((30 + 0) / 2)


def test_forgetting_of_a_single_task_is_zero() -> None:
    assert summary([[75.0]]) == {
        "average_accuracy": 75.0,
        "forgetting": 0.0,
        "backward_transfer": 0.0,
        "learning_accuracy": 75.0,
    }
