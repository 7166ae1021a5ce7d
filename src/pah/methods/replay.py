"""Methods that store images and learn them again: ER, A-GEM, DER, DER++.

In a step, new and stored images pass through the backbone as one batch, each image answered by the head of its own
task. Stored images are raw and augmented anew, as new ones are.
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
from pah.core.devices import sent
from pah.data.task import Batch, Task
from pah.methods.base import Method, MethodOptions, OptimizerOptions, Terms, descend, gradients_of
from pah.methods.buffer import Buffer, Samples
from pah.models.network import Network


@dataclass(frozen=True)
class ReplayOptions(MethodOptions):
    """Options of a method that replays stored images.

    Args:
        buffer: Training images stored, of all tasks together.
        replay: Stored images in a step, for each term that uses them.
    """

    buffer: int = 200
    replay: int = 32

    def __post_init__(self) -> None:
        require(self.buffer >= 1, "method.buffer", "at least 1", self.buffer)
        require(self.replay >= 1, "method.replay", "at least 1", self.replay)

    def check_stream(self, class_counts: Sequence[int]) -> None:
        """The buffer has to hold a sample of each class."""
        classes = sum(class_counts)
        require(
            self.buffer >= classes, "method.buffer", f"at least one sample for each of {classes} classes", self.buffer
        )


@dataclass(frozen=True)
class Draw:
    """Stored samples for a step, or of several processes one's slice of them.

    Args:
        own: The samples.
        first: The number of the first one among all that were drawn.
        of: How many were drawn.
        factor: By which a mean over `own` counts in `descend`, which takes it for one over the batch: 1 for all.
    """

    own: Samples
    first: int
    of: int
    factor: Tensor | float

    def __len__(self) -> int:
        return self.of


class Replay(Method):
    """A method with a buffer; a subclass says what a step does with it."""

    def __init__(self, network: Network, optimizer: OptimizerOptions, options: ReplayOptions) -> None:
        super().__init__(network, optimizer, options)
        self.options = options
        self.buffer = Buffer(options.buffer, network.image_shape)

    def begin_task(self, task: Task) -> None:
        """The backbone and all heads learn."""
        super().begin_task(task)
        self.buffer.grow(len(task.class_names))
        of = self.optimizer_options
        self.optimizers = [of.build(of.groups(self.network.backbone, self.network.heads.parameters()))]

    @property
    def stored_samples(self) -> int:
        """What the buffer holds."""
        return len(self.buffer)

    def answers_to(self, batch: Batch, *draws: Draw) -> list[Tensor]:
        """Own-task logits (n, C) of the batch and of each draw from the buffer, from one pass."""
        stored = [self.prepared(batch, draw, i) for i, draw in enumerate(draws) if len(draw)]
        tasks = torch.cat([batch.tasks, *(draw.own.tasks for draw in draws)])
        logits = self.own_logits(torch.cat([batch.x, *stored]), tasks)
        return list(logits.split([len(batch.y), *(len(draw.own) for draw in draws)]))

    def prepared(self, batch: Batch, draw: Draw, number: int = 0) -> Tensor:
        """The images of a step's draw of that number as the network learns from them."""
        return batch.step.prepare(draw.own.pixels, f"replay {number}", draw.first, draw.of)

    def draw(self, batch: Batch, purpose: str = "draw") -> Draw:
        """Stored samples for this step: the same, and each process's slice of them, whatever the number of these."""
        drawn = self.buffer.draw(self.options.replay, batch.step.generator(purpose))
        if (
            distributed.count() == 1 or len(drawn) < 2 * distributed.count()
        ):  # too few to share out: all learn from all of them
            return Draw(drawn, 0, len(drawn), 1.0)
        part = distributed.own_part(len(drawn))
        own = drawn[torch.arange(len(drawn))[part]]
        share = own.weights.sum() / drawn.weights.sum()
        return Draw(own, part.start, len(drawn), share * batch.images / len(batch.y))

    def store(self, batch: Batch, logits: Tensor) -> None:
        """Offer the batch to the buffer, each image with its present answer (n, C)."""
        weights = torch.ones(len(batch.y), device=batch.y.device)
        samples = Samples(batch.pixels, batch.y, batch.tasks, logits.detach(), weights)
        self.buffer.offer(samples.of_all_processes(), batch.step.generator("reservoir"))

    def share_out(self, new: Samples, choose: Callable[[Samples, int], Samples]) -> None:
        """Let each class seen keep its even share of the buffer: what `choose` makes of its stored and new samples."""
        classes = [(k, c) for k, size in enumerate(self.network.heads.sizes) for c in range(size)]
        shares = class_shares(self.buffer.capacity, len(classes))
        here = dataclasses.replace(new, logits=self.buffer.widened(new.logits)).to(self.device)
        all_of = self.buffer.samples().joined(here)
        kept = [
            choose(all_of[torch.nonzero((all_of.tasks == k) & (all_of.labels == c)).squeeze(1)], share)
            for (k, c), share in zip(classes, shares, strict=True)
        ]
        self.buffer.replace(reduce(Samples.joined, kept))


