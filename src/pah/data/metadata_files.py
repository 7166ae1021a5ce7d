"""Images listed in a `metadata.csv` or `metadata.jsonl` file, the Hugging Face library's form of an image folder."""

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pah.core.config import InputError
from pah.data.image import first_line
from pah.data.links import resolve_inside
from pah.data.listing import (
    TEST_SPLITS,
    FolderListing,
    LabelledFiles,
    choose_test_split,
    missing_train_error,
    subfolders,
    unknown_split_error,
)
from pah.data.read_options import ReadOptions

METADATA_FILES = ("metadata.csv", "metadata.jsonl")
FILE_COLUMN = "file_name"
LABEL_COLUMNS = ("label", "class")  # the first one that exists


@dataclass(frozen=True)
class _Row:
    """A row of a metadata file: the image's path as it is written, and the name of its class."""

    file: str
    label: str
    place: str  # for messages


def list_metadata(folder: Path, data: str, options: ReadOptions, *, only_beside: bool) -> FolderListing | None:
    """Return the images that metadata files name, in the folder or in its folders train and test.

    Args:
        folder: The data set's folder, resolved.
        data: Its name, for messages.
        options: How it is read.
        only_beside: Take metadata files only if some of their images are directly beside them, not in folders, and
            leave out metadata files that cannot be read.

    Returns:
        The listing; None if there is no metadata file with a column `file_name`.

    Raises:
        InputError: a row has no label or no file, a file leads out of the folder, or no column is known to be the
            label.
    """
    files = {"": folder} | {child.name: child for child in subfolders(folder)}
    tables = {name: file for name, place in files.items() if (file := _metadata_file(place, only_beside)) is not None}
    if not tables:
        return None
    tables = {"": tables[""]} if "" in tables else tables
    rows = {name: _read(file, folder, data, options) for name, file in tables.items()}
    splits = _by_split(rows[""]) if "" in rows else rows
    missing: list[str] = []
    listed = {
        name: _existing_files(part, folder, tables.get(name, tables.get("", folder)).parent, options, missing)
        for name, part in splits.items()
    }
    if "train" not in listed:
        raise missing_train_error(data, listed)
    if options.test_split is not None and options.test_split not in listed:
        raise unknown_split_error(data, options.test_split, listed)
    test, notes = choose_test_split(listed, options.test_split) if len(listed) > 1 else (None, ())
    used = ["train"] if test is None else ["train", test]
    annotations = tuple(file for name, file in tables.items() if name in ("", *used))
    return FolderListing(
        {name: listed[name] for name in used}, [], test is None, annotations, notes, tuple(missing), from_metadata=True
    )


def _metadata_file(folder: Path, only_beside: bool) -> Path | None:
    """Return the metadata file of a folder that has the column of files; None if there is none."""
    for name in METADATA_FILES:
        file = folder / name
        if not file.is_file():
            continue
        try:
            names = [record.get(FILE_COLUMN) for record in _records(file)]
        except InputError:
            if only_beside:
                continue
            raise
        named = [name for name in names if name and isinstance(name, str)]
        if named and (not only_beside or any("/" not in name and (folder / name).is_file() for name in named)):
            return file
    return None


def _records(file: Path) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of a metadata file; InputError if it is no table."""
    try:
        yield from _rows(file)
    except (ValueError, csv.Error) as error:  # another encoding is a ValueError, too
        raise InputError(f"{file.name}: expected a table in UTF-8, got: {first_line(error)}") from error


def _rows(file: Path) -> Iterator[Mapping[str, Any]]:
    with file.open(encoding="utf-8-sig", newline="") as lines:
        if file.suffix == ".csv":
            yield from csv.DictReader(lines)
            return
        for line in lines:
            if line.strip():
                record = json.loads(line)
                if not isinstance(record, dict):
                    raise ValueError(f"{file.name}: a line of JSON that is no object")
                yield record


def _read(file: Path, folder: Path, data: str, options: ReadOptions) -> list[_Row]:
    """Return the rows of a metadata file, whose labels become text."""
    records = list(_records(file))
    name = f"{data}, {file.relative_to(folder).as_posix()}"
    columns = [str(column) for column in records[0]]
    others = [column for column in columns if column != FILE_COLUMN]
    usual = [column for column in LABEL_COLUMNS if column in others][:1]
    candidates = [options.label_column] if options.label_column is not None else usual or others
    if len(candidates) != 1 or candidates[0] not in others:
        expected = "one column" if options.label_column is None else f"a column {options.label_column!r}"
        raise InputError(
            f"{name}: expected {expected} of labels beside {FILE_COLUMN}, got {', '.join(others) or 'none'}; "
            "`--label_column NAME` chooses one"
        )
    rows = []
    for number, record in enumerate(records, 1):
        place, path, label = f"{name}, row {number}", record.get(FILE_COLUMN), record.get(candidates[0])
        if not path or not isinstance(path, str) or label is None or isinstance(label, list | dict) or label == "":
            raise InputError(f"{place}: expected a file and a label, got {path!r:.80} and {label!r:.80}")
        rows.append(_Row(PurePosixPath(path).as_posix(), str(label), place))
    return rows


def _by_split(rows: list[_Row]) -> dict[str, list[_Row]]:
    """Return the rows by split, if their paths begin with the folders train and test; otherwise all as train."""
    names = {PurePosixPath(row.file).parts[0] for row in rows}
    if "train" not in names or not names <= {"train", *TEST_SPLITS}:
        return {"train": rows}
    return {
        name: [row for row in rows if PurePosixPath(row.file).parts[0] == name]
        for name in ("train", *TEST_SPLITS)
        if name in names
    }


def _existing_files(
    rows: list[_Row], folder: Path, base: Path, options: ReadOptions, missing: list[str]
) -> LabelledFiles:
    """Return files and classes; with `skip_unreadable`, files that do not exist are appended to `missing` instead."""
    files = []
    for row in rows:
        path = resolve_inside(folder, row.file, base, options.follow_links, row.place)
        if path.is_file():
            files.append((path, row.label))
        elif options.skip_unreadable:
            missing.append(row.file)
        else:
            raise InputError(f"{row.place}: expected an image file, got {row.file!r:.200}, which does not exist")
    return files
