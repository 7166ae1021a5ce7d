"""Image files of a data set folder, with class and split: class folders, or TinyImageNet as unpacked."""

import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch

from pah.core.config import InputError, generator, unknown_name_error
from pah.data.image import IMAGE_SUFFIXES

TEST_SPLITS = ("test", "valid", "validation", "val")  # the first one that exists and has labels is used

IMAGE_PLACE = " outside the class folders"  # said of image files that are not used
UPLOAD_LIST = ".left-out"  # the web page's own list of what it did not unpack

LabelledFiles: TypeAlias = list[tuple[Path, str]]  # image file and name of its class


@dataclass(frozen=True)
class FolderListing:
    """The image files of a folder.

    Args:
        files: The image files of each split, the training split first.
        class_folders: The folders of all classes, including those without images; a later check rejects these.
        test_from_train: As in `Source`.
        annotation_files: Files that assign classes to images.
        notes: What was chosen, in words.
        missing: Files that the annotations name and that do not exist.
        from_metadata: Whether a column of a metadata file names the classes. Those that are whole numbers have the
            numbers' order.
    """

    files: Mapping[str, LabelledFiles]
    class_folders: list[Path]
    test_from_train: bool = False
    annotation_files: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    from_metadata: bool = False

    @property
    def class_names(self) -> list[str]:
        """The names of the classes, in the order of their labels."""
        names = {name for split in self.files.values() for _, name in split}
        return sort_names(names | {folder.name for folder in self.class_folders}, numeric=self.from_metadata)


def sort_names(names: Iterable[str], *, numeric: bool) -> list[str]:
    """Return class names in alphabetic order, or with `numeric`, if all are whole numbers, in the numbers' order."""
    ordered = sorted(names)
    whole = all(name.isascii() and name.isdecimal() for name in ordered)
    return sorted(ordered, key=int) if numeric and whole else ordered


def select_test_fifth(count: int, name: str) -> set[int]:
    """Return which of the `count` images of class `name` are test images: the same in every run, for every seed.

    A single image is no test image.
    """
    if count < 2:
        return set()
    order = torch.randperm(count, generator=generator(0, "test part", name))
    return set(order[: max(1, round(count / 5))].tolist())


def list_class_folders(folder: Path, data: str, test_split: str | None = None) -> FolderListing | None:
    """Return the listing of class folders, with or without folders of splits above them.

    Args:
        folder: The data set's folder.
        data: Its name, for messages.
        test_split: Name of the folder with the test images; None takes the first of `TEST_SPLITS` that has images.

    Returns:
        The listing; None if there are no class folders with training images.

    Raises:
        InputError: there is no training split, or no split of the name that is asked for.
    """
    children = {child.name: child for child in subfolders(folder)}
    names = ("train", *TEST_SPLITS) if test_split is None else ("train", *TEST_SPLITS, test_split)
    splits = {name: subfolders(children[name]) for name in dict.fromkeys(names) if name in children}
    has_splits = any(splits.values()) or len(splits) > 1  # otherwise "train" is a class name, as in CIFAR-100
    if test_split is not None and not (has_splits and test_split in splits and test_split != "train"):
        raise unknown_split_error(data, test_split, splits if has_splits else {})
    if has_splits:
        return _list_splits(splits, data, test_split)
    files = [(file, name) for name, child in children.items() for file in find_images(child)]
    if not files:
        return None
    return FolderListing({"train": files}, list(children.values()), test_from_train=True, notes=_nested_note(children))


def _list_splits(splits: Mapping[str, list[Path]], data: str, test_split: str | None) -> FolderListing | None:
    """Return the listing of the folders of splits, each with its class folders."""
    if "train" not in splits:
        raise missing_train_error(data, splits)
    files = {
        split: [(file, class_folder.name) for class_folder in class_folders for file in find_images(class_folder)]
        for split, class_folders in splits.items()
    }
    if not files["train"]:
        return None
    test, notes = choose_test_split(files, test_split)
    used = ["train"] if test is None else ["train", test]
    class_folders = [class_folder for split in used for class_folder in splits[split]]
    notes += _nested_note({f"{path.parent.name}/{path.name}": path for path in class_folders})
    return FolderListing({name: files[name] for name in used}, class_folders, test is None, notes=notes)


def choose_test_split(splits: Mapping[str, Sized], asked: str | None) -> tuple[str | None, tuple[str, ...]]:
    """Return the name of the test split, or None if there is none with labelled images, and notes on the choice.

    Args:
        splits: The labelled images of each split by its name.
        asked: The name that the user asked for.

    Raises:
        InputError: the split that the user asked for has no labelled images.
    """
    candidates = [name for name in ((asked,) if asked else TEST_SPLITS) if name in splits]
    test = next((name for name in candidates if len(splits[name])), None)
    if asked and test is None:
        raise InputError(f"test_split: expected a split with labelled images, got {asked!r}, which has none")
    without = candidates if test is None else candidates[: candidates.index(test)]
    return test, describe_test_choice(test, without, [name for name in splits if name not in ("train", test, *without)])


