"""The device that a network is trained on and asked: the processor, or a GPU."""

from typing import Literal

import torch
from torch import Tensor

from pah.core import distributed
from pah.core.config import InputError

DeviceName = Literal["cpu", "cuda", "mps", "auto"]
CPU = torch.device("cpu")
ROOM = 0.25  # the share of a GPU's free memory that a data set may take; the network and its activations need the rest


def find_device(name: DeviceName) -> torch.device:
    """The device of that name; "auto" is a GPU where there is one, and the processor elsewhere.

    Of several processes on a machine each takes a GPU of its own.

    Raises:
        InputError: this machine has no such device, or fewer GPUs than processes; or these cannot share its kind.
    """
    usable = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    here = [kind for kind, there in usable.items() if there]
    kind = here[0] if name == "auto" else name
    if kind not in here:
        raise InputError(f"device: expected one that this machine has ({', '.join(here)}), got {name}")
    if kind == "mps" and distributed.launched():
        raise InputError("device: expected cpu or cuda for several processes, got mps")
    if kind != "cuda":
        return torch.device(kind)
    gpu, gpus = distributed.local_index(), torch.cuda.device_count()
    if gpu >= gpus:
        raise InputError(f"device: expected a GPU for each process on this machine, got {gpus}, and process {gpu + 1}")
    device = torch.device("cuda", gpu)
    torch.cuda.set_device(device)  # nccl, and whatever says "cuda" without a number
    return device


def name_of(device: torch.device) -> str:
    """What a result was computed on: the GPU's name, or the kind of device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the processor's, on the device, without waiting until that has done what it was asked before.

    Apple's GPUs are waited for: torch lets them read the tensor after its memory may have been used for another.
    """
    return tensor.to(device, non_blocking=device.type != "mps")


def holds(device: torch.device, size: int) -> bool:
    """Whether a data set of `size` bytes may lie in the device's own memory.

    Apple's GPUs share the processor's: nothing would be won.
    """
    return device.type == "cuda" and size <= ROOM * torch.cuda.mem_get_info(device)[0]
