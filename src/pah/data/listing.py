"""Which files a folder holds, of which class and split: Parquet, class folders, TinyImageNet as it is unpacked."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypeVar

import torch

from pah.core.config import InputError, generator
from pah.data.image import decode_image, without_warnings

TEST_SPLITS = ("test", "valid", "validation", "val")  # the first one that is there is taken
SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}

Rows: TypeAlias = list[tuple[Path, str]]  # image file and name of its class
T = TypeVar("T")


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


def fifth(count: int, name: str) -> set[int]:
    """Which of the `count` images of class `name` are for testing: the same ones in every run, of any seed."""
    order = torch.randperm(count, generator=generator(0, "test part", name))
    return set(order[: max(1, round(count / 5))].tolist())


class ImageFiles:
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


def list_images(folder: Path, data: str) -> Listing:
    """The image files that `load_source` would take of a folder, none of them opened; `data` names it in messages.

    Raises:
        InputError: it has Parquet files, or no image files, or lacks a part.
    """
    if parquet_files(folder):
        raise InputError(f"{data}: expected folders of image files, got Parquet files")
    return list_folder(folder, data, ImageFiles(skip_unreadable=False))


def parquet_files(folder: Path) -> dict[str, list[Path]]:
    """The Parquet files of each split that there is, in the hub's layout: in the folder, or in its `data`."""
    for base in (folder, folder / "data"):
        found = {split: sorted(base.glob(f"{split}-*.parquet")) for split in ("train", *TEST_SPLITS)}
        if any(found.values()):
            return {split: files for split, files in found.items() if files}
    return {}


def list_folder(folder: Path, data: str, images_of: ImageFiles) -> Listing:
    """The image files of a folder, as `images_of` lists them; InputError, naming `data`, if there are none."""
    for listed in (_list_tiny_imagenet, _list_class_folders):
        if (listing := listed(folder, data, images_of)) is not None and any(listing.rows.values()):
            return listing
    raise InputError(
        f"{data}: expected train-*.parquet, train/<class>/ folders or <class>/ folders with images, found no images"
    )


def named_splits(found: Mapping[str, T], data: str) -> dict[str, T]:
    """The training split and the test split, in this order, of those `found` under their usual names."""
    test = next((name for name in TEST_SPLITS if name in found), None)
    if "train" not in found or test is None:
        raise InputError(
            f"{data}: expected a split train and one of {', '.join(TEST_SPLITS)}, got {', '.join(found) or 'none'}"
        )
    return {"train": found["train"], test: found[test]}


def _list_tiny_imagenet(folder: Path, data: str, images_of: ImageFiles) -> Listing | None:
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


def _list_class_folders(folder: Path, data: str, images_of: ImageFiles) -> Listing:
    children = {child.name: child for child in _folders(folder)}
    parts = {name: _folders(children[name]) for name in ("train", *TEST_SPLITS) if name in children}
    if any(parts.values()) or len(parts) > 1:  # otherwise "train" is the name of a class, as it is in CIFAR-100
        splits = named_splits(parts, data)
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
