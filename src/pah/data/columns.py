"""Images, labels and class names of a data set that is stored in Arrow tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import pyarrow

from pah.core.config import InputError
from pah.data.decode import EncodedSplit, Labels, reading
from pah.data.image import read_image_size

if TYPE_CHECKING:
    import datasets  # imported inside functions: importing it takes a second, which a run from the cache saves
    import pyarrow.dataset

SplitTables: TypeAlias = "Mapping[str, pyarrow.dataset.Dataset]"  # by split; the schema contains the features


def read_labelled_splits(
    tables: SplitTables, data: str, label_column: str | None
) -> tuple[tuple[str, ...], EncodedSplit, EncodedSplit]:
    """Return class names, training split and test split: the columns are chosen, the labels are read and checked.

    Args:
        tables: The training split and the test split, in this order.
        data: The data set's name, for messages.
        label_column: The column of the labels; None takes "label", "fine_label", the only ClassLabel or the only
            integers.

    Raises:
        InputError: a column is missing or ambiguous, a label has no class name, or a class has no image.
    """
    import datasets

    with reading(data):
        features, test_features = (datasets.Features.from_arrow_schema(t.schema) for t in tables.values())
    image_column, column = _find_image_column(features, data), find_label_column(features, label_column, data)
    class_names = getattr(features[column], "names", None)
    if class_names != getattr(test_features.get(column), "names", None):
        raise InputError(f"{data}: expected {column!r} to have the same class names in both splits, got different ones")
    train, test = (
        EncodedSplit(name := f"{data}, split {split}", table, image_column, _read_labels(table, column, name))
        for split, table in tables.items()
    )
    if class_names is None:  # plain integers; every class has a training image, so there are at most as many classes
        highest = max(split.labels.max(initial=0) for split in (train, test))
        class_names = [str(y) for y in range(min(highest + 1, len(train.labels)))]
    for split in (train, test):
        _check_labels(split, class_names)
    return tuple(class_names), train, test


def first_image_size(table: pyarrow.dataset.Dataset, name: str) -> tuple[int, int]:
    """Return width and height of the first image of a split; `name` names the data set in messages."""
    import datasets

    with reading(name):
        column = _find_image_column(datasets.Features.from_arrow_schema(table.schema), name)
        row = datasets.Image().cast_storage(table.head(1, columns=[column]).column(0).combine_chunks()).to_pylist()[0]
    return read_image_size(row, name)


def _find_image_column(features: datasets.Features, data: str) -> str:
    """Return the only column of images; Parquet files of other programs store these as structs of bytes and path."""
    import datasets

    columns = [
        name
        for name, feature in features.items()
        if isinstance(feature, datasets.Image) or (isinstance(feature, dict) and feature.keys() == {"bytes", "path"})
    ]
    if len(columns) != 1:
        raise InputError(f"{data}: expected one column of images, got the columns {', '.join(map(repr, features))}")
    return str(columns[0])


def find_label_column(features: datasets.Features, label_column: str | None, data: str) -> str:
    """Return the given column, or else "label", "fine_label", the only ClassLabel or the only integers.

    Raises:
        InputError: there is no such column, or several; `data` names the data set in the message.
    """
    import datasets

    classes = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    integers = [
        name for name, feature in features.items() if isinstance(feature, datasets.Value) and "int" in feature.dtype
    ]
    usual = [name for name in ("label", "fine_label") if name in features][:1]
    candidates = usual or classes or integers if label_column is None else [label_column]
    if len(candidates) != 1 or candidates[0] not in (*classes, *integers):
        expected = "one column" if label_column is None else f"a column {label_column!r}"
        columns = ", ".join(map(repr, features))
        raise InputError(f"{data}: expected {expected} of labels, ClassLabel or integers, got the columns {columns}")
    return candidates[0]


def _read_labels(table: pyarrow.dataset.Dataset, column: str, name: str) -> Labels:
    """Return the labels of a split, -1 where one is missing."""
    with reading(name):
        values = table.to_table(columns=[column]).column(0).cast(pyarrow.int64())
        return np.asarray(values.fill_null(-1).to_numpy(), dtype=np.int64)  # data sets write -1 for "unknown"


def _check_labels(split: EncodedSplit, class_names: list[str]) -> None:
    """Raise InputError unless every label has a class name and every class has images."""
    invalid = np.flatnonzero((split.labels < 0) | (split.labels >= len(class_names)))
    if len(invalid):
        raise InputError(
            f"{split.name}, row {invalid[0]}: expected a label from 0 to {len(class_names) - 1}, "
            f"got {split.labels[invalid[0]]}"
        )
    missing = np.setdiff1d(np.arange(len(class_names)), split.labels)
    if len(missing):
        raise InputError(f"{split.name}: expected images of every class, got none of {class_names[missing[0]]!r}")
