"""What a method is: a network and the rule by which it learns from a batch."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from pah.core import distributed
from pah.core.config import NonFiniteLossError, require
from pah.data.task import Batch, Examples, Task
from pah.methods.losses import stack_heads
from pah.models.backbones import Backbone
from pah.models.network import Heads, Network, StoredHeads
from pah.models.statistics import SlicedBatchNorm

Terms = dict[str, Tensor]  # named loss terms, unweighted scalars on the device of the method
SMALLEST_SCALE = 1.0  # of losses in fp16: where gradients overflow even so, no scale is left that helps


@dataclass(frozen=True)
class OptimizerOptions:
    """The optimizer that every method uses, built anew for each task.

    Args:
        name: AdamW, or SGD with Nesterov momentum 0.9.
        lr: Learning rate at its peak.
        backbone_lr: Learning rate of the backbone at its peak; the same as `lr` unless given.
        weight_decay: Weight decay of matrices and filters; biases, norms and prototypes have none.
    """

    name: Literal["adamw", "sgd"] = "adamw"
    lr: float = 1e-3
    backbone_lr: float | None = None
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        require(self.lr > 0, "optimizer.lr", "above 0", self.lr)
        require(self.backbone_lr is None or self.backbone_lr > 0, "optimizer.backbone_lr", "above 0", self.backbone_lr)
        require(self.weight_decay >= 0, "optimizer.weight_decay", "at least 0", self.weight_decay)

    def build(self, groups: Iterable[tuple[Iterable[nn.Parameter], float, float]]) -> torch.optim.Optimizer:
        """An optimizer over (parameters, learning rate, weight decay) groups.

        Each group keeps its peak rate as "peak_lr": the schedule multiplies it by a factor of the step.
        """
        described = [
            {"params": params, "lr": lr, "peak_lr": lr, "weight_decay": decay}
            for params, lr, decay in ((list(params), lr, decay) for params, lr, decay in groups)
            if params
        ]
        if self.name == "sgd":
            return torch.optim.SGD(described, momentum=0.9, nesterov=True)
        return torch.optim.AdamW(described, fused=True)

    def groups(
        self, backbone: nn.Module, rest: Iterable[nn.Parameter], rest_lr: float | None = None
    ) -> list[tuple[list[nn.Parameter], float, float]]:
        """Groups for the backbone and the `rest` (at `lr` unless given), each split by whether weight decay applies."""
        parts = ((list(backbone.parameters()), self.backbone_lr), (list(rest), rest_lr))
        return [
            ([p for p in params if (p.ndim > 1) == decayed], lr or self.lr, self.weight_decay if decayed else 0.0)
            for params, lr in parts
            for decayed in (True, False)
        ]


@dataclass(frozen=True)
class MethodOptions:
    """Options of a method; a subclass adds its own fields and builds what they describe.

    `search` holds, by field, the values that tuning tries; the defaults of these fields are what it chose on
    Split-CIFAR100 (`results/tuning`).
    """

    search: ClassVar[Mapping[str, Sequence[Any]]] = {}

    def check_stream(self, class_counts: Sequence[int]) -> None:
        """Raise InputError if the method cannot learn tasks with these numbers of classes."""

    def build_heads(self, features: int, channels: int) -> Heads:
        """The kind of heads that the method works on, for D = `features` and images of `channels`."""
        return StoredHeads(features)

    def build_network(self, build_backbone: Callable[[], Backbone], image_shape: tuple[int, int, int]) -> Network:
        """The untrained network that the method works on, for images of `image_shape` (channels, H, W)."""
        backbone = build_backbone()
        return Network(backbone, self.build_heads(backbone.features, image_shape[0]), image_shape)


class Method(nn.Module, ABC):
    """A network and the rule by which it learns from a batch.

    All that is learned lives in parameters and buffers, and `begin_task` fixes every shape: calling it for the
    tasks seen and then loading a saved state restores a method.
    """

    learns_from: ClassVar[Literal["this task", "all tasks seen"]] = "this task"

    def __init__(self, network: Network, optimizer: OptimizerOptions, options: MethodOptions) -> None:
        super().__init__()
        self.network = network
        self.optimizer_options = optimizer
        self.optimizers: list[torch.optim.Optimizer] = []
        self.task = -1  # index of the task being learned, or of the last one learned

    def begin_task(self, task: Task) -> None:
        """Grow for the task, freeze what must not change, build the optimizers."""
        self.task = task.index
        device = self.device
        self.network.grow(len(task.class_names))
        self.network.to(device)  # what is drawn is drawn on the processor: the same numbers for every device

    @abstractmethod
    def observe(self, batch: Batch) -> Terms:
        """Learn from a batch; return the named loss terms."""

    def end_task(self, task: Task) -> None:
        """Consolidate what was learned, with the task's data still at hand."""

    def release(self) -> None:
        """Let go of what only training needs."""
        self.optimizers = []

    @property
    def device(self) -> torch.device:
        """Where the network is, and with it all that it learns from."""
        return next(self.network.parameters()).device

    def images_of(self, task: Task, part: Examples, which: Tensor) -> Tensor:
        """The examples `which` (n,) of a part of the task, as at test time: (n, channels, H, W)."""
        return task.normalization(part.pixels[part.rows[which]].to(self.device))

    @property
    def stored_samples(self) -> int:
        """How many training images of earlier tasks the method keeps."""
        return 0

    def forward(self, x: Tensor, task: int) -> Tensor:
        """Logits of one task's head: (B, channels, H, W) -> (B, C_task)."""
        return self.answers(x, [task])[0]

    def answers(self, x: Tensor, tasks: Sequence[int]) -> list[Tensor]:
        """Logits of several tasks' heads from one pass over the images: a (B, C_k) for each task."""
        return list(self.network(x, tasks).split(self.network.sizes(tasks), dim=1))

    def own_logits(self, x: Tensor, tasks: Tensor) -> Tensor:
        """Each image's logits by the head of its own task, `tasks` (B,), from one pass: (B, C of the largest task).

        Classes that a smaller task does not have get the logit `ABSENT`.
        """
        seen = range(self.task + 1)
        stacked = stack_heads(self.network(x, seen), self.network.sizes(seen))  # (B, J, C)
        return stacked[torch.arange(len(stacked), device=tasks.device), tasks]


