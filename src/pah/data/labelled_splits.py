"""The training and the test split of a data set in Arrow tables: columns, labels, classes and images that are used."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pah.core.config import InputError
from pah.data.columns import (
    FilePaths,
    ImageRows,
    SplitLabels,
    SplitTables,
    find_image_column,
    find_label_column,
    read_labels,
    require_vector_column,
)
from pah.data.decode import BATCH_ROWS, EncodedDataSet, EncodedSplit, image_name, reading
from pah.data.decode_cache import Labels, ReadingRecord
from pah.data.image import decode_image, read_image_size, without_pillow_warnings
from pah.data.listing import choose_test_split, select_test_fifth, sort_names, unknown_split_error
from pah.data.preprocessing import DEFAULT_RESIZING, Resizing
from pah.data.read_options import ReadOptions

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class TableReading:
    """How the tables of a data set are read.

    Args:
        options: The user's options.
        paths: How paths of image files are read; None takes them as they are.
        image_size: Height and width to which images are resized; None keeps their own size.
        resizing: How they are resized.
        keep_all_names: Whether names without images are kept, as for class folders, or dropped.
        divide_by_name: Whether the names of the classes, or else their numbers, decide the test fifth of each.
        has_splits: Whether the data set comes in splits; otherwise the only table is all of it.
        notes: Notes on the data set from before its tables were read.
    """

    options: ReadOptions
    paths: FilePaths | None = None
    image_size: int | None = None
    resizing: Resizing = DEFAULT_RESIZING
    keep_all_names: bool = False
    divide_by_name: bool = False
    has_splits: bool = True
    notes: tuple[str, ...] = ()


def read_labelled_splits(tables: SplitTables, data: str, how: TableReading) -> EncodedDataSet:
    """Return a data set before decoding: the columns are chosen, the labels are read and checked.

    Args:
        tables: The training split, first, and the splits that may have the test images.
        data: The data set's name, for messages.
        how: How they are read.

    Raises:
        InputError: a column is missing or ambiguous, a label has no class name, or an image cannot be read.
    """
    import datasets

    with reading(data):
        schema = tables["train"]().schema
        features = datasets.Features.from_arrow_schema(schema)
    holds_vectors = how.options.column is not None
    image_column = how.options.column or find_image_column(features, data)
    if holds_vectors:
        require_vector_column(schema, image_column, data)
    column = find_label_column(features, how.options.label_column, data)
    test_split, labels, notes = _choose_labels(tables, column, data, how)
    class_names, encoded = _encode_labels(labels, column, data)
    used = ["train"] if test_split is None else ["train", test_split]
    splits = [
        EncodedSplit(
            name := f"{data}, split {split}", ImageRows(tables[split](), name, None, how.paths), image_column, y
        )
        for split, y in zip(used, encoded, strict=True)
    ]
    for split in splits:
        _check_labels(split, class_names)
    if not how.keep_all_names:
        class_names, splits, dropped = _drop_unused_names(class_names, splits)
        notes += dropped
    skipped: tuple[str, ...] = ()
    if how.options.skip_unreadable and not holds_vectors:  # rows of vectors are checked when they are read
        splits, skipped = _leave_out_unreadable(splits, how)
    train, test = splits if test_split is not None else _divide(splits[0], class_names if how.divide_by_name else None)
    if not len(train.labels):
        raise InputError(f"{train.name}: expected images that can be read, got none")
    notes = (*how.notes, *notes, *_describe_resize(train, how))
    return EncodedDataSet(tuple(class_names), train, test, ReadingRecord(notes, skipped, test_split))


def _choose_labels(
    tables: SplitTables, column: str, data: str, how: TableReading
) -> tuple[str | None, list[SplitLabels], tuple[str, ...]]:
    """Return the name of the test split, the labels of the training and the test split, and notes on the choice."""
    asked = how.options.test_split
    if asked is not None and (asked not in tables or asked == "train"):
        raise unknown_split_error(data, asked, tables)
    lazy = _LabelsOnDemand(tables, column, data)
    test_split, notes = choose_test_split(lazy, asked) if how.has_splits or len(tables) > 1 else (None, ())
    used = ["train"] if test_split is None else ["train", test_split]
    return test_split, [lazy[split] for split in used], notes


class _LabelsOnDemand(Mapping[str, SplitLabels]):
    """The labels of each split; those of a split are read when they are needed."""

    def __init__(self, tables: SplitTables, column: str, data: str) -> None:
        self.tables = tables
        self.column = column
        self.data = data
        self.known: dict[str, SplitLabels] = {}

    def __getitem__(self, split: str) -> SplitLabels:
        if split not in self.known:
            self.known[split] = read_labels(self.tables[split](), self.column, f"{self.data}, split {split}")
        return self.known[split]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tables)

    def __len__(self) -> int:
        return len(self.tables)


def _encode_labels(labels: Sequence[SplitLabels], column: str, data: str) -> tuple[list[str], list[Labels]]:
    """Return the class names, and the labels of each split as numbers; -1 where one is missing."""
    if len({(part.class_names, part.is_text) for part in labels}) > 1:
        raise InputError(f"{data}: expected {column!r} to have the same class names in both splits, got different ones")
    if labels[0].is_text:
        texts = {str(text) for part in labels for text in np.unique(part.values)} - {""}
        names = sort_names(texts, numeric=True)
        number_of = {name: y for y, name in enumerate(names)}
        return names, [np.array([number_of.get(str(text), -1) for text in part.values], np.int64) for part in labels]
    numbers = [part.values for part in labels]
    if labels[0].class_names is not None:
        return list(labels[0].class_names), numbers
    # plain integers; at most as many classes as there are training images
    highest = max(values.max(initial=0) for values in numbers)
    return [str(y) for y in range(min(highest + 1, len(numbers[0])))], numbers


def _check_labels(split: EncodedSplit, class_names: Sequence[str]) -> None:
    """Raise InputError unless every label has a class name."""
    invalid = np.flatnonzero((split.labels < 0) | (split.labels >= len(class_names)))
    if len(invalid):
        raise InputError(
            f"{split.name}, row {invalid[0]}: expected a label from 0 to {len(class_names) - 1}, "
            f"got {split.labels[invalid[0]]}"
        )


def _drop_unused_names(
    class_names: Sequence[str], splits: Sequence[EncodedSplit]
) -> tuple[list[str], list[EncodedSplit], tuple[str, ...]]:
    """Return the names that have images, the splits with the labels of these, and a note on the other names."""
    used = np.unique(np.concatenate([split.labels for split in splits]))
    if len(used) == len(class_names):
        return list(class_names), list(splits), ()
    unused = [name for y, name in enumerate(class_names) if y not in used]
    kept = [replace(split, labels=np.searchsorted(used, split.labels).astype(np.int64)) for split in splits]
    return [class_names[y] for y in used], kept, describe_unused_names(unused)


def _leave_out_unreadable(
    splits: Sequence[EncodedSplit], how: TableReading
) -> tuple[list[EncodedSplit], tuple[str, ...]]:
    """Return the splits without images that cannot be read, and the names of these."""
    kept, skipped = [], []
    with ThreadPoolExecutor(os.cpu_count()) as pool, without_pillow_warnings():
        for split in splits:
            names: list[str | None] = []
            for rows in _image_batches(split):
                first = len(names)
                names += pool.map(
                    _unreadable_name,
                    rows,
                    (split.place(first + i) for i in range(len(rows))),
                    [how] * len(rows),
                )
            good = np.flatnonzero([name is None for name in names])
            skipped += [name for name in names if name is not None]
            kept.append(split if len(good) == len(names) else _select_rows(split, good))
    return kept, tuple(skipped)


def _unreadable_name(row: Mapping[str, Any] | None, place: str, how: TableReading) -> str | None:
    """Return the name of an image that cannot be read, relative to the data set's folder; None for a readable one."""
    try:
        decode_image(row, place, "RGB", None, max_megapixels=how.options.max_megapixels)
    except InputError:
        if row and row["bytes"] is None and row["path"] and how.paths:
            path = os.path.relpath(row["path"], how.paths.folder)
            return place if path.startswith("..") else path
        return place.removeprefix(place.split(", split ")[0] + ", ")
    return None


