"""What is kept of each class's features, and how a lesson changes it: by these a learner estimates what it forgot.

N: images, C: classes of a task, D: features, R: rows of a head.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pah.core.config import InputError, generator
from pah.models.network import apply_rows

RIDGE = 1e-2  # of the mean square of a feature: how strongly a lesson's map is drawn to the identity
SHRINKAGE = 1e-3  # of the covariance's mean variance, added to each: few images leave directions without any
DRAWS = 1000  # features drawn of each task to estimate an accuracy: a standard error of at most 1.6 points


@dataclass(frozen=True)
class Carry:
    """What a lesson did to features: new ≈ old @ matrix, and how far from that they are.

    Args:
        matrix: (D, D), fitted on the lesson's images.
        residual: (D, D), the covariance of what the matrix does not explain.
    """

    matrix: Tensor
    residual: Tensor

    @classmethod
    def fitted(cls, old: Tensor, new: Tensor) -> "Carry":
        """The map from the features (N, D) of a lesson's images before the lesson to those after it.

        Least squares with a ridge towards the identity: min ‖old A - new‖² + ρ ‖A - I‖². Directions that the lesson's
        images do not show are taken to be as they were. The linear map is that of LDC (Gomez-Villa et al., ECCV 2024).
        """
        old, new = old.double(), new.double()
        gram = old.T @ old
        ridge = RIDGE * gram.diagonal().mean().clamp_min(1e-12) * torch.eye(len(gram), dtype=gram.dtype)
        matrix = torch.linalg.solve(gram + ridge, old.T @ new + ridge)
        rest = new - old @ matrix
        return cls(matrix, rest.T @ rest / len(rest))


@dataclass(frozen=True)
class ClassStatistics:
    """The mean features of each class of each task, and one within-class covariance for all.

    Args:
        means: A (C, D) for each task; (0, D) for one of which nothing is known.
        covariance: (D, D).
        images: How many the covariance was measured on.
    """

    means: tuple[Tensor, ...]
    covariance: Tensor
    images: int

    @classmethod
    def measured(cls, features: Tensor, labels: Tensor, classes: int) -> "ClassStatistics":
        """Those of one task: features (N, D), labels (N,) from 0 to `classes` - 1, each at least once."""
        z = features.double()
        means = torch.stack([z[labels == c].mean(dim=0) for c in range(classes)])
        within = z - means[labels]
        return cls((means,), within.T @ within / len(z), len(z))

    @classmethod
    def unknown(cls, tasks: int, features: int) -> "ClassStatistics":
        """Those of tasks of which nothing is known."""
        nothing = torch.zeros(0, features, dtype=torch.float64)
        return cls((nothing,) * tasks, torch.zeros(features, features, dtype=torch.float64), 0)

    def joined(self, other: "ClassStatistics") -> "ClassStatistics":
        """These and those of further tasks; the covariance is the mean over the images of both."""
        images = self.images + other.images
        covariance = (self.images * self.covariance + other.images * other.covariance) / images
        return ClassStatistics(self.means + other.means, covariance, images)

    def carried(self, carry: Carry) -> "ClassStatistics":
        """As they are taken to be after a lesson."""
        means = tuple(of_task @ carry.matrix for of_task in self.means)
        return ClassStatistics(means, carry.matrix.T @ self.covariance @ carry.matrix, self.images)

    def without(self, task: int) -> "ClassStatistics":
        """Those of the other tasks; the covariance stays that of all."""
        means = tuple(of_task for k, of_task in enumerate(self.means) if k != task)
        return ClassStatistics(means, self.covariance, self.images)

    def tensors(self) -> dict[str, Tensor]:
        """Single precision, by name, as a file holds them."""
        found = {f"means.{k}": of_task for k, of_task in enumerate(self.means)}
        found |= {"covariance": self.covariance, "images": torch.tensor(self.images)}
        return {name: t.float().contiguous() if t.is_floating_point() else t for name, t in found.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], sizes: tuple[int, ...], features: int) -> "ClassStatistics":
        """Those that `tensors` wrote for tasks of so many classes; InputError if they are of another shape."""
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


def estimated_losses(
    statistics: ClassStatistics, carry: Carry, before: Sequence[Tensor], after: Sequence[Tensor]
) -> list[float | None]:
    """The accuracy that a lesson is estimated to have cost on each old task, in percent; negative for a gain.

    Features drawn from what was known of a task are answered by its head as it was, and, moved by the lesson's map and
    by noise of the size of the map's error, by its head as it is now. None for a task of which nothing is known.

    Args:
        statistics: As they were before the lesson.
        carry: What the lesson did to features.
        before: Each old task's head before the lesson, (C, D + 1).
        after: The same heads after it.
    """
    spread, error = _normal(statistics.covariance, "features"), _normal(carry.residual, "error")
    found: list[float | None] = []
    for means, old, new in zip(statistics.means, before, after, strict=True):
        if not len(means):
            found.append(None)
            continue
        labels = torch.arange(DRAWS) % len(means)
        features = means[labels] + spread
        moved = features @ carry.matrix + error
        found.append(_accuracy(features, old, labels) - _accuracy(moved, new, labels))
    return found


def _accuracy(features: Tensor, rows: Tensor, labels: Tensor) -> float:
    """Of a head (C, D + 1) on features (N, D) of these labels, in percent."""
    return 100 * (apply_rows(features, rows.double()).argmax(dim=1) == labels).double().mean().item()


def _normal(covariance: Tensor, purpose: str) -> Tensor:
    """Draws from a normal distribution of mean zero, the same whenever they are drawn: (D, D) -> (DRAWS, D)."""
    variances, directions = torch.linalg.eigh(covariance)
    deviations = (variances.clamp_min(0) + SHRINKAGE * variances.mean().clamp_min(0)).sqrt()
    noise = torch.randn(DRAWS, len(covariance), generator=generator(0, purpose), dtype=covariance.dtype)
    drawn: Tensor = noise * deviations @ directions.T
    return drawn