@dataclass(frozen=True)
class Stepping:
    """How the steps inside `stepping` are taken.

    Args:
        share: Of the images of the whole batch, that this process has.
        scaler: By which losses are multiplied before the backward pass, where gradients in fp16 would vanish.
        norms: What batch norm does among several processes.
    """

    share: float = 1.0
    scaler: torch.amp.GradScaler | None = None
    norms: SlicedBatchNorm | None = None

    def scaled(self, loss: Tensor) -> Tensor:
        """The loss whose gradients, added up over all processes, are the `scale` times those of the whole batch."""
        own = loss if self.share == 1.0 else self.share * loss
        return own if self.scaler is None else self.scaler.scale(own)

    def step(self, optimizer: torch.optim.Optimizer, edit: Callable[[], None]) -> None:
        """Edit the gradients and step; not if they overflowed: then they count as 0, and the scale is halved."""
        if self.scaler is None:
            edit()
            optimizer.step()
            return
        scale = self.scaler.get_scale()
        self.scaler.unscale_(optimizer)
        edit()
        self.scaler.step(optimizer)
        self.scaler.update()
        if self.scaler.get_scale() < scale:
            optimizer.zero_grad(set_to_none=False)
            if self.scaler.get_scale() < SMALLEST_SCALE:
                raise NonFiniteLossError("gradient", float("inf"))


_stepping: ContextVar[Stepping] = ContextVar("stepping", default=Stepping())  # noqa: B039 - frozen


@contextmanager
def stepping(share: float, scaler: torch.amp.GradScaler | None, synchronised: bool) -> Iterator[None]:
    """Inside, `descend` steps for all processes together, and scales what it is told to scale.

    `synchronised`: batch norm uses the statistics of the whole batch; else of the slice, and running ones are averaged.
    """
    norms = SlicedBatchNorm(synchronised) if distributed.count() > 1 else None
    token = _stepping.set(Stepping(share, scaler, norms))
    try:
        with norms or nullcontext():
            yield
    finally:
        _stepping.reset(token)


def descend(
    optimizer: torch.optim.Optimizer,
    terms: Terms,
    weights: Mapping[str, float] | None = None,
    edit: Callable[[], None] = lambda: None,
) -> Terms:
    """One step down Σ weight · term (weight 1 unless given); returns the terms without their graph.

    `edit` is called between backward pass and step, for methods that change the gradients themselves. Where several
    processes learn together, a term is the mean over this one's images, or the same in all; gradients and terms become
    the means over the whole batch.

    Raises:
        NonFiniteLossError: a term is NaN or infinite; no weight has been changed. On a GPU it is asked only in fp16,
            where a step waits for it in any case: what is not asked here `trainer.read_terms` sees later.
    """
    now = _stepping.get()
    weights = weights or {}
    loss = torch.stack([weights.get(name, 1.0) * term for name, term in terms.items()]).sum()
    optimizer.zero_grad(set_to_none=True)
    now.scaled(loss).backward()
    values = torch.stack([term.detach() for term in terms.values()])
    if now.norms is not None:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        own = [values, *now.norms.take_changed()]
        for mean_of_slice in own:
            mean_of_slice.mul_(now.share)
        distributed.add_up([*own, *gradients])
    found = dict(zip(terms, values, strict=True))
    if values.device.type == "cpu" or now.scaler is not None:
        for name, term in found.items():
            if not torch.isfinite(term):
                raise NonFiniteLossError(name, term.item())
    now.step(optimizer, edit)
    return found


def gradients_of(loss: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """A loss without its graph and ∂ loss / ∂ weights, both as `descend` has them: of the whole batch, not scaled."""
    now = _stepping.get()
    found = list(torch.autograd.grad(now.scaled(loss), weights, materialize_grads=True))
    value = loss.detach()
    if now.norms is not None:
        value = now.share * value
        distributed.add_up([value, *found])
    return value, found if now.scaler is None else [gradient / now.scaler.get_scale() for gradient in found]
