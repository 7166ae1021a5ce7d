"""Understands the columns and the classes of a data set that lies in Arrow tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import pyarrow

from pah.core.config import InputError
from pah.data.decode import Encoded, Labels, reading
from pah.data.image import size_of

if TYPE_CHECKING:
    import datasets  # imported where it is used: they take a second that a second start saves
    import pyarrow.dataset

Tables: TypeAlias = "Mapping[str, pyarrow.dataset.Dataset]"  # split -> its rows; the schema carries the features


def understand(tables: Tables, data: str, label_column: str | None) -> tuple[tuple[str, ...], Encoded, Encoded]:
    """Class names, training split and test split of `tables`: the columns chosen, the labels read and checked.

    tables: training split, test split; `data` names them in messages
    label_column: the one of the labels; None takes "label", "fine_label", the only ClassLabel or the only integers

    Raises InputError where a column is missing or ambiguous, a label has no class or a class no image.
    """
    import datasets

    with reading(data):
        features, test_features = (datasets.Features.from_arrow_schema(t.schema) for t in tables.values())
    images, column = _image_column(features, data), label_column_of(features, label_column, data)
    names = getattr(features[column], "names", None)
    if names != getattr(test_features.get(column), "names", None):
        raise InputError(f"{data}: expected {column!r} to have the same class names in both splits, got different ones")
    train, test = (
        Encoded(where := f"{data}, split {split}", table, images, _labels(table, column, where))
        for split, table in tables.items()
    )
    if names is None:  # plain integers; each class has a training image, so there are no more classes than those
        highest = max(split.labels.max(initial=0) for split in (train, test))
        names = [str(y) for y in range(min(highest + 1, len(train.labels)))]
    for split in (train, test):
        _check_labels(split, names)
    return tuple(names), train, test


def first_size(table: pyarrow.dataset.Dataset, where: str) -> tuple[int, int]:
    """Width and height of the first image."""
    import datasets

    with reading(where):
        column = _image_column(datasets.Features.from_arrow_schema(table.schema), where)
        row = datasets.Image().cast_storage(table.head(1, columns=[column]).column(0).combine_chunks()).to_pylist()[0]
    return size_of(row, where)


def _image_column(features: datasets.Features, data: str) -> str:
    """The only column of images, or of structs of bytes and path, as which Parquet from elsewhere stores them."""
    import datasets

    images = [
        name
        for name, kind in features.items()
        if isinstance(kind, datasets.Image) or (isinstance(kind, dict) and kind.keys() == {"bytes", "path"})
    ]
    if len(images) != 1:
        raise InputError(f"{data}: expected one column of images, got the columns {', '.join(map(repr, features))}")
    return str(images[0])


def label_column_of(features: datasets.Features, asked: str | None, data: str) -> str:
    """The column `asked` for; otherwise "label", "fine_label", the only ClassLabel or the only integers."""
    import datasets

    classes = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    integers = [name for name, kind in features.items() if isinstance(kind, datasets.Value) and "int" in kind.dtype]
    usual = [name for name in ("label", "fine_label") if name in features][:1]
    candidates = usual or classes or integers if asked is None else [asked]
    if len(candidates) != 1 or candidates[0] not in (*classes, *integers):
        wanted = "one column" if asked is None else f"a column {asked!r}"
        columns = ", ".join(map(repr, features))
        raise InputError(f"{data}: expected {wanted} of labels, ClassLabel or integers, got the columns {columns}")
    return candidates[0]


def _labels(table: pyarrow.dataset.Dataset, column: str, where: str) -> Labels:
    with reading(where):
        values = table.to_table(columns=[column]).column(0).cast(pyarrow.int64())
        return np.asarray(values.fill_null(-1).to_numpy(), dtype=np.int64)  # -1: what data sets write for "unknown"


def _check_labels(split: Encoded, names: list[str]) -> None:
    """Raise InputError unless every label has a name and every name has images."""
    wrong = np.flatnonzero((split.labels < 0) | (split.labels >= len(names)))
    if len(wrong):
        came = f"row {wrong[0]}: expected a label from 0 to {len(names) - 1}, got {split.labels[wrong[0]]}"
        raise InputError(f"{split.where}, {came}")
    missing = np.setdiff1d(np.arange(len(names)), split.labels)
    if len(missing):
        raise InputError(f"{split.where}: expected images of every class, got none of {names[missing[0]]!r}")
