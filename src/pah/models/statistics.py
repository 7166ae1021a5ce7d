"""Batch norm of a batch that lies in slices in several processes.

B: images of a process's slice, C: channels, R: processes.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pah.core import distributed


class SlicedBatchNorm(TorchFunctionMode):
    """Inside, batch norms in training know that their batch is a slice.

    Each process normalises by its own slice, and `changed` collects the running statistics that are no longer equal in
    all processes, for whoever averages them; or, `synchronised`, all normalise by the statistics of the whole batch, as
    `torch.nn.SyncBatchNorm` does on a GPU alone.
    """

    def __init__(self, synchronised: bool) -> None:
        super().__init__()
        self.synchronised = synchronised
        self.changed: dict[int, Tensor] = {}

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not F.batch_norm:
            return func(*args, **kwargs)
        return self._batch_norm(*args, **kwargs)

    def _batch_norm(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        """What `F.batch_norm` is called with, and does."""
        if training and self.synchronised:
            return whole_batch_norm(input, running_mean, running_var, weight, bias, momentum, eps)
        if training:
            self.changed |= {id(kept): kept for kept in (running_mean, running_var) if kept is not None}
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)

    def take_changed(self) -> list[Tensor]:
        """The running statistics changed since this was last asked."""
        changed = list(self.changed.values())
        self.changed = {}
        return changed


def whole_batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    momentum: float,
    eps: float,
) -> Tensor:
    """`F.batch_norm` in training, by mean and variance over the slices (B, C, …) of all processes."""
    others = [d for d in range(x.ndim) if d != 1]
    exact = x.float()
    mean = exact.mean(dim=others)  # (C,)
    spread = (exact - _along(mean, x)).square().sum(dim=others)  # (C,)
    count = mean.new_tensor([x.numel() / x.shape[1]])
    # the mean of the slices' means would cancel digits if it were taken of sums of squares (Chan et al. 1979)
    of_each = _from_all(torch.cat([mean, spread, count]))  # (R, 2 C + 1)
    means, spreads, counts = of_each.split([len(mean), len(mean), 1], dim=1)
    total = counts.sum()
    mean = (counts * means).sum(dim=0) / total
    spread = (spreads + counts * (means - mean).square()).sum(dim=0)
    with torch.no_grad():
        if running_mean is not None and running_var is not None:
            running_mean.lerp_(mean, momentum)
            running_var.lerp_(spread / (total - 1), momentum)
    out = (exact - _along(mean, x)) * _along((spread / total + eps).rsqrt(), x)
    if weight is not None and bias is not None:
        out = out * _along(weight, x) + _along(bias, x)
    return out.to(x.dtype)


def _along(of_channels: Tensor, x: Tensor) -> Tensor:
    """(C,) in the shape that goes with x: (C, 1, …)."""
    return of_channels.view(-1, *(1 for _ in x.shape[2:]))


def _from_all(row: Tensor) -> Tensor:
    """The row (n,) of each process: (R, n); its gradient comes from what all processes make of it."""
    table = row.new_zeros(distributed.count(), len(row))
    table[distributed.index()] = row
    found: Tensor = _Sum.apply(table)
    return found


class _Sum(torch.autograd.Function):
    """The sum over all processes; so is the gradient, as every process uses it."""

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        total = part.clone()
        distributed.add_up([total])
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        distributed.add_up([total])
        return total
