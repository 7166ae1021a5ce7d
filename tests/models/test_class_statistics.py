"""Class statistics: what is kept of features, and the estimate of what a lesson cost."""

import pytest
import torch
from torch import Tensor

from pah.core.config import InputError
from pah.models.class_statistics import Carry, ClassStatistics, estimated_losses

D = 6


def features(classes: int, of_each: int = 200, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features around means that lie 6 apart, with a deviation of 1."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(classes).repeat_interleave(of_each)
    return 6 * torch.eye(D)[labels] + torch.randn(len(labels), D, generator=draw), labels


def head(classes: int) -> Tensor:
    """One that tells these classes apart."""
    return torch.cat([torch.eye(D)[:classes], torch.zeros(classes, 1)], dim=1)


UNCHANGED = Carry(torch.eye(D).double(), torch.zeros(D, D).double())


def test_statistics_are_the_means_and_the_covariance_within_classes() -> None:
    z, y = features(3)
    found = ClassStatistics.measured(z, y, 3)
    torch.testing.assert_close(found.means[0][1], z[y == 1].double().mean(dim=0))
    torch.testing.assert_close(found.covariance, torch.eye(D).double(), atol=0.15, rtol=0.1)


def test_joining_tasks_weighs_the_covariance_by_images() -> None:
    one, two = ClassStatistics.measured(*features(2), 2), ClassStatistics.measured(*features(3, 50, seed=1), 3)
    both = one.joined(two)
    assert [len(means) for means in both.means] == [2, 3]
    torch.testing.assert_close(both.covariance, (400 * one.covariance + 150 * two.covariance) / 550)
    assert both.without(0).means[0] is two.means[0]


def test_a_linear_change_of_features_is_carried() -> None:
    z, y = features(D)
    change = torch.randn(D, D, generator=torch.Generator().manual_seed(3)) / 2
    carry = Carry.fitted(z, z @ change)
    then, now = ClassStatistics.measured(z, y, D), ClassStatistics.measured(z @ change, y, D)
    torch.testing.assert_close(then.carried(carry).means[0], now.means[0], atol=0.1, rtol=0.05)
    torch.testing.assert_close(then.carried(carry).covariance, now.covariance, atol=0.05, rtol=0.05)


def test_where_a_lesson_shows_nothing_features_are_taken_to_stay() -> None:
    z, _ = features(2)
    z[:, 3:] = 0
    torch.testing.assert_close(Carry.fitted(z, 2 * z).matrix[3:, 3:], torch.eye(D - 3).double())


def test_nothing_changed_costs_nothing_and_exchanged_classes_cost_everything() -> None:
    statistics = ClassStatistics.measured(*features(2), 2)
    (kept,) = estimated_losses(statistics, UNCHANGED, [head(2)], [head(2)])
    (lost,) = estimated_losses(statistics, UNCHANGED, [head(2)], [head(2).flip(0)])
    assert kept == 0
    assert lost is not None
    assert lost > 98


def test_a_head_that_became_constant_costs_half_of_two_classes() -> None:
    statistics = ClassStatistics.measured(*features(2), 2)
    constant = head(2)
    constant[0, -1] = 100
    (lost,) = estimated_losses(statistics, UNCHANGED, [head(2)], [constant])
    assert lost == pytest.approx(50, abs=2)


def test_features_that_moved_away_from_the_head_are_seen() -> None:
    z, y = features(2)
    statistics = ClassStatistics.measured(z, y, 2)
    (lost,) = estimated_losses(statistics, Carry.fitted(z, z.roll(2, dims=1)), [head(2)], [head(2)])
    assert lost is not None
    assert lost > 20


def test_of_a_task_that_is_unknown_nothing_is_estimated() -> None:
    statistics = ClassStatistics.unknown(1, D).joined(ClassStatistics.measured(*features(2), 2))
    assert estimated_losses(statistics, UNCHANGED, [head(3), head(2)], [head(3), head(2)]) == [None, 0.0]


def test_they_survive_a_file_and_others_are_refused() -> None:
    statistics = ClassStatistics.measured(*features(2), 2)
    again = ClassStatistics.from_tensors(statistics.tensors(), (2,), D)
    torch.testing.assert_close(again.means[0], statistics.means[0], atol=1e-6, rtol=1e-6)
    assert again.images == statistics.images
    broken = {**statistics.tensors(), "covariance": torch.full((D, D), torch.nan)}
    for tensors, sizes in ((statistics.tensors(), (3,)), (statistics.tensors(), (2, 2)), (broken, (2,))):
        with pytest.raises(InputError, match="statistics: expected"):
            ClassStatistics.from_tensors(tensors, sizes, D)