@dataclass(frozen=True)
class EROptions(ReplayOptions):
    """Options of experience replay.

    Args:
        strength: Weight of the stored images' cross entropy.
    """

    search: ClassVar[Mapping[str, Sequence[Any]]] = {"strength": (0.5, 1.0, 2.0, 4.0)}

    strength: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.strength >= 0, "method.strength", "at least 0", self.strength)


class ER(Replay):
    """Experience replay with a reservoir (Chaudhry et al. 2019, "On Tiny Episodic Memories in Continual Learning")."""

    options: EROptions

    def observe(self, batch: Batch) -> Terms:
        """One step on the cross entropy of new and of stored images; then the batch is offered to the reservoir."""
        stored = self.draw(batch)
        new, old = self.answers_to(batch, stored)
        terms = {"L_hm": F.cross_entropy(new, batch.y)}
        if len(stored):
            terms["L_replay"] = stored.factor * F.cross_entropy(old, stored.own.labels)
        self.store(batch, new)
        return descend(self.optimizers[0], terms, {"L_replay": self.options.strength})


@dataclass(frozen=True)
class DEROptions(ReplayOptions):
    """Options of dark experience replay.

    Args:
        alpha: Weight of the squared change of stored answers (published 0.1 to 1).
    """

    search: ClassVar[Mapping[str, Sequence[Any]]] = {"alpha": (0.1, 0.3, 1.0, 3.0)}

    alpha: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.alpha >= 0, "method.alpha", "at least 0", self.alpha)


class DER(Replay):
    """Dark Experience Replay (Buzzega et al., NeurIPS 2020): L = L_hm + α E ‖z - h(x)‖².

    z is the answer that the network gave when x was stored. Published for one head over all classes; with a head a
    task, z is the answer of the image's own head. The mean of the squares over classes, as the authors' code takes.
    """

    options: DEROptions

    def observe(self, batch: Batch) -> Terms:
        """One step; the batch is offered to the reservoir with the answers that this step started from."""
        stored = self.draw(batch)
        new, old = self.answers_to(batch, stored)
        terms = {"L_hm": F.cross_entropy(new, batch.y)}
        if len(stored):
            terms["L_dark"] = self.dark(old, stored)
        self.store(batch, new)
        return descend(self.optimizers[0], terms, {"L_dark": self.options.alpha})

    def dark(self, logits: Tensor, draw: Draw) -> Tensor:
        """Weighted mean over samples of the mean squared change of their answers, (n, C) -> scalar."""
        stored = draw.own
        classes = sent(torch.tensor(self.network.heads.sizes), logits.device)[stored.tasks]  # of each sample's task
        present = torch.arange(logits.shape[1], device=logits.device) < classes[:, None]  # (n, C)
        change = torch.where(present, logits - stored.logits, 0.0).square().sum(dim=1) / classes
        return draw.factor * (stored.weights * change).sum() / stored.weights.sum()


