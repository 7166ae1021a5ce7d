"""Checkpoints, from which an interrupted run continues.

A checkpoint is one safetensors file. It holds tensors, facts as JSON, and a checksum of both. The previous checkpoint
is kept as well, because a disk may damage a file that was written completely.
"""

import hashlib
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

from pah.core.config import InputError, RecoveryWarning
from pah.core.files import write_file

FILE = "state.safetensors"  # the last checkpoint
PREVIOUS_FILE = "before.safetensors"  # the checkpoint before the last one


def save(folder: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, object]) -> None:
    """Write the next checkpoint into a folder.

    Args:
        folder: The checkpoint folder.
        tensors: The tensors by name, on any device.
        facts: Values that JSON can hold.
    """
    cpu_tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(facts)
    data = safetensors.torch.save(cpu_tensors, {"facts": text, "sha256": _digest(cpu_tensors, text)})
    write_file(folder / FILE, data, backup=folder / PREVIOUS_FILE)


def exists(folder: Path) -> bool:
    """Return whether the folder holds a checkpoint, damaged or not."""
    return any((folder / name).is_file() for name in (FILE, PREVIOUS_FILE))


def load(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and facts of the last checkpoint in a folder.

    If the last checkpoint is damaged, the previous one is returned, with a `RecoveryWarning`.

    Raises:
        InputError: both are missing or damaged. The message describes the last one.
    """
    try:
        return _read(folder / FILE)
    except InputError as error:
        try:
            previous = _read(folder / PREVIOUS_FILE)
        except InputError:
            raise error from None
        warnings.warn(f"{error}; continuing from the previous checkpoint", RecoveryWarning, stacklevel=2)
        return previous


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and facts of one file; raise InputError if it is missing, truncated or corrupt."""
    if not path.is_file():
        raise InputError(f"{path}: expected a checkpoint, found none")
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except Exception as error:  # for a damaged header, safetensors and torch raise many types of exceptions
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"{path}: expected a whole checkpoint, got a truncated or corrupt one ({reason})") from None
    text = metadata.get("facts", "")
    if metadata.get("sha256") != _digest(tensors, text):
        raise InputError(f"{path}: expected a checkpoint that fits its checksum, got a corrupt one")
    return tensors, json.loads(text)


def optimizer_tensors(optimizers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """Return the optimizers' state as tensors named `<optimizer index>/<parameter index>/<name>`."""
    return {
        f"{optimizer_index}/{parameter_index}/{name}": value
        for optimizer_index, optimizer in enumerate(optimizers)
        for parameter_index, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
        if value is not None
    }


def load_optimizers(optimizers: list[torch.optim.Optimizer], tensors: Mapping[str, Tensor]) -> None:
    """Load the tensors of `optimizer_tensors` into optimizers that were built over the same parameters."""
    for optimizer_index, optimizer in enumerate(optimizers):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            owner, parameter_index, name = key.split("/")
            if owner == str(optimizer_index):
                parameter = parameters[int(parameter_index)]
                state.setdefault(int(parameter_index), {})[name] = _with_strides_of(parameter, value)
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _with_strides_of(parameter: Tensor, value: Tensor) -> Tensor:
    """Return `value` with the parameter's strides: a fused optimizer reads both in memory order."""
    return torch.empty_like(parameter).copy_(value) if value.shape == parameter.shape else value


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    """Return a checksum of the text and of the tensors' names, types, shapes and values."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
