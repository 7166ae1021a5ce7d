"""Loading of data sets with their training and test splits, from disk, from memory or from the Hugging Face hub.

Shapes: N images of C channels, H x W pixels; C is 1 when every image is grey, otherwise 3.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from torch import Tensor

from pah.core.config import InputError, require
from pah.core.hub import hub_is_reachable
from pah.data.columns import SplitTables, find_label_column, first_image_size, read_labelled_splits
from pah.data.decode import cache_key, decode_once, reading
from pah.data.image import first_line
from pah.data.listing import (
    FolderListing,
    ImageFileFinder,
    list_folder,
    parquet_files,
    select_splits,
    select_test_fifth,
)

if TYPE_CHECKING:
    import datasets  # imported inside functions, as pyarrow.dataset is: a run from the cache saves this second

FINGERPRINT_ROWS = 4096  # images whose bytes are read at a time
HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")  # name or owner/name

SourceData: TypeAlias = "str | datasets.Dataset | datasets.DatasetDict"


@dataclass(frozen=True)
class Images:
    """One split: pixels uint8 (N, C, H, W), labels int64 (N,)."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Source:
    """A data set; every class has images in both splits.

    Args:
        origin: Where the data come from: a path, a hub id, or other words.
        class_names: The name of label y is `class_names[y]`.
        train: The training split.
        test: The test split.
        skipped: Image files that were left out because they could not be read.
        test_from_train: Whether the test images are a part of the training images, as the data have no test part.
        conversions: How the images were changed, in words.
    """

    origin: str
    class_names: tuple[str, ...]
    train: Images
    test: Images
    skipped: tuple[str, ...] = ()
    test_from_train: bool = False
    conversions: tuple[str, ...] = ()

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


@dataclass(frozen=True)
class _LocatedSource:
    """A data set that has been located but not decoded."""

    read_tables: Callable[[], SplitTables]  # training and test split; not called if the cache has the data set
    files: list[Path]  # all files of the data set: while these are unchanged, so is the data set
    fingerprint: str | None = None  # of a data set in memory, which has no files
    test_from_train: bool = False  # as in `Source`


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
    data: SourceData, *, label_column: str | None = None, image_size: int | None = None, skip_unreadable: bool = False
) -> Source:
    """Return a data set. Its images are decoded once, and memory-mapped from then on.

    Args:
        data: A folder of Parquet files in the hub's layout (`train-*.parquet`, `test-*.parquet`, in the folder or in
            its `data/`); a folder of class folders (`train/<class>/` and `test/<class>/`; or `<class>/`, a fixed fifth
            of which is for testing); TinyImageNet's own folder (`val/val_annotations.txt`); a Hugging Face hub id; or
            a data set of the Hugging Face library (of a single split, a fixed fifth of each class is for testing).
        label_column: The column of the labels; None takes "label", "fine_label", the only ClassLabel or the only
            integers.
        image_size: Resize the shorter side of every image to this and crop the centre; None keeps the images' size.
        skip_unreadable: Leave out image files that cannot be read; `Source.skipped` lists them.

    Raises:
        InputError: the data are missing, unreadable or not a complete data set.
    """
    require(image_size is None or image_size > 0, "image_size", "a positive number of pixels", image_size)
    finder = ImageFileFinder(skip_unreadable)
    name = data if isinstance(data, str) else "data set"
    with reading(name):
        located = _locate(data, finder) if isinstance(data, str) else _locate_in_memory(data, label_column)
        fingerprint = () if located.fingerprint is None else (located.fingerprint,)
        key = cache_key(located.files, label_column, image_size, *fingerprint)

    def read_tables() -> SplitTables:
        with reading(name):
            return located.read_tables()

    decoded = decode_once(key, lambda: read_labelled_splits(read_tables(), name, label_column), image_size)
    return Source(
        origin=name,
        class_names=decoded.class_names,
        train=Images(torch.from_numpy(decoded.train_pixels), torch.from_numpy(decoded.train_labels)),
        test=Images(torch.from_numpy(decoded.test_pixels), torch.from_numpy(decoded.test_labels)),
        skipped=tuple(map(str, finder.unreadable)),
        test_from_train=located.test_from_train,
        conversions=describe_resize(first_image_size(read_tables()["train"], name), image_size) if image_size else (),
    )


def describe_resize(first_size: tuple[int, int], image_size: int) -> tuple[str, ...]:
    """Return in words how images are resized, given width and height of the first one; empty if it has that size."""
    if first_size == (image_size, image_size):
        return ()
    return (f"images of {first_size[0]}x{first_size[1]} (the first one) become {image_size}x{image_size}",)


