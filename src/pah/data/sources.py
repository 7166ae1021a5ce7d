"""Loading of data sets with their training and test splits, from disk, from memory or from the Hugging Face hub.

Shapes: N images of C channels, H x W pixels; C is 1 when every image is grey, otherwise 3.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from pah.core.config import InputError, require
from pah.data.decode import EncodedDataSet, decode_once, reading
from pah.data.decode_cache import DecodedDataSet, Labels, cache_key
from pah.data.given_images import GivenData, as_data_set, is_hugging_face
from pah.data.given_pixels import decode_given, require_kind
from pah.data.labelled_splits import read_labelled_splits
from pah.data.listing import select_test_fifth
from pah.data.located import LocatedSource, locate, locate_in_memory
from pah.data.preprocessing import DEFAULT_RESIZING, Resizing
from pah.data.read_options import DEFAULT_READING, ReadOptions
from pah.data.vector_files import is_npz
from pah.data.vector_tables import read_vectors, require_table_kind

FINGERPRINT_ROWS = 4096  # images whose bytes are read at a time

SourceData: TypeAlias = GivenData


@dataclass(frozen=True)
class Images:
    """One split: pixels uint8 (N, C, H, W), or vectors float32 (N, D, 1, 1); labels int64 (N,)."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Source:
    """A data set. Unless it is for a lesson, every class has images in both splits.

    Args:
        origin: Where the data come from: a path, a hub id, or other words.
        class_names: The name of label y is `class_names[y]`.
        train: The training split.
        test: The test split.
        skipped: Image files that were left out because they could not be read.
        test_from_train: Whether the test images are a part of the training images, as the data have no test part.
        conversions: What was left out or chosen, and how the images were changed, in words.
    """

    origin: str
    class_names: tuple[str, ...]
    train: Images
    test: Images
    skipped: tuple[str, ...] = ()
    test_from_train: bool = False
    conversions: tuple[str, ...] = ()

    @property
    def numbers(self) -> int | None:
        """D, the length of the vectors; None if these are images."""
        pixels = self.train.pixels
        return pixels.shape[1] if pixels.is_floating_point() else None

    @property
    def notes(self) -> tuple[str, ...]:
        """What was left out of the data and how the images were changed, in words."""
        return self.left_out + self.conversions

    @property
    def left_out(self) -> tuple[str, ...]:
        """Which images were left out because they could not be read, in words."""
        return tuple(f"left out, unreadable: {file}" for file in self.skipped)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the class names, the labels and the decoded pixels, 16 hexadecimal digits.

        It is the same for the same images at another place, on every machine. It takes about 1 s for 3 GB of pixels.
        """
        parts = [
            (list(tensor.shape), _checksum(tensor))
            for split in (self.train, self.test)
            for tensor in (split.pixels, split.labels)
        ]
        return hashlib.sha256(json.dumps([self.class_names, parts]).encode()).hexdigest()[:16]


def _checksum(tensor: Tensor) -> int:
    """Return the CRC-32 of a tensor's numbers in the order of its rows, as little-endian bytes."""
    checksum = 0
    for rows in tensor.split(FINGERPRINT_ROWS):
        values = rows.cpu().numpy()
        checksum = zlib.crc32(np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<")).data, checksum)
    return checksum


def load_digits() -> Source:
    """Return scikit-learn's 1,797 handwritten digits, pixels (N, 1, 8, 8), with a fixed fifth of each class as test."""
    from sklearn.datasets import load_digits as load  # the import takes a second, and only the digits need it

    digits = load()
    pixels = torch.from_numpy(np.rint(digits.images * (255 / 16)).astype(np.uint8)).unsqueeze(1)  # 0..16 -> 0..255
    labels = torch.from_numpy(digits.target.astype(np.int64))
    test = torch.zeros(len(labels), dtype=torch.bool)
    for y in range(10):
        rows = (labels == y).nonzero().squeeze(1)
        test[rows[list(select_test_fifth(len(rows), str(y)))]] = True
    return Source(
        origin="scikit-learn (embedded)",
        class_names=tuple("0123456789"),
        train=Images(pixels[~test], labels[~test]),
        test=Images(pixels[test], labels[test]),
    )


def load_source(
    data: SourceData,
    image_size: int | None = None,
    options: ReadOptions = DEFAULT_READING,
    *,
    every_class_in_both: bool = True,
    only_vectors: bool = False,
    resizing: Resizing = DEFAULT_RESIZING,
) -> Source:
    """Return a data set. Its images are decoded once, and memory-mapped from then on. Vectors are read each time.

    Args:
        data: A folder of Parquet files in the hub's layout (`train-*.parquet`, `test-*.parquet`, in the folder or in
            its `data/`); a folder of class folders (`train/<class>/` and `test/<class>/`; or `<class>/`); a folder of
            images with a `metadata.csv` or `metadata.jsonl`; TinyImageNet's own folder (`val/val_annotations.txt`); a
            Hugging Face hub id; a data set of the Hugging Face library; or labelled images in one of the forms of
            `pah.data.given_images.KINDS`; or a `.npz` or `.parquet` file. Without a test split, a fixed fifth of each
            class is for testing.
        image_size: Resize the shorter side of every image to this and crop the centre; None keeps the images' size.
            Images that have this height and width already stay as they are.
        options: How the images and the labels are read.
        every_class_in_both: Whether every class must have images in the training and in the test split.
        only_vectors: Whether images are refused, before they are decoded.
        resizing: With which filter images are resized, and how much of them is kept.

    Raises:
        InputError: the data are missing, unreadable or not a complete data set.
    """
    require(image_size is None or image_size > 0, "image_size", "a positive number of pixels", image_size)
    given = as_data_set(data, options)
    if isinstance(given, dict) and not is_hugging_face(given):
        origin = require_kind(given, str(data) if is_npz(data) else None, only_vectors)
        return _source(origin, decode_given(given, image_size, options, resizing), every_class_in_both)
    name = given if isinstance(given, str) else "data set"
    require_table_kind(name, image_size, options, only_vectors)
    with reading(name):
        located = locate(given, options) if isinstance(given, str) else locate_in_memory(given, options)
        key = cache_key(located.files, *_key_options(options, image_size, located.fingerprint, resizing))
    how = replace(located.how, image_size=image_size, resizing=resizing)

    def read() -> EncodedDataSet:
        with reading(name):
            encoded = read_labelled_splits(located.tables, name, how)
        if every_class_in_both:  # before its images are decoded
            labels = encoded.train.labels, encoded.test.labels
            _require_every_class(name, encoded.class_names, labels, encoded.record.test_split)
        return encoded

    if options.column is not None:
        decoded = read_vectors(read(), options.skip_unreadable)
    else:
        decoded = decode_once(
            key, read, image_size, known_files=located.files, max_megapixels=options.max_megapixels, resizing=resizing
        )
    return _with_notes(_source(name, decoded, every_class_in_both), located)


def count_images(data: str, options: ReadOptions = DEFAULT_READING) -> Source:
    """Return a data set of a folder or the hub with its labels and without its images, which may be of any sizes.

    Every image is a single black pixel.

    Args:
        data: A path or a hub id, as `load_source` takes it.
        options: How the labels are read.

    Raises:
        InputError: the data are missing, unreadable or not a complete data set.
    """
    with reading(data):
        located = locate(data, options)
        encoded = read_labelled_splits(located.tables, data, located.how)

    train, test = encoded.train.labels, encoded.test.labels
    black = [np.zeros((len(labels), 1, 1, 1), np.uint8) for labels in (train, test)]
    counted = DecodedDataSet(encoded.class_names, black[0], train, black[1], test, encoded.record)
    return _with_notes(_source(data, counted, every_class_in_both=True), located)


def _with_notes(source: Source, located: LocatedSource) -> Source:
    """Return a source with the notes on the place of its files."""
    skipped, conversions = located.missing + source.skipped, located.notes + source.conversions
    return replace(source, skipped=skipped, conversions=conversions)


def _key_options(
    options: ReadOptions, image_size: int | None, fingerprint: str | None, resizing: Resizing
) -> list[str | int | None]:
    """Return what decides how files are read, for `cache_key`; options that were added later only if they are used."""
    added = {name: value for name, value in asdict(options).items() if name != "label_column"}
    changed = [f"{name}={value}" for name, value in added.items() if value != getattr(DEFAULT_READING, name)]
    if image_size is not None and resizing != DEFAULT_RESIZING:
        changed.append(f"resizing={resizing.interpolation},{resizing.crop_share!r}")
    return [options.label_column, image_size, *([] if fingerprint is None else [fingerprint]), *changed]


def _source(name: str, decoded: DecodedDataSet, every_class_in_both: bool) -> Source:
    """Return a decoded data set as a source of that name."""
    record = decoded.record
    if every_class_in_both:
        labels = decoded.train_labels, decoded.test_labels
        _require_every_class(name, decoded.class_names, labels, record.test_split)
    return Source(
        origin=name,
        class_names=decoded.class_names,
        train=Images(torch.from_numpy(decoded.train_pixels), torch.from_numpy(decoded.train_labels)),
        test=Images(torch.from_numpy(decoded.test_pixels), torch.from_numpy(decoded.test_labels)),
        skipped=record.skipped,
        test_from_train=record.test_split is None,
        conversions=record.notes,
    )


def _require_every_class(
    name: str, class_names: Sequence[str], labels: tuple[Labels, Labels], test_split: str | None
) -> None:
    """Raise InputError unless every class has images in both splits, given the labels of both."""
    for split, y in zip(("train", test_split or "test"), labels, strict=True):
        missing = np.setdiff1d(np.arange(len(class_names)), y)
        if not len(missing):
            continue
        if test_split is None and split == "test":
            raise InputError(
                f"{name}: expected at least 2 images of class {class_names[missing[0]]!r}, as a fifth of each class is "
                "for testing, got 1"
            )
        raise InputError(
            f"{name}, split {split}: expected images of every class, got none of {class_names[missing[0]]!r}"
        )
