"""The images of a lesson: from any kind of input, with the size and the channels that a learner's network takes.

Shapes: N images of C channels, H x W pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from pah.core.config import InputError, unknown_name_error
from pah.data.given_images import GivenData
from pah.data.preprocessing import DEFAULT_RESIZING, Resizing
from pah.data.read_options import DEFAULT_READING, ReadOptions
from pah.data.sources import Images, Source, load_source

LessonData: TypeAlias = GivenData

GREY_WEIGHTS = (0.299, 0.587, 0.114)  # of red, green and blue: ITU-R BT.601, as in Pillow


def load_lesson(
    data: LessonData,
    image_size: int | None,
    channels: int | None = None,
    *,
    classes: Sequence[str] | None = None,
    options: ReadOptions = DEFAULT_READING,
    resizing: Resizing = DEFAULT_RESIZING,
) -> Source:
    """Return training and test images, or vectors, of a lesson.

    If the data have no test part of their own, a fixed fifth of each class becomes the test part. A class may have no
    test image, and there may be a single class.

    Args:
        data: Anything that `load_source` takes.
        image_size: Height and width of the images; images of another size are resized. None accepts vectors alone.
        channels: 1 makes colour images grey, 3 makes grey images colour; None keeps them as they are. For vectors it is
            D, which vectors must have, or None.
        classes: Use only these classes, in this order; all unless given.
        options: How the images and the labels are read.
        resizing: With which filter images are resized, and how much of them is kept.

    Raises:
        InputError: the data are missing or unreadable, a class has no images, or a link leads out of the folder.
    """
    source = load_source(
        data, image_size, options, every_class_in_both=False, only_vectors=image_size is None, resizing=resizing
    )
    if image_size is None and channels is not None and source.numbers != channels:
        expected = f"vectors of {channels} numbers, as in the first lesson"
        raise InputError(f"{source.origin}: expected {expected}, got {source.numbers}")
    if classes is not None:
        source = select_classes(source, classes)
    source = _without_empty_classes(source)
    return source if channels is None or image_size is None else with_channels(source, channels)


def _without_empty_classes(source: Source) -> Source:
    """Return the source with notes on classes without test images; InputError if a class has no images at all."""
    if not source.class_names:
        raise InputError(f"{source.origin}: expected at least one class, got none")
    counts = [images.labels.bincount(minlength=len(source.class_names)) for images in (source.train, source.test)]
    for name, train, test in zip(source.class_names, *(count.tolist() for count in counts), strict=True):
        if not train + test:
            raise InputError(f"{source.origin}: expected images of class {name!r}, got none")
    untested = [name for name, count in zip(source.class_names, counts[1].tolist(), strict=True) if not count]
    if not untested:
        return source
    reason = "have a single image, which is" if source.test_from_train else "have no test images; all of them are"
    note = f"the accuracy is measured without {', '.join(untested)}: these classes {reason} trained on"
    return dataclasses.replace(source, conversions=(*source.conversions, note))


def with_all_images_in_test(source: Source) -> Source:
    """Return the source with all images in the test part, unless the data have a test part of their own."""
    if not source.test_from_train:
        return source
    parts = (source.train, source.test)
    every_image = Images(torch.cat([part.pixels for part in parts]), torch.cat([part.labels for part in parts]))
    return dataclasses.replace(source, test=every_image)


def select_classes(source: Source, classes: Sequence[str]) -> Source:
    """Return the source with only these classes, in this order.

    Args:
        source: The images.
        classes: Names of classes. A name that is none is a list of names with commas between them.

    Raises:
        InputError: the source lacks a class, or a class is given twice.
    """
    old_labels = {name: y for y, name in enumerate(source.class_names)}
    classes = [part for name in classes for part in _split_unless_known(name, old_labels)]
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


def _split_unless_known(name: str, known: Container[str]) -> list[str]:
    """Return a known name as it is, and any other as the names between its commas."""
    if name in known or "," not in name:
        return [name]
    return [stripped for part in name.split(",") if (stripped := part.strip())]


def with_channels(source: Source, channels: int) -> Source:
    """Return the source with 1 or 3 channels, and with a note if this changes its images."""

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