def _locate(data: str, finder: ImageFileFinder) -> _LocatedSource:
    """Locate the data set of a path or a hub id."""
    path = Path(os.path.expanduser(data))  # Path's own method raises an error for an unknown user
    if data and path.is_dir():
        return _locate_in_folder(path.resolve(), data, finder)
    if path.exists() or not HUB_ID.fullmatch(data):
        kind = "a file" if path.is_file() else "a path that does not exist"
        raise InputError(f"{data!r}: expected a folder of images or Parquet files or a hub id, got {kind}")
    return _locate_on_hub(data)


def _locate_in_folder(folder: Path, data: str, finder: ImageFileFinder) -> _LocatedSource:
    return _locate_parquet(folder, data) or _locate_images(list_folder(folder, data, finder))


def _locate_parquet(folder: Path, data: str) -> _LocatedSource | None:
    """Locate the Parquet files of a folder; None if there are none."""
    if not (files_by_split := parquet_files(folder)):
        return None
    splits = select_splits(files_by_split, data)
    return _LocatedSource(partial(_parquet_tables, splits), [file for files in splits.values() for file in files])


def _parquet_tables(splits: Mapping[str, list[Path]]) -> SplitTables:
    import pyarrow.dataset

    return {split: pyarrow.dataset.dataset(files) for split, files in splits.items()}


def _locate_images(listing: FolderListing) -> _LocatedSource:
    image_files = [file for split in listing.files.values() for file, _ in split]
    return _LocatedSource(
        partial(_image_tables, listing),
        [*listing.annotation_files, *listing.class_folders, *image_files],
        test_from_train=listing.test_from_train,
    )


def _image_tables(listing: FolderListing) -> SplitTables:
    """Return the image files of each split as an Arrow table."""
    import datasets
    import pyarrow.dataset

    names = listing.class_names
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    label_of = {name: y for y, name in enumerate(names)}
    tables = {}
    for split, examples in listing.files.items():
        images = [{"bytes": None, "path": str(file)} for file, _ in examples]
        labels = [label_of[name] for _, name in examples]
        table = pyarrow.table({"image": images, "label": labels}, schema=features.arrow_schema)
        tables[split] = pyarrow.dataset.dataset(table)
    return tables


def _locate_on_hub(data: str) -> _LocatedSource:
    """Locate the data set of a hub id; it is downloaded unless it is in the cache of `datasets`."""
    import datasets

    online = hub_is_reachable()
    try:
        with _hub_settings(online):
            loaded = datasets.load_dataset(data)
    except Exception as error:  # the hub, its client and the builders of data sets raise many kinds of errors
        reason = first_line(error) if online else "a hub that cannot be reached, and no copy in its cache"
        raise InputError(
            f"{data!r}: expected a folder or a data set of the Hugging Face hub, got {reason}; "
            "use --data PATH with a folder of Parquet files or of class folders"
        ) from error
    splits = select_splits({str(split): part for split, part in loaded.items()}, data)
    return _LocatedSource(
        partial(_dataset_tables, splits),
        [Path(file["filename"]) for part in splits.values() for file in part.cache_files],
    )


def _locate_in_memory(data: datasets.Dataset | datasets.DatasetDict, label_column: str | None) -> _LocatedSource:
    """Locate a data set in memory; of a single split, a fixed fifth of each class becomes the test split."""
    import datasets

    if has_splits := isinstance(data, datasets.DatasetDict):
        splits = select_splits({str(split): part for split, part in data.items()}, "data set")
    else:
        column = find_label_column(data.features, label_column, "data set")
        labels = np.asarray(data[column])
        test_rows = {
            int(rows[i])
            for y in np.unique(labels)
            for rows in [np.flatnonzero(labels == y)]
            for i in select_test_fifth(len(rows), str(y))
        }
        train_rows = set(range(len(data))) - test_rows
        splits = {"train": data.select(sorted(train_rows)), "test": data.select(sorted(test_rows))}
    flat = {split: part.flatten_indices() for split, part in splits.items()}
    fingerprint = "/".join(part._fingerprint for part in splits.values())
    return _LocatedSource(partial(_dataset_tables, flat), [], fingerprint, test_from_train=not has_splits)


def _dataset_tables(splits: Mapping[str, datasets.Dataset]) -> SplitTables:
    """Return splits as Arrow tables whose schema contains the features."""
    import pyarrow.dataset

    return {
        split: pyarrow.dataset.dataset(part.data.table.replace_schema_metadata(part.features.arrow_schema.metadata))
        for split, part in splits.items()
    }


@contextmanager
def _hub_settings(online: bool) -> Iterator[None]:
    """Let `datasets` show no progress and, unless `online`, use only its cache; the settings are global."""
    import datasets

    offline = datasets.config.HF_HUB_OFFLINE
    bars = datasets.config.HF_DATASETS_DISABLE_PROGRESS_BARS is None and not datasets.are_progress_bars_disabled()
    try:
        datasets.config.HF_HUB_OFFLINE = offline or not online
        if bars:
            datasets.disable_progress_bars()
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = offline
        if bars:
            datasets.enable_progress_bars()
