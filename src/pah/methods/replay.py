"""Methods that store training images and learn from them again: ER, A-GEM, DER, DER++.

In a step, new and stored images pass through the backbone as one batch, and each image uses the head of its own task.
Images are stored before augmentation and augmented again in every step.
n: number of stored samples, C: number of classes of the largest task.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from pah.core import distributed
from pah.core.config import require
from pah.core.devices import to_device
from pah.data.task import Batch, Task
from pah.methods.base import Method, MethodOptions, OptimizerOptions, Terms, descend, gradients_of
from pah.methods.buffer import Buffer, Samples
from pah.models.network import Network


@dataclass(frozen=True)
class ReplayOptions(MethodOptions):
    """Options of a method that replays stored images.

    Args:
        buffer: Number of stored training images of all tasks together.
        replay: Number of stored images in a step, for each loss term that uses them.
    """

    buffer: int = 200
    replay: int = 32

    def __post_init__(self) -> None:
        require(self.buffer >= 1, "method.buffer", "at least 1", self.buffer)
        require(self.replay >= 1, "method.replay", "at least 1", self.replay)

    def check_stream(self, class_counts: Sequence[int]) -> None:
        """Raise InputError if the buffer is too small to hold one sample of each class."""
        classes = sum(class_counts)
        expected = f"at least one sample for each of {classes} classes"
        require(self.buffer >= classes, "method.buffer", expected, self.buffer)


@dataclass(frozen=True)
class StoredBatch:
    """Stored samples for a step. With several processes, one process's slice of them.

    Args:
        samples: The samples of this process.
        first: Position of the first of them among all samples drawn for the step.
        total: Number of all samples drawn for the step; also the length of this object.
        loss_factor: Factor of a mean over `samples` in a loss term. `descend` averages terms by the processes' shares
            of the new images, and the factor corrects this to the shares of the stored samples. It is 1 for one
            process.
    """

    samples: Samples
    first: int
    total: int
    loss_factor: Tensor | float

    def __len__(self) -> int:
        return self.total


class Replay(Method):
    """Base class of methods with a buffer. A subclass defines how a step uses it."""

    def __init__(self, network: Network, optimizer: OptimizerOptions, options: ReplayOptions) -> None:
        super().__init__(network, optimizer, options)
        self.options = options
        dtype = torch.float32 if network.backbone.takes_vectors else torch.uint8
        self.buffer = Buffer(options.buffer, network.image_shape, dtype)

    def begin_task(self, task: Task) -> None:
        """Build an optimizer over the backbone and all heads."""
        super().begin_task(task)
        self.buffer.grow(len(task.class_names))
        groups = self.optimizer_options.groups(self.network.backbone, self.network.heads.parameters())
        self.optimizers = [self.optimizer_options.build(groups)]

    @property
    def stored_samples(self) -> int:
        """The number of samples in the buffer."""
        return len(self.buffer)

    def batch_logits(self, batch: Batch, *stored_batches: StoredBatch) -> list[Tensor]:
        """Return own-task logits (n, C) of the batch and of each stored batch, from one pass."""
        images = [self.augmented(batch, stored, i) for i, stored in enumerate(stored_batches) if len(stored)]
        tasks = torch.cat([batch.tasks, *(stored.samples.tasks for stored in stored_batches)])
        logits = self.own_task_logits(torch.cat([batch.x, *images]), tasks)
        return list(logits.split([len(batch.y), *(len(stored.samples) for stored in stored_batches)]))

    def augmented(self, batch: Batch, stored: StoredBatch, number: int = 0) -> Tensor:
        """Return the augmented and normalised images of a step's stored batch with index `number`."""
        images = batch.step.prepare(stored.samples.pixels, f"replay {number}", stored.first, stored.total)
        return self.network.backbone.kept(images) if batch.x.ndim == 2 else images  # as the batch itself

    def draw_stored(self, batch: Batch, purpose: str = "draw") -> StoredBatch:
        """Return stored samples for a step. All processes together draw the same samples as one process would."""
        drawn = self.buffer.draw(self.options.replay, batch.step.generator(purpose))
        processes = distributed.world_size()
        if processes == 1 or len(drawn) < 2 * processes:  # too few to split: every process uses all of them
            return StoredBatch(drawn, 0, len(drawn), 1.0)
        part = distributed.own_slice(len(drawn))
        own = drawn[torch.arange(len(drawn))[part]]
        share = own.weights.sum() / drawn.weights.sum()
        return StoredBatch(own, part.start, len(drawn), share * batch.global_size / len(batch.y))

    def store_batch(self, batch: Batch, logits: Tensor) -> None:
        """Offer the images of a batch to the buffer, with their current logits (n, C)."""
        weights = torch.ones(len(batch.y), device=batch.y.device)
        samples = Samples(batch.pixels, batch.y, batch.tasks, logits.detach(), weights)
        self.buffer.offer(samples.gathered(), batch.step.generator("reservoir"))

    def rebalance(self, new: Samples, select: Callable[[Samples, int], Samples]) -> None:
        """Give each class seen an equal share of the buffer.

        Args:
            new: Samples of the current task, in addition to the stored ones.
            select: Returns at most the given number of samples out of all samples of a class.
        """
        classes = [(k, c) for k, size in enumerate(self.network.heads.sizes) for c in range(size)]
        shares = class_shares(self.buffer.capacity, len(classes))
        padded = dataclasses.replace(new, logits=self.buffer.pad_logits(new.logits)).to(self.device)
        candidates = self.buffer.samples().concatenated(padded)
        selected = [
            select(candidates[torch.nonzero((candidates.tasks == k) & (candidates.labels == c)).squeeze(1)], share)
            for (k, c), share in zip(classes, shares, strict=True)
        ]
        self.buffer.replace(reduce(Samples.concatenated, selected))


