"""Methods that give every task parameters of its own: old ones are never touched, so nothing is forgotten."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F

from pah.core.config import require
from pah.data.task import Batch, Task
from pah.methods.base import Method, MethodOptions, Terms, descend
from pah.models.backbones import Backbone
from pah.models.columns import ColumnNetwork, Columns, ProgressiveNetwork


@dataclass(frozen=True)
class IndependentOptions(MethodOptions):
    """A fresh network for each task: there is nothing to choose."""

    def build_network(self, build_backbone: Callable[[], Backbone], image_shape: tuple[int, int, int]) -> ColumnNetwork:
        """A column a task."""
        backbone = build_backbone()
        heads = self.build_heads(backbone.features, image_shape[0])
        return ColumnNetwork(backbone, heads, image_shape, build_backbone)


@dataclass(frozen=True)
class PNNOptions(MethodOptions):
    """Options of Progressive Neural Networks.

    Args:
        projection: Width of a lateral connection as a share of the column's: its size grows with the number of
            earlier tasks, and at a quarter ten tasks of resnet18-slim have 4 % more parameters than without any.
    """

    projection: float = 0.25
    search: ClassVar[Mapping[str, Sequence[Any]]] = {"projection": (0.125, 0.25, 0.5, 1.0)}

    def __post_init__(self) -> None:
        require(0 < self.projection <= 1, "method.projection", "above 0 and at most 1", self.projection)

    def build_network(
        self, build_backbone: Callable[[], Backbone], image_shape: tuple[int, int, int]
    ) -> ProgressiveNetwork:
        """A column a task, with lateral connections; InputError if the backbone is no sequence of layers."""
        backbone = build_backbone()
        heads = self.build_heads(backbone.features, image_shape[0])
        return ProgressiveNetwork(backbone, heads, image_shape, build_backbone, self.projection)


class _NewestColumn(Method):
    """Learn the newest column, and what its task has beside it."""

    def begin_task(self, task: Task) -> None:
        """A new column; the earlier ones are frozen."""
        super().begin_task(task)
        assert isinstance(self.network, Columns), "the options build columns"
        of = self.optimizer_options
        self.optimizers = [of.build(of.groups(self.network.columns[-1], self.network.beside(task.index)))]

    def observe(self, batch: Batch) -> Terms:
        """One step on the cross entropy of the current task."""
        logits = self.network(batch.x, [self.task])
        return descend(self.optimizers[0], {"L_hm": F.cross_entropy(logits, batch.y)})


class Independent(_NewestColumn):
    """A fresh network for each task: no forgetting, no transfer."""


class PNN(_NewestColumn):
    """Progressive Neural Networks (Rusu et al. 2016): a column a task, which may use what all earlier ones compute."""
