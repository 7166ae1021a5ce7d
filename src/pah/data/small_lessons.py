"""Streams of small lessons, such as people teach from their own photos, as benchmarks named `small-…`.

A lesson has two to five classes of 20 to 500 images, far fewer than the usual benchmarks. The streams differ in what
decides how much is forgotten: how similar the images of different lessons are, and how many images there are.
H and W: height and width, S: pixels a side.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch

from pah.data.image import to_pixel_array
from pah.data.lesson import select_classes
from pah.data.sources import Images, Source, load_digits

IMAGE_SIZE = 32  # pixels a side; training takes a fourth of the time of a learner's usual 64
SYNTHETIC_TRAIN, SYNTHETIC_TEST = 250, 100  # images of each class


@dataclass(frozen=True)
class SmallStream:
    """The lessons of a benchmark and their classes.

    Args:
        summary: The images, in a line.
        data_folder: The folder inside `--data` that contains them; None if they are embedded or synthetic.
        lessons: The class names of each lesson.
        images_per_class: Largest number of training images of each class.
        grey: Whether images are converted to grey.
        epochs: Epochs of a lesson.
    """

    summary: str
    data_folder: str | None
    lessons: tuple[tuple[str, ...], ...]
    images_per_class: int
    grey: bool = False
    epochs: int = 15

    @property
    def classes(self) -> tuple[str, ...]:
        """All class names, lesson after lesson."""
        return tuple(name for lesson in self.lessons for name in lesson)


def _parse_lessons(text: str) -> tuple[tuple[str, ...], ...]:
    """Return the class names of each lesson: lessons are separated by "|", classes by spaces."""
    return tuple(tuple(lesson.split()) for lesson in text.split("|"))


def _lessons_of_two(names: Sequence[str]) -> tuple[tuple[str, ...], ...]:
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
        _parse_lessons("maple_tree oak_tree | bicycle motorcycle | otter seal | rose tulip | boy man"),
        150,
    ),
    "small-sea": SmallStream(
        "CIFAR-100, one background: water",
        CIFAR,
        _parse_lessons("ray whale | dolphin flatfish | shark turtle | aquarium_fish seal | trout sea"),
        60,
    ),
    "small-unequal": SmallStream(
        "CIFAR-100, lessons of 2, 4, 3, 2 and 5 classes",
        CIFAR,
        _parse_lessons(
            "bus pear | fox lamp orchid road | crab plate tractor | chair lion | camel castle clock snake sweet_pepper"
        ),
        60,
    ),
    "small-ten": SmallStream(
        "TinyImageNet, ten lessons",
        TINY,
        _parse_lessons(
            "n02099601 n04487081 | n02165456 n09246464 | n02123394 n07715103 | n04133789 n02058221 |"
            "n03447447 n01944390 | n02129165 n04398044 | n03089624 n04540053 | n02504458 n03930313 |"
            "n01917289 n04099969 | n02206856 n07579787"
        ),
        60,
    ),
    "small-few": SmallStream(
        "TinyImageNet, four classes a lesson, few images",
        TINY,
        _parse_lessons(
            "n01774750 n02074367 n03444034 n04254777 | n01855672 n02892201 n04118538 n07871810"
            " | n02085620 n02699494 n04356056 n09332890 | n01882714 n04149813 n02321529 n04399382"
            " | n02480495 n01983481 n04008634 n02927161"
        ),
        20,
    ),
    "small-grey": SmallStream(
        "CIFAR-100 without colour",
        CIFAR,
        _parse_lessons("keyboard mushroom | bridge rabbit | bowl train | elephant wardrobe | butterfly rocket"),
        500,
        grey=True,
        epochs=3,
    ),
    "small-digits": SmallStream("handwritten digits of scikit-learn; embedded", None, _lessons_of_two(DIGITS), 60),
    "small-objects": SmallStream(
        "synthetic: one background, objects of different shape and colour", None, _lessons_of_two(OBJECTS), 150
    ),
    "small-marks": SmallStream(
        "synthetic: one background, one object with different marks", None, _lessons_of_two(MARKS), 150
    ),
    "small-patterns": SmallStream(
        "synthetic: one background, one object, patterns of the same two colours", None, _lessons_of_two(PATTERNS), 150
    ),
}


def small_stream_source(stream: SmallStream, loaded: Source | None) -> Source:
    """Return the images of a small stream, 32x32, with its classes in the order of its lessons.

    Args:
        stream: One of `SMALL_STREAMS`.
        loaded: The data set that has its classes, at 32x32; None if the images are embedded or synthetic.

    Raises:
        InputError: the data set lacks a class.
    """
    if loaded is None:
        return _enlarged_digits() if stream.classes == DIGITS else _synthetic_source(stream.classes)
    source = select_classes(loaded, stream.classes)
    return replace(source, train=_to_grey(source.train), test=_to_grey(source.test)) if stream.grey else source


def _to_grey(images: Images) -> Images:
    """Return images with one channel, the mean of the three."""
    mean = np.rint(images.pixels.numpy().mean(axis=1, keepdims=True))
    return Images(torch.from_numpy(mean.astype(np.uint8)), images.labels)


def _enlarged_digits() -> Source:
    """Return scikit-learn's digits at 32x32."""
    digits = load_digits()

    def enlarge(images: Images) -> Images:
        pixels = to_pixel_array(images.pixels[:, 0].numpy(), (1, IMAGE_SIZE, IMAGE_SIZE))
        return Images(torch.from_numpy(pixels), images.labels)

    return replace(digits, train=enlarge(digits.train), test=enlarge(digits.test))