@dataclass(frozen=True)
class EROptions(ReplayOptions):
    """Options of Experience Replay.

    Args:
        strength: Weight of the cross entropy of stored images.
    """

    search: ClassVar[Mapping[str, Sequence[Any]]] = {"strength": (0.5, 1.0, 2.0, 4.0)}

    strength: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.strength >= 0, "method.strength", "at least 0", self.strength)


class ER(Replay):
    """Experience Replay with a reservoir (Chaudhry et al. 2019, "On Tiny Episodic Memories in Continual Learning")."""

    options: EROptions

    def observe(self, batch: Batch) -> Terms:
        """Take one step on the cross entropy of new and stored images, and offer the batch to the buffer."""
        stored = self.draw_stored(batch)
        new_logits, stored_logits = self.batch_logits(batch, stored)
        terms = {"L_hm": F.cross_entropy(new_logits, batch.y)}
        if len(stored):
            terms["L_replay"] = stored.loss_factor * F.cross_entropy(stored_logits, stored.samples.labels)
        self.store_batch(batch, new_logits)
        return descend(self.optimizers[0], terms, {"L_replay": self.options.strength})


@dataclass(frozen=True)
class DEROptions(ReplayOptions):
    """Options of Dark Experience Replay.

    Args:
        alpha: Weight of the squared change of the stored images' logits (published 0.1 to 1).
    """

    search: ClassVar[Mapping[str, Sequence[Any]]] = {"alpha": (0.1, 0.3, 1.0, 3.0)}

    alpha: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.alpha >= 0, "method.alpha", "at least 0", self.alpha)


class DER(Replay):
    """Dark Experience Replay (Buzzega et al., NeurIPS 2020): L = L_hm + α E ‖z - h(x)‖².

    z are the logits of x when it was stored. The published method has one head over all classes. Here every task has a
    head, and z are the logits of the head of the image's task. As in the authors' code, the squares are averaged over
    classes.
    """

    options: DEROptions

    def observe(self, batch: Batch) -> Terms:
        """Take one step, and offer the batch to the buffer with its logits from before the step."""
        stored = self.draw_stored(batch)
        new_logits, stored_logits = self.batch_logits(batch, stored)
        terms = {"L_hm": F.cross_entropy(new_logits, batch.y)}
        if len(stored):
            terms["L_dark"] = self.logit_loss(stored_logits, stored)
        self.store_batch(batch, new_logits)
        return descend(self.optimizers[0], terms, {"L_dark": self.options.alpha})

    def logit_loss(self, logits: Tensor, stored: StoredBatch) -> Tensor:
        """Return the mean squared change of stored logits, weighted by sample: logits (n, C) -> scalar."""
        samples = stored.samples
        classes = to_device(torch.tensor(self.network.heads.sizes), logits.device)[samples.tasks]  # of each sample
        present = torch.arange(logits.shape[1], device=logits.device) < classes[:, None]  # (n, C)
        change = torch.where(present, logits - samples.logits, 0.0).square().sum(dim=1) / classes
        return stored.loss_factor * (samples.weights * change).sum() / samples.weights.sum()


