"""What every layer shares: the error for bad input, checked ranges, names, and named random numbers."""

import difflib
import hashlib
from collections.abc import Iterable

import torch


class InputError(Exception):
    """Bad input from outside: one line that says what was expected, what came, and where. Exit status 2."""


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


def derived_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed for the random stream that `names` identify, e.g. (seed, task, epoch, "order").

    Random numbers are named instead of saved: a resumed run asks for the same name and gets the same numbers.
    """
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, *names: str | int) -> torch.Generator:
    """A CPU generator for the random stream that `names` identify."""
    return torch.Generator().manual_seed(derived_seed(seed, *names))
