"""Prototype Augmented Hypernetworks (arXiv 2505.07450): heads generated from learnable class prototypes.

B: number of images, J: number of old tasks in a step, C: number of classes of the largest old task, D: number of
features, P: number of old prototypes, one for each old class.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from pah.core import distributed
from pah.data.augment import recolour
from pah.data.stream import number_of_batches
from pah.data.task import Batch, Examples, Task
from pah.methods.base import Method, OptimizerOptions, ParameterGroup, Terms, descend
from pah.methods.losses import (
    ABSENT_LOGIT,
    alignment,
    distillation,
    relative_distance,
    stack_logits,
)
from pah.methods.pah_options import PAHOptions
from pah.methods.teacher import (
    MAX_OLD_TASKS,
    Teacher,
    sample_old_tasks,
    sampled_tasks_weight,
    select_tasks,
)
from pah.models.modes import evaluating, frozen, frozen_batch_norm, reestimate_batch_norm
from pah.models.network import GeneratedHeads, Network, apply_heads
from pah.models.prototypes import downscale, task_positions

STATISTICS_BATCH_SIZE = 64  # images in a batch when batch-norm statistics are estimated
FROZEN_ALIGN_EVERY = 100  # default steps from one step on L_sp to the next with a frozen backbone


class PAH(Method):
    """L = L_hm + λ_sm L_sm + λ_sp L_sp.

    L_hm changes the backbone, the hypernetwork and the current task's prototypes, L_sm the backbone and the
    hypernetwork, L_sp only the prototypes of old tasks.
    """

    answers_to_prototypes: Tensor | None

    def __init__(self, network: Network, optimizer: OptimizerOptions, options: PAHOptions) -> None:
        super().__init__(network, optimizer, options)
        self.options = options
        self.teacher: Teacher | None = None
        self.prototype_source_images: Tensor | None = None  # uint8 (C, channels, H, W), of "semantic" prototypes
        self.register_buffer("answers_to_prototypes", None)  # (P, C) logits of the teacher, constant during a task

    @property
    def heads(self) -> GeneratedHeads:
        """The network's heads, which must be generated ones."""
        assert isinstance(self.network.heads, GeneratedHeads), "PAH needs generated heads"
        return self.network.heads

    @property
    def old_tasks(self) -> range:
        """The tasks learned before the current one."""
        return range(self.task)

    def begin_task(self, task: Task) -> None:
        """Build the teacher, the initial prototypes of the task and the optimizers."""
        old = range(task.index)
        if old:
            self.teacher = Teacher(self.network, old, self.options.teacher_batch_norm)
            with torch.no_grad():
                self.answers_to_prototypes = self._all_prototype_logits(old)
        super().begin_task(task)
        if len(task.train):
            self.heads.prototypes.set(task.index, self._initial_prototypes(task))
        self.optimizers = self._build_optimizers()

    def observe(self, batch: Batch) -> Terms:
        """Take one step on L_hm and L_sm, and one on L_sp with the separate optimizer of old prototypes."""
        old = sample_old_tasks(self.old_tasks, (options := self.options).old_tasks_per_step, batch.step)
        weights = {"L_sm": options.stability * sampled_tasks_weight(self.old_tasks, old, options.over_tasks)}
        weights |= {"L_features": options.feature_stability, "L_heads": options.head_stability}
        terms = self._image_terms(batch, old)
        if not self._aligns or batch.step.number % self._align_every:
            return descend(self.optimizers[0], terms, weights)
        old = sample_old_tasks(self.old_tasks, options.aligned_tasks_per_step, batch.step)
        weights["L_sp"] = options.alignment * sampled_tasks_weight(self.old_tasks, old, options.over_tasks)
        if options.prototype_optimizer == "shared":
            # L_sp comes last: a later pass in training mode would change the statistics that its gradient uses
            return descend(self.optimizers[0], terms | {"L_sp": self.alignment_loss(old)}, weights)
        image_terms = descend(self.optimizers[0], terms, weights)
        return image_terms | descend(self.optimizers[1], {"L_sp": self.alignment_loss(old)}, weights)

    def end_task(self, task: Task) -> None:
        """After the first task, estimate the statistics of batch norms that are frozen from now on."""
        if task.index == 0 and self.options.later_batch_norm == "frozen" and self.network.backbone.trained == "all":
            batches = number_of_batches(len(task.train), STATISTICS_BATCH_SIZE)
            parts = torch.arange(len(task.train)).tensor_split(batches)
            images = (self.normalized_images(task, task.train, indices) for indices in parts)
            reestimate_batch_norm(self.network.backbone, images)

    def release(self) -> None:
        """Delete the teacher and its logits as well: a finished model does not need them."""
        super().release()
        self.teacher = None
        self.answers_to_prototypes = None
        self.prototype_source_images = None

    def _image_terms(self, batch: Batch, old: Sequence[int]) -> Terms:
        """Return L_hm and the terms that protect these old tasks.

        It takes one backbone pass and one call of the hypernetwork. N is the number of images with their copies.
        """
        options = self.options
        if self.teacher is None or not (options.stability or options.feature_stability or options.head_stability):
            old = range(0)
        copies = old and options.copies and batch.x.ndim == 4  # features of a frozen backbone need no copies
        x = torch.cat([batch.x, self.distillation_copies(batch, old)]) if copies else batch.x
        features = self._student_features(x)  # (N, D)
        rows = self.heads.rows([*old, self.task], detach=old)
        logits = apply_heads(features, rows)  # (N, P + C_task)
        old_logits, current_logits = logits.split([sum(self.network.sizes(old)), self.heads.sizes[self.task]], dim=1)
        terms = {"L_hm": F.cross_entropy(current_logits[: len(batch.y)], batch.y)}
        if old and self.teacher is not None:
            student_logits = stack_logits(old_logits, self.network.sizes(old))  # (N, J, C)
            teacher_features = self.teacher.features(x)  # (N, D)
            teacher_logits = self.teacher.logits(teacher_features, old)
            terms["L_sm"] = distillation(
                teacher_logits, student_logits, options.temperature, options.direction, options.over_tasks
            )
            if options.feature_stability:
                terms["L_features"] = relative_distance(teacher_features, features)
            if options.head_stability:
                terms["L_heads"] = relative_distance(self.teacher.head_rows(old), rows[: old_logits.shape[1]])
        return terms

    def distillation_copies(self, batch: Batch, old: Sequence[int]) -> Tensor:
        """Return recoloured copies of a batch's images. Every second one is moved toward a class of these old tasks."""
        assert self.teacher is not None, "begin_task() comes first"
        part, generator = distributed.own_slice(batch.global_size), batch.step.generator("copies")
        copies = recolour(batch.x, generator, part.start, batch.global_size)
        moved = slice(part.start % 2, None, 2)
        task = torch.randint(len(old), (batch.global_size,), generator=generator)[part][moved]
        sizes = torch.tensor(self.network.sizes(old))[task]
        label = (torch.rand(batch.global_size, generator=generator)[part][moved] * sizes).long()
        device = copies.device
        copies[moved] = self.teacher.moved_toward_class(copies[moved], old, task.to(device), label.to(device))
        return copies

    def _student_features(self, x: Tensor) -> Tensor:
        """Return the features of images in training mode: (B, channels, H, W) -> (B, D)."""
        frozen_norms = self.task > 0 and self.options.later_batch_norm == "frozen"
        with frozen_batch_norm(self.network.backbone) if frozen_norms else nullcontext():
            features: Tensor = self.network.backbone(x)
        return features

    def alignment_loss(self, old: Sequence[int]) -> Tensor:
        """Return L_sp of these old tasks. It has gradients for their prototypes only and changes no buffer."""
        assert self.answers_to_prototypes is not None, "begin_task() comes first"
        assert self.heads.hypernetwork is not None, "begin_task() comes first"
        with frozen(self.network.backbone, self.heads.hypernetwork):
            logits = self._prototype_logits(old)
        teacher_logits = select_tasks(self.answers_to_prototypes, self.network.sizes(self.old_tasks), old)
        positions = task_positions(self.network.sizes(old), logits.device)
        options = self.options
        return alignment(
            teacher_logits[:, : logits.shape[1]], logits, positions, len(old), options.direction, options.over_tasks
        )

    def _all_prototype_logits(self, tasks: Sequence[int]) -> Tensor:
        """Return `_prototype_logits` of any number of tasks, computed for at most `MAX_OLD_TASKS` tasks at a time."""
        parts = [tasks[k : k + MAX_OLD_TASKS] for k in range(0, len(tasks), MAX_OLD_TASKS)]
        logits = [self._prototype_logits(part) for part in parts]
        width = max(part.shape[1] for part in logits)
        return torch.cat([F.pad(part, (0, width - part.shape[1]), value=ABSENT_LOGIT) for part in logits])

    def _prototype_logits(self, tasks: Sequence[int]) -> Tensor:
        """Return f(p | task of p) for the prototypes of these tasks, from one backbone pass: (P, C)."""
        prototypes = self.heads.prototypes.batch(tasks)
        images = self.heads.prototypes.to_images(prototypes, self.network.image_shape[0])
        with evaluating(self.network.backbone):  # prototypes must not change batch-norm statistics
            features = self.network.backbone(images)
        logits = apply_heads(features, self.heads.generate(prototypes, tasks))  # (P, P): each prototype, every head
        stacked = stack_logits(logits, self.network.sizes(tasks))  # (P, J, C)
        positions = task_positions(self.network.sizes(tasks), stacked.device)
        return stacked[torch.arange(len(stacked), device=stacked.device), positions]

    @property
    def _aligns(self) -> bool:
        return self.teacher is not None and self.options.alignment > 0

    @property
    def _align_every(self) -> int:
        default = 1 if self.network.backbone.trained == "all" else FROZEN_ALIGN_EVERY
        return self.options.align_every or default

    def _build_optimizers(self) -> list[torch.optim.Optimizer]:
        """Return the main optimizer and, if it is used, the separate optimizer of old prototypes."""
        assert self.heads.hypernetwork is not None
        options, optimizer_options = self.options, self.optimizer_options
        old = [self.heads.prototypes.tasks[k] for k in self.old_tasks]
        current = [self.heads.prototypes.tasks[self.task]]
        shared = old if options.prototype_optimizer == "shared" else []
        if self.task > 0:
            backbone_lr = options.later_lr_factor * optimizer_options.lr_of(self.network.backbone)
            optimizer_options = replace(optimizer_options, backbone_lr=backbone_lr)
        hypernetwork_parameters = self.heads.hypernetwork.parameters()
        groups = optimizer_options.groups(self.network.backbone, hypernetwork_parameters, options.hypernetwork_lr)
        prototype_group: ParameterGroup = (current + shared, optimizer_options.lr, 0.0)
        optimizers = [optimizer_options.build([*groups, prototype_group])]
        if self._aligns and not shared:
            optimizers.append(optimizer_options.build([(old, options.prototype_lr, 0.0)]))
        return optimizers

    def _initial_prototypes(self, task: Task) -> Tensor:
        """Return the initial prototypes of a task, (C, channels, s, s), from its training images or from noise."""
        prototypes, classes = self.heads.prototypes, len(task.class_names)
        shape = (classes, prototypes.channels, prototypes.size, prototypes.size)
        if self.options.prototype_start == "random":
            return torch.randn(shape)
        chosen = [torch.nonzero(task.train.labels == c).squeeze(1) for c in range(classes)]
        if self.options.prototype_start == "semantic":
            chosen = [indices[torch.randint(len(indices), (1,))] for indices in chosen]
            self.prototype_source_images = task.train.pixels[task.train.rows[torch.cat(chosen)]]
        return torch.stack([_mean_image(task, task.train, indices, shape[1:]) for indices in chosen])


def _mean_image(task: Task, examples: Examples, indices: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return the mean of the examples at `indices`, normalised and scaled to `shape` = (channels, s, s)."""
    parts = examples.rows[indices].split(1000)
    sums = torch.stack([task.normalization(examples.pixels[rows]).sum(dim=0) for rows in parts])
    mean = sums.sum(dim=0) / len(indices)
    return downscale(mean[None], shape[1], shape[0])[0]
