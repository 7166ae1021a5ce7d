"""Vectors in a column of Parquet files and of data sets in memory."""

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from data_sets import NAMES, refused
from pah.data.read_options import ReadOptions
from pah.data.sources import Source, load_source
from pah.data.vector_tables import read_column

VECTORS = np.random.default_rng(0).normal(size=(15, 4)).astype(np.float32)
LABELS = [0, 1, 2] * 5


def write(path: Path, vectors: Any = VECTORS, kind: Any = None) -> Path:
    column = pyarrow.array([None if row is None else [*row] for row in vectors], kind)
    pyarrow.parquet.write_table(pyarrow.table({"embedding": column, "label": LABELS[: len(column)]}), path)
    return path


def load(data: Any, **options: Any) -> Source:
    return load_source(data, None, ReadOptions(column="embedding", **options))


@pytest.mark.parametrize(
    "kind",
    [
        pyarrow.list_(pyarrow.float64()),
        pyarrow.list_(pyarrow.float32(), 4),
        pyarrow.large_list(pyarrow.float16()),
    ],
    ids=str,
)
def test_a_column_of_lists_is_read(tmp_path: Path, kind: Any) -> None:
    vectors = VECTORS.astype(np.float16) if "halffloat" in str(kind) else VECTORS
    source = load(write(tmp_path / "a.parquet", vectors, kind))
    assert (source.numbers, len(source.train), len(source.test), source.class_names) == (4, 12, 3, ("0", "1", "2"))
    rows = {tuple(row) for row in np.concatenate([source.train.pixels, source.test.pixels])[:, :, 0, 0].tolist()}
    assert rows == {tuple(row) for row in vectors.astype(np.float32).tolist()}


def test_folders_with_splits_and_data_sets_in_memory_are_read(tmp_path: Path) -> None:
    write(tmp_path / "train-00000.parquet")
    write(tmp_path / "test-00000.parquet", VECTORS[:6])
    assert [len(part) for part in (load(tmp_path).train, load(tmp_path).test)] == [15, 6]
    features = datasets.Features({"embedding": datasets.List(datasets.Value("float32"))})
    features["label"] = datasets.ClassLabel(names=NAMES)
    data = datasets.Dataset.from_dict({"embedding": VECTORS.tolist(), "label": LABELS}, features)
    assert load(data).class_names == tuple(NAMES)


def test_other_columns_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet")
    for column in ("none", "label"):
        with refused(f"expected a column {column!r} of lists of numbers, got the columns 'embedding' (list<"):
            load_source(path, None, ReadOptions(column=column))
    with refused("expected one column of images", "`--column NAME` reads one of vectors"):
        load_source(path)
    with refused("row 3: expected a vector of 4 numbers, like others, got 2"):
        load(write(tmp_path / "b.parquet", [*VECTORS[:3], VECTORS[3, :2], *VECTORS[4:]]))


def test_rows_without_finite_numbers_are_named_or_left_out(tmp_path: Path) -> None:
    vectors: list[Any] = [*VECTORS]
    vectors[4], vectors[5] = None, [1.0, None, float("nan"), 2.0]
    path = write(tmp_path / "a.parquet", vectors)
    with refused("a.parquet, split train: expected finite numbers, got NaN or infinite ones in rows 4, 5"):
        load(path)
    source = load(path, skip_unreadable=True)
    assert set(source.skipped) == {"split train, row 4", "split train, row 5"}
    assert len(source.train) + len(source.test) == 13
    assert [np.isnan(row).any() for row in read_column(path, "embedding", 4)] == [k in (4, 5) for k in range(15)]
    with refused("a.parquet, row 0: expected a vector of 5 numbers, like others, got 4"):
        read_column(path, "embedding", 5)
