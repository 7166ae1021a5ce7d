"""A checkpoint, from which a run continues: tensors and facts in one file with a checksum.

The checkpoint before the last one is kept as well: a disk may damage what was written whole.
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

FILE = "state.safetensors"
BEFORE = "before.safetensors"  # the checkpoint before it


def save(folder: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, object]) -> None:
    """The next checkpoint in `folder`: tensors, and facts that JSON can hold, in one file with a checksum."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(facts)
    data = safetensors.torch.save(plain, {"facts": text, "sha256": _digest(plain, text)})
    write_file(folder / FILE, data, keep=folder / BEFORE)


def there(folder: Path) -> bool:
    """Whether the folder holds a checkpoint, whole or not."""
    return any((folder / name).is_file() for name in (FILE, BEFORE))


def load(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and facts of the last checkpoint in `folder`; if it is damaged, of the one before it, with a warning.

    Raises:
        InputError: neither is there, whole, with a checksum that fits; says so of the last one.
    """
    try:
        return _read(folder / FILE)
    except InputError as error:
        try:
            older = _read(folder / BEFORE)
        except InputError:
            raise error from None
        warnings.warn(f"{error}; going on from the one before it", RecoveryWarning, stacklevel=2)
        return older


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and facts of one file; InputError if it is missing, truncated, or its checksum does not fit."""
    if not path.is_file():
        raise InputError(f"{path}: expected a checkpoint, found none")
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except Exception as error:  # of a damaged header, safetensors and torch raise what they like
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"{path}: expected a whole checkpoint, got a truncated or corrupt one ({reason})") from None
    text = metadata.get("facts", "")
    if metadata.get("sha256") != _digest(tensors, text):
        raise InputError(f"{path}: expected a checkpoint that fits its checksum, got a corrupt one")
    return tensors, json.loads(text)


def optimizer_tensors(optimizers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """The optimizers' state as named tensors: `<optimizer>/<parameter>/<name>`."""
    return {
        f"{i}/{index}/{name}": value
        for i, optimizer in enumerate(optimizers)
        for index, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
        if value is not None
    }


def load_optimizers(optimizers: list[torch.optim.Optimizer], tensors: Mapping[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`, for optimizers built over the same parameters."""
    for i, optimizer in enumerate(optimizers):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            owner, index, name = key.split("/")
            if owner == str(i):
                state.setdefault(int(index), {})[name] = _laid_out_like(parameters[int(index)], value)
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _laid_out_like(parameter: Tensor, value: Tensor) -> Tensor:
    """`value` with the parameter's strides: a fused optimizer walks both in the order of memory."""
    return torch.empty_like(parameter).copy_(value) if value.shape == parameter.shape else value


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    """A checksum over names, types, shapes and numbers of the tensors, and the text."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
