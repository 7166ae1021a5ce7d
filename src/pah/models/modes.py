"""Context managers that change the mode of modules (training, frozen, precision) and restore it afterwards.

`nn.Module.train(mode)` is recursive and also switches submodules that must stay frozen. These context managers restore
the mode of each submodule separately.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

BatchNormStatistics = Literal["running", "batch"]
Precision = Literal["fp32", "bf16", "fp16"]
HALF_PRECISION = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """Return a context that computes convolutions and matrix products in `precision`. Weights stay float32."""
    # No cache of converted weights: it would outlive an optimizer step inside the context.
    enabled = precision in HALF_PRECISION
    return torch.autocast(device.type, HALF_PRECISION.get(precision), enabled=enabled, cache_enabled=False)


def full_precision(device: torch.device) -> torch.autocast:
    """Return a context without autocast, for small modules that must be exact: heads and hypernetworks."""
    return torch.autocast(device.type, enabled=False)


@contextmanager
def evaluating(*modules: nn.Module, statistics: BatchNormStatistics = "running") -> Iterator[None]:
    """Set modules to eval mode: no dropout is applied and no buffer changes.

    Args:
        modules: The modules, whose submodules get their own mode back afterwards.
        statistics: Which statistics batch norm uses: "running", or "batch" for those of the current batch (as in the
            published code of PAH at test time). Either way the running statistics do not change.
    """
    submodules = [submodule for module in modules for submodule in module.modules()]
    modes = [submodule.training for submodule in submodules]
    norms = (
        [submodule for submodule in submodules if isinstance(submodule, _BatchNorm)] if statistics == "batch" else []
    )
    running_statistics = [(norm.running_mean, norm.running_var) for norm in norms]
    _drop_cached_tensors(submodules)
    for submodule in submodules:
        submodule.training = False
    for norm in norms:
        norm.running_mean = norm.running_var = None  # in eval mode without them, it normalises by the batch
    try:
        yield
    finally:
        for norm, (mean, variance) in zip(norms, running_statistics, strict=True):
            norm.running_mean, norm.running_var = mean, variance
        _drop_cached_tensors(submodules)
        for submodule, mode in zip(submodules, modes, strict=True):
            submodule.training = mode


def _drop_cached_tensors(submodules: Iterable[nn.Module]) -> None:
    """Let modules with a `train` of their own run it: in timm's models it drops tensors made of earlier weights.

    Attention with learned biases (for instance LeViT and TinyViT) keeps the biases that it looked up in eval mode.
    """
    for submodule in submodules:
        if type(submodule).train is not nn.Module.train:
            submodule.eval()


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Compute no gradients of the modules' weights. Gradients still flow through the modules to their inputs.

    This is cheaper than detaching afterwards: gradients of weights are a third of the cost of a backward pass.
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
    """Make batch norms use their running statistics without changing them. Other submodules keep their mode."""
    norms = [submodule for submodule in module.modules() if isinstance(submodule, _BatchNorm)]
    modes = [norm.training for norm in norms]
    for norm in norms:
        norm.training = False
    try:
        yield
    finally:
        for norm, mode in zip(norms, modes, strict=True):
            norm.training = mode


@torch.no_grad()
def reestimate_batch_norm(module: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set the running statistics of batch norms to the mean of the statistics of the given batches.

    In training the running statistics lag behind the weights. The fewer the steps, the larger the error.

    Args:
        module: The module, whose weights do not change.
        batches: Images (B, channels, H, W), with B at least 2.
    """
    norms = [submodule for submodule in module.modules() if isinstance(submodule, _BatchNorm)]
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
