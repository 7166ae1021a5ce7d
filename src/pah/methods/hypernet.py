"""Hypernetworks conditioned on learned task embeddings, held by their own earlier output: HNet and HN2."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pah.core.config import require
from pah.data.task import Batch, Task
from pah.methods.base import Method, MethodOptions, OptimizerOptions, Terms, descend
from pah.models.backbones import Backbone
from pah.models.embedding import EmbeddingHeads, require_equal
from pah.models.modes import evaluating
from pah.models.network import Network, apply_rows
from pah.models.partial import ChunkedHypernetwork, PartialNetwork


@dataclass(frozen=True)
class HNetOptions(MethodOptions):
    """Options of HNet.

    Args:
        beta: Weight of L_reg, the squared change of old tasks' generated heads (paper 0.01).
        shared: The backbone, which all tasks share, goes on learning after the first task, or is frozen then.
        embedding: Numbers in a task's embedding (paper 32 on CIFAR).
        hidden: Widths of the hypernetwork's hidden layers.
    """

    beta: float = 0.01
    shared: Literal["free", "frozen"] = "frozen"
    embedding: int = 32
    hidden: tuple[int, ...] = (64, 64)

    search: ClassVar[Mapping[str, Sequence[Any]]] = {"beta": (0.01, 0.1, 1.0), "shared": ("free", "frozen")}

    def __post_init__(self) -> None:
        require(self.beta >= 0, "method.beta", "at least 0", self.beta)
        require(self.embedding >= 1, "method.embedding", "at least 1", self.embedding)
        require(all(width >= 1 for width in self.hidden), "method.hidden", "widths of at least 1", list(self.hidden))

    def check_stream(self, class_counts: Sequence[int]) -> None:
        """The hypernetwork makes heads of one size."""
        require_equal(class_counts)

    def build_heads(self, features: int, channels: int) -> EmbeddingHeads:
        """Heads generated from embeddings."""
        return EmbeddingHeads(features, self.embedding, self.hidden)


class HNet(Method):
    """Continual learning with hypernetworks (von Oswald et al. 2020, ICLR): L = L_hm + β L_reg.

    L_reg = 1/J Σ_j ||Υ*(e_j) - Υ(e_j)||² over the J old tasks, Υ* being the hypernetwork before the task. Only the
    current task's embedding learns. In the paper Υ makes the whole network and looks a step ahead in L_reg; here it
    makes the head, on a backbone that tasks share, and L_reg is taken where Υ stands.
    """

    target_rows: Tensor | None

    def __init__(self, network: Network, optimizer: OptimizerOptions, options: HNetOptions) -> None:
        super().__init__(network, optimizer, options)
        self.options = options
        self.register_buffer("target_rows", None)  # (R, D + 1), the old heads as Υ* makes them

    @property
    def heads(self) -> EmbeddingHeads:
        """The network's heads, which have to be those of task embeddings."""
        assert isinstance(self.network.heads, EmbeddingHeads), "HNet needs heads generated from embeddings"
        return self.network.heads

    def begin_task(self, task: Task) -> None:
        """Remember the old heads; the hypernetwork, the new embedding and perhaps the backbone learn."""
        if task.index:
            self.target_rows = self.heads.rows(range(task.index)).detach().clone()
        super().begin_task(task)
        assert self.heads.hypernetwork is not None
        learning = nn.Module() if self._backbone_frozen else self.network.backbone
        of = self.optimizer_options
        groups = of.groups(learning, self.heads.hypernetwork.parameters())
        self.optimizers = [of.build([*groups, ([self.heads.tasks[task.index]], of.lr, 0.0)])]

    def observe(self, batch: Batch) -> Terms:
        """One step on L_hm + β L_reg; all heads come from one call of the hypernetwork."""
        old = range(self.task if self.options.beta > 0 else 0)
        of_old, of_task = self.heads.rows([*old, self.task], detach=old).split(
            [sum(self.network.sizes(old)), self.heads.sizes[self.task]]
        )
        terms = {"L_hm": F.cross_entropy(apply_rows(self._features(batch.x), of_task), batch.y)}
        if old and self.target_rows is not None:
            terms["L_reg"] = (of_old - self.target_rows).square().sum() / len(old)
        return descend(self.optimizers[0], terms, {"L_reg": self.options.beta})

    def release(self) -> None:
        """The target goes: a finished model carries none."""
        super().release()
        self.target_rows = None

    def _features(self, x: Tensor) -> Tensor:
        """β(x); without a gradient, and with batch norm's statistics as they are, where the backbone is frozen."""
        backbone = self.network.backbone
        if not self._backbone_frozen:
            return backbone(x)  # type: ignore[no-any-return]
        with torch.no_grad(), evaluating(backbone):
            return backbone(x)  # type: ignore[no-any-return]

    @property
    def _backbone_frozen(self) -> bool:
        return self.options.shared == "frozen" and self.task > 0


