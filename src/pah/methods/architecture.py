"""Methods that give every task its own network: old weights never change, so nothing is forgotten."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F

from pah.core.config import require
from pah.data.task import Batch, Task
from pah.methods.base import Method, MethodOptions, Terms, descend
from pah.models.backbone import Backbone
from pah.models.column_networks import ColumnNetwork, IndependentColumns, ProgressiveNetwork


@dataclass(frozen=True)
class IndependentOptions(MethodOptions):
    """A separate network for each task. It has no options."""

    def build_network(
        self, build_backbone: Callable[[], Backbone], image_shape: tuple[int, int, int]
    ) -> IndependentColumns:
        """Return the untrained network, which gets a column for each task."""
        backbone = build_backbone()
        heads = self.build_heads(backbone.features, image_shape[0])
        return IndependentColumns(backbone, heads, image_shape, build_backbone)


@dataclass(frozen=True)
class PNNOptions(MethodOptions):
    """Options of Progressive Neural Networks.

    Args:
        projection: Width of a lateral connection relative to the width of the column. The size of a connection grows
            with the number of earlier tasks. With 0.25, ten tasks of resnet18-slim have 4 % more parameters than
            without lateral connections.
    """

    projection: float = 0.25
    search: ClassVar[Mapping[str, Sequence[Any]]] = {"projection": (0.125, 0.25, 0.5, 1.0)}

    def __post_init__(self) -> None:
        require(0 < self.projection <= 1, "method.projection", "above 0 and at most 1", self.projection)

    def build_network(
        self, build_backbone: Callable[[], Backbone], image_shape: tuple[int, int, int]
    ) -> ProgressiveNetwork:
        """Return the untrained network, which gets a column with lateral connections for each task.

        Raises:
            InputError: the backbone is not a sequence of layers.
        """
        backbone = build_backbone()
        heads = self.build_heads(backbone.features, image_shape[0])
        return ProgressiveNetwork(backbone, heads, image_shape, build_backbone, self.projection)


class _ColumnMethod(Method):
    """Trains the newest column and the other parameters of its task."""

    def begin_task(self, task: Task) -> None:
        """Add a column and build the optimizer. The earlier columns are frozen."""
        super().begin_task(task)
        assert isinstance(self.network, ColumnNetwork), "the options build columns"
        groups = self.optimizer_options.groups(self.network.columns[-1], self.network.other_parameters(task.index))
        self.optimizers = [self.optimizer_options.build(groups)]

    def observe(self, batch: Batch) -> Terms:
        """Take one step on the cross entropy of the current task."""
        logits = self.network(batch.x, [self.task])
        return descend(self.optimizers[0], {"L_hm": F.cross_entropy(logits, batch.y)})


class Independent(_ColumnMethod):
    """A separate network for each task: no forgetting and no transfer."""


class PNN(_ColumnMethod):
    """Progressive Neural Networks (Rusu et al. 2016): a column for each task, which reads all earlier columns."""
