"""Batch norm when every process holds one slice of the batch.

B: number of images of a process's slice, C: number of channels, R: number of processes.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pah.core import distributed


class DistributedBatchNorm(TorchFunctionMode):
    """A context in which batch norms in training mode take into account that their batch is a slice.

    With `synchronised`, every process normalises by the statistics of the whole batch, as `torch.nn.SyncBatchNorm`
    does on GPUs only. Without it, each process normalises by its own slice, and the context collects the running
    statistics that now differ between processes, so that `descend` can average them.
    """

    def __init__(self, synchronised: bool) -> None:
        super().__init__()
        self.synchronised = synchronised
        self.changed: dict[int, Tensor] = {}  # by id, so that each tensor occurs once

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
        """Replace `F.batch_norm`, with the same parameters."""
        if training and self.synchronised:
            return synchronized_batch_norm(input, running_mean, running_var, weight, bias, momentum, eps)
        if training:
            self.changed |= {id(tensor): tensor for tensor in (running_mean, running_var) if tensor is not None}
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)

    def take_changed(self) -> list[Tensor]:
        """Return the running statistics that changed since the last call."""
        changed = list(self.changed.values())
        self.changed = {}
        return changed


def synchronized_batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    momentum: float,
    eps: float,
) -> Tensor:
    """Compute `F.batch_norm` in training mode by the mean and variance of the slices (B, C, …) of all processes."""
    other_dims = [d for d in range(x.ndim) if d != 1]
    exact = x.float()
    mean = exact.mean(dim=other_dims)  # (C,)
    squares = (exact - _per_channel(mean, x)).square().sum(dim=other_dims)  # (C,)
    count = mean.new_tensor([x.numel() / x.shape[1]])
    # Combining means and squared deviations loses fewer digits than sums of squares would (Chan et al. 1979).
    table = _gather_rows(torch.cat([mean, squares, count]))  # (R, 2 C + 1)
    means, slice_squares, counts = table.split([len(mean), len(mean), 1], dim=1)
    total = counts.sum()
    mean = (counts * means).sum(dim=0) / total
    squares = (slice_squares + counts * (means - mean).square()).sum(dim=0)
    with torch.no_grad():
        if running_mean is not None and running_var is not None:
            running_mean.lerp_(mean, momentum)
            running_var.lerp_(squares / (total - 1), momentum)
    normalised = (exact - _per_channel(mean, x)) * _per_channel((squares / total + eps).rsqrt(), x)
    if weight is not None and bias is not None:
        normalised = normalised * _per_channel(weight, x) + _per_channel(bias, x)
    return normalised.to(x.dtype)


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    """Return values (C,) in the shape (C, 1, …) that broadcasts over x (B, C, …)."""
    return values.view(-1, *(1 for _ in x.shape[2:]))


def _gather_rows(row: Tensor) -> Tensor:
    """Return the rows (n,) of all processes as (R, n), with gradients from all processes."""
    table = row.new_zeros(distributed.world_size(), len(row))
    table[distributed.rank()] = row
    rows: Tensor = _SumOverProcesses.apply(table)
    return rows


class _SumOverProcesses(torch.autograd.Function):
    """The sum over all processes. Its gradient is the sum as well, because every process uses the result."""

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        total = part.clone()
        distributed.all_reduce_sum([total])
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        distributed.all_reduce_sum([total])
        return total
