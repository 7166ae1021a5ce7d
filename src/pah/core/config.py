"""Errors for bad input, checks of option values, and named random numbers. Every other package uses them."""

import dataclasses
import difflib
import hashlib
from collections.abc import Iterable, Mapping
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import torch


class InputError(Exception):
    """Bad input from the user; the command exits with status 2.

    The message is a single line that says what was expected, what was given, and where.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))  # a quoted value or a library's message may have several lines


class RecoveryWarning(UserWarning):
    """Work goes on, but not everything is as it was: a damaged file was skipped, or a run has other versions now.

    Or work that is usually done once has to be repeated. The message says what is different and what was done. Commands
    print it.
    """


class NonFiniteLossError(Exception):
    """A loss term became NaN or infinite; `term` is its name and `value` its value."""

    def __init__(self, term: str, value: float) -> None:
        super().__init__(f"loss term {term} became {value}")
        self.term = term
        self.value = value


def unknown_name_error(kind: str, name: str, known_names: Iterable[str]) -> InputError:
    """Return the error for a name that is not known; its message suggests the nearest name or lists all.

    Args:
        kind: What the name stands for, e.g. "method".
        name: The unknown name.
        known_names: All valid names.
    """
    known_names = sorted(known_names)
    nearest = difflib.get_close_matches(name, known_names, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"expected one of: {', '.join(known_names)}"
    return InputError(f"unknown {kind} {name!r}; {hint}")


def require(condition: bool, name: str, expected: str, value: object) -> None:
    """Raise InputError unless `condition` is true.

    Option classes call it when they are built, so that a bad value is reported before it is used.

    Args:
        condition: The check.
        name: The option's dotted name.
        expected: The valid values, in words.
        value: The value that was checked.
    """
    if not condition:
        raise InputError(f"{name}: expected {expected}, got {value!r}")


def require_types(instance: Any) -> None:
    """Raise TypeError unless each field of a dataclass instance has its annotated type.

    Use it for instances that were built from JSON or YAML, where a field may hold a value of any type.
    """
    hints = get_type_hints(type(instance))
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name)
        if not _has_type(value, hints[field.name]):
            raise TypeError(f"{field.name}: expected {getattr(field.type, '__name__', field.type)}, got {value!r:.80}")


def _has_type(value: Any, hint: Any) -> bool:
    """Return whether a value has the annotated type; an int passes as a float, a bool does not pass as an int."""
    if type(value) is hint and hint is not int:  # a shortcut for most values of a long history
        return True
    kind, inner = get_origin(hint), get_args(hint)
    if kind in (Union, UnionType):
        return any(_has_type(value, option) for option in inner)
    if kind is Literal:
        return any(value is option or (value == option and type(value) is type(option)) for option in inner)
    if kind is tuple:
        inner = inner[:1] * len(value) if isinstance(value, tuple) and inner[1:] == (...,) else inner
        return isinstance(value, tuple) and len(value) == len(inner) and all(map(_has_type, value, inner))
    if kind is not None and issubclass(kind, Mapping):
        return isinstance(value, Mapping) and all(
            _has_type(key, inner[0]) and _has_type(item, inner[1]) for key, item in value.items()
        )
    if isinstance(value, bool):
        return hint is bool
    if isinstance(value, int) and hint in (int, float):
        return -(2**63) <= value < 2**63
    return isinstance(value, NoneType if hint is None else hint)


def derived_seed(seed: int, *names: str | int) -> int:
    """Return a 63-bit seed for the random stream that `names` identify, e.g. (task, epoch, "order").

    Random numbers are named instead of saved: a resumed run uses the same names and gets the same numbers.
    """
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, *names: str | int) -> torch.Generator:
    """Return a CPU generator for the random stream that `names` identify; see `derived_seed`."""
    return torch.Generator().manual_seed(derived_seed(seed, *names))