@dataclass(frozen=True)
class HN2Options(MethodOptions):
    """Options of HN2.

    Args:
        beta: Weight of L_reg, the squared change, summed over all numbers, of what the hypernetwork generates for an
            old task (published 0.5).
        generate_from: The first stage whose filters are generated; those before it are frozen after the first task.
            3 keeps two stages and is HN-2, 4 is HN-3; 5 generates nothing but the head of a four-stage backbone.
        embedding: Numbers in a task's embedding (paper 32), and in a chunk's.
        hidden: Widths of the hypernetwork's hidden layers.
        chunks: In how many parts the hypernetwork makes its numbers: it has about h / chunks as many itself, h being
            the last of `hidden`.
        old_tasks_per_step: L_reg is taken over so many old tasks, drawn anew at every step.
    """

    beta: float = 0.5
    generate_from: int = 3
    embedding: int = 32
    hidden: tuple[int, ...] = (64,)
    chunks: int = 128
    old_tasks_per_step: int = 1

    search: ClassVar[Mapping[str, Sequence[Any]]] = {"beta": (0.005, 0.05, 0.5, 5.0)}

    def __post_init__(self) -> None:
        require(self.beta >= 0, "method.beta", "at least 0", self.beta)
        require(2 <= self.generate_from <= 5, "method.generate_from", "2 to 5", self.generate_from)
        require(self.embedding >= 1, "method.embedding", "at least 1", self.embedding)
        require(all(width >= 1 for width in self.hidden), "method.hidden", "widths of at least 1", list(self.hidden))
        require(self.chunks >= 1, "method.chunks", "at least 1", self.chunks)
        require(self.old_tasks_per_step >= 1, "method.old_tasks_per_step", "at least 1", self.old_tasks_per_step)

    def check_stream(self, class_counts: Sequence[int]) -> None:
        """The hypernetwork makes heads of one size."""
        require_equal(class_counts)

    def build_network(
        self, build_backbone: Callable[[], Backbone], image_shape: tuple[int, int, int]
    ) -> PartialNetwork:
        """A backbone whose late stages are generated; InputError if it has no such stages."""
        return PartialNetwork(
            build_backbone(), image_shape, self.generate_from, self.embedding, self.hidden, self.chunks
        )


class HN2(Method):
    """Partial hypernetworks (Hemati et al. 2023, CoLLAs): L = L_hm + β L_reg, late stages and head being generated.

    L_reg is HNet's, over late filters and head: the mean over old tasks of ||Υ*(e_j) - Υ(e_j)||². It is estimated
    without bias by that of old tasks drawn at each step, so that a step's cost does not grow with their number.

    The published code differs: L_reg looks a step of gradient descent ahead; a filter, not a chunk, is made at a time;
    batch norm uses the statistics of the batch at test time too; an embedding starts as a copy of the last task's.
    """

    def __init__(self, network: Network, optimizer: OptimizerOptions, options: HN2Options) -> None:
        super().__init__(network, optimizer, options)
        self.options = options
        self.target: ChunkedHypernetwork | None = None  # Υ*

    @property
    def partial(self) -> PartialNetwork:
        """The network, which has to be one with generated late stages."""
        assert isinstance(self.network, PartialNetwork), "HN2 needs a partial network"
        return self.network

    def begin_task(self, task: Task) -> None:
        """Keep a copy of Υ; Υ, the new embedding and batch norms learn, and with the first task the early stages."""
        if task.index:
            self.target = copy.deepcopy(self.hypernetwork).requires_grad_(False)
        super().begin_task(task)
        made = self.hypernetwork
        shared = nn.Module() if task.index else self.network.backbone
        of = self.optimizer_options
        groups = of.groups(shared, [*made.net.parameters(), *self.partial.late[task.index].parameters()])
        self.optimizers = [of.build([*groups, ([self.partial.parts.tasks[task.index], made.chunks], of.lr, 0.0)])]

    def observe(self, batch: Batch) -> Terms:
        """One step on L_hm + β L_reg."""
        terms = {"L_hm": F.cross_entropy(self.network(batch.x, [self.task]), batch.y)}
        if self.target is not None and self.options.beta > 0:
            drawn = torch.randperm(self.task, generator=batch.step.generator("old tasks"))
            terms["L_reg"] = self.change(drawn[: self.options.old_tasks_per_step].tolist())
        return descend(self.optimizers[0], terms, {"L_reg": self.options.beta})

    def release(self) -> None:
        """The target goes: a finished model carries none."""
        super().release()
        self.target = None

    @property
    def hypernetwork(self) -> ChunkedHypernetwork:
        """Υ."""
        assert self.partial.parts.hypernetwork is not None, "begin_task() comes first"
        return self.partial.parts.hypernetwork

    def change(self, tasks: Sequence[int]) -> Tensor:
        """The mean over these old tasks of ||Υ*(e_j) - Υ(e_j)||², a function of the hypernetwork alone."""
        assert self.target is not None, "begin_task() comes first"
        changes = []
        for k in tasks:
            embedding = self.partial.parts.tasks[k].detach()
            pairs = zip(self.hypernetwork(embedding), self.target(embedding), strict=True)
            changes.append(torch.stack([(now - then).square().sum() for now, then in pairs]).sum())
        return torch.stack(changes).mean()