def describe_test_choice(test: str | None, without_labels: Sequence[str], unused: Sequence[str]) -> tuple[str, ...]:
    """Return in words which split has the test images, unless it is the usual one.

    Args:
        test: Its name; None if a part of the training images is used.
        without_labels: Splits that were not used because they have no images with labels.
        unused: Splits that were not needed.
    """
    notes = []
    has = "have" if len(without_labels) > 1 else "has"
    reason = f", as {' and '.join(without_labels)} {has} no images with labels" if without_labels else ""
    if test is None:
        reason = reason or ", as there is no test split"
        notes.append(f"a fixed fifth of the images of each class is for testing{reason}")
    elif without_labels:
        notes.append(f"the split {test} is for testing{reason}")
    if unused:
        notes.append(f"not used: the split{'s' * (len(unused) > 1)} {', '.join(unused)}")
    return tuple(notes)


def missing_train_error(data: str, splits: Iterable[str]) -> InputError:
    """Return the error for a data set without a training split."""
    return InputError(
        f"{data}: expected a split train and one of {', '.join(TEST_SPLITS)}, got {', '.join(splits) or 'none'}"
    )


def unknown_split_error(data: str, asked: str, splits: Iterable[str]) -> InputError:
    """Return the error for a test split that does not exist, with the names of those that do."""
    known = [name for name in splits if name != "train"]
    if not known:
        return InputError(f"test_split: expected none, as {data} has no test split, got {asked!r}")
    return unknown_name_error(f"test_split of {data}", asked, known)


def list_tiny_imagenet(folder: Path, data: str, test_split: str | None, *, skip_missing: bool) -> FolderListing | None:
    """Return the listing of TinyImageNet's own folder; None if this is another layout."""
    annotations = folder / "val" / "val_annotations.txt"
    if not annotations.is_file():
        return None
    if test_split not in (None, "val"):
        raise unknown_split_error(data, test_split, ["train", "val"])
    class_folders = subfolders(folder / "train")
    train = [(file, wnid.name) for wnid in class_folders for file in find_images(wnid / "images")]
    val, missing = [], []
    for number, line in enumerate(annotations.read_text(encoding="utf-8").splitlines(), 1):
        file, _, rest = line.partition("\t")
        if not rest or Path(file).name != file:  # a path could lead out of the folder, or to a device
            raise InputError(
                f"{data}: val_annotations.txt line {number}: expected file, wnid and box between tabs, got {line!r:.80}"
            )
        path = folder / "val" / "images" / file
        if skip_missing and not path.exists():
            missing.append(path.relative_to(folder).as_posix())
        else:
            val.append((path, rest.split("\t")[0]))
    files = {"train": train, "val": val}
    return FolderListing(files, class_folders, annotation_files=(annotations,), missing=tuple(missing))


def find_images(folder: Path) -> list[Path]:
    """Return the image files in a folder and in the folders inside it, in the order of their relative paths."""
    found = _find(folder, (folder.resolve(),)) if folder.is_dir() else []
    return sorted(found, key=lambda file: file.relative_to(folder).as_posix())


def _find(folder: Path, above: tuple[Path, ...]) -> list[Path]:
    """Return the image files at any depth; `above` are the resolved folders that lead here: links may form a loop."""
    files: list[Path] = []
    for child in _visible_children(folder):
        if child.is_dir():
            place = child.resolve()
            files += _find(child, (*above, place)) if place not in above else []
        elif child.suffix.lower() in IMAGE_SUFFIXES:
            files.append(child)
    return files


def _nested_note(class_folders: Mapping[str, Path]) -> tuple[str, ...]:
    """Return in words which class folders contain folders, whose images belong to the class."""
    inner = {name: [child.name for child in subfolders(path)] for name, path in class_folders.items()}
    named = [f"{name} has {', '.join(children[:3])}" for name, children in inner.items() if children]
    if not named:
        return ()
    more = f" and {len(named) - 3} more" if len(named) > 3 else ""
    return (f"folders inside a class folder belong to its class: {'; '.join(named[:3])}{more}",)


def describe_left_out(folder: Path, used: Collection[Path]) -> tuple[str, ...]:
    """Return in words which files of a folder are not used, counted by suffix; empty if all are used."""
    counts = count_left_out(folder, used)
    parts = [f"{count} {kind}" for kind, count in sorted(counts.items()) if count]
    return (f"left out: {', '.join(parts)}",) if parts else ()


def count_left_out(folder: Path, used: Collection[Path]) -> Mapping[str, int]:
    """Return the number of files of a folder that are not used, by their kind in words."""
    counts: Counter[str] = Counter()
    _count_left_out(folder, set(used), counts)
    return counts


def _count_left_out(folder: Path, used: Collection[Path], counts: Counter[str]) -> None:
    """Count the files of a folder, and of the folders inside it, that are not used; links are not followed."""
    with os.scandir(folder) as entries:
        for entry in entries:
            path = folder / entry.name
            if entry.name.startswith("."):
                counts["hidden"] += entry.name != UPLOAD_LIST
            elif entry.is_dir(follow_symlinks=False):
                _count_left_out(path, used, counts)
            elif path not in used and not entry.is_dir():
                suffix = path.suffix.lower()
                place = IMAGE_PLACE if suffix in IMAGE_SUFFIXES else ""
                counts[f"{suffix}{place}" if suffix else "without suffix"] += 1


def subfolders(folder: Path) -> list[Path]:
    """Return the visible folders in a folder, in the order of their names."""
    return [child for child in _visible_children(folder) if child.is_dir()]


def _visible_children(folder: Path) -> list[Path]:
    return [folder / name for name in sorted(os.listdir(folder)) if not name.startswith(".")]
