"""Networks with a column for each task: a backbone of its own, alone or with lateral connections to earlier columns.

B: number of images, D: number of features, n: number of channels of a stage's output, K: number of earlier columns.
"""

from abc import ABC
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pah.models.backbone import Backbone
from pah.models.layers import to_channels_last
from pah.models.modes import evaluating
from pah.models.network import Heads, TaskNetwork, apply_heads


class ColumnNetwork(TaskNetwork, ABC):
    """A column for each task. Only the newest column learns. The outputs of the others never change."""

    def __init__(
        self,
        backbone: Backbone,
        heads: Heads,
        image_shape: tuple[int, int, int],
        build_backbone: Callable[[], Backbone],
    ) -> None:
        """Build the network without tasks. `backbone` is the first column, `build_backbone` builds the later ones."""
        super().__init__(backbone, heads, image_shape)
        self.build_backbone = build_backbone
        self.later = nn.ModuleList()  # the columns after the first one

    @property
    def columns(self) -> list[Backbone]:
        """The columns in the order of their tasks."""
        return [self.backbone, *self.later]

    def grow(self, classes: int) -> None:
        """Add a column with random weights and a head for one more task, and freeze the earlier ones."""
        if self.heads.sizes:  # the first task uses `backbone`
            self.requires_grad_(False)
            column = self.build_backbone()
            to_channels_last(column)
            self.later.append(column)
        super().grow(classes)

    def other_parameters(self, task: int) -> list[nn.Parameter]:
        """Return the parameters of a task that are not in its column."""
        return [self.heads.task_parameters()[task]]

    def count_parameters(self) -> dict[str, Any]:
        """Return the numbers of parameters. Tasks share none, so all of them are counted per task."""
        return {
            "backbone": 0,
            "hypernetwork": 0,
            "per_task": [
                sum(p.numel() for p in (*self.columns[k].parameters(), *self.other_parameters(k)))
                for k in range(len(self.heads.sizes))
            ],
        }


class IndependentColumns(ColumnNetwork):
    """f(x | k) = head(β_k(x); θ_k): columns without connections between them."""

    def features(self, x: Tensor, task: int) -> Tensor:
        """Return the output of the task's column: (B, channels, H, W) -> (B, D)."""
        column = self.columns[task]
        if task == len(self.columns) - 1:
            return column(x)  # type: ignore[no-any-return]
        with evaluating(column):  # the batch-norm statistics of a finished column must not change
            return column(x)  # type: ignore[no-any-return]


class LateralConnection(nn.Module):
    """U relu(V (α h)): the input that a column gets from earlier columns, the adapter of Rusu et al. 2016.

    h are the activations of the earlier columns at the same depth, concatenated. V and U are 1x1 convolutions: V maps
    to the width of the projection, U to the width of the column. α is a learned scalar.
    """

    def __init__(self, width: int, earlier: int, projection: int) -> None:
        """Build a connection from `earlier` columns of `width` channels through `projection` channels."""
        super().__init__()
        self.scale = nn.Parameter(0.1 * torch.rand(1))  # the paper: "a random small value"
        self.down = nn.Conv2d(earlier * width, projection, 1)
        self.up = nn.Conv2d(projection, width, 1, bias=False)

    def forward(self, activations: Sequence[Tensor]) -> Tensor:
        """Map K activations (B, n, H, W) to (B, n, H, W)."""
        h = self.scale * torch.cat(list(activations), dim=1)  # (B, K n, H, W)
        projected: Tensor = self.up(F.relu(self.down(h)))
        return projected


class ProgressiveNetwork(ColumnNetwork):
    """Columns in which a stage also reads the preceding stage of all earlier columns.

    h_i^(k) = stage_i^(k)(h_{i-1}^(k) + lateral_i^(k)(h_{i-1}^(<k))). The last stage is the pooling before the head.
    """

    def __init__(
        self,
        backbone: Backbone,
        heads: Heads,
        image_shape: tuple[int, int, int],
        build_backbone: Callable[[], Backbone],
        projection: float,
    ) -> None:
        """Build the network without tasks.

        Args:
            backbone: The first column.
            heads: The heads.
            image_shape: (channels, H, W).
            build_backbone: Builds the later columns.
            projection: Width of a lateral connection relative to the width of the column.

        Raises:
            InputError: the backbone is not a sequence of layers.
        """
        super().__init__(backbone, heads, image_shape, build_backbone)
        backbone.stages()  # raises InputError for a backbone without stages
        self.projection = projection
        self.laterals = nn.ModuleList()  # for each later column, one connection to every stage but the first

    def grow(self, classes: int) -> None:
        """Add a column with its lateral connections and a head, and freeze the earlier ones."""
        super().grow(classes)
        if self.later:
            widths = [_output_channels(stage) for stage in self.backbone.stages()[:-1]]
            laterals = [LateralConnection(n, len(self.later), max(1, round(self.projection * n))) for n in widths]
            self.laterals.append(nn.ModuleList(laterals).to(memory_format=torch.channels_last))

    def other_parameters(self, task: int) -> list[nn.Parameter]:
        """Return the parameters of the task's lateral connections and of its head."""
        laterals = self.laterals[task - 1].parameters() if task else ()
        return [*laterals, *super().other_parameters(task)]

    def features(self, x: Tensor, task: int) -> Tensor:
        """Return the features of images for a task: (B, channels, H, W) -> (B, D)."""
        return self._all_features(x, task)[task]

    def forward(self, x: Tensor, tasks: Sequence[int], detach: Sequence[int] = ()) -> Tensor:
        """Return the logits of these tasks. Every column runs once: (B, channels, H, W) -> (B, R)."""
        features = self._all_features(x, max(tasks))
        return torch.cat([apply_heads(features[k], self.heads.rows([k], detach)) for k in tasks], dim=1)

    def _all_features(self, x: Tensor, last: int) -> list[Tensor]:
        """Return the features (B, D) of the columns 0 to `last`; finished columns run without gradient in eval mode."""
        finished = self.columns[:-1]
        outputs: list[list[Tensor]] = []  # outputs[column][stage]
        with torch.no_grad(), evaluating(*finished):
            for k in range(min(last + 1, len(finished))):
                outputs.append(self._run_column(x, k, outputs))
        if last == len(finished):
            outputs.append(self._run_column(x, last, outputs))
        return [column_outputs[-1] for column_outputs in outputs]

    def _run_column(self, x: Tensor, column: int, earlier: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """Return the outputs of a column's stages, given the outputs of all earlier columns."""
        outputs: list[Tensor] = []
        for i, stage in enumerate(self.columns[column].stages()):
            if i > 0 and column > 0:
                lateral = self.laterals[column - 1][i - 1]  # type: ignore[index]
                x = x + lateral([earlier_outputs[i - 1] for earlier_outputs in earlier])
            x = stage(x)
            outputs.append(x)
        return outputs


def _output_channels(stage: nn.Module) -> int:
    """Return the number of channels of a stage's output."""
    return [m for m in stage.modules() if isinstance(m, nn.BatchNorm2d)][-1].num_features
