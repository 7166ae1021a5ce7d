"""Methods that hold old behaviour by a term in the loss: of answers (LwF) or of weights (EWC, SI)."""

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
from pah.methods.losses import Reduction, distillation, stack_heads
from pah.methods.teacher import OLD_TASKS, Teacher, asked_tasks, weight_of_asked
from pah.models.modes import evaluating
from pah.models.network import Network

PER_SAMPLE_BATCH = 16  # images whose gradients are held at once, each as large as the network


@dataclass(frozen=True)
class LwFOptions(MethodOptions):
    """Options of learning without forgetting; the published values are those of its paper.

    Args:
        stability: Weight of L_sm, old heads' answers to new images (published 1).
        temperature: T, which softens the answers in L_sm (published 2).
        over_tasks: L_sm is the mean over old tasks, or the sum (published).
        old_tasks_per_step: How many old tasks L_sm asks in a step, at most: beyond it a seeded sample (published: all).
    """

    search: ClassVar[Mapping[str, Sequence[Any]]] = {"stability": (0.5, 1.0, 3.0, 10.0)}

    stability: float = 10.0
    temperature: float = 2.0
    over_tasks: Reduction = "mean"
    old_tasks_per_step: int = OLD_TASKS

    def __post_init__(self) -> None:
        require(self.stability >= 0, "method.stability", "at least 0", self.stability)
        require(self.temperature > 0, "method.temperature", "above 0", self.temperature)
        require(self.old_tasks_per_step >= 1, "method.old_tasks_per_step", "at least 1", self.old_tasks_per_step)


class LwF(Method):
    """Learning without Forgetting (Li and Hoiem, ECCV 2016): L = L_hm + λ L_sm.

    L_sm is PAH's, term by term: old heads' softened answers to new images stay those of the frozen network. So PAH
    and LwF differ in where a head comes from, and in L_sp alone.
    """

    def __init__(self, network: Network, optimizer: OptimizerOptions, options: LwFOptions) -> None:
        super().__init__(network, optimizer, options)
        self.options = options
        self.teacher: Teacher | None = None

    def begin_task(self, task: Task) -> None:
        """Freeze the teacher; the backbone and all heads learn."""
        if task.index:
            self.teacher = Teacher(self.network, range(task.index), "running")
        super().begin_task(task)
        of = self.optimizer_options
        self.optimizers = [of.build(of.groups(self.network.backbone, self.network.heads.parameters()))]

    def observe(self, batch: Batch) -> Terms:
        """One step on L_hm and L_sm, from one backbone pass."""
        o, all_old = self.options, range(self.task)
        old = asked_tasks(all_old, o.old_tasks_per_step, batch.step)
        sizes = self.network.sizes(old)
        of_old, of_task = self.network(batch.x, [*old, self.task]).tensor_split([sum(sizes)], dim=1)
        terms = {"L_hm": F.cross_entropy(of_task, batch.y)}
        weight = o.stability
        if self.teacher is not None:
            student = stack_heads(of_old, sizes)  # (B, J, C)
            terms["L_sm"] = distillation(self.teacher(batch.x, old), student, o.temperature, reduction=o.over_tasks)
            weight *= weight_of_asked(all_old, old, o.over_tasks)
        return descend(self.optimizers[0], terms, {"L_sm": weight})

    def release(self) -> None:
        """The teacher goes."""
        super().release()
        self.teacher = None


class Anchored(Finetune):
    """L_hm + λ Σ_i Ω_i (θ_i - θ*_i)² over the weights θ that tasks share; a subclass says how Ω comes about.

    Heads (or prototypes) of old tasks take no part in later losses and so need no anchor.
    """

    kept: ClassVar[tuple[str, ...]] = ("anchor", "importance")  # θ* and Ω: a buffer for each weight
    strength: float  # λ

    def begin_task(self, task: Task) -> None:
        """With the first task, room for what is kept of each weight."""
        super().begin_task(task)
        if task.index == 0:
            for kind in self.kept:
                for i, parameter in enumerate(self.shared()):
                    self.register_buffer(f"{kind}_{i}", torch.zeros_like(parameter))

    def observe(self, batch: Batch) -> Terms:
        """One step on the cross entropy of the current task and the penalty."""
        terms = {"L_hm": F.cross_entropy(self.network(batch.x, [self.task]), batch.y)}
        if self.task:
            terms["penalty"] = self.penalty()
        return descend(self.optimizers[0], terms, {"penalty": self.strength})

    def shared(self) -> list[nn.Parameter]:
        """The weights that all tasks use."""
        return [*self.network.backbone.parameters(), *self.network.heads.shared()]

    def of_weights(self, kind: str) -> list[Tensor]:
        """What is kept under that name, in the order of `shared`."""
        return [self.get_buffer(f"{kind}_{i}") for i in range(len(self.shared()))]

    def penalty(self) -> Tensor:
        """Σ_i Ω_i (θ_i - θ*_i)², a scalar."""
        parts = zip(self.shared(), self.of_weights("anchor"), self.of_weights("importance"), strict=True)
        return torch.stack([(importance * (p - anchor).square()).sum() for p, anchor, importance in parts]).sum()


@dataclass(frozen=True)
class EWCOptions(MethodOptions):
    """Options of online EWC.

    Args:
        strength: λ, the weight of the penalty; the paper chooses it for each problem.
        decay: γ, the share of the old tasks' Fisher information that stays when a task is added.
        fisher_samples: Training images of a task, at most, from which its Fisher information is estimated.
    """

    search: ClassVar[Mapping[str, Sequence[Any]]] = {"strength": (10.0, 100.0, 1000.0, 10000.0)}

    strength: float = 1000.0
    decay: float = 1.0
    fisher_samples: int = 500

    def __post_init__(self) -> None:
        require(self.strength >= 0, "method.strength", "at least 0", self.strength)
        require(0 <= self.decay <= 1, "method.decay", "0 to 1", self.decay)
        require(self.fisher_samples >= 1, "method.fisher_samples", "at least 1", self.fisher_samples)


