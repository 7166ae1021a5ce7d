"""The base class of methods. A method is a network and a rule by which it learns from a batch."""

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
from pah.methods.losses import stack_logits
from pah.models.backbone import Backbone
from pah.models.distributed_batch_norm import DistributedBatchNorm
from pah.models.network import Heads, Network, StoredHeads

Terms = dict[str, Tensor]  # loss terms by name, unweighted scalars on the method's device
ParameterGroup = tuple[list[nn.Parameter], float, float]  # parameters, learning rate, weight decay
MIN_LOSS_SCALE = 1.0  # in fp16: if gradients overflow at this scale, a smaller one does not help


@dataclass(frozen=True)
class OptimizerOptions:
    """Options of the optimizer. Every method builds a new optimizer for each task.

    Args:
        name: AdamW, or SGD with Nesterov momentum 0.9.
        lr: Peak learning rate.
        backbone_lr: Peak learning rate of the backbone. By default it is `lr`, or a tenth of it if the backbone starts
            from pretrained weights.
        weight_decay: Weight decay of matrices and filters. Biases, norms and prototypes have none.
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
        """Return an optimizer.

        Args:
            groups: For each group its parameters, learning rate and weight decay. Groups without parameters are
                omitted. Each group of the optimizer also stores its peak learning rate as "peak_lr", from which the
                schedule computes the learning rate of a step.
        """
        optimizer_groups = [
            {"params": params, "lr": lr, "peak_lr": lr, "weight_decay": decay}
            for params, lr, decay in ((list(params), lr, decay) for params, lr, decay in groups)
            if params
        ]
        if self.name == "sgd":
            return torch.optim.SGD(optimizer_groups, momentum=0.9, nesterov=True)
        return torch.optim.AdamW(optimizer_groups, fused=True)

    def lr_of(self, backbone: nn.Module) -> float:
        """Return the peak learning rate of a backbone: `backbone_lr`, or `lr` times the factor of the backbone."""
        factor = backbone.lr_factor if isinstance(backbone, Backbone) else 1.0
        return self.backbone_lr or factor * self.lr

    def groups(
        self, backbone: nn.Module, others: Iterable[nn.Parameter], others_lr: float | None = None
    ) -> list[ParameterGroup]:
        """Return parameter groups for `build`: with and without weight decay, for the backbone and for the others.

        Args:
            backbone: A module that learns with `backbone_lr`.
            others: The other parameters.
            others_lr: Their learning rate. By default it is `lr`.
        """
        trained = [p for p in backbone.parameters() if p.requires_grad]  # none of a frozen backbone
        parts = ((trained, self.lr_of(backbone)), (list(others), others_lr or self.lr))
        return [
            (
                [p for p in params if p.requires_grad and (p.ndim > 1) == decayed],
                lr,
                self.weight_decay if decayed else 0.0,
            )
            for params, lr in parts
            for decayed in (True, False)
        ]


@dataclass(frozen=True)
class MethodOptions:
    """Options of a method. A subclass adds its own fields and builds the network that its method needs.

    `search` maps a field to the values that tuning tries. The defaults of these fields are the values chosen on
    Split-CIFAR100 (`results/tuning`).
    """

    search: ClassVar[Mapping[str, Sequence[Any]]] = {}

    def check_stream(self, class_counts: Sequence[int]) -> None:
        """Raise InputError if the method cannot learn tasks with these numbers of classes."""

    def build_heads(self, features: int, channels: int) -> Heads:
        """Return the heads of the method, for D = `features` and images of `channels` channels."""
        return StoredHeads(features)

    def build_network(self, build_backbone: Callable[[], Backbone], image_shape: tuple[int, int, int]) -> Network:
        """Return the untrained network of the method, for images of `image_shape` (channels, H, W)."""
        backbone = build_backbone()
        return Network(backbone, self.build_heads(backbone.features, image_shape[0]), image_shape)


class Method(nn.Module, ABC):
    """A network and a rule by which it learns from a batch.

    All learned state is in parameters and buffers, and `begin_task` fixes all shapes. To restore a method, call
    `begin_task` for the tasks seen and then load a saved state.

    Attributes:
        learns_from: Whether the batches of a task have images of this task or of all tasks seen.
        network_is_all: Whether the network alone is enough to learn a further task, after it was saved and loaded.
        task: Index of the task being learned or of the last one learned, -1 before the first.
        optimizers: The optimizers of the current task.
    """

    learns_from: ClassVar[Literal["this task", "all tasks seen"]] = "this task"
    network_is_all: ClassVar[bool] = True

    def __init__(self, network: Network, optimizer: OptimizerOptions, options: MethodOptions) -> None:
        super().__init__()
        self.network = network
        self.optimizer_options = optimizer
        self.optimizers: list[torch.optim.Optimizer] = []
        self.task = -1

    def begin_task(self, task: Task) -> None:
        """Prepare for a task: add it to the network. Subclasses also freeze weights and build the optimizers."""
        self.task = task.index
        device = self.device
        self.network.grow(len(task.class_names))
        self.network.to(device)  # new weights are drawn on the CPU, so that they are the same for every device

    @abstractmethod
    def observe(self, batch: Batch) -> Terms:
        """Learn from a batch and return the loss terms by name."""

    def end_task(self, task: Task) -> None:
        """Consolidate what was learned. The data of the task are still available."""

    def release(self) -> None:
        """Delete everything that is needed for training only, such as the optimizers."""
        self.optimizers = []

    @property
    def device(self) -> torch.device:
        """The device of the network."""
        return next(self.network.parameters()).device

    def normalized_images(self, task: Task, examples: Examples, indices: Tensor) -> Tensor:
        """Return the examples at `indices` (n,) as the network sees them at test time: (n, channels, H, W)."""
        return task.normalization(examples.pixels[examples.rows[indices]].to(self.device))

    @property
    def stored_samples(self) -> int:
        """The number of training images of earlier tasks that the method keeps."""
        return 0

    def forward(self, x: Tensor, task: int) -> Tensor:
        """Return the logits of one task's head: (B, channels, H, W) -> (B, C_task)."""
        return self.logits_per_task(x, [task])[0]

    def logits_per_task(self, x: Tensor, tasks: Sequence[int]) -> list[Tensor]:
        """Return the logits (B, C_k) of each of these tasks for images (B, channels, H, W), from one pass."""
        return list(self.network(x, tasks).split(self.network.sizes(tasks), dim=1))

    def own_task_logits(self, x: Tensor, tasks: Tensor) -> Tensor:
        """Return each image's logits from the head of its own task, from one pass.

        Args:
            x: Images (B, channels, H, W).
            tasks: (B,), the task of each image.

        Returns:
            (B, C) with C of the largest task. Classes that a smaller task does not have get `ABSENT_LOGIT`.
        """
        seen = range(self.task + 1)
        stacked = stack_logits(self.network(x, seen), self.network.sizes(seen))  # (B, J, C)
        return stacked[torch.arange(len(stacked), device=tasks.device), tasks]


