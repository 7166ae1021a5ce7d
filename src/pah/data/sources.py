"""Finds a data set, on disk or on the Hugging Face hub, and its splits.

Shapes: N images of C channels, H x W pixels; C is 1 when every image is grey, otherwise 3.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from torch import Tensor

from pah.core.config import InputError, require
from pah.core.hub import hub_answers
from pah.data.columns import Tables, first_size, label_column_of, understand
from pah.data.decode import cache_key, decode_once, reading
from pah.data.image import first_line
from pah.data.listing import ImageFiles, Listing, fifth, list_folder, named_splits, parquet_files

if TYPE_CHECKING:
    import datasets  # imported where it is used, as pyarrow.dataset is: they take a second that a second start saves


HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")  # name or owner/name

Data: TypeAlias = "str | datasets.Dataset | datasets.DatasetDict"


@dataclass(frozen=True)
class Images:
    """One split: pixels uint8 (N, C, H, W), labels int64 (N,)."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Source:
    """A data set: every class has images in both splits.

    Args:
        where: Path, hub id or other words for where it comes from.
        class_names: The name of label y is `class_names[y]`.
        train: The training split.
        test: The test split.
        skipped: Image files that could not be read, where that was allowed.
        divided: Whether the test images were taken from the training images, as the data have no test part.
        changed: What had to be done to the images, in words.
    """

    where: str
    class_names: tuple[str, ...]
    train: Images
    test: Images
    skipped: tuple[str, ...] = ()
    divided: bool = False
    changed: tuple[str, ...] = ()


@dataclass(frozen=True)
class _LocatedSource:
    """A data set located but not decoded."""

    tables: Callable[[], Tables]  # training split, test split; not asked for where the cache has them
    files: list[Path]  # that hold it: while these are the same, so is the data set
    fingerprint: str | None = None  # of a data set in memory, where no file tells
    divided: bool = False  # as in `Source`


def load_digits() -> Source:
    """Scikit-learn's 1,797 handwritten digits, pixels (N, 1, 8, 8), the same fifth of each class for testing."""
    from sklearn.datasets import load_digits as load  # takes a second to import, and only digits need it

    digits = load()
    pixels = torch.from_numpy(np.rint(digits.images * (255 / 16)).astype(np.uint8)).unsqueeze(1)  # 0..16 -> 0..255
    labels = torch.from_numpy(digits.target.astype(np.int64))
    test = torch.zeros(len(labels), dtype=torch.bool)
    for y in range(10):
        rows = (labels == y).nonzero().squeeze(1)
        test[rows[list(fifth(len(rows), str(y)))]] = True
    return Source(
        where="scikit-learn (embedded)",
        class_names=tuple("0123456789"),
        train=Images(pixels[~test], labels[~test]),
        test=Images(pixels[test], labels[test]),
    )


def load_source(
    data: Data, *, label_column: str | None = None, image_size: int | None = None, skip_unreadable: bool = False
) -> Source:
    """The data set `data`, decoded once and memory-mapped from then on.

    Args:
        data: A folder of Parquet files in the hub's layout (`train-*.parquet`, `test-*.parquet`, here or in `data/`);
            a folder of class folders (`train/<class>/` and `test/<class>/`; or `<class>/`, a fixed fifth of which is
            for testing); TinyImageNet's own folder (`val/val_annotations.txt`); a Hugging Face hub id; or a data set
            of the Hugging Face library (of a single split, a fixed fifth of each class is for testing).
        label_column: Of the labels; None takes "label", "fine_label", the only ClassLabel or the only integers.
        image_size: Resize the shorter side of every image to this and crop the centre; None leaves them as they are.
        skip_unreadable: Leave out image files that cannot be read, which `Source.skipped` lists.

    Raises:
        InputError: the data are missing, unreadable or not a complete data set.
    """
    require(image_size is None or image_size > 0, "image_size", "a positive number of pixels", image_size)
    choose = ImageFiles(skip_unreadable)
    where = data if isinstance(data, str) else "data set"
    with reading(where):
        found = _find(data, choose) if isinstance(data, str) else _find_in_memory(data, label_column)
        fingerprint = () if found.fingerprint is None else (found.fingerprint,)
        key = cache_key(found.files, label_column, image_size, *fingerprint)

    def tables() -> Tables:
        with reading(where):
            return found.tables()

    decoded = decode_once(key, lambda: understand(tables(), where, label_column), image_size)
    return Source(
        where=where,
        class_names=decoded.class_names,
        train=Images(torch.from_numpy(decoded.train_pixels), torch.from_numpy(decoded.train_labels)),
        test=Images(torch.from_numpy(decoded.test_pixels), torch.from_numpy(decoded.test_labels)),
        skipped=tuple(map(str, choose.unreadable)),
        divided=found.divided,
        changed=resized(first_size(tables()["train"], where), image_size) if image_size else (),
    )


