"""In which mode a module runs: contexts that leave every module as they found it.

`nn.Module.train(mode)` is recursive and would also switch what must stay frozen; these restore each module's own.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

BatchNormStatistics = Literal["running", "batch"]
Precision = Literal["fp32", "bf16", "fp16"]
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def computing(precision: Precision, device: torch.device) -> torch.autocast:
    """Inside, convolutions and matrix products are computed in that precision; weights stay float32."""
    # no cache of converted weights: it would outlive a step of the optimizer inside
    return torch.autocast(device.type, HALF.get(precision), enabled=precision in HALF, cache_enabled=False)


def full_precision(device: torch.device) -> torch.autocast:
    """Inside, the tensors keep their own precision: for what is small and has to be exact, heads and hypernetworks."""
    return torch.autocast(device.type, enabled=False)


@contextmanager
def evaluating(*modules: nn.Module, statistics: BatchNormStatistics = "running") -> Iterator[None]:
    """Inside, the modules are in eval mode: no dropout, and no buffer changes.

    Batch norm uses its running statistics, or with `statistics="batch"` those of the batch at hand (as the
    published code of PAH does at test time), without writing them down.
    """
    parts = [part for module in modules for part in module.modules()]
    modes = [part.training for part in parts]
    norms = [part for part in parts if isinstance(part, _BatchNorm)] if statistics == "batch" else []
    kept = [(norm.running_mean, norm.running_var) for norm in norms]
    for part in parts:
        part.training = False
    for norm in norms:
        norm.running_mean = norm.running_var = None  # in eval mode, without these, it normalises by the batch
    try:
        yield
    finally:
        for norm, (mean, variance) in zip(norms, kept, strict=True):
            norm.running_mean, norm.running_var = mean, variance
        for part, mode in zip(parts, modes, strict=True):
            part.training = mode


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Inside, the modules' weights take part in no graph: gradients flow through them, none is computed for them.

    Cheaper than detaching afterwards: the weight gradients, a third of a backward pass, are never computed.
    """
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


@contextmanager
def frozen_batch_norm(module: nn.Module) -> Iterator[None]:
    """Inside, batch norm uses its running statistics and leaves them as they are; all else keeps its mode."""
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]
    modes = [norm.training for norm in norms]
    for norm in norms:
        norm.training = False
    try:
        yield
    finally:
        for norm, mode in zip(norms, modes, strict=True):
            norm.training = mode


@torch.no_grad()
def reestimate(module: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set the running statistics of batch norm to the mean of those of the batches (B, channels, H, W), B at least 2.

    While a network learns, they lag behind its weights, the more the fewer steps there were.
    """
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    with evaluating(module):
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum, norm.training = None, True  # None: the plain mean of all batches
        for x in batches:
            module(x.contiguous(memory_format=torch.channels_last))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
