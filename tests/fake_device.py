"""A fake device for tests without a GPU. Its tensors hold their values on the CPU, but do not mix with CPU tensors.

The fake device refuses what a GPU refuses: tensors of both devices in one operation, a CPU generator for random numbers
on the device, and numpy on its tensors. In torch it is the device "meta". `HostReads` records operations that would
wait for a GPU.
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
BETWEEN = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}  # they copy values between devices
INDEXING = {  # they accept CPU indices for a tensor on a GPU
    torch.ops.aten.index.Tensor,
    torch.ops.aten.index_put_.default,
    torch.ops.aten.index_put.default,
    torch.ops.aten._index_put_impl_.default,
}
READS = {  # they read values on the device, for the program or to know the size of their result
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
    """An operation got tensors of two devices."""


class FakeDeviceTensor(torch.Tensor):
    """A tensor on the fake device."""

    cpu_values: Tensor  # the values, on the CPU

    @staticmethod
    def __new__(cls, real: Tensor) -> "FakeDeviceTensor":
        wrapper = torch.Tensor._make_wrapper_subclass(
            cls,
            real.shape,
            strides=real.stride(),
            storage_offset=real.storage_offset(),
            dtype=real.dtype,
            device=DEVICE,
        )
        wrapper.cpu_values = real
        return wrapper

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return _run(func, args, kwargs or {})


class _Dispatch(TorchDispatchMode):
    """Handles operations that create tensors on the device from no other tensor."""

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _run(func, args, kwargs or {})


class _Construction(TorchFunctionMode):
    """Handles `torch.tensor`, which does not pass through dispatch modes."""

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.tensor and kwargs.get("device") == DEVICE:
            return func(*args, **kwargs | {"device": "cpu"}).to(DEVICE)
        return func(*args, **kwargs)


def _run(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Run the operation on the CPU values, and return its result on the device where a GPU's result would be."""
    tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
    has_device_tensor = any(isinstance(tensor, FakeDeviceTensor) for tensor in tensors)
    device = kwargs.get("device")
    on_device = has_device_tensor if device is None else torch.device(device) == DEVICE
    if func is torch.ops.aten.copy_.default:
        on_device = isinstance(args[0], FakeDeviceTensor)
    elif func not in BETWEEN:
        _refuse_mixed_devices(func, args, tensors)
    if on_device and kwargs.get("generator") is not None:
        raise MixedDevicesError(f"{func}: a CPU generator")
    if device is not None:
        kwargs = kwargs | {"device": torch.device("cpu")}
    result = func(*tree_map(_unwrap, args), **tree_map(_unwrap, kwargs))
    if not on_device:
        return result
    result = tree_map(lambda value: FakeDeviceTensor(value) if isinstance(value, Tensor) else value, result)
    return return_and_correct_aliasing(func, args, kwargs, result) if has_device_tensor else result


def _refuse_mixed_devices(func: Any, args: Sequence[Any], tensors: Sequence[Tensor]) -> None:
    """Raise MixedDevicesError for tensors of both devices, except CPU tensors that are scalars or indices."""
    if func in INDEXING:
        indices = [index for index in args[1] if index is not None]
        if not isinstance(args[0], FakeDeviceTensor) and any(isinstance(index, FakeDeviceTensor) for index in indices):
            raise MixedDevicesError(f"{func}: indices on the device for a CPU tensor")
        tensors = [tensor for tensor in tensors if all(tensor is not index for index in indices)]
    cpu_tensors = [tensor for tensor in tensors if not isinstance(tensor, FakeDeviceTensor) and tensor.ndim > 0]
    if cpu_tensors and any(isinstance(tensor, FakeDeviceTensor) for tensor in tensors):
        raise MixedDevicesError(f"{func}: tensors on the CPU and on the device")


def _unwrap(value: Any) -> Any:
    return value.cpu_values if isinstance(value, FakeDeviceTensor) else value


class HostReads(TorchDispatchMode):
    """A context in which `seen` lists the operations at which the program would wait for a GPU."""

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
    """Return whether the program would wait for a GPU at this operation."""
    from_device = isinstance(args[0], FakeDeviceTensor) if args else False
    if func is torch.ops.aten._to_copy.default:
        to_device = torch.device(kwargs.get("device") or args[0].device) == DEVICE
        if from_device:
            return not to_device
        return to_device and not kwargs.get("non_blocking")
    if func is torch.ops.aten.copy_.default:
        non_blocking = kwargs.get("non_blocking") or args[2:] == (True,)
        return from_device != isinstance(args[1], FakeDeviceTensor) and not (from_device and non_blocking)
    if func in INDEXING and from_device:
        indices = [index for index in args[1] if index is not None]
        return any(
            not isinstance(index, FakeDeviceTensor) or index.dtype in (torch.bool, torch.uint8) for index in indices
        )
    if func is torch.ops.aten.repeat_interleave.Tensor:
        return from_device and kwargs.get("output_size") is None
    return from_device and func in READS


@contextmanager
def fake_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """A context in which torch has the fake device."""
    autocast, fused = torch.autocast, optimizer._get_fused_kernels_supported_devices  # type: ignore[attr-defined]

    def autocast_on_cpu(kind: str, *args: Any, **kwargs: Any) -> torch.autocast:
        return autocast("cpu" if kind == DEVICE.type else kind, *args, **kwargs)

    with monkeypatch.context() as patched, _Dispatch(), _Construction():  # type: ignore[no-untyped-call]
        patched.setattr(torch, "autocast", autocast_on_cpu)
        # views created in inference mode cannot be wrapped
        patched.setattr(torch, "inference_mode", lambda mode=True: torch.no_grad() if mode else nullcontext())
        patched.setattr(optimizer, "_get_fused_kernels_supported_devices", lambda: [*fused(), DEVICE.type])
        yield DEVICE