def _image_batches(split: EncodedSplit) -> Iterator[list[Mapping[str, Any] | None]]:
    """Yield the images of a split as structs of bytes and path, some at a time."""
    import datasets

    with reading(split.name):
        for batch in split.table.to_batches(
            columns=[split.image_column], batch_size=BATCH_ROWS, batch_readahead=0, fragment_readahead=0
        ):
            yield datasets.Image().cast_storage(batch.column(0)).to_pylist()


def _select_rows(split: EncodedSplit, selected: NDArray[np.int64]) -> EncodedSplit:
    """Return a split with only these of its rows."""
    rows = selected if split.rows is None else split.rows[selected]
    table = split.table
    assert isinstance(table, ImageRows)
    images = ImageRows(table.table, table.name, rows, table.paths)
    return replace(split, table=images, labels=split.labels[selected], rows=rows)


def _divide(split: EncodedSplit, class_names: Sequence[str] | None) -> tuple[EncodedSplit, EncodedSplit]:
    """Return a split as two: a fixed fifth of each class is the second; without names, numbers decide which images."""
    is_test = np.zeros(len(split.labels), dtype=bool)
    for y in np.unique(split.labels):
        rows = np.flatnonzero(split.labels == y)
        name = str(y) if class_names is None else class_names[y]
        is_test[rows[list(select_test_fifth(len(rows), name))]] = True
    return _select_rows(split, np.flatnonzero(~is_test)), _select_rows(split, np.flatnonzero(is_test))


def _describe_resize(split: EncodedSplit, how: TableReading) -> tuple[str, ...]:
    """Return in words how the images are resized, given the first one."""
    if how.image_size is None:
        return ()
    first = next(chain.from_iterable(_image_batches(split)))
    return describe_resize(read_image_size(first, image_name(first, split.place(0))), how.image_size, how.resizing)


def describe_resize(
    first_size: tuple[int, int], image_size: int, resizing: Resizing = DEFAULT_RESIZING
) -> tuple[str, ...]:
    """Return in words how images are resized, given width and height of the first one; empty if it has that size."""
    if first_size == (image_size, image_size):
        return ()
    details = "" if resizing == DEFAULT_RESIZING else f" ({resizing})"
    return (f"images of {first_size[0]}x{first_size[1]} (the first one) become {image_size}x{image_size}{details}",)


def describe_unused_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return in words which class names have no images; empty if there are none."""
    if not names:
        return ()
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return (f"left out: {len(names)} class name{'s' * (len(names) > 1)} without images ({shown})",)
