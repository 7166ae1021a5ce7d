"""The images of a lesson: from any kind of input, with the size and the channels that a learner's network takes.

Shapes: N images of C channels, H x W pixels.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pah.core.config import InputError, unknown_name_error
from pah.data.image import IMAGE_SUFFIXES, ImageInput, read_image_size, to_pixel_array
from pah.data.listing import select_test_fifth
from pah.data.read_options import DEFAULT_READING, ReadOptions
from pah.data.sources import Images, Source, describe_resize, load_source

if TYPE_CHECKING:
    import datasets
    from numpy.typing import NDArray

LessonData: TypeAlias = (
    "str | Path | datasets.Dataset | datasets.DatasetDict | tuple[ImageInput, Sequence[int], Sequence[str]]"
)

GREY_WEIGHTS = (0.299, 0.587, 0.114)  # of red, green and blue: ITU-R BT.601, as in Pillow


def load_lesson(
    data: LessonData,
    image_size: int,
    channels: int | None = None,
    *,
    classes: Sequence[str] | None = None,
    options: ReadOptions = DEFAULT_READING,
) -> Source:
    """Return training and test images of a lesson.

    If the data have no test part of their own, a fixed fifth of each class becomes the test part.

    Args:
        data: Anything that `load_source` takes; or images, their labels 0 to C - 1, and the C class names.
        image_size: Height and width of the images; images of another size are resized.
        channels: 1 makes colour images grey, 3 makes grey images colour; None keeps them as they are.
        classes: Use only these classes, in this order; all unless given.
        options: How the images and the labels are read.

    Raises:
        InputError: the data are missing or unreadable, have a single class, lack images of a class, or contain a link
            to a place outside the folder.
    """
    if isinstance(data, tuple):
        images, labels, names = data
        source = _source_from_images(images, labels, names, image_size)
    else:
        path_or_data = str(data) if isinstance(data, Path) else data
        if isinstance(path_or_data, str):
            folder = Path(os.path.expanduser(path_or_data)).resolve()
            if (link := find_outward_link(folder)) is not None:
                raise InputError(
                    f"{link}: expected an image or a folder inside {path_or_data}, got a link to a place outside it"
                )
        source = load_source(path_or_data, image_size, options)
    if classes is not None:
        source = select_classes(source, classes)
    if len(source.class_names) < 2:
        raise InputError(f"{source.origin}: expected at least 2 classes, got {', '.join(source.class_names) or 'none'}")
    return source if channels is None else _with_channels(source, channels)


def _source_from_images(
    images: ImageInput, labels: Sequence[int], class_names: Sequence[str], image_size: int
) -> Source:
    """Return a source of the given images; a fixed fifth of each class becomes the test part."""
    if isinstance(images, str | Path | Image.Image):
        raise InputError("images: expected a list of images, with a label for each, got one image")
    if isinstance(images, np.ndarray) and images.ndim == 3:  # grey, as there are labels for several images
        images = images[..., None]
    names, y = tuple(str(name) for name in class_names), np.asarray(labels)
    _check_labels(y, names, len(images))
    is_test = np.zeros(len(y), dtype=bool)
    for c, name in enumerate(names):
        rows = np.flatnonzero(y == c)
        if len(rows) < 2:
            raise InputError(f"images: expected at least 2 of class {name!r}, got {len(rows)}")
        is_test[rows[list(select_test_fifth(len(rows), name))]] = True
    pixels = torch.from_numpy(to_pixel_array(images, (3, image_size, image_size)))
    if bool((pixels[:, 1:] == pixels[:, :1]).all()):
        pixels = pixels[:, :1].contiguous()
    test, y64 = torch.from_numpy(is_test), torch.from_numpy(y.astype(np.int64))
    parts = Images(pixels[~test], y64[~test]), Images(pixels[test], y64[test])
    return Source("images", names, *parts, test_from_train=True, conversions=_describe_resize(images, image_size))


def _check_labels(labels: NDArray[np.generic], names: tuple[str, ...], count: int) -> None:
    """Raise InputError unless there are `count` integer labels, each with a class name of its own."""
    if not count:
        raise InputError("images: expected at least 2 of each class, got none")
    if labels.dtype.kind not in "iu" or labels.shape != (count,):
        raise InputError(
            f"labels: expected a whole number for each of {count} images, got {labels.dtype} {labels.shape}"
        )
    if outside := [int(label) for label in labels if not 0 <= label < len(names)]:
        raise InputError(f"labels: expected 0 to {len(names) - 1}, as there are {len(names)} names, got {outside[0]}")
    if len(set(names)) < len(names):
        raise InputError(f"class names: expected each once, got {', '.join(names)}")


def _describe_resize(images: ImageInput, size: int) -> tuple[str, ...]:
    """Return `describe_resize` of the first image."""
    first = images[0]
    if isinstance(first, str | Path):
        width, height = read_image_size({"path": str(first), "bytes": None}, str(first))
    else:
        width, height = (first.shape[1], first.shape[0]) if isinstance(first, np.ndarray) else first.size
    return describe_resize((width, height), size)


def with_all_images_in_test(source: Source) -> Source:
    """Return the source with all images in the test part, unless the data have a test part of their own."""
    if not source.test_from_train:
        return source
    parts = (source.train, source.test)
    every_image = Images(torch.cat([part.pixels for part in parts]), torch.cat([part.labels for part in parts]))
    return dataclasses.replace(source, test=every_image)


def find_outward_link(root: Path) -> Path | None:
    """Return a link in a resolved folder that leads to images outside it; None if there is none."""
    for folder, folders, files in os.walk(root):
        for name in (*folders, *(file for file in files if Path(file).suffix.lower() in IMAGE_SUFFIXES)):
            path = Path(folder) / name
            if path.is_symlink() and not path.resolve().is_relative_to(root):
                return path
    return None


def select_classes(source: Source, classes: Sequence[str]) -> Source:
    """Return the source with only these classes, in this order.

    Raises:
        InputError: the source lacks a class, or a class is given twice.
    """
    old_labels = {name: y for y, name in enumerate(source.class_names)}
    for name in classes:
        if name not in old_labels:
            raise unknown_name_error(f"class of {source.origin}", name, old_labels)
    if len(set(classes)) < len(classes):
        raise InputError(f"classes: expected each once, got {', '.join(classes)}")
    new_labels = torch.full((len(old_labels),), -1)  # by old label; -1: not selected
    new_labels[[old_labels[name] for name in classes]] = torch.arange(len(classes))

    def select(images: Images) -> Images:
        labels = new_labels[images.labels]
        return Images(images.pixels[labels >= 0], labels[labels >= 0])

    return dataclasses.replace(source, class_names=tuple(classes), train=select(source.train), test=select(source.test))


def _with_channels(source: Source, channels: int) -> Source:
    """Return the source with 1 or 3 channels."""

    def convert(images: Images) -> Images:
        return Images(convert_channels(images.pixels, channels), images.labels)

    if source.train.pixels.shape[1] == channels:
        return source
    conversion = "grey images become colour images" if channels == 3 else "colour images become grey images"
    return dataclasses.replace(
        source,
        train=convert(source.train),
        test=convert(source.test),
        conversions=(*source.conversions, conversion),
    )


def convert_channels(pixels: Tensor, channels: int) -> Tensor:
    """Return uint8 pixels (N, C, H, W) with 1 or 3 channels: grey is repeated, colour becomes a weighted mean."""
    if pixels.shape[1] == channels:
        return pixels
    if channels == 3:
        return pixels.expand(-1, 3, -1, -1)
    weights = torch.tensor(GREY_WEIGHTS)[:, None, None]
    return torch.cat([(part * weights).sum(dim=1, keepdim=True).round().byte() for part in pixels.split(1000)])
