"""Hard Attention to the Task (Serrà et al. 2018): learned gates protect the weights that old tasks use.

U: number of units of all gated layers together.
"""

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
from pah.models.backbone import Backbone
from pah.models.masked_network import MaskedNetwork
from pah.models.network import apply_heads

MAX_EMBEDDING = 6.0  # the paper: embeddings stay where the sigmoid is not flat
MAX_EXPONENT = 50.0  # the paper: limits |s e| in the compensation of gradients, for numerical stability
STATISTICS_BATCH_SIZE = 500


@dataclass(frozen=True)
class HATOptions(MethodOptions):
    """Options of Hard Attention to the Task.

    Args:
        sparsity: Weight of the term that limits how many units a task uses which no earlier task uses (paper 0.75).
        s_max: Steepness of the gates at test time. Within each epoch it rises from 1 / s_max to s_max (paper 400).
        embedding_lr: Peak learning rate of the gates' embeddings.
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
        """Return the untrained network, with a gate for each unit and task.

        Raises:
            InputError: the backbone is not a sequence of layers.
        """
        backbone = build_backbone()
        heads = self.build_heads(backbone.features, image_shape[0])
        return MaskedNetwork(backbone, heads, image_shape, self.s_max)


class HAT(Method):
    """Learns gates and weights together. The more earlier tasks use a weight, the less it changes."""

    batches: Tensor

    def __init__(self, network: MaskedNetwork, optimizer: OptimizerOptions, options: HATOptions) -> None:
        super().__init__(network, optimizer, options)
        self.options = options
        self.task_images = 0  # number of images of the current task
        self.batches_per_epoch = 0  # of the current task, 0 if not known yet
        self.register_buffer("batches", torch.tensor(0))  # the same number, saved so that an epoch can be resumed

    @property
    def masked_network(self) -> MaskedNetwork:
        """The network, which must be a masked one."""
        assert isinstance(self.network, MaskedNetwork), "HAT needs a masked network"
        return self.network

    def begin_task(self, task: Task) -> None:
        """Freeze the earlier tasks' own parameters. The convolutions and the new task's parameters learn."""
        super().begin_task(task)
        self.task_images, self.batches_per_epoch = len(task.train), 0
        network = self.masked_network
        convolutions = (convolution.conv for convolution in network.convolutions)
        backbone = nn.ModuleList([*convolutions, *network.norms(task.index)])
        groups = self.optimizer_options.groups(backbone, [network.heads.task_parameters()[task.index]])
        embedding_group = ([network.embeddings[task.index]], self.options.embedding_lr, 0.0)
        self.optimizers = [self.optimizer_options.build([*groups, embedding_group])]

    def observe(self, batch: Batch) -> Terms:
        """Take one step on cross entropy and sparsity, then undo the changes of protected weights."""
        network, options = self.masked_network, self.options
        steepness = self._steepness(batch)
        embedding = network.embeddings[self.task]
        hooked = embedding.view_as(embedding)  # not a leaf, so that the hook is gone with this step's graph
        hooked.register_hook(
            lambda gradient: gradient * gradient_compensation(embedding.detach(), steepness, options.s_max)
        )
        gates = torch.sigmoid(steepness * hooked)
        old_gates = network.cumulative_gates(range(self.task))
        features = network.gated_features(batch.x, self.task, gates)
        logits = apply_heads(features, network.heads.rows([self.task]))
        terms = {"L_hm": F.cross_entropy(logits, batch.y), "sparsity": sparsity_loss(gates, old_gates)}
        weights = [convolution.conv.weight for convolution in network.convolutions]
        weights_before = [weight.detach().clone() for weight in weights]
        terms = descend(self.optimizers[0], terms, {"sparsity": options.sparsity})
        with torch.no_grad():
            embedding.clamp_(-MAX_EMBEDDING, MAX_EMBEDDING)
            # The paper multiplies the gradient by 1 - min(a_i, a_j). For plain SGD this equals scaling the step. But
            # Adam's step does not depend on the gradient's scale, and momentum and weight decay act without gradient.
            shares = network.unprotected_shares(old_gates)
            for weight, before, share in zip(weights, weights_before, shares, strict=True):
                weight.copy_(torch.lerp(before, weight, share[:, :, None, None]))
        return terms

    @torch.no_grad()
    def end_task(self, task: Task) -> None:
        """Measure the task's batch-norm statistics again, with the gates of test time.

        The running statistics average over all values of s in an epoch. If few gates are open at s_max, they are so
        wrong that the accuracy of the task drops.
        """
        norms = self.masked_network.norms(task.index)
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean over all batches
        self.masked_network.train()
        shuffled = torch.randperm(len(task.train))  # the examples are sorted by class
        for indices in shuffled.tensor_split(number_of_batches(len(shuffled), STATISTICS_BATCH_SIZE)):
            self.masked_network.features(self.normalized_images(task, task.train, indices), task.index)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum

    def _steepness(self, batch: Batch) -> float:
        """Return the steepness s of a step, which depends on its position in the epoch."""
        index = batch.step.index
        if index > 0 and self.batches_per_epoch == 0:
            self.batches_per_epoch = int(self.batches)
        if index == 0 or self.batches_per_epoch == 0:
            # exact because the first batch of an epoch is the largest of nearly equal ones
            self.batches_per_epoch = number_of_batches(self.task_images, batch.global_size)
            self.batches.fill_(self.batches_per_epoch)
        return annealed_steepness(index, self.batches_per_epoch, self.options.s_max)


def annealed_steepness(index: int, batches: int, s_max: float) -> float:
    """Return s of batch `index` (from 0) of an epoch: 1/s_max in the first batch, s_max in the last, else linear."""
    progress = min(1.0, index / (batches - 1)) if batches > 1 else 1.0
    return 1 / s_max + (s_max - 1 / s_max) * progress


def gradient_compensation(embedding: Tensor, s: float, s_max: float) -> Tensor:
    """Return the factors of the embedding's gradient, (U,): s_max (cosh(s e) + 1) / (s (cosh(e) + 1)).

    The gradient of σ(s e) is very small for small s, and for large s it is very small except near 0. The factors undo
    this.

    Args:
        embedding: e, (U,).
        s: The current steepness.
        s_max: The steepness at test time.
    """
    exponent = (s * embedding).clamp(-MAX_EXPONENT, MAX_EXPONENT)
    return s_max / s * (torch.cosh(exponent) + 1) / (torch.cosh(embedding) + 1)


def sparsity_loss(gates: Tensor, old_gates: Tensor) -> Tensor:
    """Return Σ a (1 - a_<t) / Σ (1 - a_<t), the share of the free capacity that a task uses, as a scalar.

    It is 0 if earlier tasks use all units.

    Args:
        gates: a, the gates of the task, (U,).
        old_gates: a_<t, the cumulative gates of the earlier tasks, (U,).
    """
    free = 1 - old_gates
    return (gates * free).sum() / free.sum().clamp_min(1e-6)
