"""Methods that add a penalty to the loss: on changed predictions (LwF) or on changed weights (EWC, SI)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from pah.core.config import require
from pah.data.task import Batch, Task
from pah.methods.base import Method, MethodOptions, OptimizerOptions, Terms, descend
from pah.methods.bounds import Finetune
from pah.methods.losses import Reduction, distillation, stack_logits
from pah.methods.teacher import MAX_OLD_TASKS, Teacher, sample_old_tasks, sampled_tasks_weight
from pah.models.modes import evaluating
from pah.models.network import Network

PASS_SIZE = 500  # images in one pass through the network without gradients
PER_SAMPLE_BATCH_SIZE = 16  # images whose gradients are in memory together; each is as large as the network


@dataclass(frozen=True)
class LwFOptions(MethodOptions):
    """Options of Learning without Forgetting. "Published" values are those of its paper.

    Args:
        stability: Weight of L_sm, which keeps old heads' predictions for new images (published 1).
        temperature: T, which softens the predictions in L_sm (published 2).
        over_tasks: Whether L_sm is the mean over old tasks or the sum (published).
        old_tasks_per_step: Maximum number of old tasks in L_sm in one step. If there are more, a random sample is
            drawn (published: all).
    """

    search: ClassVar[Mapping[str, Sequence[Any]]] = {"stability": (0.5, 1.0, 3.0, 10.0)}

    stability: float = 10.0
    temperature: float = 2.0
    over_tasks: Reduction = "mean"
    old_tasks_per_step: int = MAX_OLD_TASKS

    def __post_init__(self) -> None:
        require(self.stability >= 0, "method.stability", "at least 0", self.stability)
        require(self.temperature > 0, "method.temperature", "above 0", self.temperature)
        require(self.old_tasks_per_step >= 1, "method.old_tasks_per_step", "at least 1", self.old_tasks_per_step)


class LwF(Method):
    """Learning without Forgetting (Li and Hoiem, ECCV 2016): L = L_hm + λ L_sm.

    L_sm is that of PAH: the softened predictions of old heads for new images stay those of the frozen network. PAH
    differs from LwF only in generating the heads and in L_sp.
    """

    def __init__(self, network: Network, optimizer: OptimizerOptions, options: LwFOptions) -> None:
        super().__init__(network, optimizer, options)
        self.options = options
        self.teacher: Teacher | None = None

    def begin_task(self, task: Task) -> None:
        """Build the teacher, and an optimizer over the backbone and all heads."""
        if task.index:
            self.teacher = Teacher(self.network, range(task.index), "running")
        super().begin_task(task)
        groups = self.optimizer_options.groups(self.network.backbone, self.network.heads.parameters())
        self.optimizers = [self.optimizer_options.build(groups)]

    def observe(self, batch: Batch) -> Terms:
        """Take one step on L_hm and L_sm, from one backbone pass."""
        options, all_old = self.options, range(self.task)
        old = sample_old_tasks(all_old, options.old_tasks_per_step, batch.step)
        sizes = self.network.sizes(old)
        old_logits, current_logits = self.network(batch.x, [*old, self.task]).tensor_split([sum(sizes)], dim=1)
        terms = {"L_hm": F.cross_entropy(current_logits, batch.y)}
        weight = options.stability
        if self.teacher is not None:
            student = stack_logits(old_logits, sizes)  # (B, J, C)
            teacher = self.teacher(batch.x, old)
            terms["L_sm"] = distillation(teacher, student, options.temperature, reduction=options.over_tasks)
            weight *= sampled_tasks_weight(all_old, old, options.over_tasks)
        return descend(self.optimizers[0], terms, {"L_sm": weight})

    def release(self) -> None:
        """Delete the teacher as well."""
        super().release()
        self.teacher = None


class QuadraticPenalty(Finetune):
    """L_hm + λ Σ_i Ω_i (θ_i - θ*_i)² over the weights θ that tasks share. Subclasses define the importance Ω.

    Heads (or prototypes) of old tasks do not appear in later losses and therefore need no penalty.

    Attributes:
        buffer_kinds: The kinds of buffers, each with one buffer for each weight. θ* is "anchor", Ω is "importance".
        strength: λ.
    """

    network_is_all = False  # the buffers exist from the first task on
    buffer_kinds: ClassVar[tuple[str, ...]] = ("anchor", "importance")
    strength: float

    def begin_task(self, task: Task) -> None:
        """Add the buffers with the first task."""
        super().begin_task(task)
        if task.index == 0:
            for kind in self.buffer_kinds:
                for i, parameter in enumerate(self.shared_weights()):
                    self.register_buffer(f"{kind}_{i}", torch.zeros_like(parameter))

    def observe(self, batch: Batch) -> Terms:
        """Take one step on the cross entropy of the current task and the penalty."""
        terms = {"L_hm": F.cross_entropy(self.network(batch.x, [self.task]), batch.y)}
        if self.task:
            terms["penalty"] = self.penalty()
        return descend(self.optimizers[0], terms, {"penalty": self.strength})

    def shared_weights(self) -> list[nn.Parameter]:
        """Return the weights that all tasks use."""
        return [*self.network.backbone.trained_parameters(), *self.network.heads.shared_parameters()]

    def weight_buffers(self, kind: str) -> list[Tensor]:
        """Return the buffers of a kind in the order of `shared_weights`."""
        return [self.get_buffer(f"{kind}_{i}") for i in range(len(self.shared_weights()))]

    def penalty(self) -> Tensor:
        """Return Σ_i Ω_i (θ_i - θ*_i)², a scalar."""
        parts = zip(
            self.shared_weights(), self.weight_buffers("anchor"), self.weight_buffers("importance"), strict=True
        )
        terms = [(importance * (p - anchor).square()).sum() for p, anchor, importance in parts]
        return torch.stack(terms).sum() if terms else torch.zeros((), device=self.device)  # none: a frozen backbone


@dataclass(frozen=True)
class EWCOptions(MethodOptions):
    """Options of online EWC.

    Args:
        strength: λ, the weight of the penalty. The paper chooses it for each problem.
        decay: γ, the factor of the old tasks' Fisher information when a task is added.
        fisher_samples: Maximum number of training images of a task from which its Fisher information is estimated.
    """

    search: ClassVar[Mapping[str, Sequence[Any]]] = {"strength": (10.0, 100.0, 1000.0, 10000.0)}

    strength: float = 1000.0
    decay: float = 1.0
    fisher_samples: int = 500

    def __post_init__(self) -> None:
        require(self.strength >= 0, "method.strength", "at least 0", self.strength)
        require(0 <= self.decay <= 1, "method.decay", "0 to 1", self.decay)
        require(self.fisher_samples >= 1, "method.fisher_samples", "at least 1", self.fisher_samples)


class EWC(QuadraticPenalty):
    """Elastic Weight Consolidation (Kirkpatrick et al., PNAS 2017): L = L_hm + λ/2 Σ_i F_i (θ_i - θ*_i)².

    This is the online form (Schwarz et al., ICML 2018, "Progress & Compress"): one anchor θ*, the weights after the
    last task, and one running F <- γ F + F_task. The cost does not grow with the number of tasks. F_task is the
    diagonal of the Fisher information. It is the mean of the squared gradients of single images, not the square of a
    batch's mean gradient. Labels are drawn from the network's predictions.
    """

    def __init__(self, network: Network, optimizer: OptimizerOptions, options: EWCOptions) -> None:
        super().__init__(network, optimizer, options)
        self.options = options
        self.strength = options.strength / 2

    @torch.no_grad()
    def end_task(self, task: Task) -> None:
        """Add the task's Fisher information and set the anchor to the current weights."""
        indices = torch.randperm(len(task.train))[: self.options.fisher_samples]
        x = self.normalized_images(task, task.train, indices)
        with evaluating(self.network):
            logits = torch.cat([self.network(part, [task.index]) for part in x.split(PASS_SIZE)])
            y = torch.multinomial(logits.softmax(dim=1), 1).squeeze(1)
            task_fisher = fisher_diagonal(self.network, self.shared_weights(), x, y, task.index)
        for new, importance in zip(task_fisher, self.weight_buffers("importance"), strict=True):
            importance.mul_(self.options.decay).add_(new)
        for weight, anchor in zip(self.shared_weights(), self.weight_buffers("anchor"), strict=True):
            anchor.copy_(weight)


