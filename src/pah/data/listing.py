"""Files of a data set folder, with class and split: Parquet files, class folders, or TinyImageNet as unpacked."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypeVar

import torch

from pah.core.config import InputError, generator
from pah.data.image import IMAGE_SUFFIXES, decode_image, without_pillow_warnings

TEST_SPLITS = ("test", "valid", "validation", "val")  # the first one that exists is used

LabelledFiles: TypeAlias = list[tuple[Path, str]]  # image file and name of its class
T = TypeVar("T")


@dataclass(frozen=True)
class FolderListing:
    """The image files of a folder.

    Args:
        files: The image files of each split, the training split first.
        class_folders: The folders of all classes, including those without images; a later check rejects these.
        test_from_train: As in `Source`.
        annotation_files: Files that assign classes to images.
    """

    files: Mapping[str, LabelledFiles]
    class_folders: list[Path]
    test_from_train: bool = False
    annotation_files: tuple[Path, ...] = ()

    @property
    def class_names(self) -> list[str]:
        """The names of the classes, in the order of their labels."""
        names = {name for split in self.files.values() for _, name in split}
        return sorted(names | {folder.name for folder in self.class_folders})


def select_test_fifth(count: int, name: str) -> set[int]:
    """Return which of the `count` images of class `name` are test images: the same in every run, for every seed."""
    order = torch.randperm(count, generator=generator(0, "test part", name))
    return set(order[: max(1, round(count / 5))].tolist())


class ImageFileFinder:
    """Finds the image files of a folder; with `skip_unreadable`, unreadable files are left out and recorded."""

    def __init__(self, skip_unreadable: bool) -> None:
        self.skip_unreadable = skip_unreadable
        self.unreadable: list[Path] = []

    def find(self, folder: Path) -> list[Path]:
        """Return the image files that are directly in the folder, in the order of their names."""
        files = [file for file in _visible_children(folder) if file.suffix.lower() in IMAGE_SUFFIXES]
        return [file for file in files if self._is_readable(file)] if self.skip_unreadable else files

    def _is_readable(self, file: Path) -> bool:
        try:
            with without_pillow_warnings():
                decode_image({"path": str(file), "bytes": None}, str(file), "RGB", None)
        except InputError:
            self.unreadable.append(file)
            return False
        return True


def list_images(folder: Path, data: str) -> FolderListing:
    """Return the image files that `load_source` would use of a folder, without opening them.

    Args:
        folder: The data set's folder.
        data: Its name, for messages.

    Raises:
        InputError: the folder contains Parquet files, or no image files, or lacks a split.
    """
    if parquet_files(folder):
        raise InputError(f"{data}: expected folders of image files, got Parquet files")
    return list_folder(folder, data, ImageFileFinder(skip_unreadable=False))


def parquet_files(folder: Path) -> dict[str, list[Path]]:
    """Return the Parquet files of each split, in the hub's layout: in the folder or in its `data` folder."""
    for base in (folder, folder / "data"):
        splits = {split: sorted(base.glob(f"{split}-*.parquet")) for split in ("train", *TEST_SPLITS)}
        if any(splits.values()):
            return {split: files for split, files in splits.items() if files}
    return {}


def list_folder(folder: Path, data: str, finder: ImageFileFinder) -> FolderListing:
    """Return the image files of a folder that `finder` finds; InputError, with the name `data`, if there are none."""
    for list_layout in (_list_tiny_imagenet, _list_class_folders):
        if (listing := list_layout(folder, data, finder)) is not None and any(listing.files.values()):
            return listing
    raise InputError(
        f"{data}: expected train-*.parquet, train/<class>/ folders or <class>/ folders with images, found no images"
    )


def select_splits(splits: Mapping[str, T], data: str) -> dict[str, T]:
    """Return the training split and the test split, in this order, under their names.

    Args:
        splits: All splits by name.
        data: The data set's name, for messages.

    Raises:
        InputError: one of the two splits is missing.
    """
    test = next((name for name in TEST_SPLITS if name in splits), None)
    if "train" not in splits or test is None:
        raise InputError(
            f"{data}: expected a split train and one of {', '.join(TEST_SPLITS)}, got {', '.join(splits) or 'none'}"
        )
    return {"train": splits["train"], test: splits[test]}


def _list_tiny_imagenet(folder: Path, data: str, finder: ImageFileFinder) -> FolderListing | None:
    """Return the listing of TinyImageNet's own folder; None if this is another layout."""
    annotations = folder / "val" / "val_annotations.txt"
    if not annotations.is_file():
        return None
    class_folders = _folders(folder / "train")
    train = [(file, wnid.name) for wnid in class_folders for file in finder.find(wnid / "images")]
    val = []
    for number, line in enumerate(annotations.read_text(encoding="utf-8").splitlines(), 1):
        file, _, rest = line.partition("\t")
        if not rest or Path(file).name != file:  # a path could lead out of the folder, or to a device
            raise InputError(
                f"{data}: val_annotations.txt line {number}: expected file, wnid and box between tabs, got {line!r:.80}"
            )
        val.append((folder / "val" / "images" / file, rest.split("\t")[0]))
    return FolderListing({"train": train, "val": val}, class_folders, annotation_files=(annotations,))


def _list_class_folders(folder: Path, data: str, finder: ImageFileFinder) -> FolderListing:
    """Return the listing of class folders; without a test split, a fixed fifth of each class becomes the test part."""
    children = {child.name: child for child in _folders(folder)}
    split_folders = {name: _folders(children[name]) for name in ("train", *TEST_SPLITS) if name in children}
    if any(split_folders.values()) or len(split_folders) > 1:  # otherwise "train" is a class name, as in CIFAR-100
        splits = select_splits(split_folders, data)
        files = {
            split: [(file, class_folder.name) for class_folder in class_folders for file in finder.find(class_folder)]
            for split, class_folders in splits.items()
        }
        return FolderListing(files, [class_folder for folders in splits.values() for class_folder in folders])
    files = {"train": [], "test": []}
    for name, child in children.items():
        images = finder.find(child)
        test = select_test_fifth(len(images), name)
        for i, file in enumerate(images):
            files["test" if i in test else "train"].append((file, name))
    return FolderListing(files, list(children.values()), test_from_train=True)


def _folders(folder: Path) -> list[Path]:
    return [child for child in _visible_children(folder) if child.is_dir()]


def _visible_children(folder: Path) -> list[Path]:
    return [folder / name for name in sorted(os.listdir(folder)) if not name.startswith(".")]