class EWC(Anchored):
    """Elastic Weight Consolidation (Kirkpatrick et al., PNAS 2017): L = L_hm + λ/2 Σ_i F_i (θ_i - θ*_i)².

    The online form (Schwarz et al., ICML 2018, "Progress & Compress"): one anchor θ*, the weights after the last
    task, and one running F <- γ F + F_task, so that the cost does not grow with the number of tasks. F_task is the
    diagonal of the Fisher information, from the gradient of each image by itself (the square of a batch's mean
    gradient is another thing), labels drawn from the network's own answers.
    """

    def __init__(self, network: Network, optimizer: OptimizerOptions, options: EWCOptions) -> None:
        super().__init__(network, optimizer, options)
        self.options = options
        self.strength = options.strength / 2

    @torch.no_grad()
    def end_task(self, task: Task) -> None:
        """Add the task's Fisher information, and anchor the weights where they are."""
        chosen = torch.randperm(len(task.train))[: self.options.fisher_samples]
        x = self.images_of(task, task.train, chosen)
        with evaluating(self.network):
            logits = torch.cat([self.network(part, [task.index]) for part in x.split(500)])
            y = torch.multinomial(logits.softmax(dim=1), 1).squeeze(1)
            fisher = fisher_diagonal(self.network, self.shared(), x, y, task.index)
        for new, kept in zip(fisher, self.of_weights("importance"), strict=True):
            kept.mul_(self.options.decay).add_(new)
        for weight, anchor in zip(self.shared(), self.of_weights("anchor"), strict=True):
            anchor.copy_(weight)


def fisher_diagonal(network: Network, weights: Sequence[Tensor], x: Tensor, y: Tensor, task: int) -> list[Tensor]:
    """Mean over images of (∂ log p(y | x, task) / ∂θ)², one image at a time, for each of the network's `weights`.

    x (B, channels, H, W) and labels y (B,); the network is in eval mode: an image's answer depends on it alone.
    """
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    chosen = {names[id(weight)]: weight.detach() for weight in weights}

    def loss(parameters: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        logits = functional_call(network, parameters, (image[None], [task]))
        return F.cross_entropy(logits, label[None])

    of_each = vmap(grad(loss), in_dims=(None, 0, 0))
    total = [torch.zeros_like(weight) for weight in chosen.values()]
    for images, labels in zip(x.split(PER_SAMPLE_BATCH), y.split(PER_SAMPLE_BATCH), strict=True):
        gradients = of_each(chosen, images, labels)
        for name, kept in zip(chosen, total, strict=True):
            kept.add_(gradients[name].square().sum(dim=0))
    return [kept / len(x) for kept in total]


@dataclass(frozen=True)
class SIOptions(MethodOptions):
    """Options of synaptic intelligence.

    Args:
        strength: c, the weight of the penalty (published 0.1 for Split-CIFAR).
        damping: ξ, keeps the importance of a weight that hardly moved finite (published 0.1).
    """

    search: ClassVar[Mapping[str, Sequence[Any]]] = {"strength": (1.0, 10.0, 100.0, 1000.0)}

    strength: float = 1000.0
    damping: float = 0.1

    def __post_init__(self) -> None:
        require(self.strength >= 0, "method.strength", "at least 0", self.strength)
        require(self.damping > 0, "method.damping", "above 0", self.damping)


class SI(Anchored):
    """Synaptic Intelligence (Zenke et al., ICML 2017): L = L_hm + c Σ_i Ω_i (θ_i - θ*_i)².

    ω_i = Σ_steps -g_i Δθ_i says how much of the fall of the task's own loss is owed to weight i, g being the gradient
    of that loss alone. When a task ends, Ω_i grows by ω_i / ((θ_i - θ*_i)² + ξ).
    """

    kept = ("anchor", "importance", "path")

    def __init__(self, network: Network, optimizer: OptimizerOptions, options: SIOptions) -> None:
        super().__init__(network, optimizer, options)
        self.options = options
        self.strength = options.strength

    def begin_task(self, task: Task) -> None:
        """θ* is where the task begins, and the path integral starts anew."""
        super().begin_task(task)
        for weight, anchor, path in zip(self.shared(), self.of_weights("anchor"), self.of_weights("path"), strict=True):
            anchor.copy_(weight.detach())
            path.zero_()

    @torch.no_grad()
    def observe(self, batch: Batch) -> Terms:
        """One step, and what it adds to the path integral."""
        before = [weight.clone() for weight in self.shared()]
        with torch.enable_grad():
            terms = super().observe(batch)
        kept = (self.of_weights(kind) for kind in self.kept)
        for weight, start, anchor, importance, path in zip(self.shared(), before, *kept, strict=True):
            assert weight.grad is not None
            # of the gradient at hand, the penalty's part is known: the task's own is the rest
            own = weight.grad - 2 * self.strength * importance * (start - anchor)
            path.sub_(own * (weight - start))
        return terms

    @torch.no_grad()
    def end_task(self, task: Task) -> None:
        """Turn the path integral into importance; a loss that rose along a weight counts for nothing."""
        kept = (self.of_weights(kind) for kind in self.kept)
        for weight, anchor, importance, path in zip(self.shared(), *kept, strict=True):
            moved = (weight - anchor).square()
            importance.add_(path.clamp(min=0) / (moved + self.options.damping))
