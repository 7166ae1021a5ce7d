"""Heads generated from learned task embeddings (von Oswald et al. 2020, "Continual learning with hypernetworks").

E: numbers of an embedding, C: classes of a task, D: features, R = Σ C_j: rows of the heads asked.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pah.core.config import InputError
from pah.models.hypernetwork import unit_variance_mlp
from pah.models.network import Heads


class EmbeddingHeads(Heads):
    """θ_k = Υ(e_k): a hypernetwork makes all C (D + 1) numbers of a task's head from its embedding e_k."""

    def __init__(self, features: int, embedding: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.features = features
        self.embedding = embedding
        self.hidden = tuple(hidden)
        self.tasks = nn.ParameterList()  # (E,) each
        self.hypernetwork: nn.Module | None = None  # how much it makes depends on the first task's classes

    def grow(self, classes: int) -> None:
        """A random embedding; with the first task the hypernetwork. InputError unless all tasks are of one size."""
        self.sizes.append(classes)
        require_equal(self.sizes)
        self.tasks.append(nn.Parameter(torch.randn(self.embedding)))
        if self.hypernetwork is None:
            self.hypernetwork = unit_variance_mlp(self.embedding, self.hidden, classes * (self.features + 1))

    def rows(self, tasks: Sequence[int], detach: Sequence[int] = ()) -> Tensor:
        """The generated rows, at the start of variance 1/(3 D) as those of a stored head."""
        assert self.hypernetwork is not None, "grow() comes first"
        embeddings = torch.stack([self.tasks[k].detach() if k in detach else self.tasks[k] for k in tasks])  # (J, E)
        rows: Tensor = head_std(self.features) * self.hypernetwork(embeddings)  # (J, C (D + 1))
        return rows.reshape(-1, self.features + 1)

    def per_task(self) -> list[nn.Parameter]:
        """The embeddings."""
        return list(self.tasks)


def head_std(features: int) -> float:
    """The standard deviation with which a stored head of `features` features starts: its variance is 1/(3 D)."""
    return 1 / math.sqrt(3 * features)


def require_equal(class_counts: Sequence[int]) -> None:
    """Raise InputError unless all these tasks have the same number of classes."""
    if len(set(class_counts)) > 1:
        counts = "+".join(str(count) for count in class_counts)
        raise InputError(
            "heads generated from task embeddings: expected the same number of classes in every task, "
            f"got {counts}; --method pah takes unequal tasks"
        )
