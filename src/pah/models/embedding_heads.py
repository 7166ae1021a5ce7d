"""Heads generated from learned task embeddings (von Oswald et al. 2020, "Continual learning with hypernetworks").

E: size of an embedding, C: number of classes of a task, D: number of features, J: number of tasks requested,
R = Σ C_j: number of rows of their heads.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pah.core.config import InputError
from pah.models.hypernetwork import unit_variance_mlp
from pah.models.network import Heads


class EmbeddingHeads(Heads):
    """θ_k = Υ(e_k): a hypernetwork generates the C (D + 1) weights of a task's head from its embedding e_k.

    Args:
        features: D.
        embedding: E.
        hidden: Widths of the hypernetwork's hidden layers.
    """

    def __init__(self, features: int, embedding: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.features = features
        self.embedding = embedding
        self.hidden = tuple(hidden)
        self.tasks = nn.ParameterList()  # one embedding (E,) for each task
        self.hypernetwork: nn.Module | None = None  # built with the first task, whose classes fix the output size

    def grow(self, classes: int) -> None:
        """Add a random embedding for one more task and, with the first task, the hypernetwork.

        Raises:
            InputError: the number of classes differs from that of the earlier tasks.
        """
        self.sizes.append(classes)
        require_equal_tasks(self.sizes)
        self.tasks.append(nn.Parameter(torch.randn(self.embedding)))
        if self.hypernetwork is None:
            self.hypernetwork = unit_variance_mlp(self.embedding, self.hidden, classes * (self.features + 1))

    def rows(self, tasks: Sequence[int], detach: Sequence[int] = ()) -> Tensor:
        """Return the generated rows (R, D + 1). Untrained, they have the variance 1/(3 D) of a stored head."""
        assert self.hypernetwork is not None, "grow() comes first"
        embeddings = torch.stack([self.tasks[k].detach() if k in detach else self.tasks[k] for k in tasks])  # (J, E)
        rows: Tensor = stored_head_std(self.features) * self.hypernetwork(embeddings)  # (J, C (D + 1))
        return rows.reshape(-1, self.features + 1)

    def task_parameters(self) -> list[nn.Parameter]:
        """Return the embeddings."""
        return list(self.tasks)


def stored_head_std(features: int) -> float:
    """Return the standard deviation of the initial weights of a stored head, whose variance is 1/(3 D)."""
    return 1 / math.sqrt(3 * features)


def require_equal_tasks(class_counts: Sequence[int]) -> None:
    """Raise InputError unless all tasks have the same number of classes."""
    if len(set(class_counts)) > 1:
        counts = "+".join(str(count) for count in class_counts)
        raise InputError(
            "heads generated from task embeddings: expected the same number of classes in every task, "
            f"got {counts}; --method pah takes unequal tasks"
        )
