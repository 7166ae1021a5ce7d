"""A network: one backbone, and for each task a head that is stored or generated.

B: number of images, J: number of tasks requested, R = Σ C_j: number of rows of their heads, D: number of features.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pah.core.config import InputError
from pah.models.backbone import Backbone
from pah.models.hypernetwork import Conditioning, build_hypernetwork
from pah.models.modes import full_precision
from pah.models.prototypes import Prototypes


class Heads(nn.Module, ABC):
    """The heads of all tasks seen.

    Attributes:
        sizes: The number of classes of each task.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    @abstractmethod
    def grow(self, classes: int) -> None:
        """Add the head of one more task of `classes` classes. This fixes all shapes."""

    def remove(self, task: int) -> None:
        """Remove the parameters that belong to one task only. The index of every later task decreases by one.

        Raises:
            InputError: these heads do not allow it.
        """
        raise InputError(f"forget: expected heads that a task can be taken from, got {type(self).__name__}")

    @abstractmethod
    def rows(self, tasks: Sequence[int], detach: Sequence[int] = ()) -> Tensor:
        """Return the weights and biases of the heads of these tasks, in the order of `tasks`.

        Args:
            tasks: Indices of tasks.
            detach: Tasks whose own parameters get no gradient.

        Returns:
            (R, D + 1): a row for each class, with the bias last.
        """

    @abstractmethod
    def task_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that belong to one task only, one parameter for each task."""

    def shared_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that all tasks share: those of a hypernetwork, or none."""
        own = {id(p) for p in self.task_parameters()}
        return [p for p in self.parameters() if id(p) not in own]


