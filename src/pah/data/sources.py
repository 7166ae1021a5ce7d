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
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor

from pah.config import InputError, generator, require
from pah.data.columns import Tables, first_size, label_column_of, understand
from pah.data.decode import cache_key, decode_once, reading
from pah.data.image import decode_image, first_line, without_warnings
from pah.hub import hub_answers

if TYPE_CHECKING:
    import datasets  # imported where it is used, as pyarrow.dataset is: they take a second that a second start saves

TEST_SPLITS = ("test", "valid", "validation", "val")  # the first one that is there is taken
SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")  # name or owner/name

Data: TypeAlias = "str | datasets.Dataset | datasets.DatasetDict"
Rows: TypeAlias = list[tuple[Path, str]]  # image file and name of its class
T = TypeVar("T")


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
class _Found:
    """A data set located but not decoded."""

    tables: Callable[[], Tables]  # training split, test split; not asked for where the cache has them
    files: list[Path]  # that hold it: while these are the same, so is the data set
    fingerprint: str | None = None  # of a data set in memory, where no file tells
    divided: bool = False  # as in `Source`


@dataclass(frozen=True)
class Listing:
    """The image files of a folder.

    Args:
        rows: Of each split, the training split first.
        classes: The folders of all classes: one may lack images, which is an error to come.
        divided: As in `Source`.
        others: Files that say what is what.
    """

    rows: Mapping[str, Rows]
    classes: list[Path]
    divided: bool = False
    others: tuple[Path, ...] = ()

    @property
    def class_names(self) -> list[str]:
        """In the order of their labels."""
        named = {name for split in self.rows.values() for _, name in split}
        return sorted(named | {folder.name for folder in self.classes})


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
    choose = _Files(skip_unreadable)
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


def fifth(count: int, name: str) -> set[int]:
    """Which of the `count` images of class `name` are for testing: the same ones in every run, of any seed."""
    order = torch.randperm(count, generator=generator(0, "test part", name))
    return set(order[: max(1, round(count / 5))].tolist())


class _Files:
    """Lists the image files of a folder; with `skip_unreadable` only those that can be read, the others are noted."""

    def __init__(self, skip_unreadable: bool) -> None:
        self.skip_unreadable = skip_unreadable
        self.unreadable: list[Path] = []

    def __call__(self, folder: Path) -> list[Path]:
        files = [file for file in _visible(folder) if file.suffix.lower() in SUFFIXES]
        return [file for file in files if self._readable(file)] if self.skip_unreadable else files

    def _readable(self, file: Path) -> bool:
        try:
            with without_warnings():
                decode_image({"path": str(file), "bytes": None}, str(file), "RGB", None)
        except InputError:
            self.unreadable.append(file)
            return False
        return True


def _find(data: str, images_of: _Files) -> _Found:
    path = Path(os.path.expanduser(data))  # Path's own method raises where a user is unknown
    if data and path.is_dir():
        return _find_local(path.resolve(), data, images_of)
    if path.exists() or not HUB_ID.fullmatch(data):
        came = "a file" if path.is_file() else "a path that does not exist"
        raise InputError(f"{data!r}: expected a folder of images or Parquet files or a hub id, got {came}")
    return _find_on_hub(data)


def _find_local(folder: Path, data: str, images_of: _Files) -> _Found:
    return _find_parquet(folder, data) or _from_listing(_list_images(folder, data, images_of))


def list_images(folder: Path, data: str) -> Listing:
    """The image files that `load_source` would take of a folder, none of them opened; `data` names it in messages.

    Raises:
        InputError: it has Parquet files, or no image files, or lacks a part.
    """
    if _find_parquet(folder, data) is not None:
        raise InputError(f"{data}: expected folders of image files, got Parquet files")
    return _list_images(folder, data, _Files(skip_unreadable=False))


def _list_images(folder: Path, data: str, images_of: _Files) -> Listing:
    for listed in (_list_tiny_imagenet, _list_class_folders):
        if (listing := listed(folder, data, images_of)) is not None and any(listing.rows.values()):
            return listing
    raise InputError(
        f"{data}: expected train-*.parquet, train/<class>/ folders or <class>/ folders with images, found no images"
    )