@dataclass(frozen=True)
class DERppOptions(DEROptions):
    """Options of DER++.

    Args:
        beta: Weight of the stored images' cross entropy (published 0.5 to 1).
    """

    search: ClassVar[Mapping[str, Sequence[Any]]] = {"alpha": (0.1, 0.3, 1.0), "beta": (0.5, 1.0)}

    beta: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.beta >= 0, "method.beta", "at least 0", self.beta)


class DERpp(DER):
    """DER++ (Buzzega et al., NeurIPS 2020): DER, and β times the cross entropy of a second draw from the buffer."""

    options: DERppOptions

    def observe(self, batch: Batch) -> Terms:
        """As DER, with two draws."""
        dark, labelled = self.draw(batch), self.draw(batch, "second draw")
        new, of_dark, of_labelled = self.answers_to(batch, dark, labelled)
        terms = {"L_hm": F.cross_entropy(new, batch.y)}
        if len(dark):
            terms["L_dark"] = self.dark(of_dark, dark)
            terms["L_replay"] = self.labelled(of_labelled, labelled)
        self.store(batch, new)
        return descend(self.optimizers[0], terms, {"L_dark": self.options.alpha, "L_replay": self.options.beta})

    def labelled(self, logits: Tensor, draw: Draw) -> Tensor:
        """Weighted mean of the stored samples' cross entropy, (n, C) -> scalar."""
        losses = F.cross_entropy(logits, draw.own.labels, reduction="none")
        return draw.factor * (draw.own.weights * losses).sum() / draw.own.weights.sum()


class AGEM(Replay):
    """Averaged Gradient Episodic Memory (Chaudhry et al., ICLR 2019, "Efficient Lifelong Learning with A-GEM").

    A step's gradient g that would, to first order, raise the loss of stored images is projected: with their
    gradient g_ref, g <- g - (g·g_ref / g_ref·g_ref) g_ref wherever g·g_ref < 0. The buffer is shared out evenly to
    the classes seen when a task ends.
    """

    def observe(self, batch: Batch) -> Terms:
        """One step along the projected gradient."""
        stored = self.draw(batch)
        terms = {"L_hm": F.cross_entropy(self.network(batch.x, [self.task]), batch.y)}
        if not len(stored):
            return descend(self.optimizers[0], terms)
        weights = [*self.network.backbone.parameters(), *self.network.heads.parameters()]
        logits = self.own_logits(self.prepared(batch, stored), stored.own.tasks)
        loss, reference = gradients_of(stored.factor * F.cross_entropy(logits, stored.own.labels), weights)
        done = descend(self.optimizers[0], terms, edit=lambda: project(weights, reference))
        return done | {"L_replay": loss}

    def end_task(self, task: Task) -> None:
        """Share the buffer out evenly to the classes seen."""
        self.share_out(samples_of(task), lambda samples, count: samples[torch.randperm(len(samples))[:count]])


def project(weights: Sequence[Tensor], reference: Sequence[Tensor]) -> None:
    """Take from the weights' gradient its part against the `reference`, one gradient over all weights together.

    A reference that is not finite, as it may be in fp16, says nothing.
    """
    gradient = [torch.zeros_like(w) if w.grad is None else w.grad for w in weights]
    against = torch.stack([(g * r).sum() for g, r in zip(gradient, reference, strict=True)]).sum()
    square = torch.stack([r.square().sum() for r in reference]).sum()
    if (against < 0) & torch.isfinite(square):  # on a GPU the one question of a step that waits for it
        share = against / square
        for weight, g, r in zip(weights, gradient, reference, strict=True):
            weight.grad = g - share * r


def samples_of(task: Task) -> Samples:
    """All training images of a task, with no answers yet."""
    part = task.train
    count = len(part)
    tasks = torch.full((count,), task.index)
    return Samples(part.pixels[part.rows], part.labels, tasks, torch.zeros(count, 0), torch.ones(count))


def class_shares(capacity: int, classes: int) -> list[int]:
    """How many samples of each class a full buffer holds: as equal as can be."""
    return [capacity // classes + (i < capacity % classes) for i in range(classes)]
