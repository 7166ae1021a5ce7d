"""Streams of small lessons: what people teach from their own photos, as benchmarks named `small-…`.

A lesson has two to five classes of 20 to 500 images, far fewer than the usual benchmarks have. The streams differ in
what decides whether old lessons are kept: how alike the pictures of different lessons are, and how many there are.
H and W: height and width, S: pixels a side.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch

from pah.data.image import to_pixels
from pah.data.lesson import only_classes
from pah.data.sources import Images, Source, load_digits

SIZE = 32  # pixels a side of every image: a fourth of the time that a learner's 64 take
MADE_TRAIN, MADE_TEST = 250, 100  # made images of each class


@dataclass(frozen=True)
class SmallStream:
    """Which classes come in which lesson.

    Args:
        summary: What the images are, in a line.
        data: The folder in `--data` that holds them; None where they are embedded or made.
        lessons: The class names of each lesson.
        images: Training images of each class, at most.
        grey: Whether colour is taken away.
        epochs: Passes over the images of a lesson.
    """

    summary: str
    data: str | None
    lessons: tuple[tuple[str, ...], ...]
    images: int
    grey: bool = False
    epochs: int = 15

    @property
    def classes(self) -> tuple[str, ...]:
        """All class names, lesson after lesson."""
        return tuple(name for lesson in self.lessons for name in lesson)


def _lessons(text: str) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(lesson.split()) for lesson in text.split("|"))


def _pairs(names: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    return tuple(zip(names[::2], names[1::2], strict=True))


Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"

CIFAR, TINY = "cifar100", "tiny-imagenet-50"
DIGITS = tuple("0123456789")
OBJECTS = tuple(f"object {k}" for k in range(10))
MARKS = tuple(f"mark {k}" for k in range(10))
PATTERNS = tuple(f"pattern {k}" for k in range(10))

SMALL_STREAMS: dict[str, SmallStream] = {
    "small-alike": SmallStream(
        "CIFAR-100, the classes of a lesson alike",
        CIFAR,
        _lessons("maple_tree oak_tree | bicycle motorcycle | otter seal | rose tulip | boy man"),
        150,
    ),
    "small-sea": SmallStream(
        "CIFAR-100, one background: water",
        CIFAR,
        _lessons("ray whale | dolphin flatfish | shark turtle | aquarium_fish seal | trout sea"),
        60,
    ),
    "small-unequal": SmallStream(
        "CIFAR-100, lessons of 2, 4, 3, 2 and 5 classes",
        CIFAR,
        _lessons(
            "bus pear | fox lamp orchid road | crab plate tractor | chair lion | camel castle clock snake sweet_pepper"
        ),
        60,
    ),
    "small-ten": SmallStream(
        "TinyImageNet, ten lessons",
        TINY,
        _lessons(
            "n02099601 n04487081 | n02165456 n09246464 | n02123394 n07715103 | n04133789 n02058221 |"
            "n03447447 n01944390 | n02129165 n04398044 | n03089624 n04540053 | n02504458 n03930313 |"
            "n01917289 n04099969 | n02206856 n07579787"
        ),
        60,
    ),
    "small-few": SmallStream(
        "TinyImageNet, four classes a lesson, few images",
        TINY,
        _lessons(
            "n01774750 n02074367 n03444034 n04254777 | n01855672 n02892201 n04118538 n07871810"
            " | n02085620 n02699494 n04356056 n09332890 | n01882714 n04149813 n02321529 n04399382"
            " | n02480495 n01983481 n04008634 n02927161"
        ),
        20,
    ),
    "small-grey": SmallStream(
        "CIFAR-100 without colour",
        CIFAR,
        _lessons("keyboard mushroom | bridge rabbit | bowl train | elephant wardrobe | butterfly rocket"),
        500,
        grey=True,
        epochs=3,
    ),
    "small-digits": SmallStream("handwritten digits of scikit-learn; embedded", None, _pairs(DIGITS), 60),
    "small-objects": SmallStream(
        "made: one background, objects of different shape and colour", None, _pairs(OBJECTS), 150
    ),
    "small-marks": SmallStream(
        "made: one background, one object, which carries different marks", None, _pairs(MARKS), 150
    ),
    "small-patterns": SmallStream(
        "made: one background, one object, patterns of the same two colours", None, _pairs(PATTERNS), 150
    ),
}


def small_source(stream: SmallStream, loaded: Source | None) -> Source:
    """The images of a small stream, 32x32, with its classes in the order of its lessons.

    Args:
        stream: One of `SMALL_STREAMS`.
        loaded: The data set that it takes classes from, at 32x32; None where it needs none.

    Raises:
        InputError: the data set lacks a class.
    """
    if loaded is None:
        return _enlarged_digits() if stream.classes == DIGITS else _made(stream.classes)
    source = only_classes(loaded, stream.classes)
    return replace(source, train=_grey(source.train), test=_grey(source.test)) if stream.grey else source


def _grey(images: Images) -> Images:
    """The mean of the three channels, as one."""
    mean = np.rint(images.pixels.numpy().mean(axis=1, keepdims=True))
    return Images(torch.from_numpy(mean.astype(np.uint8)), images.labels)


def _enlarged_digits() -> Source:
    """The digits at 32x32."""
    digits = load_digits()

    def larger(images: Images) -> Images:
        return Images(torch.from_numpy(to_pixels(images.pixels[:, 0].numpy(), (1, SIZE, SIZE))), images.labels)

    return Source(digits.where, digits.class_names, larger(digits.train), larger(digits.test), divided=digits.divided)


def _made(classes: tuple[str, ...]) -> Source:
    """Made images, the same whenever they are made."""
    draw = {OBJECTS: _object, MARKS: _mark, PATTERNS: _patterned}[classes]
    parts = {}
    for split, count, first in (("train", MADE_TRAIN, 0), ("test", MADE_TEST, 1)):
        random = np.random.default_rng(first)
        pixels = np.stack([draw(c, random) for c in range(len(classes)) for _ in range(count)])
        labels = torch.arange(len(classes)).repeat_interleave(count)
        parts[split] = Images(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), labels)
    return Source("made images", classes, parts["train"], parts["test"])


HUES = np.array(  # of ten objects or marks, far from each other within a lesson
    [
        *((200, 60, 50), (225, 165, 50)),
        *((60, 90, 190), (70, 185, 200)),
        *((235, 235, 225), (150, 140, 130)),
        *((45, 40, 45), (110, 60, 140)),
        *((230, 130, 170), (120, 70, 40)),
    ],
    dtype=float,
)


PALE, DARK = np.array([205.0, 195, 160]), np.array([95.0, 70, 50])  # of a body and of the pattern on it


def _background(random: np.random.Generator) -> Array:
    """Something like short grass under changing light, float (S, S, 3) in 0..255."""
    coarse, fine = random.normal(0, 1, (5, 5)), random.normal(0, 14, (SIZE, SIZE))
    position = np.linspace(0, 3.999, SIZE)
    k, part = position.astype(int), position % 1
    rows = coarse[k] * (1 - part)[:, None] + coarse[k + 1] * part[:, None]  # (S, 5)
    smooth = rows[:, k] * (1 - part) + rows[:, k + 1] * part  # (S, S)
    light = random.uniform(0.75, 1.2) * (1 + 0.12 * smooth)
    image: Array = light[..., None] * np.array([92.0, 128.0, 62.0]) + fine[..., None]
    return image


def _distances(x: float, y: float, radius: float, turn: float) -> tuple[Array, Array]:
    """Each pixel's place around (x, y), turned, in units of the radius: two of (S, S)."""
    across, down = np.meshgrid(np.arange(SIZE) - x, np.arange(SIZE) - y)
    return (
        (across * np.cos(turn) + down * np.sin(turn)) / radius,
        (down * np.cos(turn) - across * np.sin(turn)) / radius,
    )