def resized(came: tuple[int, int], image_size: int) -> tuple[str, ...]:
    """What becomes of images, in words, if the first one is of that width and height; nothing if that is asked."""
    if came == (image_size, image_size):
        return ()
    return (f"images of {came[0]}x{came[1]} (the first one) become {image_size}x{image_size}",)


def _find(data: str, images_of: ImageFiles) -> _LocatedSource:
    path = Path(os.path.expanduser(data))  # Path's own method raises where a user is unknown
    if data and path.is_dir():
        return _find_local(path.resolve(), data, images_of)
    if path.exists() or not HUB_ID.fullmatch(data):
        came = "a file" if path.is_file() else "a path that does not exist"
        raise InputError(f"{data!r}: expected a folder of images or Parquet files or a hub id, got {came}")
    return _find_on_hub(data)


def _find_local(folder: Path, data: str, images_of: ImageFiles) -> _LocatedSource:
    return _find_parquet(folder, data) or _from_listing(list_folder(folder, data, images_of))


def _find_parquet(folder: Path, data: str) -> _LocatedSource | None:
    if not (found := parquet_files(folder)):
        return None
    splits = named_splits(found, data)
    return _LocatedSource(partial(_read_parquet, splits), [file for files in splits.values() for file in files])


def _read_parquet(splits: Mapping[str, list[Path]]) -> Tables:
    import pyarrow.dataset

    return {split: pyarrow.dataset.dataset(files) for split, files in splits.items()}


def _from_listing(listing: Listing) -> _LocatedSource:
    files = [file for split in listing.rows.values() for file, _ in split]
    return _LocatedSource(
        partial(_as_tables, listing), [*listing.others, *listing.classes, *files], divided=listing.divided
    )


def _as_tables(listing: Listing) -> Tables:
    """The image files of each split as an Arrow table."""
    import datasets
    import pyarrow.dataset

    names = listing.class_names
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    index = {name: y for y, name in enumerate(names)}
    tables = {}
    for split, examples in listing.rows.items():
        images = [{"bytes": None, "path": str(file)} for file, _ in examples]
        labels = [index[name] for _, name in examples]
        table = pyarrow.table({"image": images, "label": labels}, schema=features.arrow_schema)
        tables[split] = pyarrow.dataset.dataset(table)
    return tables


def _find_on_hub(data: str) -> _LocatedSource:
    import datasets

    online = hub_answers()
    try:
        with _hub_settings(online):
            loaded = datasets.load_dataset(data)
    except Exception as error:  # the hub, its client and the builders of data sets raise what they like
        came = first_line(error) if online else "a hub that cannot be reached, and no copy in its cache"
        raise InputError(
            f"{data!r}: expected a folder or a data set of the Hugging Face hub, got {came}; "
            "--data PATH with a folder of Parquet files or of class folders would do"
        ) from error
    splits = named_splits({str(split): part for split, part in loaded.items()}, data)
    return _LocatedSource(
        partial(_tables, splits), [Path(file["filename"]) for part in splits.values() for file in part.cache_files]
    )


def _find_in_memory(data: datasets.Dataset | datasets.DatasetDict, label_column: str | None) -> _LocatedSource:
    """The splits of a data set in memory; of a single one, a fixed fifth of each class becomes the test split."""
    import datasets

    if whole := isinstance(data, datasets.DatasetDict):
        parts = named_splits({str(split): part for split, part in data.items()}, "data set")
    else:
        column = label_column_of(data.features, label_column, "data set")
        labels = np.asarray(data[column])
        held = {
            int(rows[i])
            for y in np.unique(labels)
            for rows in [np.flatnonzero(labels == y)]
            for i in fifth(len(rows), str(y))
        }
        parts = {"train": data.select(sorted(set(range(len(data))) - held)), "test": data.select(sorted(held))}
    flat = {split: part.flatten_indices() for split, part in parts.items()}
    return _LocatedSource(
        partial(_tables, flat), [], "/".join(part._fingerprint for part in parts.values()), divided=not whole
    )


def _tables(splits: Mapping[str, datasets.Dataset]) -> Tables:
    """Splits as Arrow tables whose schema tells the features."""
    import pyarrow.dataset

    return {
        split: pyarrow.dataset.dataset(part.data.table.replace_schema_metadata(part.features.arrow_schema.metadata))
        for split, part in splits.items()
    }


@contextmanager
def _hub_settings(online: bool) -> Iterator[None]:
    """Within it `datasets` shows no progress and, unless `online`, keeps to its cache; its settings are global."""
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
