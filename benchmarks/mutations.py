"""Random mutations of bytes, and of JSON or YAML trees; a seeded generator decides them."""

import copy
import random
from collections.abc import Callable, Iterator
from typing import Any

BAD_VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    2**63,
    10**30,
    -(2**63),
    0.5,
    1e308,
    1e-320,
    float("nan"),
    float("inf"),
    "",
    "x",
    "\x00",
    "\n\n",
    "\ud800",
    "a" * 1000,
    "../../outside",
    "/dev/zero",
    "[red]",
    "[/x]",
    "%s{0}",
    [],
    {},
    [[]],
    {"": 0},
    [0] * 1000,
    "F64",
    "BF16",
    "F8_E4M3",
    "BOOL",
    "lwf",
    "hn2",
    "independent",
    "resnet32",
    "timm:resnet18",
]
FACTORS = (2, 10, 1000, 10**6)  # by which a number is multiplied


def mutated_bytes(data: bytes, rng: random.Random, other: bytes = b"") -> bytes:
    """Return data with one to four mutations: flipped bits, and parts removed, repeated, blanked or replaced."""
    mutated = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        a, b = sorted((rng.randrange(len(mutated) + 1), rng.randrange(len(mutated) + 1)))
        b = min(b, a + rng.choice((1, 2, 4, 16, 256)))
        kind = rng.randrange(7)
        if kind == 0 and mutated:
            mutated[rng.randrange(len(mutated))] ^= 1 << rng.randrange(8)
        elif kind == 1:
            mutated[a:b] = b""
        elif kind == 2:
            mutated[a:a] = mutated[a:b] * rng.choice((1, 2, 50))
        elif kind == 3:
            mutated[a:b] = bytes([rng.choice((0, 255, rng.randrange(256)))]) * (b - a)
        elif kind == 4:
            mutated[a:b] = rng.choice((0, 1, 2**15, 2**16 - 1, 2**31 - 1, 2**32 - 1)).to_bytes(
                4, rng.choice(("big", "little"))
            )
        elif kind == 5:
            del mutated[a:]
        else:
            start = rng.randrange(len(other) + 1)
            mutated[a:b] = other[start : start + rng.choice((1, 16, 256))]
    return bytes(mutated)


def mutated_tree(tree: Any, rng: random.Random) -> Any:
    """Return a tree with one to three mutations: a part replaced, copied, removed, renamed or scaled."""
    mutated = copy.deepcopy(tree)
    for _ in range(rng.randint(1, 3)):
        places = list(_places(mutated))
        if not places:
            return rng.choice(BAD_VALUES)
        container, key = rng.choice(places)
        MUTATIONS[rng.randrange(len(MUTATIONS))](container, key, rng, places)
    return mutated


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every part of a tree as its container and its key in it."""
    for key in list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ():
        yield tree, key
        yield from _places(tree[key])


def _set_bad_value(container: Any, key: Any, rng: random.Random, places: list[tuple[Any, Any]]) -> None:
    container[key] = copy.deepcopy(rng.choice(BAD_VALUES))


def _copy_other_part(container: Any, key: Any, rng: random.Random, places: list[tuple[Any, Any]]) -> None:
    other, other_key = rng.choice(places)
    container[key] = copy.deepcopy(other[other_key])


def _remove(container: Any, key: Any, rng: random.Random, places: list[tuple[Any, Any]]) -> None:
    del container[key]


def _rename(container: Any, key: Any, rng: random.Random, places: list[tuple[Any, Any]]) -> None:
    if isinstance(container, dict):
        container[rng.choice((key + "x", key[:-1], "", "\ud800", "__class__"))] = container.pop(key)
    else:
        container.insert(key, copy.deepcopy(container[key]))


def _scale(container: Any, key: Any, rng: random.Random, places: list[tuple[Any, Any]]) -> None:
    value = container[key]
    if isinstance(value, list):
        container[key] = value * rng.choice((0, 2, 3, 50))
    elif isinstance(value, str):
        container[key] = rng.choice((value * 3, value[:-1], value.upper(), f" {value}"))
    elif isinstance(value, int | float):
        container[key] = rng.choice((value + 1, value - 1, -value, value * rng.choice(FACTORS), str(value)))
    else:
        container[key] = [value]


MUTATIONS: list[Callable[[Any, Any, random.Random, list[tuple[Any, Any]]], None]] = [
    _set_bad_value,
    _set_bad_value,
    _copy_other_part,
    _remove,
    _rename,
    _scale,
    _scale,
]
