"""Vectors in a column of Arrow tables: Parquet files, or data sets of the Hugging Face library.

N: vectors, D: numbers in a vector.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pah.core.config import InputError
from pah.data.columns import holds_lists, require_vector_column
from pah.data.decode import BATCH_ROWS, EncodedDataSet, EncodedSplit, reading
from pah.data.decode_cache import DecodedDataSet, ReadingRecord
from pah.data.read_options import ReadOptions
from pah.data.vectors import (
    MAX_NUMBERS,
    VECTORS_EXPECTED,
    Vectors,
    as_pixels,
    bad_rows,
    name_rows,
    refuse_image_size,
)


def read_vectors(encoded: EncodedDataSet, skip_unreadable: bool) -> DecodedDataSet:
    """Return a data set whose images are the vectors of a column, (N, D, 1, 1).

    Args:
        encoded: The data set; its `image_column` is the column of vectors.
        skip_unreadable: Whether to leave out rows without a vector, or with NaN or infinite numbers.

    Raises:
        InputError: vectors have several lengths, or rows have no finite numbers.
    """
    numbers: int | None = None
    arrays, labels, skipped = [], [], list(encoded.record.skipped)
    for split in (encoded.train, encoded.test):
        vectors = _read_split(split, numbers)
        numbers = vectors.shape[1] if len(vectors) else numbers
        bad = bad_rows(vectors)
        rows = bad if split.rows is None else np.asarray(split.rows)[bad]
        if len(bad) and not skip_unreadable:
            raise InputError(f"{split.name}: expected finite numbers, got NaN or infinite ones in {name_rows(rows)}")
        kept = np.setdiff1d(np.arange(len(vectors)), bad)
        arrays.append(vectors[kept])
        labels.append(split.labels[kept])
        skipped += [f"{split.name.rpartition(', ')[2]}, row {row}" for row in rows.tolist()]
    if not len(arrays[0]):
        raise InputError(f"{encoded.train.name}: expected vectors of finite numbers, got none")
    train, test = (as_pixels(array.reshape(-1, numbers or 1)) for array in arrays)
    record = ReadingRecord(encoded.record.notes, tuple(skipped), encoded.record.test_split)
    return DecodedDataSet(encoded.class_names, train, labels[0], test, labels[1], record)


def read_column(path: Path, column: str, numbers: int) -> Vectors:
    """Return the vectors (N, D) in a column of a Parquet file; a row without a vector becomes NaN.

    Args:
        path: The file.
        column: The column of lists of numbers.
        numbers: D.

    Raises:
        InputError: the file cannot be read, has no such column, or has vectors of another length.
    """
    import pyarrow.dataset

    with reading(str(path)):
        table = pyarrow.dataset.dataset(path)
        require_vector_column(table.schema, column, str(path))
        return _read_split(EncodedSplit(str(path), table, column, np.zeros(0, np.int64)), numbers)


def require_table_kind(name: str, image_size: int | None, options: ReadOptions, only_vectors: bool) -> None:
    """Raise InputError if a table or folder has images and only vectors are accepted, or if vectors are to be resized.

    Args:
        name: Name of the data set.
        image_size: Pixels a side to which images are resized.
        options: How it is read; with a `column` it has vectors.
        only_vectors: Whether images are refused.
    """
    if options.column is not None:
        refuse_image_size(image_size, None)
    elif only_vectors:
        raise InputError(f"{name}: expected {VECTORS_EXPECTED}, got images, or a table without --column NAME")


def _read_split(split: EncodedSplit, numbers: int | None) -> Vectors:
    """Return the vectors of a split, (N, D); a row without a vector becomes NaN.

    Args:
        split: The split.
        numbers: D, if it is known.
    """
    import pyarrow.compute

    lengths, values = [], []
    with reading(split.name):
        for batch in split.table.to_batches(
            columns=[split.image_column], batch_size=BATCH_ROWS, batch_readahead=0, fragment_readahead=0
        ):
            column = batch.column(0)
            if not holds_lists(column.type):
                raise InputError(f"{split.name}: expected lists of numbers, got {column.type}")
            lengths.append(pyarrow.compute.list_value_length(column).fill_null(-1).to_numpy(zero_copy_only=False))
            flat = pyarrow.compute.list_flatten(column)
            with np.errstate(over="ignore"):
                values.append(flat.to_numpy(zero_copy_only=False).astype(np.float32))
    counts = np.concatenate(lengths) if lengths else np.zeros(0, np.int64)
    known = counts[counts >= 0]
    if not len(known):
        return np.full((len(counts), numbers or 1), np.nan, np.float32)
    _require_one_length(counts, numbers or int(known[0]), split)
    vectors = np.full((len(counts), int(known[0])), np.nan, np.float32)
    vectors[counts >= 0] = np.concatenate(values).reshape(len(known), -1)
    return vectors


def _require_one_length(counts: NDArray[np.int64], numbers: int, split: EncodedSplit) -> None:
    """Raise InputError unless all lists have this number of numbers, 1 to `MAX_NUMBERS`."""
    others = np.flatnonzero((counts >= 0) & (counts != numbers))
    if len(others):
        raise InputError(
            f"{split.place(int(others[0]))}: expected a vector of {numbers} numbers, like others, "
            f"got {counts[others[0]]}"
        )
    if not 1 <= numbers <= MAX_NUMBERS:
        raise InputError(f"{split.name}: expected vectors of 1 to {MAX_NUMBERS} numbers, got {numbers}")
