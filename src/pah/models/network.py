"""A network: one backbone, and a head for each task that is stored or generated.

B: images, J: tasks asked, R = Σ C_j: rows of their heads, D: features.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pah.core.config import InputError
from pah.models.backbones import Backbone
from pah.models.hypernetwork import Conditioning, build_hypernetwork
from pah.models.modes import full_precision
from pah.models.prototypes import Prototypes


class Heads(nn.Module, ABC):
    """The heads of all tasks seen; `sizes[k]` is the number of classes of task k."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    @abstractmethod
    def grow(self, classes: int) -> None:
        """Make room for the head of one more task; every shape is fixed from here on."""

    def remove(self, task: int) -> None:
        """Drop what belongs to a task alone; those after it move up by one. InputError where nothing can be dropped."""
        raise InputError(f"forget: expected heads that a task can be taken from, got {type(self).__name__}")

    @abstractmethod
    def rows(self, tasks: Sequence[int], detach: Sequence[int] = ()) -> Tensor:
        """The heads' weights and biases, (R, D + 1), task after task.

        For the tasks in `detach`, without a gradient to what belongs to that task alone.
        """

    @abstractmethod
    def per_task(self) -> list[nn.Parameter]:
        """What a further task adds, a parameter a task."""

    def shared(self) -> list[nn.Parameter]:
        """What all tasks have in common: a hypernetwork, or nothing."""
        own = {id(p) for p in self.per_task()}
        return [p for p in self.parameters() if id(p) not in own]


class StoredHeads(Heads):
    """A linear head a task, kept: what every method but a hypernetwork does."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features
        self.tasks = nn.ParameterList()

    def grow(self, classes: int) -> None:
        """A head of random weights of variance 1/(3 D), as nn.Linear draws them, and zero biases."""
        self.sizes.append(classes)
        rows = torch.zeros(classes, self.features + 1)
        rows[:, :-1].uniform_(-(self.features**-0.5), self.features**-0.5)
        self.tasks.append(nn.Parameter(rows))

    def remove(self, task: int) -> None:
        """Drop the task's head."""
        del self.sizes[task]
        self.tasks = nn.ParameterList(p for k, p in enumerate(self.tasks) if k != task)

    def rows(self, tasks: Sequence[int], detach: Sequence[int] = ()) -> Tensor:
        """The stored rows."""
        return torch.cat([self.tasks[k].detach() if k in detach else self.tasks[k] for k in tasks])

    def per_task(self) -> list[nn.Parameter]:
        """The stored heads."""
        return list(self.tasks)


class GeneratedHeads(Heads):
    """θ_k = Υ(p_k): the hypernetwork makes the head of any task, on demand, from the task's prototypes."""

    def __init__(
        self, features: int, prototypes: Prototypes, conditioning: Conditioning, hidden: Sequence[int]
    ) -> None:
        super().__init__()
        self.features = features
        self.prototypes = prototypes
        self.conditioning = conditioning
        self.hidden = tuple(hidden)
        self.hypernetwork: nn.Module | None = None  # its input may depend on the first task's classes

    def grow(self, classes: int) -> None:
        """Room for the task's prototypes; with the first task, the hypernetwork as well."""
        self.sizes.append(classes)
        self.prototypes.grow(classes)
        if self.hypernetwork is None:
            numbers = self.prototypes.channels * self.prototypes.size**2
            self.hypernetwork = build_hypernetwork(self.conditioning, classes, numbers, self.features, self.hidden)

    def remove(self, task: int) -> None:
        """Drop the task's prototypes."""
        del self.sizes[task]
        self.prototypes.remove(task)

    def rows(self, tasks: Sequence[int], detach: Sequence[int] = ()) -> Tensor:
        """The generated rows of all these heads, in one call of the hypernetwork."""
        return self.generate(self.prototypes.of(tasks, detach), tasks)

    def generate(self, prototypes: Tensor, tasks: Sequence[int]) -> Tensor:
        """Rows (R, D + 1) for given prototypes (R, channels, s, s) of the tasks."""
        assert self.hypernetwork is not None, "grow() comes first"
        rows: Tensor = self.hypernetwork(prototypes, [self.sizes[k] for k in tasks])
        return rows

    def per_task(self) -> list[nn.Parameter]:
        """The prototypes."""
        return list(self.prototypes.tasks)


class Network(nn.Module):
    """f(x | k) = head(β(x); θ_k): a backbone β and its heads, for images of `image_shape` (channels, H, W)."""

    def __init__(self, backbone: Backbone, heads: Heads, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.backbone = backbone
        self.heads = heads
        self.image_shape = image_shape

    def grow(self, classes: int) -> None:
        """Make room for one more task; every shape is fixed from here on."""
        self.heads.grow(classes)

    def remove(self, task: int) -> None:
        """Forget a task; those after it move up by one."""
        self.heads.remove(task)

    def footprint(self) -> dict[str, Any]:
        """How many numbers the model keeps: of the backbone, of a hypernetwork, and for each task seen (a list)."""
        return {
            "backbone": sum(p.numel() for p in self.backbone.parameters()),
            "hypernetwork": sum(p.numel() for p in self.heads.shared()),
            "per_task": [p.numel() for p in self.heads.per_task()],
        }

    def head(self, task: int) -> tuple[Tensor, Tensor]:
        """The head of a task: weight (C, D) and bias (C,)."""
        rows = self.heads.rows([task])
        return rows[:, :-1], rows[:, -1]

    def sizes(self, tasks: Sequence[int]) -> tuple[int, ...]:
        """The number of classes of each of these tasks."""
        return tuple(self.heads.sizes[k] for k in tasks)

    def forward(self, x: Tensor, tasks: Sequence[int], detach: Sequence[int] = ()) -> Tensor:
        """Logits of all these heads from one backbone pass: (B, channels, H, W) -> (B, R)."""
        return apply_rows(self.backbone(x), self.heads.rows(tasks, detach))


class TaskNetwork(Network, ABC):
    """f(x | k) = head(β_k(x); θ_k): the features depend on the task, so every task asked costs a pass of its own."""

    def remove(self, task: int) -> None:
        """InputError: tasks lie in each other's weights."""
        raise InputError(f"forget: expected a network that a task can be taken from, got {type(self).__name__}")

    @abstractmethod
    def features(self, x: Tensor, task: int) -> Tensor:
        """The task's features of images: (B, channels, H, W) -> (B, D)."""

    def forward(self, x: Tensor, tasks: Sequence[int], detach: Sequence[int] = ()) -> Tensor:
        """Logits of all these heads, each on its own task's features: (B, channels, H, W) -> (B, R)."""
        return torch.cat([apply_rows(self.features(x, k), self.heads.rows([k], detach)) for k in tasks], dim=1)


def apply_rows(features: Tensor, rows: Tensor) -> Tensor:
    """Linear heads at work, in their own precision: features (B, D), rows (R, D + 1), bias last -> logits (B, R)."""
    with full_precision(features.device):
        return F.linear(features.to(rows.dtype), rows[:, :-1], rows[:, -1])
