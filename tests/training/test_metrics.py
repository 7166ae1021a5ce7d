"""The metrics on matrices small enough to compute by hand."""

import pytest

from pah.training.metrics import Matrix, average_accuracies, forward_transfer, summary


def test_metrics_by_hand() -> None:
    # task 1: best earlier 90, last 60; task 2: best earlier 80, last 85 (it gained)
    matrix = [[90.0], [70.0, 80.0], [60.0, 85.0, 100.0]]
    assert summary(matrix) == pytest.approx(
        {
            "average_accuracy": 245 / 3,
            "forgetting": (30 - 5) / 2,
            "backward_transfer": (-30 + 5) / 2,
            "learning_accuracy": 90.0,
            "average_incremental_accuracy": (90 + 75 + 245 / 3) / 3,
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
        "average_incremental_accuracy": 75.0,
    }


def test_forward_transfer_is_the_gain_over_an_untrained_network_on_later_tasks() -> None:
    assert forward_transfer([50.0, 70.0, 40.0], [10.0, 55.0, 50.0]) == pytest.approx((15 - 10) / 2)
    assert forward_transfer([50.0, None, 40.0], [10.0, None, 50.0]) == pytest.approx(-10)
    assert forward_transfer([50.0], [10.0]) is None


def test_a_task_without_test_images_counts_in_no_mean() -> None:
    matrix: Matrix = [[None], [None, 80.0], [None, 60.0, 90.0]]
    assert average_accuracies(matrix) == [None, 80.0, 75.0]
    assert summary(matrix) == pytest.approx(
        {
            "average_accuracy": 75.0,
            "forgetting": 20.0,
            "backward_transfer": -20.0,
            "learning_accuracy": 85.0,
            "average_incremental_accuracy": 77.5,
        }
    )