def _synthetic_source(classes: tuple[str, ...]) -> Source:
    """Return synthetic images; they are always the same."""
    draw = {OBJECTS: _draw_object, MARKS: _draw_mark, PATTERNS: _draw_pattern}[classes]
    parts = {}
    for split, count, seed in (("train", SYNTHETIC_TRAIN, 0), ("test", SYNTHETIC_TEST, 1)):
        random = np.random.default_rng(seed)
        pixels = np.stack([draw(c, random) for c in range(len(classes)) for _ in range(count)])
        labels = torch.arange(len(classes)).repeat_interleave(count)
        parts[split] = Images(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), labels)
    return Source("synthetic images", classes, parts["train"], parts["test"])


HUES = np.array(  # of ten objects or marks, clearly different within a lesson
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


def _draw_background(random: np.random.Generator) -> Array:
    """Return a texture like short grass under changing light, float (S, S, 3) in 0..255."""
    coarse, fine = random.normal(0, 1, (5, 5)), random.normal(0, 14, (IMAGE_SIZE, IMAGE_SIZE))
    position = np.linspace(0, 3.999, IMAGE_SIZE)
    k, part = position.astype(int), position % 1
    rows = coarse[k] * (1 - part)[:, None] + coarse[k + 1] * part[:, None]  # (S, 5)
    smooth = rows[:, k] * (1 - part) + rows[:, k + 1] * part  # (S, S)
    light = random.uniform(0.75, 1.2) * (1 + 0.12 * smooth)
    image: Array = light[..., None] * np.array([92.0, 128.0, 62.0]) + fine[..., None]
    return image


def _local_coordinates(x: float, y: float, radius: float, angle: float) -> tuple[Array, Array]:
    """Return each pixel's coordinates u and v, both (S, S), around (x, y), rotated, in units of the radius."""
    across, down = np.meshgrid(np.arange(IMAGE_SIZE) - x, np.arange(IMAGE_SIZE) - y)
    return (
        (across * np.cos(angle) + down * np.sin(angle)) / radius,
        (down * np.cos(angle) - across * np.sin(angle)) / radius,
    )


def _shape_mask(shape: int, u: Array, v: Array) -> Array:
    """Return the mask (S, S) of a disc, bar, square, ring or cross of radius 1."""
    r = np.hypot(u, v)
    cross = (np.minimum(abs(u), abs(v)) < 0.3) & (np.maximum(abs(u), abs(v)) < 1)
    shapes = (r < 0.9, (abs(u) < 1.1) & (abs(v) < 0.4), np.maximum(abs(u), abs(v)) < 0.75, (r < 1) & (r > 0.55), cross)
    mask: Array = shapes[shape]
    return mask


def _paint(image: Array, mask: Array, colour: Array, random: np.random.Generator) -> None:
    """Paint the pixels of the mask in a colour, with noise."""
    image[mask] = colour + random.normal(0, 10, (int(mask.sum()), 1))


def _to_uint8(image: Array) -> Array:
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def _shape_of_class(c: int) -> int:
    """Return the number of the shape of class c: the two classes with one shape are not in the same lesson."""
    return (c + c // 5) % 5


def _draw_object(c: int, random: np.random.Generator) -> Array:
    """Return a background with the object of class c, uint8 (S, S, 3)."""
    image = _draw_background(random)
    x, y = random.uniform(11, 21, 2)
    u, v = _local_coordinates(x, y, random.uniform(7, 11), random.uniform(0, np.pi))
    light = random.uniform(0.8, 1.15)
    _paint(image, _shape_mask(_shape_of_class(c), u, v), light * HUES[c] + random.normal(0, 14, 3), random)
    return _to_uint8(image)


def _draw_mark(c: int, random: np.random.Generator) -> Array:
    """Return a background with a pale body of random size that bears the mark of class c, uint8 (S, S, 3)."""
    image = _draw_background(random)
    (x, y), radius, turn = random.uniform(13, 19, 2), random.uniform(9, 12), random.uniform(0, np.pi)
    light = random.uniform(0.8, 1.1)
    _paint(image, _shape_mask(0, *_local_coordinates(x, y, radius, turn)), light * PALE, random)
    direction, distance = random.uniform(0, 2 * np.pi), 0.4 * radius  # of the mark from the body's centre
    mark_x, mark_y = x + distance * np.cos(direction), y + distance * np.sin(direction)
    u, v = _local_coordinates(mark_x, mark_y, 0.38 * radius, random.uniform(0, np.pi))
    _paint(image, _shape_mask(_shape_of_class(c), u, v), light * HUES[c], random)
    return _to_uint8(image)


def _draw_pattern(c: int, random: np.random.Generator) -> Array:
    """Return a background with a pale body, of random size and angle, covered by the dark pattern of class c.

    The image is uint8 (S, S, 3).
    """
    image = _draw_background(random)
    (x, y), radius, turn = random.uniform(13, 19, 2), random.uniform(9, 12), random.uniform(0, 2 * np.pi)
    light = random.uniform(0.8, 1.1)
    u, v = _local_coordinates(x, y, radius, turn)
    r, angle = np.hypot(u, v), np.arctan2(v, u)
    patterns = (
        *(np.sin(7 * u) > 0, np.sin(7 * r) > 0),  # stripes, rings
        *(np.sin(7 * u) * np.sin(7 * v) > 0, np.sin(6 * angle) > 0),  # squares, rays
        *(u > 0, r < 0.6),  # one half, the middle
        *(np.sin(14 * u) > 0, np.sin(3 * angle + 7 * r) > 0),  # narrow stripes, spirals
        *(np.minimum(abs(u), abs(v)) < 0.2, np.hypot(np.sin(4 * u), np.sin(4 * v)) < 0.6),  # a cross, dots
    )
    body = _shape_mask(0, u, v)
    _paint(image, body, light * PALE, random)
    _paint(image, body & patterns[c], light * DARK, random)
    return _to_uint8(image)
