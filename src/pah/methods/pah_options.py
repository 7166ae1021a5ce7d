"""The options of Prototype Augmented Hypernetworks (arXiv 2505.07450)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pah.core.config import InputError, require
from pah.methods.base import MethodOptions
from pah.methods.losses import Direction, Reduction
from pah.methods.teacher import MAX_ALIGNED_TASKS, MAX_OLD_TASKS
from pah.models.hypernetwork import Conditioning, unequal_tasks_message
from pah.models.modes import BatchNormStatistics
from pah.models.network import GeneratedHeads
from pah.models.prototypes import Prototypes, PrototypeStart


@dataclass(frozen=True)
class PAHOptions(MethodOptions):
    """Options of PAH. "Published" is the value in the authors' code if it differs from their paper.

    Args:
        stability: λ_sm, the weight of L_sm, which keeps old heads' predictions for new images (published 0.5, with the
            sum over tasks).
        alignment: λ_sp, the weight of L_sp, which keeps the predictions for old prototypes (published 1).
        temperature: T, which softens the predictions in L_sm (published 2).
        over_tasks: Whether L_sm and L_sp are the mean over old tasks (paper) or the sum (published).
        direction: KL divergence from the teacher to the student (paper) or from the student to the teacher (published).
        conditioning: Input of the hypernetwork. With "flatten" it is all prototypes of a task, and all tasks need the
            same number of classes (paper). With "classwise" it is one class at a time, and tasks may differ.
        hidden: Widths of the hypernetwork's hidden layers (published 16, 16).
        hypernetwork_lr: Peak learning rate of the hypernetwork. By default it is the optimizer's `lr`.
        prototype_size: Side of a prototype in pixels (published 10).
        prototype_channels: Number of channels of a prototype, 1 or 3 (published 1). It is never more than the images
            have.
        prototype_start: Initial prototype of a class: a training image (paper, "semantic"), the mean image, or noise.
        prototype_optimizer: Whether old prototypes have a separate optimizer, which steps on L_sp, or share the main
            optimizer.
        prototype_lr: Peak learning rate of old prototypes if they have a separate optimizer.
        teacher_batch_norm: Whether the teacher normalises by its running statistics or by those of the batch
            (published).
        later_batch_norm: Batch norm of the student from the second task on. With "batch" it uses the statistics of the
            batch. With "frozen" it uses statistics of the first task's images, estimated at the end of that task.
            Then student, teacher and finished network compute the same function.
        later_lr_factor: Factor of the backbone's learning rate from the second task on. A lower value changes the
            features of old images less, and new tasks are learned less well.
        feature_stability: Weight of L_features, which keeps the features of new images as the teacher computes them.
            For each image it constrains D numbers, whereas the head of a task of two classes gives a single one.
        head_stability: Weight of L_heads, which keeps the heads generated for old tasks (von Oswald et al., ICLR 2020,
            equation 2). It needs no images.
        copies: Whether L_sm and L_features also use a recoloured copy of each new image (`recolour` in
            data/augment.py). Every second copy is also moved toward a randomly drawn old class
            (`Teacher.moved_toward_class`). The copies help if an old head assigns all new images to the same class:
            then the new images alone do not constrain its other classes. Copies need frozen batch norm, because they
            would change its statistics.
        old_tasks_per_step: Maximum number of old tasks in L_sm in one step. If there are more, a random sample is
            drawn, so that the cost of a step stays constant (published: all).
        aligned_tasks_per_step: The same for L_sp, whose prototypes need a backbone pass (published: all).
        align_every: Steps from one step on L_sp to the next (published 1). By default 1, and 100 with a frozen
            backbone, where its pass would take longer than all other work of a lesson.
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
    old_tasks_per_step: int = MAX_OLD_TASKS
    aligned_tasks_per_step: int = MAX_ALIGNED_TASKS
    align_every: int | None = None

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
        every = self.align_every
        require(every is None or every >= 1, "method.align_every", "at least 1", every)

    def check_stream(self, class_counts: Sequence[int]) -> None:
        """Raise InputError if tasks with these numbers of classes need another `conditioning`."""
        if self.conditioning == "flatten" and len(set(class_counts)) > 1:
            raise InputError(unequal_tasks_message(class_counts))

    def build_heads(self, features: int, channels: int) -> GeneratedHeads:
        """Return generated heads. Prototypes have no more channels than the images; those of vectors are vectors."""
        size, most = (self.prototype_size, self.prototype_channels) if channels <= 3 else (1, channels)
        return GeneratedHeads(features, Prototypes(size, min(most, channels)), self.conditioning, self.hidden)
