"""Files that are either whole or not there: a checkpoint, from which a run continues, and a finished model.

Everything is safetensors and JSON: reading a file never runs code. The checkpoint before the last one is kept as well:
a disk may damage what was written whole.
"""

import contextlib
import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import yaml
from safetensors import safe_open
from torch import Tensor

from pah.config import InputError, RecoveryWarning

FILE = "state.safetensors"
BEFORE = "before.safetensors"  # the checkpoint before it
YAML_BYTES = 2**15  # of a configuration, at most: the largest of ours has a tenth of that


def write_file(path: Path, data: bytes, *, keep: Path | None = None) -> None:
    """Write `data` so that at any moment, even a power cut, `path` holds all of the old file or all of the new.

    Args:
        path: Of the file; its folder is made if it is missing, but not that folder's own: who writes into a folder that
            has vanished meanwhile writes into nothing that anybody will look for.
        data: What it will hold.
        keep: A name under which the old file stays.

    Raises:
        InputError: the disk is full, or the folder cannot be written or has vanished; the old file is untouched.
    """
    new = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(exist_ok=True)
        with new.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if keep is not None and path.exists():
            _keep(path, keep)
        new.replace(path)
        _flush_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)
        raise InputError(f"{path}: expected to write {len(data)} bytes, got: {error.strerror or error}") from None


def _keep(path: Path, keep: Path) -> None:
    """Give a file a second name in its folder, in place of what has it now; the file keeps its own throughout."""
    second = keep.with_name(f".{keep.name}.new")
    second.unlink(missing_ok=True)
    try:
        os.link(path, second)
    except OSError:  # a file system without links, as FAT is: for a moment the file has its second name alone
        path.replace(keep)
        return
    second.replace(keep)
    second.unlink(missing_ok=True)  # both were names of one file: then replacing does nothing


def write_json(path: Path, content: object) -> None:
    """`content` as indented JSON, written whole or not at all."""
    write_file(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """The content of a JSON file; InputError if it is missing or no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: expected a JSON file, got: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: expected JSON, got: {error}") from None


class _Loader(yaml.SafeLoader):
    """YAML without aliases: a few lines of them stand for more than fits any memory, and options need none."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("an alias (*)")
        return super().compose_node(parent, index)


def read_yaml(path: Path) -> dict[Any, Any]:
    """The content of a YAML file; InputError if it is missing, no YAML, or holds no options."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: expected a configuration file, got: {error.strerror}") from None
    except ValueError as error:
        raise InputError(f"{path}: expected YAML, got: {error}") from None
    if len(text) > YAML_BYTES:
        raise InputError(f"{path}: expected a configuration of at most {YAML_BYTES} characters, got {len(text)}")
    try:
        content = yaml.load(text, _Loader)
    except Exception as error:  # its constructors of dates, numbers and truth values raise what they like
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: expected YAML, got: {reason}") from None
    if not isinstance(content, dict):
        came = "an empty file" if content is None else type(content).__name__
        raise InputError(f"{path}: expected options by name, got {came}")
    return content


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


def _flush_folder(folder: Path) -> None:
    """Make a rename in `folder` last through a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
