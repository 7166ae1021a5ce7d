"""Ways to break a file: bytes, and trees of JSON or YAML, each decided by a seeded generator."""

import copy
import random
from collections.abc import Callable, Iterator
from typing import Any

EVIL: list[Any] = [
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
    """Data with one to four injuries: bits turned, parts cut out, repeated, blanked or replaced by those of another."""
    found = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        a, b = sorted((rng.randrange(len(found) + 1), rng.randrange(len(found) + 1)))
        b = min(b, a + rng.choice((1, 2, 4, 16, 256)))
        kind = rng.randrange(7)
        if kind == 0 and found:
            found[rng.randrange(len(found))] ^= 1 << rng.randrange(8)
        elif kind == 1:
            found[a:b] = b""
        elif kind == 2:
            found[a:a] = found[a:b] * rng.choice((1, 2, 50))
        elif kind == 3:
            found[a:b] = bytes([rng.choice((0, 255, rng.randrange(256)))]) * (b - a)
        elif kind == 4:
            found[a:b] = rng.choice((0, 1, 2**15, 2**16 - 1, 2**31 - 1, 2**32 - 1)).to_bytes(
                4, rng.choice(("big", "little"))
            )
        elif kind == 5:
            del found[a:]
        else:
            start = rng.randrange(len(other) + 1)
            found[a:b] = other[start : start + rng.choice((1, 16, 256))]
    return bytes(found)


def mutated_tree(tree: Any, rng: random.Random) -> Any:
    """A tree of dictionaries and lists with one to three injuries: a part replaced, moved, removed, renamed, scaled."""
    found = copy.deepcopy(tree)
    for _ in range(rng.randint(1, 3)):
        places = list(_places(found))
        if not places:
            return rng.choice(EVIL)
        holder, key = rng.choice(places)
        INJURIES[rng.randrange(len(INJURIES))](holder, key, rng, places)
    return found


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every part of a tree as its holder and its key there."""
    for key in list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ():
        yield tree, key
        yield from _places(tree[key])


def _evil(holder: Any, key: Any, rng: random.Random, places: list[tuple[Any, Any]]) -> None:
    holder[key] = copy.deepcopy(rng.choice(EVIL))


def _another(holder: Any, key: Any, rng: random.Random, places: list[tuple[Any, Any]]) -> None:
    of, at = rng.choice(places)
    holder[key] = copy.deepcopy(of[at])


def _gone(holder: Any, key: Any, rng: random.Random, places: list[tuple[Any, Any]]) -> None:
    del holder[key]


def _renamed(holder: Any, key: Any, rng: random.Random, places: list[tuple[Any, Any]]) -> None:
    if isinstance(holder, dict):
        holder[rng.choice((key + "x", key[:-1], "", "\ud800", "__class__"))] = holder.pop(key)
    else:
        holder.insert(key, copy.deepcopy(holder[key]))


def _scaled(holder: Any, key: Any, rng: random.Random, places: list[tuple[Any, Any]]) -> None:
    value = holder[key]
    if isinstance(value, list):
        holder[key] = value * rng.choice((0, 2, 3, 50))
    elif isinstance(value, str):
        holder[key] = rng.choice((value * 3, value[:-1], value.upper(), f" {value}"))
    elif isinstance(value, int | float):
        holder[key] = rng.choice((value + 1, value - 1, -value, value * rng.choice(FACTORS), str(value)))
    else:
        holder[key] = [value]


INJURIES: list[Callable[[Any, Any, random.Random, list[tuple[Any, Any]]], None]] = [
    _evil,
    _evil,
    _another,
    _gone,
    _renamed,
    _scaled,
    _scaled,
]