@dataclass(frozen=True)
class StepContext:
    """How `descend` takes the steps inside `step_context`.

    Args:
        image_share: The share of the whole batch's images that this process has.
        scaler: Scales losses before the backward pass, so that gradients in fp16 do not become 0.
        batch_norm: The treatment of batch norm with several processes.
    """

    image_share: float = 1.0
    scaler: torch.amp.GradScaler | None = None
    batch_norm: DistributedBatchNorm | None = None

    def scale_loss(self, loss: Tensor) -> Tensor:
        """Return the loss whose gradients, summed over processes, are the scale times those of the whole batch."""
        weighted = loss if self.image_share == 1.0 else self.image_share * loss
        return weighted if self.scaler is None else self.scaler.scale(weighted)

    def step(self, optimizer: torch.optim.Optimizer, edit_gradients: Callable[[], None]) -> None:
        """Edit the gradients and take a step. If they overflowed, set them to 0 and reduce the scale instead."""
        if self.scaler is None:
            edit_gradients()
            optimizer.step()
            return
        scale = self.scaler.get_scale()
        self.scaler.unscale_(optimizer)
        edit_gradients()
        self.scaler.step(optimizer)
        self.scaler.update()
        if self.scaler.get_scale() < scale:
            optimizer.zero_grad(set_to_none=False)
            if self.scaler.get_scale() < MIN_LOSS_SCALE:
                raise NonFiniteLossError("gradient", float("inf"))


_step_context: ContextVar[StepContext] = ContextVar("step_context", default=StepContext())  # noqa: B039 - frozen


@contextmanager
def step_context(image_share: float, scaler: torch.amp.GradScaler | None, synchronised: bool) -> Iterator[None]:
    """Make `descend` take steps for all processes together, with scaled losses.

    Args:
        image_share: The share of the whole batch's images that this process has.
        scaler: Scales losses for fp16, or None.
        synchronised: Whether batch norm uses the statistics of the whole batch. If not, it uses those of the
            process's slice, and the running statistics are averaged over processes.
    """
    batch_norm = DistributedBatchNorm(synchronised) if distributed.world_size() > 1 else None
    token = _step_context.set(StepContext(image_share, scaler, batch_norm))
    try:
        with batch_norm or nullcontext():
            yield
    finally:
        _step_context.reset(token)


def descend(
    optimizer: torch.optim.Optimizer,
    terms: Terms,
    weights: Mapping[str, float] | None = None,
    edit_gradients: Callable[[], None] = lambda: None,
) -> Terms:
    """Take one step on the loss Σ weight · term and return the terms without their graph.

    With several processes, each term is the mean over this process's images or the same in all processes. Gradients
    and returned terms are the means over the whole batch.

    Args:
        optimizer: The optimizer.
        terms: The loss terms by name.
        weights: The weights by name of the term. The default weight is 1.
        edit_gradients: Called between backward pass and step, for methods that change the gradients.

    Raises:
        NonFiniteLossError: a term is NaN or infinite, and no weight was changed. On a GPU this is checked in fp16 only,
            where the step waits for the GPU anyway. Otherwise the trainer checks the terms later.
    """
    context = _step_context.get()
    weights = weights or {}
    loss = torch.stack([weights.get(name, 1.0) * term for name, term in terms.items()]).sum()
    optimizer.zero_grad(set_to_none=True)
    context.scale_loss(loss).backward()
    values = torch.stack([term.detach() for term in terms.values()])
    if context.batch_norm is not None:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        slice_means = [values, *context.batch_norm.take_changed()]
        for slice_mean in slice_means:
            slice_mean.mul_(context.image_share)
        distributed.all_reduce_sum([*slice_means, *gradients])
    detached_terms = dict(zip(terms, values, strict=True))
    if values.device.type == "cpu" or context.scaler is not None:
        for name, term in detached_terms.items():
            if not torch.isfinite(term):
                raise NonFiniteLossError(name, term.item())
    context.step(optimizer, edit_gradients)
    return detached_terms


def gradients_of(loss: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Return a loss without its graph and its gradients by `weights`, both unscaled and over the whole batch."""
    context = _step_context.get()
    gradients = list(torch.autograd.grad(context.scale_loss(loss), weights, materialize_grads=True))
    value = loss.detach()
    if context.batch_norm is not None:
        value = context.image_share * value
        distributed.all_reduce_sum([value, *gradients])
    if context.scaler is None:
        return value, gradients
    return value, [gradient / context.scaler.get_scale() for gradient in gradients]
