"""Choice of the device, the CPU or a GPU, and copies of tensors to it."""

from typing import Literal

import torch
from torch import Tensor

from pah.core import distributed
from pah.core.config import InputError

DeviceName = Literal["cpu", "cuda", "mps", "auto"]
CPU = torch.device("cpu")
DATA_MEMORY_SHARE = 0.25  # of a GPU's free memory, for the data set; the network and its activations need the rest


def find_device(name: DeviceName) -> torch.device:
    """Return the device of that name; "auto" is a GPU if the machine has one, and otherwise the CPU.

    If several processes run on a machine, each one gets a GPU of its own.

    Raises:
        InputError: this machine has no such device, or fewer GPUs than processes, or several processes cannot use
            this kind of device.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    kinds = [kind for kind, is_available in available.items() if is_available]
    kind = kinds[0] if name == "auto" else name
    if kind not in kinds:
        raise InputError(f"device: expected one that this machine has ({', '.join(kinds)}), got {name}")
    if kind == "mps" and distributed.is_distributed():
        raise InputError("device: expected cpu or cuda for several processes, got mps")
    if kind != "cuda":
        return torch.device(kind)
    index, gpus = distributed.local_rank(), torch.cuda.device_count()
    if index >= gpus:
        raise InputError(
            f"device: expected a GPU for each process on this machine, got {gpus}, and process {index + 1}"
        )
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)  # nccl and code that says "cuda" without a number use the current device
    return device


def device_name(device: torch.device) -> str:
    """Return the model name of a GPU, or the kind of any other device, e.g. "cpu"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a copy of a CPU tensor on the device, without waiting for the device's earlier work.

    On Apple's GPUs the copy waits: torch might otherwise read the tensor after its memory has been used again.
    """
    return tensor.to(device, non_blocking=device.type != "mps")


def fits_on_gpu(device: torch.device, size: int) -> bool:
    """Return whether a data set of `size` bytes may be kept in the memory of a GPU.

    The answer is no for Apple's GPUs: they share the CPU's memory, so that a copy would save no time.
    """
    return device.type == "cuda" and size <= DATA_MEMORY_SHARE * torch.cuda.mem_get_info(device)[0]