@dataclass(frozen=True)
class DERppOptions(DEROptions):
    """Options of DER++.

    Args:
        beta: Weight of the cross entropy of stored images (published 0.5 to 1).
    """

    search: ClassVar[Mapping[str, Sequence[Any]]] = {"alpha": (0.1, 0.3, 1.0), "beta": (0.5, 1.0)}

    beta: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.beta >= 0, "method.beta", "at least 0", self.beta)


class DERpp(DER):
    """DER++ (Buzzega et al., NeurIPS 2020): DER plus β times the cross entropy of other stored samples."""

    options: DERppOptions

    def observe(self, batch: Batch) -> Terms:
        """Take one step as DER does, with a second draw from the buffer for the cross entropy."""
        first, second = self.draw_stored(batch), self.draw_stored(batch, "second draw")
        new_logits, first_logits, second_logits = self.batch_logits(batch, first, second)
        terms = {"L_hm": F.cross_entropy(new_logits, batch.y)}
        if len(first):
            terms["L_dark"] = self.logit_loss(first_logits, first)
            terms["L_replay"] = self.label_loss(second_logits, second)
        self.store_batch(batch, new_logits)
        return descend(self.optimizers[0], terms, {"L_dark": self.options.alpha, "L_replay": self.options.beta})

    def label_loss(self, logits: Tensor, stored: StoredBatch) -> Tensor:
        """Return the cross entropy of stored samples, weighted by sample: logits (n, C) -> scalar."""
        samples = stored.samples
        losses = F.cross_entropy(logits, samples.labels, reduction="none")
        return stored.loss_factor * (samples.weights * losses).sum() / samples.weights.sum()


class AGEM(Replay):
    """Averaged Gradient Episodic Memory (Chaudhry et al., ICLR 2019, "Efficient Lifelong Learning with A-GEM").

    A step's gradient g is projected if it would, to first order, increase the loss of stored images. With their
    gradient g_ref: g <- g - (g·g_ref / g_ref·g_ref) g_ref if g·g_ref < 0. At the end of a task, each class seen gets an
    equal share of the buffer.
    """

    def observe(self, batch: Batch) -> Terms:
        """Take one step along the projected gradient."""
        stored = self.draw_stored(batch)
        terms = {"L_hm": F.cross_entropy(self.network(batch.x, [self.task]), batch.y)}
        if not len(stored):
            return descend(self.optimizers[0], terms)
        weights = [*self.network.backbone.trained_parameters(), *self.network.heads.parameters()]
        logits = self.own_task_logits(self.augmented(batch, stored), stored.samples.tasks)
        stored_loss = stored.loss_factor * F.cross_entropy(logits, stored.samples.labels)
        loss, reference = gradients_of(stored_loss, weights)
        terms = descend(self.optimizers[0], terms, edit_gradients=lambda: project_gradients(weights, reference))
        return terms | {"L_replay": loss}

    def end_task(self, task: Task) -> None:
        """Give each class seen an equal share of the buffer, with randomly drawn samples."""
        self.rebalance(training_samples(task), lambda samples, count: samples[torch.randperm(len(samples))[:count]])


def project_gradients(weights: Sequence[Tensor], reference: Sequence[Tensor]) -> None:
    """Remove from the gradient of the weights its component against the reference, if there is one.

    The weights together have one gradient. A reference that is not finite, which occurs in fp16, is ignored.

    Args:
        weights: The weights, whose `grad` is changed.
        reference: The reference gradient of each weight.
    """
    gradients = [torch.zeros_like(w) if w.grad is None else w.grad for w in weights]
    product = torch.stack([(g * r).sum() for g, r in zip(gradients, reference, strict=True)]).sum()
    square = torch.stack([r.square().sum() for r in reference]).sum()
    if (product < 0) & torch.isfinite(square):  # on a GPU, this is the only condition in a step that waits for it
        factor = product / square
        for weight, g, r in zip(weights, gradients, reference, strict=True):
            weight.grad = g - factor * r


def training_samples(task: Task) -> Samples:
    """Return all training images of a task as samples of weight 1, without logits."""
    examples = task.train
    count = len(examples)
    tasks = torch.full((count,), task.index)
    pixels = examples.pixels[examples.rows]
    return Samples(pixels, examples.labels, tasks, torch.zeros(count, 0), torch.ones(count))


def class_shares(capacity: int, classes: int) -> list[int]:
    """Return how many samples of each class a full buffer holds. The numbers differ by at most 1."""
    return [capacity // classes + (i < capacity % classes) for i in range(classes)]
