"""Checks of what a caller gives to `ContinualLearner`: names, numbers, the rule, and options that may not change."""

import dataclasses
import unicodedata
from collections.abc import Mapping, Sequence
from numbers import Real
from types import UnionType

import numpy as np

from pah.core.config import InputError, require
from pah.training.config import RunConfig

FIXED_OPTIONS = ("method", "method_options", "backbone", "backbone_options", "image_size", "seed")  # by first lesson
DEFAULT_UNKNOWN_RATE = 0.05  # share of images of known classes that `unknown=True` may call "none of these"
CONTROLS = ("Cc", "Cs", "Zl", "Zp")  # control characters, half surrogate pairs, and separators of lines


def require_name(kind: str, name: object) -> str:
    """Return a name; raise InputError unless it is text that fits in one line and can be written to a file.

    Args:
        kind: What has the name, "task" or "class".
        name: The name. It may contain any printable characters.
    """
    require(isinstance(name, str) and name.strip() != "", kind, "a name, which is text", name)
    assert isinstance(name, str), "checked above"
    unwritable = [character for character in name if unicodedata.category(character) in CONTROLS]
    require(not unwritable, kind, "a name of printable characters in one line", name)
    return name


def require_class_names(names: object) -> None:
    """Raise InputError if a class name is text or bytes, but not printable text in one line."""
    for name in names if isinstance(names, Sequence) else ():
        if isinstance(name, str | bytes):
            require_name("class", name)


def is_number(value: object) -> bool:
    """Return whether a value is a real number, and no truth value."""
    return isinstance(value, Real) and not isinstance(value, bool)


def require_type(name: str, value: object, kind: type | UnionType, expected: str) -> None:
    """Raise InputError unless a value is an instance of a type, which `expected` describes in words."""
    require(isinstance(value, kind), name, expected, value)


def require_limits(max_drift: object, max_loss: object, old_tasks: Sequence[str], held_out: object) -> None:
    """Raise InputError unless the limits of a lesson are numbers, and the loss that they limit can be measured.

    Args:
        max_drift: None or a number from 0 to 1.
        max_loss: None or a number from 0 to 100.
        old_tasks: Names of the tasks before the lesson.
        held_out: Held-out images by task name, or None.
    """
    for name, value, largest in (("max_drift", max_drift, 1), ("max_loss", max_loss, 100)):
        valid = value is None or (is_number(value) and 0 <= value <= largest)  # type: ignore[operator]
        require(valid, name, f"a number from 0 to {largest}", value)
    require(held_out is None or isinstance(held_out, Mapping), "held_out", "images by task name", held_out)
    if max_loss is not None and old_tasks and not held_out:
        raise InputError(
            f"max_loss: expected held_out images of an old task ({', '.join(old_tasks)}), on which a loss can be "
            "measured, got none"
        )


def unknown_rate(unknown: object) -> float | None:
    """Return the share of images of known classes for which "none of these" is allowed; None if it is never allowed.

    Raises:
        InputError: `unknown` is neither a truth value nor a share above 0 and up to 0.5.
    """
    if isinstance(unknown, bool | np.bool_):
        return DEFAULT_UNKNOWN_RATE if unknown else None
    valid = is_number(unknown) and 0 < unknown <= 0.5  # type: ignore[operator]
    require(valid, "unknown", "true, false or a share above 0 and up to 0.5", unknown)
    return float(unknown)  # type: ignore[arg-type]


def require_same_network(old: RunConfig, new: RunConfig) -> None:
    """Raise InputError, naming the first option that differs, unless both describe the same network.

    Args:
        old: The options of the first lesson.
        new: The options of a later lesson.
    """
    for key in FIXED_OPTIONS:
        before, after = getattr(old, key), getattr(new, key)
        if before != after:
            name, before, after = _first_difference(key, before, after)
            raise InputError(f"{name}: expected that of the first lesson, {before!r}, got {after!r}")


def _first_difference(key: str, before: object, after: object) -> tuple[str, object, object]:
    """Return the dotted name and both values of the first field that differs, or of the option itself."""
    if dataclasses.is_dataclass(before) and type(before) is type(after):
        for field in dataclasses.fields(before):
            values = getattr(before, field.name), getattr(after, field.name)
            if values[0] != values[1]:
                return f"{key.removesuffix('_options')}.{field.name}", *values
    return key, before, after
