"""What a learner is taught from: any images with classes, in the one shape that its network takes.

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
from torch import Tensor

from pah.core.config import InputError, unknown
from pah.data.image import Images as Given
from pah.data.image import size_of, to_pixels
from pah.data.listing import SUFFIXES, fifth
from pah.data.sources import Images, Source, load_source, resized

if TYPE_CHECKING:
    import datasets

Data: TypeAlias = "str | Path | datasets.Dataset | datasets.DatasetDict | tuple[Given, Sequence[int], Sequence[str]]"

GREY = (0.299, 0.587, 0.114)  # of red, green and blue: ITU-R BT.601, as Pillow has it


def load_lesson(
    data: Data,
    image_size: int,
    channels: int | None = None,
    *,
    classes: Sequence[str] | None = None,
    label_column: str | None = None,
    skip_unreadable: bool = False,
) -> Source:
    """Training and test images of a lesson, `image_size` pixels a side.

    Where the data have no test part of their own, a fixed fifth of each class is that part.

    Args:
        data: what `load_source` takes; or images, their labels 0 to C - 1, and the C class names.
        image_size: of the images; others are resized.
        channels: 1 makes colour images grey, 3 grey ones colour; None leaves them as they are.
        classes: only these, in this order; all unless given.
        label_column: of the labels, where it is not plain.
        skip_unreadable: leave out image files that cannot be read; `Source.skipped` lists them.

    Raises:
        InputError: the data are missing, unreadable, of a single class, lack images of a class, or lie outside the
            folder named.
    """
    if isinstance(data, tuple):
        images, labels, names = data
        source = _from_images(images, labels, names, image_size)
    else:
        where = str(data) if isinstance(data, Path) else data
        if isinstance(where, str):
            root = Path(os.path.expanduser(where)).resolve()
            if (link := outward_link(root)) is not None:
                raise InputError(f"{link}: expected an image or a folder inside {where}, got a link out of it")
        source = load_source(where, label_column=label_column, image_size=image_size, skip_unreadable=skip_unreadable)
    if classes is not None:
        source = only_classes(source, classes)
    if len(source.class_names) < 2:
        raise InputError(f"{source.where}: expected at least 2 classes, got {', '.join(source.class_names) or 'none'}")
    return source if channels is None else _with_channels(source, channels)


def _from_images(images: Given, labels: Sequence[int], class_names: Sequence[str], image_size: int) -> Source:
    """Images at hand; a fixed fifth of each class is for testing."""
    names, y = tuple(str(name) for name in class_names), np.asarray(labels)
    if not len(images):
        raise InputError("images: expected at least 2 of each class, got none")
    if y.dtype.kind not in "iu" or y.shape != (len(images),):
        raise InputError(f"labels: expected a whole number for each of {len(images)} images, got {y.dtype} {y.shape}")
    if outside := [int(label) for label in y if not 0 <= label < len(names)]:
        raise InputError(f"labels: expected 0 to {len(names) - 1}, as there are {len(names)} names, got {outside[0]}")
    if len(set(names)) < len(names):
        raise InputError(f"class names: expected each once, got {', '.join(names)}")
    held = np.zeros(len(y), dtype=bool)
    for c, name in enumerate(names):
        rows = np.flatnonzero(y == c)
        if len(rows) < 2:
            raise InputError(f"images: expected at least 2 of class {name!r}, got {len(rows)}")
        held[rows[list(fifth(len(rows), name))]] = True
    pixels = torch.from_numpy(to_pixels(images, (3, image_size, image_size)))
    if bool((pixels[:, 1:] == pixels[:, :1]).all()):
        pixels = pixels[:, :1].contiguous()
    test, y64 = torch.from_numpy(held), torch.from_numpy(y.astype(np.int64))
    parts = Images(pixels[~test], y64[~test]), Images(pixels[test], y64[test])
    return Source("images", names, *parts, divided=True, changed=_resized(images, image_size))


def _resized(images: Given, size: int) -> tuple[str, ...]:
    """What becomes of images of another size, going by the first one."""
    first = images[0]
    if isinstance(first, str | Path):
        width, height = size_of({"path": str(first), "bytes": None}, str(first))
    else:
        width, height = (first.shape[1], first.shape[0]) if isinstance(first, np.ndarray) else first.size
    return resized((width, height), size)


def whole(source: Source) -> Source:
    """The source with all images in its test part, if that was only taken from the training images."""
    if not source.divided:
        return source
    parts = (source.train, source.test)
    together = Images(torch.cat([part.pixels for part in parts]), torch.cat([part.labels for part in parts]))
    return dataclasses.replace(source, test=together)


def outward_link(root: Path) -> Path | None:
    """A link that would have images taken from outside of a resolved folder; None if there is none."""
    for folder, folders, files in os.walk(root):
        for name in (*folders, *(file for file in files if Path(file).suffix.lower() in SUFFIXES)):
            path = Path(folder) / name
            if path.is_symlink() and not path.resolve().is_relative_to(root):
                return path
    return None


def only_classes(source: Source, classes: Sequence[str]) -> Source:
    """The source with some of its classes, in the order given; InputError if it has no such class, or one is twice."""
    index = {name: y for y, name in enumerate(source.class_names)}
    for name in classes:
        if name not in index:
            raise unknown(f"class of {source.where}", name, index)
    if len(set(classes)) < len(classes):
        raise InputError(f"classes: expected each once, got {', '.join(classes)}")
    new = torch.full((len(index),), -1)
    new[[index[name] for name in classes]] = torch.arange(len(classes))

    def of(images: Images) -> Images:
        labels = new[images.labels]
        return Images(images.pixels[labels >= 0], labels[labels >= 0])

    return dataclasses.replace(source, class_names=tuple(classes), train=of(source.train), test=of(source.test))


def _with_channels(source: Source, channels: int) -> Source:
    """The source in grey or in colour."""

    def of(images: Images) -> Images:
        return Images(convert_channels(images.pixels, channels), images.labels)

    if source.train.pixels.shape[1] == channels:
        return source
    changed = "grey images become colour images" if channels == 3 else "colour images become grey images"
    return dataclasses.replace(source, train=of(source.train), test=of(source.test), changed=(*source.changed, changed))


def convert_channels(pixels: Tensor, channels: int) -> Tensor:
    """Pixels (N, C, H, W) uint8 with 1 or 3 channels: grey is repeated, colour is weighed."""
    if pixels.shape[1] == channels:
        return pixels
    if channels == 3:
        return pixels.expand(-1, 3, -1, -1)
    weights = torch.tensor(GREY)[:, None, None]
    return torch.cat([(part * weights).sum(dim=1, keepdim=True).round().byte() for part in pixels.split(1000)])
