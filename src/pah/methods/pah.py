"""Prototype Augmented Hypernetworks (arXiv 2505.07450): heads generated from learnable class prototypes.

B: images, J: old tasks, C: classes of the largest old task, P: old prototypes, one for each old class.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from pah.core import distributed
from pah.core.config import InputError, require
from pah.data.augment import recoloured
from pah.data.stream import number_of_batches
from pah.data.task import Batch, Examples, Task
from pah.methods.base import Method, MethodOptions, OptimizerOptions, Terms, descend
from pah.methods.losses import ABSENT, Direction, Reduction, alignment, distillation, relative_distance, stack_heads
from pah.methods.teacher import ALIGNED_TASKS, OLD_TASKS, Teacher, asked_tasks, of_tasks, weight_of_asked
from pah.models.hypernetwork import Conditioning, unequal_message
from pah.models.modes import BatchNormStatistics, evaluating, frozen, frozen_batch_norm, reestimate
from pah.models.network import GeneratedHeads, Network, apply_rows
from pah.models.prototypes import Prototypes, PrototypeStart, owners, shrink

ESTIMATION_BATCH = 64  # images by which batch norm's statistics are estimated at a time


@dataclass(frozen=True)
class PAHOptions(MethodOptions):
    """Options of PAH; "published" is what the authors' code does where it differs from their paper.

    Args:
        stability: λ_sm, the weight of L_sm, old heads' answers to new images (published 0.5, with the sum).
        alignment: λ_sp, the weight of L_sp, old prototypes' answers (published 1).
        temperature: T, which softens the answers in L_sm (published 2).
        over_tasks: L_sm and L_sp are the mean over old tasks (paper) or the sum (published).
        direction: KL from the teacher to the student (paper) or from the student to the teacher (published).
        conditioning: Υ sees a task's prototypes flattened, all tasks being of one size (paper), or class by class,
            which takes unequal tasks.
        hidden: Widths of the hypernetwork's hidden layers (published 16, 16).
        hypernetwork_lr: Learning rate of the hypernetwork at its peak; the optimizer's `lr` unless given.
        prototype_size: Side of a prototype in pixels (published 10).
        prototype_channels: 1 or 3 (published 1); never more than the images have.
        prototype_start: A training image of the class (paper), the mean image of the class, or noise.
        prototype_optimizer: Old prototypes have an optimizer of their own, stepped on L_sp, or share the main one.
        prototype_lr: Learning rate of old prototypes with an optimizer of their own, at its peak.
        teacher_batch_norm: The teacher normalises by its running statistics, or by the batch's (published).
        later_batch_norm: From the second task on, the backbone that learns normalises by the statistics of the batch,
            or by those of the first task's images, which are estimated when that task ends and then frozen: student,
            teacher and finished network then compute the same function.
        later_lr_factor: From the second task on, the backbone's learning rate is multiplied by this. The lower it is,
            the less a lesson changes the features of old images, and the less it can add.
        feature_stability: Weight of L_features: the features of new images stay those of the teacher. Of an image, a
            head of two classes says a single number; the features say D.
        head_stability: Weight of L_heads: the generated heads of old tasks stay those of the teacher (von Oswald et
            al., ICLR 2020, equation 2), which needs no image.
        copies: L_sm and L_features also see a copy of each new image in other colours (`recoloured` in
            data/augment.py), every second one moved to a drawn old class (`Teacher.moved_to`). Where all new images
            look to an old head like one of its classes, nothing else tells what becomes of the others. Needs frozen
            batch norm, whose statistics the copies would change.
        old_tasks_per_step: How many old tasks L_sm asks in a step, at most: beyond it a seeded sample, so that the cost
            of a step stays flat (published: all).
        aligned_tasks_per_step: The same for L_sp, whose prototypes cost a backbone pass (published: all).
    """

    search: ClassVar[Mapping[str, Sequence[Any]]] = {"stability": (0.5, 1.0, 3.0, 10.0)}

    stability: float = 3.0
    alignment: float = 1.0
    temperature: float = 2.0
    over_tasks: Reduction = "mean"
    direction: Direction = "teacher||student"
    conditioning: Conditioning = "classwise"
    hidden: tuple[int, ...] = (256,)
    hypernetwork_lr: float | None = None
    prototype_size: int = 10
    prototype_channels: int = 3
    prototype_start: PrototypeStart = "semantic"
    prototype_optimizer: Literal["separate", "shared"] = "separate"
    prototype_lr: float = 1e-3
    teacher_batch_norm: BatchNormStatistics = "running"
    later_batch_norm: Literal["batch", "frozen"] = "batch"
    later_lr_factor: float = 1.0
    feature_stability: float = 0.0
    head_stability: float = 0.0
    copies: bool = False
    old_tasks_per_step: int = OLD_TASKS
    aligned_tasks_per_step: int = ALIGNED_TASKS

    def __post_init__(self) -> None:
        for name in ("stability", "alignment", "feature_stability", "head_stability"):
            require(getattr(self, name) >= 0, f"method.{name}", "at least 0", getattr(self, name))
        expected = "false, or later_batch_norm frozen"
        require(not self.copies or self.later_batch_norm == "frozen", "method.copies", expected, True)
        require(self.temperature > 0, "method.temperature", "above 0", self.temperature)
        require(all(width >= 1 for width in self.hidden), "method.hidden", "widths of at least 1", list(self.hidden))
        lr = self.hypernetwork_lr
        require(lr is None or lr > 0, "method.hypernetwork_lr", "above 0", lr)
        require(self.later_lr_factor > 0, "method.later_lr_factor", "above 0", self.later_lr_factor)
        require(self.prototype_size >= 1, "method.prototype_size", "at least 1", self.prototype_size)
        require(self.prototype_channels in (1, 3), "method.prototype_channels", "1 or 3", self.prototype_channels)
        require(self.prototype_lr > 0, "method.prototype_lr", "above 0", self.prototype_lr)
        for name in ("old_tasks_per_step", "aligned_tasks_per_step"):
            require(getattr(self, name) >= 1, f"method.{name}", "at least 1", getattr(self, name))

    def check_stream(self, class_counts: Sequence[int]) -> None:
        """`flatten` needs the same number of classes in every task."""
        if self.conditioning == "flatten" and len(set(class_counts)) > 1:
            raise InputError(unequal_message(class_counts))

    def build_heads(self, features: int, channels: int) -> GeneratedHeads:
        """Generated heads, with prototypes of no more channels than the images have."""
        prototypes = Prototypes(self.prototype_size, min(self.prototype_channels, channels))
        return GeneratedHeads(features, prototypes, self.conditioning, self.hidden)


class PAH(Method):
    """L = L_hm + λ_sm L_sm + λ_sp L_sp, each term moving only what it may: images the network, L_sp old prototypes."""

    answers_to_prototypes: Tensor | None

    def __init__(self, network: Network, optimizer: OptimizerOptions, options: PAHOptions) -> None:
        super().__init__(network, optimizer, options)
        self.options = options
        self.teacher: Teacher | None = None
        self.first_images: Tensor | None = None  # uint8 (C, channels, H, W): where semantic prototypes started
        self.register_buffer("answers_to_prototypes", None)  # (P, C) of the teacher, fixed for the task

    @property
    def heads(self) -> GeneratedHeads:
        """The network's heads, which have to be generated ones."""
        assert isinstance(self.network.heads, GeneratedHeads), "PAH needs generated heads"
        return self.network.heads

    @property
    def old_tasks(self) -> range:
        """The tasks learned before the current one."""
        return range(self.task)

    def begin_task(self, task: Task) -> None:
        """Freeze the teacher, let the task's prototypes start, build the optimizers."""
        old = range(task.index)
        if old:
            self.teacher = Teacher(self.network, old, self.options.teacher_batch_norm)
            with torch.no_grad():
                self.answers_to_prototypes = self._answers_to_all(old)
        super().begin_task(task)
        if len(task.train):
            self.heads.prototypes.set(task.index, self._first_prototypes(task))
        self.optimizers = self._build_optimizers()

    def observe(self, batch: Batch) -> Terms:
        """One step on L_hm and L_sm, then one on L_sp with the old prototypes' own optimizer."""
        options = self.options
        old = asked_tasks(self.old_tasks, options.old_tasks_per_step, batch.step)
        weights = {"L_sm": options.stability * weight_of_asked(self.old_tasks, old, options.over_tasks)}
        weights |= {"L_features": options.feature_stability, "L_heads": options.head_stability}
        terms = self._image_terms(batch, old)
        if not self._aligns:
            return descend(self.optimizers[0], terms, weights)
        old = asked_tasks(self.old_tasks, options.aligned_tasks_per_step, batch.step)
        weights["L_sp"] = options.alignment * weight_of_asked(self.old_tasks, old, options.over_tasks)
        if options.prototype_optimizer == "shared":
            # L_sp last: a training pass after it would change the statistics that its gradient uses
            return descend(self.optimizers[0], terms | {"L_sp": self.alignment_loss(old)}, weights)
        done = descend(self.optimizers[0], terms, weights)
        return done | descend(self.optimizers[1], {"L_sp": self.alignment_loss(old)}, weights)

    def end_task(self, task: Task) -> None:
        """After the first task, batch norm gets the statistics of its images under the weights as they are now."""
        if task.index == 0 and self.options.later_batch_norm == "frozen":
            parts = torch.arange(len(task.train)).tensor_split(number_of_batches(len(task.train), ESTIMATION_BATCH))
            reestimate(self.network.backbone, (self.images_of(task, task.train, which) for which in parts))

    def release(self) -> None:
        """The teacher goes: a finished model carries none."""
        super().release()
        self.teacher = None
        self.answers_to_prototypes = None
        self.first_images = None

    def _image_terms(self, batch: Batch, old: Sequence[int]) -> Terms:
        """L_hm and what holds these old tasks, from one backbone pass and one call of the hypernetwork.

        N: the B images, and as many copies where there are any.
        """
        o = self.options
        if self.teacher is None or not (o.stability or o.feature_stability or o.head_stability):
            old = range(0)
        x = torch.cat([batch.x, self.copies_of(batch, old)]) if old and o.copies else batch.x
        features = self._features(x)  # (N, D)
        rows = self.heads.rows([*old, self.task], detach=old)
        logits = apply_rows(features, rows)  # (N, P + C_task)
        of_old, of_task = logits.split([sum(self.network.sizes(old)), self.heads.sizes[self.task]], dim=1)
        terms = {"L_hm": F.cross_entropy(of_task[: len(batch.y)], batch.y)}
        if old and self.teacher is not None:
            student = stack_heads(of_old, self.network.sizes(old))  # (N, J, C)
            taught = self.teacher.features(x)  # (N, D)
            answers = self.teacher.answers(taught, old)
            terms["L_sm"] = distillation(answers, student, o.temperature, o.direction, o.over_tasks)
            if o.feature_stability:
                terms["L_features"] = relative_distance(taught, features)
            if o.head_stability:
                terms["L_heads"] = relative_distance(self.teacher.rows_of(old), rows[: of_old.shape[1]])
        return terms

    def copies_of(self, batch: Batch, old: Sequence[int]) -> Tensor:
        """The images of a batch in other colours, every second one moved to a class of one of these old tasks."""
        assert self.teacher is not None, "begin_task() comes first"
        part, draw = distributed.own_part(batch.images), batch.step.generator("copies")
        copies = recoloured(batch.x, draw, part.start, batch.images)
        second = slice(part.start % 2, None, 2)
        task = torch.randint(len(old), (batch.images,), generator=draw)[part][second]
        sizes = torch.tensor(self.network.sizes(old))[task]
        label = (torch.rand(batch.images, generator=draw)[part][second] * sizes).long()
        copies[second] = self.teacher.moved_to(copies[second], old, task.to(copies.device), label.to(copies.device))
        return copies

    def _features(self, x: Tensor) -> Tensor:
        """The features by which the backbone learns: (B, channels, H, W) -> (B, D)."""
        frozen_norms = self.task > 0 and self.options.later_batch_norm == "frozen"
        with frozen_batch_norm(self.network.backbone) if frozen_norms else nullcontext():
            features: Tensor = self.network.backbone(x)
        return features

    def alignment_loss(self, old: Sequence[int]) -> Tensor:
        """L_sp of these old tasks: a function of their prototypes alone; no gradient reaches a weight, no buffer
        changes."""
        assert self.answers_to_prototypes is not None, "begin_task() comes first"
        assert self.heads.hypernetwork is not None, "begin_task() comes first"
        with frozen(self.network.backbone, self.heads.hypernetwork):
            answers = self._prototype_answers(old)
        taught = of_tasks(self.answers_to_prototypes, self.network.sizes(self.old_tasks), old)[:, : answers.shape[1]]
        of = owners(self.network.sizes(old), answers.device)
        return alignment(taught, answers, of, len(old), self.options.direction, self.options.over_tasks)

    def _answers_to_all(self, tasks: Sequence[int]) -> Tensor:
        """`_prototype_answers` of any number of tasks, some at a time: each prototype is put to the heads of all."""
        parts = [tasks[k : k + OLD_TASKS] for k in range(0, len(tasks), OLD_TASKS)]
        found = [self._prototype_answers(part) for part in parts]
        widest = max(answers.shape[1] for answers in found)
        return torch.cat([F.pad(answers, (0, widest - answers.shape[1]), value=ABSENT) for answers in found])

    def _prototype_answers(self, tasks: Sequence[int]) -> Tensor:
        """f(p | its own task) for the prototypes of some tasks, in one backbone batch: (P, C)."""
        prototypes = self.heads.prototypes.of(tasks)
        images = self.heads.prototypes.as_images(prototypes, self.network.image_shape[0])
        with evaluating(self.network.backbone):  # prototypes must not leak into batch-norm statistics
            features = self.network.backbone(images)
        logits = apply_rows(features, self.heads.generate(prototypes, tasks))  # (P, P): every head on each
        stacked = stack_heads(logits, self.network.sizes(tasks))  # (P, J, C)
        of = owners(self.network.sizes(tasks), stacked.device)
        return stacked[torch.arange(len(stacked), device=stacked.device), of]

    @property
    def _aligns(self) -> bool:
        return self.teacher is not None and self.options.alignment > 0

    def _build_optimizers(self) -> list[torch.optim.Optimizer]:
        """The main optimizer; with it the old prototypes', where they have one of their own and are aligned."""
        assert self.heads.hypernetwork is not None
        o, of = self.options, self.optimizer_options
        old = [self.heads.prototypes.tasks[k] for k in self.old_tasks]
        current = [self.heads.prototypes.tasks[self.task]]
        shared = old if o.prototype_optimizer == "shared" else []
        if self.task > 0:
            of = replace(of, backbone_lr=o.later_lr_factor * (of.backbone_lr or of.lr))
        main = of.groups(self.network.backbone, self.heads.hypernetwork.parameters(), o.hypernetwork_lr)
        optimizers = [of.build([*main, (current + shared, of.lr, 0.0)])]
        if self._aligns and not shared:
            optimizers.append(of.build([(old, o.prototype_lr, 0.0)]))
        return optimizers

    def _first_prototypes(self, task: Task) -> Tensor:
        """Where the task's prototypes start, (C, channels, s, s), from its own training images or from noise."""
        prototypes, classes = self.heads.prototypes, len(task.class_names)
        shape = (classes, prototypes.channels, prototypes.size, prototypes.size)
        if self.options.prototype_start == "random":
            return torch.randn(shape)
        chosen = [torch.nonzero(task.train.labels == c).squeeze(1) for c in range(classes)]
        if self.options.prototype_start == "semantic":
            chosen = [which[torch.randint(len(which), (1,))] for which in chosen]
            self.first_images = task.train.pixels[task.train.rows[torch.cat(chosen)]]
        return torch.stack([_mean_image(task, task.train, which, shape[1:]) for which in chosen])


def _mean_image(task: Task, part: Examples, which: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The mean of the examples `which`, normalised and shrunk to `shape` = (channels, s, s)."""
    mean = torch.stack([task.normalization(part.pixels[rows]).sum(dim=0) for rows in part.rows[which].split(1000)]).sum(
        dim=0
    ) / len(which)
    return shrink(mean[None], shape[1], shape[0])[0]
