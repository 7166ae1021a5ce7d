"""A network in which every unit has a gate for each task. A task uses the units whose gates are open.

B: number of images, D: number of features, U: number of units of all gated layers together. A unit is an output
channel of a convolution.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from itertools import chain
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pah.models.backbone import Backbone
from pah.models.layers import BasicBlock
from pah.models.modes import evaluating
from pah.models.network import Heads, TaskNetwork


class GatedConvolution(NamedTuple):
    """A convolution between two gated layers.

    Attributes:
        conv: The convolution.
        source: Index of the gated layer that it reads, or None if it reads the image.
        target: Index of the gated layer that it writes.
    """

    conv: nn.Conv2d
    source: int | None
    target: int


class MaskedNetwork(TaskNetwork):
    """One backbone with gates a = σ(s e) behind every ReLU, where e is a learned embedding of the task.

    Every task has its own batch norms as well. Their statistics and shifts change a unit's output whatever its gate
    is. Shared batch norms would therefore change the outputs of old tasks, and no protection of weights prevents that.
    """

    def __init__(self, backbone: Backbone, heads: Heads, image_shape: tuple[int, int, int], s_max: float) -> None:
        """Build the network without tasks.

        Args:
            backbone: A backbone made of a sequence of layers.
            heads: The heads.
            image_shape: (channels, H, W).
            s_max: The steepness s of the gates at test time. The larger it is, the closer gates are to 0 and 1.

        Raises:
            InputError: the backbone is not a sequence of layers.
        """
        super().__init__(backbone, heads, image_shape)
        self.s_max = s_max
        self.convolutions, self.units = _find_gated_layers(backbone)
        self.embeddings = nn.ParameterList()  # one (U,) for each task
        self.later_norms = nn.ModuleList()  # batch norms of the later tasks; the first task uses the backbone's

    def grow(self, classes: int) -> None:
        """Add an embedding, batch norms and a head for one more task, and freeze those of the earlier tasks."""
        if self.heads.sizes:  # not the first task
            self.requires_grad_(False)
            for convolution in self.convolutions:
                convolution.conv.requires_grad_(True)
            self.later_norms.append(nn.ModuleList(nn.BatchNorm2d(norm.num_features) for norm in self.norms(0)))
        self.embeddings.append(nn.Parameter(torch.randn(sum(self.units))))
        super().grow(classes)

    def norms(self, task: int) -> list[nn.BatchNorm2d]:
        """Return the batch norms of a task in the order of the layers."""
        owner = self.later_norms[task - 1] if task else self.backbone
        return [m for m in owner.modules() if isinstance(m, nn.BatchNorm2d)]

    def gates(self, task: int) -> Tensor:
        """Return the gates of a task at s_max: (U,), 0 to 1."""
        return torch.sigmoid(self.s_max * self.embeddings[task])

    @torch.no_grad()
    def cumulative_gates(self, tasks: Sequence[int]) -> Tensor:
        """Return for each unit the largest gate of these tasks at s_max: (U,), 0 to 1. Without tasks it is 0."""
        gates = [self.gates(k) for k in tasks]
        return torch.stack(gates).amax(dim=0) if gates else torch.zeros_like(self.embeddings[0])

    def unprotected_shares(self, cumulative_gates: Tensor) -> list[Tensor]:
        """Return 1 - min(a_i, a_j) for the weights of each convolution: (out, in), 0 to 1.

        a are the cumulative gates of the old tasks, j is the unit that a weight reads and i the unit that it writes.
        Image channels have a = 1. A weight between two units that an old task uses belongs to that task. A weight from
        a unit that the task does not use is multiplied by 0. An identity shortcut needs no protection: it has no
        weight, and the gate in front of it does not change.
        """
        layers = cumulative_gates.split(self.units)
        image = cumulative_gates.new_ones(1)
        return [
            1 - torch.minimum(layers[target][:, None], layers[source] if source is not None else image)
            for _, source, target in self.convolutions
        ]

    def features(self, x: Tensor, task: int) -> Tensor:
        """Return the features of images for a task, gated at s_max: (B, channels, H, W) -> (B, D)."""
        return self.gated_features(x, task, self.gates(task))

    def gated_features(self, x: Tensor, task: int, gates: Tensor) -> Tensor:
        """Return the features of images with the given gates (U,): (B, channels, H, W) -> (B, D)."""
        norms = self.norms(task)
        finished = task < len(self.heads.sizes) - 1
        with evaluating(*norms) if finished else nullcontext():
            return _gated_forward(self.backbone, x, norms, [layer[:, None, None] for layer in gates.split(self.units)])

    def count_parameters(self) -> dict[str, Any]:
        """Return the numbers of parameters of the convolutions and of each task: its embedding, norms and head."""
        return {
            "backbone": sum(convolution.conv.weight.numel() for convolution in self.convolutions),
            "hypernetwork": 0,
            "per_task": [
                sum(p.numel() for p in (embedding, head, *nn.ModuleList(self.norms(k)).parameters()))
                for k, (embedding, head) in enumerate(zip(self.embeddings, self.heads.task_parameters(), strict=True))
            ],
        }


def _gated_forward(backbone: Backbone, x: Tensor, norms: Sequence[nn.Module], gates: Sequence[Tensor]) -> Tensor:
    """Run the backbone with `norms` instead of its own batch norms, and a gate (n, 1, 1) behind every ReLU."""
    norm, gate = iter(norms), iter(gates)
    for layer in chain(*backbone.stages()):
        if isinstance(layer, BasicBlock):
            inner = F.relu(next(norm)(layer.conv1(x))) * next(gate)
            outer = next(norm)(layer.conv2(inner))
            if isinstance(layer.shortcut, nn.Sequential):
                x = next(norm)(layer.shortcut[0](x))
            x = F.relu(outer + x) * next(gate)
        elif isinstance(layer, nn.BatchNorm2d):
            x = next(norm)(x)
        elif isinstance(layer, nn.ReLU):
            x = F.relu(x) * next(gate)
        else:
            x = layer(x)
    return x


def _find_gated_layers(backbone: Backbone) -> tuple[list[GatedConvolution], list[int]]:
    """Return the convolutions with the gated layers that they connect, and the number of units of each gated layer."""
    convolutions: list[GatedConvolution] = []
    units: list[int] = []
    source: int | None = None
    for layer in chain(*backbone.stages()):
        if isinstance(layer, nn.Conv2d):
            convolutions.append(GatedConvolution(layer, source, len(units)))
            units.append(layer.out_channels)
        elif isinstance(layer, BasicBlock):
            inner, outer = len(units), len(units) + 1
            convolutions += [GatedConvolution(layer.conv1, source, inner), GatedConvolution(layer.conv2, inner, outer)]
            if isinstance(layer.shortcut, nn.Sequential):
                convolutions.append(GatedConvolution(layer.shortcut[0], source, outer))  # type: ignore[arg-type]
            units += [layer.conv1.out_channels, layer.conv2.out_channels]
        source = len(units) - 1
    return convolutions, units