def _splits(found: Mapping[str, T], data: str) -> dict[str, T]:
    """The training split and the test split, in this order, of those `found` under their usual names."""
    test = next((name for name in TEST_SPLITS if name in found), None)
    if "train" not in found or test is None:
        raise InputError(
            f"{data}: expected a split train and one of {', '.join(TEST_SPLITS)}, got {', '.join(found) or 'none'}"
        )
    return {"train": found["train"], test: found[test]}


def _find_parquet(folder: Path, data: str) -> _Found | None:
    for base in (folder, folder / "data"):
        shards = {split: sorted(base.glob(f"{split}-*.parquet")) for split in ("train", *TEST_SPLITS)}
        if any(shards.values()):
            splits = _splits({split: files for split, files in shards.items() if files}, data)
            return _Found(partial(_read_parquet, splits), [file for files in splits.values() for file in files])
    return None


def _read_parquet(splits: Mapping[str, list[Path]]) -> Tables:
    import pyarrow.dataset

    return {split: pyarrow.dataset.dataset(files) for split, files in splits.items()}


def _list_tiny_imagenet(folder: Path, data: str, images_of: _Files) -> Listing | None:
    annotations = folder / "val" / "val_annotations.txt"
    if not annotations.is_file():
        return None
    classes = _folders(folder / "train")
    train = [(file, wnid.name) for wnid in classes for file in images_of(wnid / "images")]
    val = []
    for number, line in enumerate(annotations.read_text(encoding="utf-8").splitlines(), 1):
        file, _, rest = line.partition("\t")
        if not rest or Path(file).name != file:  # a path could lead out of the folder, or to a device
            raise InputError(
                f"{data}: val_annotations.txt line {number}: expected file, wnid and box between tabs, got {line!r:.80}"
            )
        val.append((folder / "val" / "images" / file, rest.split("\t")[0]))
    return Listing({"train": train, "val": val}, classes, others=(annotations,))


def _list_class_folders(folder: Path, data: str, images_of: _Files) -> Listing:
    children = {child.name: child for child in _folders(folder)}
    parts = {name: _folders(children[name]) for name in ("train", *TEST_SPLITS) if name in children}
    if any(parts.values()) or len(parts) > 1:  # otherwise "train" is the name of a class, as it is in CIFAR-100
        splits = _splits(parts, data)
        rows = {split: [(file, c.name) for c in classes for file in images_of(c)] for split, classes in splits.items()}
        return Listing(rows, [c for classes in splits.values() for c in classes])
    rows = {"train": [], "test": []}
    for name, child in children.items():
        files = images_of(child)
        test = fifth(len(files), name)
        for i, file in enumerate(files):
            rows["test" if i in test else "train"].append((file, name))
    return Listing(rows, list(children.values()), divided=True)


def _folders(folder: Path) -> list[Path]:
    return [child for child in _visible(folder) if child.is_dir()]


def _visible(folder: Path) -> list[Path]:
    return [folder / name for name in sorted(os.listdir(folder)) if not name.startswith(".")]


def _from_listing(listing: Listing) -> _Found:
    files = [file for split in listing.rows.values() for file, _ in split]
    return _Found(partial(_as_tables, listing), [*listing.others, *listing.classes, *files], divided=listing.divided)


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


def _find_on_hub(data: str) -> _Found:
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
    splits = _splits({str(split): part for split, part in loaded.items()}, data)
    return _Found(
        partial(_tables, splits), [Path(file["filename"]) for part in splits.values() for file in part.cache_files]
    )


def _find_in_memory(data: datasets.Dataset | datasets.DatasetDict, label_column: str | None) -> _Found:
    """The splits of a data set in memory; of a single one, a fixed fifth of each class becomes the test split."""
    import datasets

    if whole := isinstance(data, datasets.DatasetDict):
        parts = _splits({str(split): part for split, part in data.items()}, "data set")
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
    return _Found(partial(_tables, flat), [], "/".join(part._fingerprint for part in parts.values()), divided=not whole)


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
