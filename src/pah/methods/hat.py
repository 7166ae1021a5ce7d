"""Hard Attention to the Task (Serrà et al. 2018): a gate a unit and task; the weights between used units are kept."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pah.core.config import require
from pah.data.stream import number_of_batches
from pah.data.task import Batch, Task
from pah.methods.base import Method, MethodOptions, OptimizerOptions, Terms, descend
from pah.models.backbones import Backbone
from pah.models.masked import MaskedNetwork
from pah.models.network import apply_rows

LARGEST_EMBEDDING = 6.0  # the paper: e stays where the sigmoid is not flat
MEASURING_BATCH = 500
LARGEST_EXPONENT = 50.0  # the paper: |s e| in the compensation, for numerical stability


@dataclass(frozen=True)
class HATOptions(MethodOptions):
    """Options of Hard Attention to the Task.

    Args:
        sparsity: Weight of the term that keeps a task from taking units which no earlier task uses (paper 0.75).
        s_max: Steepness of the gates at test time; it rises from 1 / s_max to it within each epoch (paper 400).
        embedding_lr: Learning rate of the gates' embeddings at its peak.
    """

    sparsity: float = 0.75
    s_max: float = 400.0
    embedding_lr: float = 0.05
    search: ClassVar[Mapping[str, Sequence[Any]]] = {"sparsity": (0.25, 0.75, 2.5), "embedding_lr": (0.05, 0.2)}

    def __post_init__(self) -> None:
        require(self.sparsity >= 0, "method.sparsity", "at least 0", self.sparsity)
        require(self.s_max >= 1, "method.s_max", "at least 1", self.s_max)
        require(self.embedding_lr > 0, "method.embedding_lr", "above 0", self.embedding_lr)

    def build_network(self, build_backbone: Callable[[], Backbone], image_shape: tuple[int, int, int]) -> MaskedNetwork:
        """A backbone with a gate a unit and task; InputError if the backbone is no sequence of layers."""
        backbone = build_backbone()
        heads = self.build_heads(backbone.features, image_shape[0])
        return MaskedNetwork(backbone, heads, image_shape, self.s_max)


class HAT(Method):
    """Learn gates and weights together; a weight moves by the share in which no earlier task uses it."""

    batches: Tensor

    def __init__(self, network: MaskedNetwork, optimizer: OptimizerOptions, options: HATOptions) -> None:
        super().__init__(network, optimizer, options)
        self.options = options
        self.images = 0  # of the current task
        self.in_epoch = 0  # batches of the current task; 0: not known yet
        self.register_buffer("batches", torch.tensor(0))  # the same, for a resume in mid-epoch

    @property
    def masked(self) -> MaskedNetwork:
        """The network, which has to be a masked one."""
        assert isinstance(self.network, MaskedNetwork), "HAT needs a masked network"
        return self.network

    def begin_task(self, task: Task) -> None:
        """Freeze what is the earlier tasks' own; the convolutions and all that is the new task's learn."""
        super().begin_task(task)
        self.images, self.in_epoch = len(task.train), 0
        network, of = self.masked, self.optimizer_options
        backbone = nn.ModuleList([*(wire.conv for wire in network.wires), *network.norms(task.index)])
        groups = of.groups(backbone, [network.heads.per_task()[task.index]])
        self.optimizers = [of.build([*groups, ([network.embeddings[task.index]], self.options.embedding_lr, 0.0)])]

    def observe(self, batch: Batch) -> Terms:
        """One step on cross entropy and sparsity; then what is protected is put back."""
        network, o = self.masked, self.options
        s = self._steepness(batch)
        embedding = network.embeddings[self.task]
        e = embedding.view_as(embedding)  # no leaf: the hook lives as long as this step's graph
        e.register_hook(lambda gradient: gradient * compensation(embedding.detach(), s, o.s_max))
        gates = torch.sigmoid(s * e)
        used = network.used(range(self.task))
        features = network.gated_features(batch.x, self.task, gates)
        logits = apply_rows(features, network.heads.rows([self.task]))
        terms = {"L_hm": F.cross_entropy(logits, batch.y), "sparsity": capacity_taken(gates, used)}
        weights = [wire.conv.weight for wire in network.wires]
        before = [weight.detach().clone() for weight in weights]
        terms = descend(self.optimizers[0], terms, {"sparsity": o.sparsity})
        with torch.no_grad():
            embedding.clamp_(-LARGEST_EMBEDDING, LARGEST_EMBEDDING)
            # The paper scales the gradient by 1 - min(a_i, a_j). For plain SGD, scaling the step is the same; but
            # Adam's step does not scale with the gradient, and momentum and weight decay move a weight without one.
            for weight, start, share in zip(weights, before, network.free_shares(used), strict=True):
                weight.copy_(torch.lerp(start, weight, share[:, :, None, None]))
        return terms

    @torch.no_grad()
    def end_task(self, task: Task) -> None:
        """Measure the task's batch-norm statistics anew, through the gates as they are at test time.

        The running ones are an average over all s of an epoch, and where few gates are open at s_max they are so far
        off that much of the task is lost.
        """
        norms = self.masked.norms(task.index)
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean over all batches
        self.masked.train()
        shuffled = torch.randperm(len(task.train))  # they lie class by class
        for which in shuffled.tensor_split(number_of_batches(len(shuffled), MEASURING_BATCH)):
            self.masked.features(self.images_of(task, task.train, which), task.index)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum

    def _steepness(self, batch: Batch) -> float:
        """The s of this step of its epoch."""
        index = batch.step.index
        if index > 0 and self.in_epoch == 0:
            self.in_epoch = int(self.batches)
        if index == 0 or self.in_epoch == 0:
            # exact for the first batch, the largest of nearly equal ones
            self.in_epoch = number_of_batches(self.images, batch.images)
            self.batches.fill_(self.in_epoch)
        return annealed(index, self.in_epoch, self.options.s_max)


def annealed(index: int, batches: int, s_max: float) -> float:
    """s in batch `index` (from 0) of an epoch: from 1/s_max in the first to s_max in the last, linearly."""
    share = min(1.0, index / (batches - 1)) if batches > 1 else 1.0
    return 1 / s_max + (s_max - 1 / s_max) * share


def compensation(embedding: Tensor, s: float, s_max: float) -> Tensor:
    """By what the embedding's gradient is multiplied, (U,) -> (U,): s_max (cosh(s e) + 1) / (s (cosh(e) + 1)).

    It undoes the shape of σ(s e), whose gradient is tiny for small s and vanishes beside 0 for large s.
    """
    exponent = (s * embedding).clamp(-LARGEST_EXPONENT, LARGEST_EXPONENT)
    return s_max / s * (torch.cosh(exponent) + 1) / (torch.cosh(embedding) + 1)


def capacity_taken(gates: Tensor, used: Tensor) -> Tensor:
    """Σ a (1 - a_<t) / Σ (1 - a_<t), the share of the free capacity that these gates take: (U,) twice -> scalar.

    0 where everything is used already.
    """
    free = 1 - used
    return (gates * free).sum() / free.sum().clamp_min(1e-6)