def _inside(shape: int, u: Array, v: Array) -> Array:
    """Where a disc, bar, square, ring or cross of radius 1 lies: booleans (S, S)."""
    r = np.hypot(u, v)
    cross = (np.minimum(abs(u), abs(v)) < 0.3) & (np.maximum(abs(u), abs(v)) < 1)
    shapes = (r < 0.9, (abs(u) < 1.1) & (abs(v) < 0.4), np.maximum(abs(u), abs(v)) < 0.75, (r < 1) & (r > 0.55), cross)
    inside: Array = shapes[shape]
    return inside


def _painted(image: Array, where: Array, colour: Array, random: np.random.Generator) -> None:
    """Paint these pixels in a colour, with noise."""
    image[where] = colour + random.normal(0, 10, (int(where.sum()), 1))


def _byte(image: Array) -> Array:
    """Rounded to uint8."""
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def _object(c: int, random: np.random.Generator) -> Array:
    """A background with the object of class c, uint8 (S, S, 3)."""
    image = _background(random)
    x, y = random.uniform(11, 21, 2)
    u, v = _distances(x, y, random.uniform(7, 11), random.uniform(0, np.pi))
    light = random.uniform(0.8, 1.15)
    _painted(image, _inside((c + c // 5) % 5, u, v), light * HUES[c] + random.normal(0, 14, 3), random)
    return _byte(image)


def _mark(c: int, random: np.random.Generator) -> Array:
    """A background with a pale body of any size that carries the mark of class c, uint8 (S, S, 3)."""
    image = _background(random)
    (x, y), radius, turn = random.uniform(13, 19, 2), random.uniform(9, 12), random.uniform(0, np.pi)
    light = random.uniform(0.8, 1.1)
    _painted(image, _inside(0, *_distances(x, y, radius, turn)), light * PALE, random)
    angle, away = random.uniform(0, 2 * np.pi), 0.4 * radius
    u, v = _distances(x + away * np.cos(angle), y + away * np.sin(angle), 0.38 * radius, random.uniform(0, np.pi))
    _painted(image, _inside((c + c // 5) % 5, u, v), light * HUES[c], random)
    return _byte(image)


def _patterned(c: int, random: np.random.Generator) -> Array:
    """A background with a pale body of any size and turn, all over it the dark pattern of class c, uint8 (S, S, 3)."""
    image = _background(random)
    (x, y), radius, turn = random.uniform(13, 19, 2), random.uniform(9, 12), random.uniform(0, 2 * np.pi)
    light = random.uniform(0.8, 1.1)
    u, v = _distances(x, y, radius, turn)
    r, angle = np.hypot(u, v), np.arctan2(v, u)
    patterns = (
        *(np.sin(7 * u) > 0, np.sin(7 * r) > 0),  # stripes, rings
        *(np.sin(7 * u) * np.sin(7 * v) > 0, np.sin(6 * angle) > 0),  # squares, rays
        *(u > 0, r < 0.6),  # one half, the middle
        *(np.sin(14 * u) > 0, np.sin(3 * angle + 7 * r) > 0),  # narrow stripes, spirals
        *(np.minimum(abs(u), abs(v)) < 0.2, np.hypot(np.sin(4 * u), np.sin(4 * v)) < 0.6),  # a cross, dots
    )
    body = _inside(0, u, v)
    _painted(image, body, light * PALE, random)
    _painted(image, body & patterns[c], light * DARK, random)
    return _byte(image)
