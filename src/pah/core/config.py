"""What every layer shares: the error for bad input, checked ranges, names, and named random numbers."""

import dataclasses
import difflib
import hashlib
from collections.abc import Iterable, Mapping
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import torch


class InputError(Exception):
    """Bad input from outside: one line that says what was expected, what came, and where. Exit status 2."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))  # what came, or a library's words on it, may have several


class RecoveryWarning(UserWarning):
    """Something was damaged, and nothing is lost but time: says what, and what was done. Commands show it."""


class NonFiniteLossError(Exception):
    """A loss term became NaN or infinite; `term` names it and `value` is what it became."""

    def __init__(self, term: str, value: float) -> None:
        super().__init__(f"loss term {term} became {value}")
        self.term = term
        self.value = value


def unknown(kind: str, name: str, known: Iterable[str]) -> InputError:
    """The error for a name that is not among those `known`; it names the nearest one, or lists them all."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"expected one of: {', '.join(known)}"
    return InputError(f"unknown {kind} {name!r}; {hint}")


def require(condition: bool, name: str, expected: str, came: object) -> None:
    """Raise InputError unless `condition`: options are checked where they enter, not where they break."""
    if not condition:
        raise InputError(f"{name}: expected {expected}, got {came!r}")


def require_types(instance: Any) -> None:
    """Raise TypeError unless each field of a dataclass holds what its annotation says: JSON may hold anything."""
    hints = get_type_hints(type(instance))
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name)
        if not _fits(value, hints[field.name]):
            raise TypeError(f"{field.name}: expected {getattr(field.type, '__name__', field.type)}, got {value!r:.80}")


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of the annotated type; an integer is a float, a truth value is no integer."""
    if type(value) is hint and hint is not int:  # most of a long history's values, without asking further
        return True
    kind, inner = get_origin(hint), get_args(hint)
    if kind in (Union, UnionType):
        return any(_fits(value, option) for option in inner)
    if kind is Literal:
        return any(value is option or (value == option and type(value) is type(option)) for option in inner)
    if kind is tuple:
        inner = inner[:1] * len(value) if isinstance(value, tuple) and inner[1:] == (...,) else inner
        return isinstance(value, tuple) and len(value) == len(inner) and all(map(_fits, value, inner))
    if kind is not None and issubclass(kind, Mapping):
        return isinstance(value, Mapping) and all(_fits(k, inner[0]) and _fits(v, inner[1]) for k, v in value.items())
    if isinstance(value, bool):
        return hint is bool
    if isinstance(value, int) and hint in (int, float):
        return -(2**63) <= value < 2**63
    return isinstance(value, NoneType if hint is None else hint)


def derived_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed for the random stream that `names` identify, e.g. (seed, task, epoch, "order").

    Random numbers are named instead of saved: a resumed run asks for the same name and gets the same numbers.
    """
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, *names: str | int) -> torch.Generator:
    """A CPU generator for the random stream that `names` identify."""
    return torch.Generator().manual_seed(derived_seed(seed, *names))
