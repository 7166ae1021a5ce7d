"""Weights from a file: read without running code, and fitted to a backbone."""

import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import BinaryIO

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from pah.core.config import InputError

CONTAINERS = ("state_dict", "model_state_dict", "state_dict_ema", "model")  # keys under which files store the weights
PREFIXES = ("", "module.", "model.", "backbone.", "backbone.body.", "body.")  # before the names of the weights
CLASSIFIER = re.compile(  # names that a backbone may lack
    r"^(fc|_fc|classifier|classif|last_linear|head|heads|head_dist|heads_dist|aux_head|statistics)\b"
)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors in a safetensors or .pth file, by name. Reading never runs code.

    Raises:
        InputError: the file is missing or damaged, or holds anything but tensors.
    """
    try:
        with path.open("rb") as file:
            content = safetensors.torch.load(file.read()) if path.suffix == ".safetensors" else _read_pth(file)
    except FileNotFoundError:
        raise InputError(f"{path}: expected a file of weights, found none") from None
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: expected a file of weights, got: {_first_line(error)}") from None
    except UnpicklingError as error:
        raise InputError(f"{path}: expected weights alone, as torch.save writes a state dict, got {error}") from None
    for name in CONTAINERS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise InputError(f"{path}: expected tensors by name, got {type(content).__name__} with other values")
    return {str(name): value for name, value in content.items()}


def _read_pth(file: BinaryIO) -> object:
    """Return the content of a .pth file; UnpicklingError, which says what it is instead, without running any code."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles that torch did not write
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types of exceptions for damaged files
        forbidden = re.search(r"Unsupported (?:global|class): GLOBAL (\S+)|(Unsupported \w+ \w+)", str(error))
        if forbidden is None:
            raise UnpicklingError("a file that is damaged or of another kind") from None
        named = f" ({forbidden[1]})" if forbidden[1] else ""
        raise UnpicklingError(f"other content, which may be code{named}; it was not run") from None


def load_weights(body: nn.Module, path: Path) -> None:
    """Load the weights of a file into the body of a backbone.

    Names may have one of the usual prefixes. Tensors of a classifier are left out, because a backbone has none.

    Args:
        body: The module.
        path: The file.

    Raises:
        InputError: the file cannot be read, or a tensor is missing, unknown or of another shape. The message names the
            first such tensor and both shapes.
    """
    fit_weights(body, read_weights(path), str(path))


def fit_weights(body: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Do what `load_weights` does with tensors that have been read; `source` names them in messages."""
    expected = body.state_dict()
    prefix = _prefix(expected, tensors)
    own = {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)}
    own |= {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    for name in [*expected, *own]:
        if name not in expected and CLASSIFIER.match(name):
            continue
        wanted, got = (list(part[name].shape) if name in part else "none" for part in (expected, own))
        if wanted != got and not (got == "none" and name.endswith("num_batches_tracked")):
            raise InputError(
                f"{source}: expected weights of this backbone, whose {name} has the shape {wanted}, got {got}"
            )
    body.load_state_dict({name: own[name] for name in expected if name in own}, strict=False)


def stem_channels(body: nn.Module, path: Path) -> int | None:
    """Return the number of channels of the images, 1 or 3, with which the weights in a file were trained.

    It is read from the first convolution of the body. It is None if the file cannot be read, or lacks this tensor.
    """
    try:
        tensors = read_weights(path)
    except InputError:
        return None
    stem = next((name for name, weight in body.named_parameters() if weight.ndim == 4), None)
    weight = tensors.get(f"{_prefix(body.state_dict(), tensors)}{stem}")
    return weight.shape[1] if weight is not None and weight.ndim == 4 and weight.shape[1] in (1, 3) else None


def _prefix(expected: Iterable[str], tensors: Mapping[str, Tensor]) -> str:
    """Return what stands in a file before the names of the tensors that a backbone expects."""
    return max(PREFIXES, key=lambda start: sum(start + name in tensors for name in expected))


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
