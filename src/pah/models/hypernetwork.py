"""The hypernetwork Υ: a task's prototypes in, its classifier head out, a row (D weights, 1 bias) for each class.

P: prototypes of all tasks asked (Σ C_j of them), E: numbers in a prototype (channels s s), D: features.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from pah.core.config import InputError
from pah.models.modes import full_precision
from pah.models.prototypes import owners

Conditioning = Literal["flatten", "classwise"]

HEAD_GAIN = 0.5  # std of generated weights times √D: logits of a fresh head stay below 1, its loss near log C


def build_hypernetwork(
    conditioning: Conditioning, classes: int, numbers: int, features: int, hidden: Sequence[int]
) -> "FlattenHypernetwork | ClasswiseHypernetwork":
    """Υ of the form named, for prototypes of `numbers` numbers; `classes` is C of the first task."""
    if conditioning == "flatten":
        return FlattenHypernetwork(classes, numbers, features, hidden)
    return ClasswiseHypernetwork(numbers, features, hidden)


class FlattenHypernetwork(nn.Module):
    """θ_k = Υ(e_k) with e_k = flatten(p_k^1 … p_k^C), as in the paper: C is the same for every task."""

    def __init__(self, classes: int, numbers: int, features: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.classes = classes
        self.net = _Rows(classes * numbers, hidden, classes, features)

    def forward(self, prototypes: Tensor, sizes: Sequence[int]) -> Tensor:
        """Prototypes (P, channels, s, s) of tasks of `sizes` classes -> rows (P, D + 1)."""
        if set(sizes) != {self.classes}:
            raise InputError(unequal_message(sizes))
        embeddings = prototypes.reshape(len(sizes), -1)  # (J, C E)
        rows: Tensor = self.net(embeddings)  # (J, C (D + 1))
        return rows.reshape(prototypes.shape[0], -1)


class ClasswiseHypernetwork(nn.Module):
    """Each class's row from its own prototype and its task's mean prototype: any number of classes.

    A class is described by how it differs from its task's mean (prototypes of a task look alike: given whole, they
    would give rows that are alike), and by that mean, which is the same in whatever order the classes come.
    """

    def __init__(self, numbers: int, features: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.net = _Rows(2 * numbers, hidden, 1, features)

    def forward(self, prototypes: Tensor, sizes: Sequence[int]) -> Tensor:
        """Prototypes (P, channels, s, s) of tasks of `sizes` classes -> rows (P, D + 1)."""
        own = prototypes.flatten(1)  # (P, E)
        means = torch.stack([task.mean(dim=0) for task in own.split(list(sizes))])  # (J, E)
        mean = means.index_select(0, owners(sizes, own.device))  # (P, E)
        rows: Tensor = self.net(torch.cat([own - mean, mean], dim=1))  # (P, D + 1)
        return rows


def unequal_message(sizes: Sequence[int]) -> str:
    """Why `flatten` cannot serve tasks of these sizes, and what can."""
    counts = "+".join(str(size) for size in sizes)
    return (
        "method.conditioning flatten: expected the same number of classes in every task, "
        f"got {counts}; --method.conditioning classwise takes unequal tasks"
    )


class _FullPrecision(nn.Sequential):
    """Layers computed in the precision of their weights, in whatever precision the backbone is."""

    def forward(self, input: Tensor) -> Tensor:
        with full_precision(input.device):
            return super().forward(input.to(next(self.parameters()).dtype))  # type: ignore[no-any-return, no-untyped-call]


class _Rows(nn.Module):
    """An MLP that makes rows of a head at the scale that a head's rows have: weights of variance g² / D."""

    def __init__(self, inputs: int, hidden: Sequence[int], rows: int, features: int) -> None:
        super().__init__()
        self.layers = unit_variance_mlp(inputs, hidden, rows * (features + 1))
        self.factor = HEAD_GAIN / math.sqrt(features)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs) -> (N, rows (D + 1))."""
        return self.factor * self.layers(x)  # type: ignore[no-any-return]


def unit_variance_mlp(inputs: int, hidden: Sequence[int], outputs: int) -> nn.Sequential:
    """Hidden layers of ReLU(LayerNorm(Linear)) and a last linear layer, its outputs of variance 1 at the start.

    To set the variance of what is generated is the idea of Chang et al. 2020, "Principled weight initialization for
    hypernetworks". Whoever needs another one multiplies the outputs by a factor: with smaller weights instead, Adam,
    which steps by the learning rate whatever the weights, would move each generated weight by the sum of h such
    moves, h being the last hidden width: hundreds of times what it moves a stored weight.
    """
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(inputs, width), nn.LayerNorm(width), nn.ReLU()]
        inputs = width
    last = nn.Linear(inputs, outputs)
    mean_square = 0.5 if hidden else 1.0  # of a hidden unit after its ReLU; of an input
    nn.init.normal_(last.weight, std=1 / math.sqrt(mean_square * inputs))
    nn.init.zeros_(last.bias)
    return _FullPrecision(*layers, last)
