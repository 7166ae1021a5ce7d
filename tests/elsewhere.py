"""A device that is only pretended: its tensors keep their numbers on the processor, but do not mix with it.

What a GPU would refuse is refused here: tensors of both devices in one operation, a generator of the processor for
numbers drawn there, numpy on its tensors. torch calls the device "meta". `HostReads` notes what would wait for a GPU.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import optimizer
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("meta")
BETWEEN = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}  # what moves numbers from device to device
INDEXING = {  # what takes indices on the processor, also for a tensor on a GPU
    torch.ops.aten.index.Tensor,
    torch.ops.aten.index_put_.default,
    torch.ops.aten.index_put.default,
    torch.ops.aten._index_put_impl_.default,
}
READS = {  # of the device's numbers: by the program, or by an operation that has to know how large its result is
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.item.default,
    torch.ops.aten.is_nonzero.default,
    torch.ops.aten.equal.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten.bincount.default,
    torch.ops.aten._unique2.default,
    torch.ops.aten.unique_dim.default,
    torch.ops.aten.unique_consecutive.default,
}


class MixedDevicesError(Exception):
    """An operation was asked to work on tensors of two devices."""


class Elsewhere(torch.Tensor):
    """A tensor on the pretended device."""

    held: Tensor  # its numbers

    @staticmethod
    def __new__(cls, real: Tensor) -> "Elsewhere":
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            real.shape,
            strides=real.stride(),
            storage_offset=real.storage_offset(),
            dtype=real.dtype,
            device=DEVICE,
        )
        made.held = real
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return _run(func, args, kwargs or {})


class _Dispatch(TorchDispatchMode):
    """Sees what makes tensors for the device from none."""

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _run(func, args, kwargs or {})


class _Construction(TorchFunctionMode):
    """`torch.tensor`, which no dispatch mode sees."""

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.tensor and kwargs.get("device") == DEVICE:
            return func(*args, **kwargs | {"device": "cpu"}).to(DEVICE)
        return func(*args, **kwargs)


def _run(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """The operation on the numbers; its result on the device on which a GPU's would be."""
    given = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
    there = [tensor for tensor in given if isinstance(tensor, Elsewhere)]
    asked = kwargs.get("device")
    target = bool(there) if asked is None else torch.device(asked) == DEVICE
    if func is torch.ops.aten.copy_.default:
        target = isinstance(args[0], Elsewhere)
    elif func not in BETWEEN:
        _refuse(func, args, given)
    if target and kwargs.get("generator") is not None:
        raise MixedDevicesError(f"{func}: a generator of the processor")
    if asked is not None:
        kwargs = kwargs | {"device": torch.device("cpu")}
    out = func(*tree_map(_real, args), **tree_map(_real, kwargs))
    if not target:
        return out
    out = tree_map(lambda value: Elsewhere(value) if isinstance(value, Tensor) else value, out)
    return return_and_correct_aliasing(func, args, kwargs, out) if there else out


def _refuse(func: Any, args: Sequence[Any], given: Sequence[Tensor]) -> None:
    """Raise for tensors of both devices, but for a number (0 dimensions) and for indices."""
    if func in INDEXING:
        indices = [index for index in args[1] if index is not None]
        if not isinstance(args[0], Elsewhere) and any(isinstance(index, Elsewhere) for index in indices):
            raise MixedDevicesError(f"{func}: indices on the device for a tensor on the processor")
        given = [tensor for tensor in given if all(tensor is not index for index in indices)]
    here = [tensor for tensor in given if not isinstance(tensor, Elsewhere) and tensor.ndim > 0]
    if here and any(isinstance(tensor, Elsewhere) for tensor in given):
        raise MixedDevicesError(f"{func}: tensors on the processor and on the device")


def _real(value: Any) -> Any:
    return value.held if isinstance(value, Elsewhere) else value


class HostReads(TorchDispatchMode):
    """Inside, `seen` lists the operations for which the program would wait until a GPU has done all it was asked."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if _waits(func, args, kwargs):
            self.seen.append(str(func))
        return func(*args, **kwargs)


def _waits(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    there = isinstance(args[0], Elsewhere) if args else False
    if func is torch.ops.aten._to_copy.default:
        onto = torch.device(kwargs.get("device") or args[0].device) == DEVICE
        return (there and not onto) or (onto and not there and not kwargs.get("non_blocking"))
    if func is torch.ops.aten.copy_.default:
        non_blocking = kwargs.get("non_blocking") or args[2:] == (True,)
        return there != isinstance(args[1], Elsewhere) and not (there and non_blocking)
    if func in INDEXING and there:
        indices = [index for index in args[1] if index is not None]
        return any(not isinstance(index, Elsewhere) or index.dtype in (torch.bool, torch.uint8) for index in indices)
    if func is torch.ops.aten.repeat_interleave.Tensor:
        return there and kwargs.get("output_size") is None
    return there and func in READS


@contextmanager
def pretended(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """Inside, there is such a device."""
    autocast, fused = torch.autocast, optimizer._get_fused_kernels_supported_devices  # type: ignore[attr-defined]

    def as_on_the_processor(kind: str, *args: Any, **kwargs: Any) -> torch.autocast:
        return autocast("cpu" if kind == DEVICE.type else kind, *args, **kwargs)

    with monkeypatch.context() as patched, _Dispatch(), _Construction():  # type: ignore[no-untyped-call]
        patched.setattr(torch, "autocast", as_on_the_processor)
        # views made in inference mode cannot be wrapped
        patched.setattr(torch, "inference_mode", lambda mode=True: torch.no_grad() if mode else nullcontext())
        patched.setattr(optimizer, "_get_fused_kernels_supported_devices", lambda: [*fused(), DEVICE.type])
        yield DEVICE
