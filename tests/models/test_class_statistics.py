"""Tests of class statistics and of the estimated accuracy drops."""

import pytest
import torch
from torch import Tensor

from pah.core.config import InputError
from pah.models.class_statistics import ClassStatistics, FeatureMap, estimate_accuracy_drops

D = 6


def features(classes: int, images_per_class: int = 200, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return features (N, D) of standard deviation 1 around class means of norm 6, and labels (N,)."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(classes).repeat_interleave(images_per_class)
    return 6 * torch.eye(D)[labels] + torch.randn(len(labels), D, generator=generator), labels


def head(classes: int) -> Tensor:
    """Return a head (C, D + 1) that separates these classes."""
    return torch.cat([torch.eye(D)[:classes], torch.zeros(classes, 1)], dim=1)


UNCHANGED = FeatureMap(torch.eye(D).double(), torch.zeros(D, D).double())


def test_statistics_are_the_means_and_the_covariance_within_classes() -> None:
    z, y = features(3)
    statistics = ClassStatistics.from_features(z, y, 3)
    torch.testing.assert_close(statistics.means[0][1], z[y == 1].double().mean(dim=0))
    torch.testing.assert_close(statistics.covariance, torch.eye(D).double(), atol=0.15, rtol=0.1)


def test_merging_weights_the_covariances_by_number_of_images() -> None:
    one, two = (
        ClassStatistics.from_features(*features(2), 2),
        ClassStatistics.from_features(*features(3, 50, seed=1), 3),
    )
    both = one.merged(two)
    assert [len(means) for means in both.means] == [2, 3]
    torch.testing.assert_close(both.covariance, (400 * one.covariance + 150 * two.covariance) / 550)
    assert both.without_task(0).means[0] is two.means[0]


def test_statistics_follow_a_linear_change_of_features() -> None:
    z, y = features(D)
    change = torch.randn(D, D, generator=torch.Generator().manual_seed(3)) / 2
    feature_map = FeatureMap.fit(z, z @ change)
    old, new = ClassStatistics.from_features(z, y, D), ClassStatistics.from_features(z @ change, y, D)
    torch.testing.assert_close(old.mapped(feature_map).means[0], new.means[0], atol=0.1, rtol=0.05)
    torch.testing.assert_close(old.mapped(feature_map).covariance, new.covariance, atol=0.05, rtol=0.05)


def test_directions_that_a_lesson_does_not_cover_are_unchanged() -> None:
    z, _ = features(2)
    z[:, 3:] = 0
    torch.testing.assert_close(FeatureMap.fit(z, 2 * z).matrix[3:, 3:], torch.eye(D - 3).double())


def test_no_change_gives_a_drop_of_0_and_exchanged_classes_a_full_drop() -> None:
    statistics = ClassStatistics.from_features(*features(2), 2)
    (unchanged,) = estimate_accuracy_drops(statistics, UNCHANGED, [head(2)], [head(2)])
    (drop,) = estimate_accuracy_drops(statistics, UNCHANGED, [head(2)], [head(2).flip(0)])
    assert unchanged == 0
    assert drop is not None
    assert drop > 98


def test_a_constant_head_for_two_classes_gives_a_drop_of_50_percent() -> None:
    statistics = ClassStatistics.from_features(*features(2), 2)
    constant = head(2)
    constant[0, -1] = 100
    (drop,) = estimate_accuracy_drops(statistics, UNCHANGED, [head(2)], [constant])
    assert drop == pytest.approx(50, abs=2)


def test_features_that_no_longer_match_the_head_give_a_drop() -> None:
    z, y = features(2)
    statistics = ClassStatistics.from_features(z, y, 2)
    (drop,) = estimate_accuracy_drops(statistics, FeatureMap.fit(z, z.roll(2, dims=1)), [head(2)], [head(2)])
    assert drop is not None
    assert drop > 20


def test_no_drop_is_estimated_for_a_task_without_statistics() -> None:
    statistics = ClassStatistics.empty(1, D).merged(ClassStatistics.from_features(*features(2), 2))
    assert estimate_accuracy_drops(statistics, UNCHANGED, [head(3), head(2)], [head(3), head(2)]) == [None, 0.0]


def test_tensors_restore_the_statistics_and_invalid_ones_are_refused() -> None:
    statistics = ClassStatistics.from_features(*features(2), 2)
    restored = ClassStatistics.from_tensors(statistics.to_tensors(), (2,), D)
    torch.testing.assert_close(restored.means[0], statistics.means[0], atol=1e-6, rtol=1e-6)
    assert restored.images == statistics.images
    broken = {**statistics.to_tensors(), "covariance": torch.full((D, D), torch.nan)}
    for tensors, sizes in ((statistics.to_tensors(), (3,)), (statistics.to_tensors(), (2, 2)), (broken, (2,))):
        with pytest.raises(InputError, match="statistics: expected"):
            ClassStatistics.from_tensors(tensors, sizes, D)