def fisher_diagonal(network: Network, weights: Sequence[Tensor], x: Tensor, y: Tensor, task: int) -> list[Tensor]:
    """Return for each weight the mean over images of (∂ log p(y | x, task) / ∂θ)², one image at a time.

    Args:
        network: The network in eval mode, so that an image's logits do not depend on the other images.
        weights: Parameters of the network.
        x: Images (B, channels, H, W).
        y: Labels (B,).
        task: The task of the images.
    """
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    parameters_by_name = {names[id(weight)]: weight.detach() for weight in weights}

    def loss(parameters: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        logits = functional_call(network, parameters, (image[None], [task]))
        return F.cross_entropy(logits, label[None])

    per_sample_gradients = vmap(grad(loss), in_dims=(None, 0, 0))
    sums = [torch.zeros_like(weight) for weight in parameters_by_name.values()]
    for images, labels in zip(x.split(PER_SAMPLE_BATCH_SIZE), y.split(PER_SAMPLE_BATCH_SIZE), strict=True):
        gradients = per_sample_gradients(parameters_by_name, images, labels)
        for name, total in zip(parameters_by_name, sums, strict=True):
            total.add_(gradients[name].square().sum(dim=0))
    return [total / len(x) for total in sums]


@dataclass(frozen=True)
class SIOptions(MethodOptions):
    """Options of Synaptic Intelligence.

    Args:
        strength: c, the weight of the penalty (published 0.1 for Split-CIFAR).
        damping: ξ, which limits the importance of a weight that hardly changed (published 0.1).
    """

    search: ClassVar[Mapping[str, Sequence[Any]]] = {"strength": (1.0, 10.0, 100.0, 1000.0)}

    strength: float = 1000.0
    damping: float = 0.1

    def __post_init__(self) -> None:
        require(self.strength >= 0, "method.strength", "at least 0", self.strength)
        require(self.damping > 0, "method.damping", "above 0", self.damping)


class SI(QuadraticPenalty):
    """Synaptic Intelligence (Zenke et al., ICML 2017): L = L_hm + c Σ_i Ω_i (θ_i - θ*_i)².

    The path integral ω_i = Σ_steps -g_i Δθ_i is the part of the decrease of the task's own loss that is due to weight
    i, with g the gradient of that loss alone. At the end of a task, Ω_i grows by ω_i / ((θ_i - θ*_i)² + ξ).
    """

    buffer_kinds = ("anchor", "importance", "path")

    def __init__(self, network: Network, optimizer: OptimizerOptions, options: SIOptions) -> None:
        super().__init__(network, optimizer, options)
        self.options = options
        self.strength = options.strength

    def begin_task(self, task: Task) -> None:
        """Set the anchor to the current weights and the path integral to 0."""
        super().begin_task(task)
        anchors, paths = self.weight_buffers("anchor"), self.weight_buffers("path")
        for weight, anchor, path in zip(self.shared_weights(), anchors, paths, strict=True):
            anchor.copy_(weight.detach())
            path.zero_()

    @torch.no_grad()
    def observe(self, batch: Batch) -> Terms:
        """Take one step and add its part to the path integral."""
        weights_before = [weight.clone() for weight in self.shared_weights()]
        with torch.enable_grad():
            terms = super().observe(batch)
        buffers = (self.weight_buffers(kind) for kind in self.buffer_kinds)
        for weight, before, anchor, importance, path in zip(
            self.shared_weights(), weights_before, *buffers, strict=True
        ):
            assert weight.grad is not None
            # the gradient minus the penalty's part, which is known, is the gradient of the task's own loss
            own_gradient = weight.grad - 2 * self.strength * importance * (before - anchor)
            path.sub_(own_gradient * (weight - before))
        return terms

    @torch.no_grad()
    def end_task(self, task: Task) -> None:
        """Add the path integral to the importance. Negative values count as 0."""
        buffers = (self.weight_buffers(kind) for kind in self.buffer_kinds)
        for weight, anchor, importance, path in zip(self.shared_weights(), *buffers, strict=True):
            squared_change = (weight - anchor).square()
            importance.add_(path.clamp(min=0) / (squared_change + self.options.damping))