class StoredHeads(Heads):
    """Stores a linear head for each task.

    Args:
        features: D.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features
        self.tasks = nn.ParameterList()  # (C_k, D + 1) for each task

    def grow(self, classes: int) -> None:
        """Add a head. Its weights are random with variance 1/(3 D), as in nn.Linear, and its biases are 0."""
        self.sizes.append(classes)
        rows = torch.zeros(classes, self.features + 1)
        rows[:, :-1].uniform_(-(self.features**-0.5), self.features**-0.5)
        self.tasks.append(nn.Parameter(rows))

    def remove(self, task: int) -> None:
        """Remove the head of a task."""
        del self.sizes[task]
        self.tasks = nn.ParameterList(p for k, p in enumerate(self.tasks) if k != task)

    def rows(self, tasks: Sequence[int], detach: Sequence[int] = ()) -> Tensor:
        """Return the stored rows, (R, D + 1)."""
        return torch.cat([self.tasks[k].detach() if k in detach else self.tasks[k] for k in tasks])

    def task_parameters(self) -> list[nn.Parameter]:
        """Return the stored heads."""
        return list(self.tasks)


class GeneratedHeads(Heads):
    """θ_k = Υ(p_k): a hypernetwork generates the head of any task from the task's prototypes.

    Args:
        features: D.
        prototypes: The prototypes, without tasks.
        conditioning: The form of the hypernetwork's input.
        hidden: Widths of the hypernetwork's hidden layers.
    """

    def __init__(
        self, features: int, prototypes: Prototypes, conditioning: Conditioning, hidden: Sequence[int]
    ) -> None:
        super().__init__()
        self.features = features
        self.prototypes = prototypes
        self.conditioning = conditioning
        self.hidden = tuple(hidden)
        self.hypernetwork: nn.Module | None = None  # built with the first task, whose classes may fix the input size

    def grow(self, classes: int) -> None:
        """Add the prototypes of one more task and, with the first task, the hypernetwork."""
        self.sizes.append(classes)
        self.prototypes.grow(classes)
        if self.hypernetwork is None:
            numbers = self.prototypes.channels * self.prototypes.size**2
            self.hypernetwork = build_hypernetwork(self.conditioning, classes, numbers, self.features, self.hidden)

    def remove(self, task: int) -> None:
        """Remove the prototypes of a task."""
        del self.sizes[task]
        self.prototypes.remove(task)

    def rows(self, tasks: Sequence[int], detach: Sequence[int] = ()) -> Tensor:
        """Return the generated rows (R, D + 1) from one call of the hypernetwork."""
        return self.generate(self.prototypes.batch(tasks, detach), tasks)

    def generate(self, prototypes: Tensor, tasks: Sequence[int]) -> Tensor:
        """Return the rows (R, D + 1) for given prototypes (R, channels, s, s) of these tasks."""
        assert self.hypernetwork is not None, "grow() comes first"
        rows: Tensor = self.hypernetwork(prototypes, [self.sizes[k] for k in tasks])
        return rows

    def task_parameters(self) -> list[nn.Parameter]:
        """Return the prototypes."""
        return list(self.prototypes.tasks)


class Network(nn.Module):
    """f(x | k) = head(β(x); θ_k): a backbone β and its heads.

    Args:
        backbone: The backbone.
        heads: The heads of all tasks.
        image_shape: (channels, H, W).
    """

    def __init__(self, backbone: Backbone, heads: Heads, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.backbone = backbone
        self.heads = heads
        self.image_shape = image_shape

    def grow(self, classes: int) -> None:
        """Add one more task of `classes` classes. This fixes all shapes."""
        self.heads.grow(classes)

    def remove(self, task: int) -> None:
        """Remove a task. The index of every later task decreases by one."""
        self.heads.remove(task)

    def count_parameters(self) -> dict[str, Any]:
        """Return the numbers of parameters of the backbone, of a hypernetwork and of each task (a list)."""
        return {
            "backbone": sum(p.numel() for p in self.backbone.parameters()),
            "hypernetwork": sum(p.numel() for p in self.heads.shared_parameters()),
            "per_task": [p.numel() for p in self.heads.task_parameters()],
        }

    def head(self, task: int) -> tuple[Tensor, Tensor]:
        """Return the head of a task: weight (C, D) and bias (C,)."""
        rows = self.heads.rows([task])
        return rows[:, :-1], rows[:, -1]

    def sizes(self, tasks: Sequence[int]) -> tuple[int, ...]:
        """Return the number of classes of each of these tasks."""
        return tuple(self.heads.sizes[k] for k in tasks)

    def forward(self, x: Tensor, tasks: Sequence[int], detach: Sequence[int] = ()) -> Tensor:
        """Return the logits of the heads of these tasks from one backbone pass: (B, channels, H, W) -> (B, R)."""
        return apply_heads(self.backbone(x), self.heads.rows(tasks, detach))


class TaskNetwork(Network, ABC):
    """f(x | k) = head(β_k(x); θ_k): the features depend on the task, so every task needs its own backbone pass."""

    def remove(self, task: int) -> None:
        """Raise InputError: the weights of one task cannot be separated from those of the others."""
        raise InputError(f"forget: expected a network that a task can be taken from, got {type(self).__name__}")

    @abstractmethod
    def features(self, x: Tensor, task: int) -> Tensor:
        """Return the features of images for a task: (B, channels, H, W) -> (B, D)."""

    def forward(self, x: Tensor, tasks: Sequence[int], detach: Sequence[int] = ()) -> Tensor:
        """Return the logits of these tasks, each from the task's own features: (B, channels, H, W) -> (B, R)."""
        return torch.cat([apply_heads(self.features(x, k), self.heads.rows([k], detach)) for k in tasks], dim=1)


def apply_heads(features: Tensor, rows: Tensor) -> Tensor:
    """Return the logits of linear heads, computed in the precision of the heads.

    Args:
        features: (B, D).
        rows: (R, D + 1), with the bias last.

    Returns:
        (B, R).
    """
    with full_precision(features.device):
        return F.linear(features.to(rows.dtype), rows[:, :-1], rows[:, -1])
