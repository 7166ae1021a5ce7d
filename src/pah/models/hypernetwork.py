"""The hypernetwork Υ of PAH: it generates a task's classifier head from the task's prototypes.

A head has one row for each class: D weights and 1 bias.
P = Σ C_j: number of prototypes of all tasks requested, E = channels s s: numbers in a prototype, D: number of
features, J: number of tasks requested.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from pah.core.config import InputError
from pah.models.modes import full_precision
from pah.models.prototypes import task_positions

Conditioning = Literal["flatten", "classwise"]

HEAD_GAIN = 0.5  # std of generated weights times √D: the logits of a new head stay below 1, its loss near log C


def build_hypernetwork(
    conditioning: Conditioning, classes: int, prototype_numbers: int, features: int, hidden: Sequence[int]
) -> "FlattenHypernetwork | ClasswiseHypernetwork":
    """Return the untrained hypernetwork of the given form.

    Args:
        conditioning: Which form.
        classes: C of the first task; only "flatten" uses it.
        prototype_numbers: E.
        features: D.
        hidden: Widths of the hidden layers.
    """
    if conditioning == "flatten":
        return FlattenHypernetwork(classes, prototype_numbers, features, hidden)
    return ClasswiseHypernetwork(prototype_numbers, features, hidden)


class FlattenHypernetwork(nn.Module):
    """θ_k = Υ(e_k) with e_k = flatten(p_k^1 … p_k^C), as in the paper. Every task has the same C."""

    def __init__(self, classes: int, prototype_numbers: int, features: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.classes = classes
        self.net = _RowGenerator(classes * prototype_numbers, hidden, classes, features)

    def forward(self, prototypes: Tensor, sizes: Sequence[int]) -> Tensor:
        """Generate rows (P, D + 1) from prototypes (P, channels, s, s) of tasks with `sizes` classes each."""
        if set(sizes) != {self.classes}:
            raise InputError(unequal_tasks_message(sizes))
        embeddings = prototypes.reshape(len(sizes), -1)  # (J, C E)
        rows: Tensor = self.net(embeddings)  # (J, C (D + 1))
        return rows.reshape(prototypes.shape[0], -1)


class ClasswiseHypernetwork(nn.Module):
    """Generates each class's row from the class's prototype and the task's mean prototype, for any number of classes.

    The input is the difference of the prototype from the task's mean, and that mean. Prototypes of a task are similar:
    used directly, they would give similar rows. The mean does not depend on the order of the classes.
    """

    def __init__(self, prototype_numbers: int, features: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.net = _RowGenerator(2 * prototype_numbers, hidden, 1, features)

    def forward(self, prototypes: Tensor, sizes: Sequence[int]) -> Tensor:
        """Generate rows (P, D + 1) from prototypes (P, channels, s, s) of tasks with `sizes` classes each."""
        own = prototypes.flatten(1)  # (P, E)
        means = torch.stack([task.mean(dim=0) for task in own.split(list(sizes))])  # (J, E)
        mean = means.index_select(0, task_positions(sizes, own.device))  # (P, E)
        rows: Tensor = self.net(torch.cat([own - mean, mean], dim=1))  # (P, D + 1)
        return rows


def unequal_tasks_message(sizes: Sequence[int]) -> str:
    """Return the error message for "flatten" with tasks of these sizes, which are not all equal."""
    counts = "+".join(str(size) for size in sizes)
    return (
        "method.conditioning flatten: expected the same number of classes in every task, "
        f"got {counts}; --method.conditioning classwise takes unequal tasks"
    )


class _FullPrecision(nn.Sequential):
    """Layers computed in the precision of their weights, whatever precision the backbone uses."""

    def forward(self, input: Tensor) -> Tensor:
        with full_precision(input.device):
            return super().forward(input.to(next(self.parameters()).dtype))  # type: ignore[no-any-return, no-untyped-call]


class _RowGenerator(nn.Module):
    """An MLP that generates rows of a head, whose initial weights have the variance `HEAD_GAIN`² / D."""

    def __init__(self, inputs: int, hidden: Sequence[int], rows: int, features: int) -> None:
        super().__init__()
        self.layers = unit_variance_mlp(inputs, hidden, rows * (features + 1))
        self.factor = HEAD_GAIN / math.sqrt(features)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs) to (N, rows (D + 1))."""
        return self.factor * self.layers(x)  # type: ignore[no-any-return]


def unit_variance_mlp(inputs: int, hidden: Sequence[int], outputs: int) -> nn.Sequential:
    """Return an MLP whose outputs have variance 1 before training.

    Its hidden layers are ReLU(LayerNorm(Linear)), its last layer is linear. Setting the variance of the generated
    weights is the idea of Chang et al. 2020, "Principled weight initialization for hypernetworks".

    For another variance, multiply the outputs by a factor instead of making the last layer's weights smaller. Adam
    changes every weight by about the learning rate, whatever the size of the weight. With small weights it would
    change a generated weight by the sum of h such changes (h: the last hidden width), hundreds of times as much as a
    stored weight.
    """
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(inputs, width), nn.LayerNorm(width), nn.ReLU()]
        inputs = width
    last = nn.Linear(inputs, outputs)
    mean_square = 0.5 if hidden else 1.0  # of a hidden unit after its ReLU, or of an input
    nn.init.normal_(last.weight, std=1 / math.sqrt(mean_square * inputs))
    nn.init.zeros_(last.bias)
    return _FullPrecision(*layers, last)
