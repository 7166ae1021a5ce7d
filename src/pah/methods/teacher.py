"""The frozen network: how things stood when the current task began.

J: old tasks, P = Σ C_j: their classes, one prototype each; C: classes of the largest of them; D: features.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pah.losses import stack_heads
from pah.models.modes import BatchNormStatistics, evaluating
from pah.models.network import Network, apply_rows


class Teacher(nn.Module):
    """f_old for the tasks seen: a copy of the backbone and the old heads' rows, none of which ever changes.

    It is part of a checkpoint inside a task, and gone when the task ends.
    """

    rows: Tensor

    def __init__(self, network: Network, tasks: Sequence[int], statistics: BatchNormStatistics) -> None:
        super().__init__()
        self.statistics = statistics
        self.sizes = network.sizes(tasks)
        self.backbone = copy.deepcopy(network.backbone).requires_grad_(False)
        with torch.no_grad():
            self.register_buffer("rows", network.heads.rows(tasks).clone())  # (P, D + 1)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """The old heads' answers to images: (B, channels, H, W) -> (B, J, C)."""
        with evaluating(self.backbone, statistics=self.statistics):
            features = self.backbone(x)
        return stack_heads(apply_rows(features, self.rows), self.sizes)
