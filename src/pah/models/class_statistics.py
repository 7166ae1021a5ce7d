"""The statistics of each class's features, and the accuracy that a lesson is estimated to have cost.

N: number of images, C: number of classes of a task, D: number of features, R: number of rows of a head.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pah.core.config import InputError, generator
from pah.models.network import apply_heads

RIDGE = 1e-2  # strength of the ridge towards the identity, relative to the mean square of a feature
SHRINKAGE = 1e-3  # share of the mean variance added to every variance: few images leave directions without variance
DISTANCE_SHRINKAGE = 0.1  # the same share for distances, where an inverse variance must not be huge
DRAWS = 1000  # features drawn for each task to estimate an accuracy; its standard error is at most 1.6 points


@dataclass(frozen=True)
class FeatureMap:
    """A linear map from the features before a lesson to those after it: new ≈ old @ matrix.

    Args:
        matrix: (D, D), fitted on the images of the lesson.
        residual: (D, D), the covariance of the error new - old @ matrix.
    """

    matrix: Tensor
    residual: Tensor

    @classmethod
    def fit(cls, old: Tensor, new: Tensor) -> "FeatureMap":
        """Return the map fitted by least squares with a ridge: min ‖old A - new‖² + ρ ‖A - I‖².

        Because of the ridge towards the identity, directions that the images do not cover are taken to be unchanged.
        The linear map is that of LDC (Gomez-Villa et al., ECCV 2024).

        Args:
            old: (N, D), the features of the lesson's images before the lesson.
            new: (N, D), the features of the same images after it.
        """
        old, new = old.double(), new.double()
        gram = old.T @ old
        ridge = RIDGE * gram.diagonal().mean().clamp_min(1e-12) * torch.eye(len(gram), dtype=gram.dtype)
        matrix = torch.linalg.solve(gram + ridge, old.T @ new + ridge)
        error = new - old @ matrix
        return cls(matrix, error.T @ error / len(error))

    @classmethod
    def identity(cls, features: int) -> "FeatureMap":
        """Return the map of a lesson that changes none of D = `features` features."""
        return cls(torch.eye(features, dtype=torch.float64), torch.zeros(features, features, dtype=torch.float64))


@dataclass(frozen=True)
class ClassStatistics:
    """The mean features of each class of each task, and one within-class covariance of all classes.

    Args:
        means: A tensor (C, D) for each task, or (0, D) for a task without statistics.
        covariance: (D, D).
        images: Number of images on which the covariance was measured.
    """

    means: tuple[Tensor, ...]
    covariance: Tensor
    images: int

    @classmethod
    def from_features(cls, features: Tensor, labels: Tensor, classes: int) -> "ClassStatistics":
        """Return the statistics of one task.

        Args:
            features: (N, D).
            labels: (N,), from 0 to `classes` - 1. Each class occurs at least once.
            classes: C.
        """
        features = features.double()
        means = torch.stack([features[labels == c].mean(dim=0) for c in range(classes)])
        centred = features - means[labels]
        return cls((means,), centred.T @ centred / len(features), len(features))

    @classmethod
    def empty(cls, tasks: int, features: int) -> "ClassStatistics":
        """Return statistics of `tasks` tasks that hold no data, for D = `features`."""
        no_means = torch.zeros(0, features, dtype=torch.float64)
        return cls((no_means,) * tasks, torch.zeros(features, features, dtype=torch.float64), 0)

    def merged(self, other: "ClassStatistics") -> "ClassStatistics":
        """Return these statistics with those of further tasks. The covariances are averaged by number of images."""
        images = self.images + other.images
        covariance = (self.images * self.covariance + other.images * other.covariance) / images
        return ClassStatistics(self.means + other.means, covariance, images)

    def mapped(self, feature_map: FeatureMap) -> "ClassStatistics":
        """Return the statistics expected after a lesson that changed the features by `feature_map`."""
        matrix = feature_map.matrix
        means = tuple(task_means @ matrix for task_means in self.means)
        return ClassStatistics(means, matrix.T @ self.covariance @ matrix, self.images)

    def without_task(self, task: int) -> "ClassStatistics":
        """Return the statistics without one task. The covariance stays that of all tasks."""
        means = tuple(task_means for k, task_means in enumerate(self.means) if k != task)
        return ClassStatistics(means, self.covariance, self.images)

    def distances(self, features: Tensor, tasks: Sequence[int]) -> Tensor:
        """Return how far images are from the nearest class mean of each task.

        Args:
            features: Features of B images, (B, D).
            tasks: Positions of T tasks.

        Returns:
            (B, T): squared Mahalanobis distances by the within-class covariance, divided by D. They are infinite for
            a task without statistics.
        """
        whitened = features.double() @ self._whitening
        columns = []
        for k in tasks:
            means = self.means[k] @ self._whitening  # (C, D)
            to_means = [(whitened - mean).square().mean(dim=1) for mean in means]
            columns.append(torch.stack(to_means).amin(dim=0) if to_means else torch.full((len(features),), torch.inf))
        return torch.stack(columns, dim=1)

    @cached_property
    def _whitening(self) -> Tensor:
        """A matrix (D, D) that maps features to ones whose covariance within classes is the identity."""
        variances, directions = torch.linalg.eigh(self.covariance)
        mean = variances.mean().clamp_min(1e-12)
        shrunk = (1 - DISTANCE_SHRINKAGE) * variances.clamp_min(0) + DISTANCE_SHRINKAGE * mean
        whitening: Tensor = directions / shrunk.sqrt()
        return whitening

    def to_tensors(self) -> dict[str, Tensor]:
        """Return the tensors to save in a file, by name, in single precision."""
        tensors = {f"means.{k}": task_means for k, task_means in enumerate(self.means)}
        tensors |= {"covariance": self.covariance, "images": torch.tensor(self.images)}
        return {name: t.float().contiguous() if t.is_floating_point() else t for name, t in tensors.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], sizes: tuple[int, ...], features: int) -> "ClassStatistics":
        """Return the statistics that `to_tensors` described.

        Args:
            tensors: The tensors by name.
            sizes: The expected number of classes of each task.
            features: The expected D.

        Raises:
            InputError: a tensor is missing, unknown, of another shape or not finite.
        """
        expected: dict[str, list[tuple[int, ...]]] = {
            f"means.{k}": [(classes, features), (0, features)] for k, classes in enumerate(sizes)
        }
        expected |= {"covariance": [(features, features)], "images": [()]}
        for name in sorted({*expected, *tensors}):
            shape = tuple(tensors[name].shape) if name in tensors else None
            if shape not in expected.get(name, []) or not torch.isfinite(tensors[name]).all():
                raise InputError(
                    f"statistics: expected finite ones of the tasks described, got {name} of shape {shape}"
                )
        means = tuple(tensors[f"means.{k}"].double() for k in range(len(sizes)))
        return cls(means, tensors["covariance"].double(), int(tensors["images"]))


def estimate_accuracy_drops(
    statistics: ClassStatistics, feature_map: FeatureMap, before: Sequence[Tensor], after: Sequence[Tensor]
) -> list[float | None]:
    """Return the accuracy that each old task is estimated to have lost in a lesson, in percent.

    Features are drawn from the statistics of each task. The old head classifies them as they are. The new head
    classifies them after the feature map, with noise of the size of the map's error. The estimate is the difference of
    the two accuracies: negative for a gain, and None for a task without statistics.

    Args:
        statistics: The statistics before the lesson.
        feature_map: The change of the features in the lesson.
        before: The head of each old task before the lesson, (C, D + 1).
        after: The same heads after the lesson.
    """
    deviations = _draw_normal(statistics.covariance, "features")
    errors = _draw_normal(feature_map.residual, "error")
    drops: list[float | None] = []
    for means, old_head, new_head in zip(statistics.means, before, after, strict=True):
        if not len(means):
            drops.append(None)
            continue
        labels = torch.arange(DRAWS) % len(means)
        old_features = means[labels] + deviations
        new_features = old_features @ feature_map.matrix + errors
        drops.append(_accuracy(old_features, old_head, labels) - _accuracy(new_features, new_head, labels))
    return drops


def _accuracy(features: Tensor, rows: Tensor, labels: Tensor) -> float:
    """Return the accuracy of a head (C, D + 1) on features (N, D) with labels (N,), in percent."""
    return 100 * (apply_heads(features, rows.double()).argmax(dim=1) == labels).double().mean().item()


def _draw_normal(covariance: Tensor, purpose: str) -> Tensor:
    """Return draws (DRAWS, D) from a normal distribution of mean 0, the same in every call with that purpose."""
    variances, directions = torch.linalg.eigh(covariance)
    deviations = (variances.clamp_min(0) + SHRINKAGE * variances.mean().clamp_min(0)).sqrt()
    noise = torch.randn(DRAWS, len(covariance), generator=generator(0, purpose), dtype=covariance.dtype)
    draws: Tensor = noise * deviations @ directions.T
    return draws
