"""Vectors in place of images: which data are vectors, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import pytest
import scipy.sparse
import torch

from data_sets import NAMES, class_folders, refused
from pah.data.lesson import load_lesson
from pah.data.read_options import ReadOptions
from pah.data.sources import Source, load_source
from pah.data.stream import make_stream
from pah.data.stream_options import StreamOptions
from pah.data.vectors import asked_vectors, require_finite, to_vectors

VECTORS = np.random.default_rng(0).normal(size=(15, 4))
LABELS = [0, 1, 2] * 5


def load(vectors: Any, **options: Any) -> Source:
    return load_source((vectors, LABELS, NAMES), None, ReadOptions(**options))


@pytest.mark.parametrize(
    "vectors",
    [
        VECTORS,
        VECTORS.astype(np.float16),
        VECTORS.tolist(),
        [*VECTORS],
        torch.from_numpy(VECTORS),
        torch.from_numpy(VECTORS).bfloat16(),
        [*torch.from_numpy(VECTORS)],
        (10 * VECTORS).astype(np.int32),
    ],
    ids=["array", "float16", "list", "arrays", "tensor", "bfloat16", "tensors", "integers"],
)
def test_vectors_of_every_form_become_float32(vectors: Any) -> None:
    source = load(vectors)
    assert source.numbers == 4
    assert source.train.pixels.dtype == torch.float32
    assert source.train.pixels.shape == (12, 4, 1, 1)
    assert source.test.pixels.shape == (3, 4, 1, 1)
    first = torch.as_tensor(vectors[0]).float()
    assert any(torch.equal(first, row) for row in source.train.pixels.flatten(1)) or torch.equal(
        first, source.test.pixels[0].flatten()
    )


def test_tables_and_data_sets_of_other_libraries_hold_vectors() -> None:
    table = pd.DataFrame({"embedding": [*VECTORS], "label": [NAMES[y] for y in LABELS]})
    assert load_source(table, None, ReadOptions(column="embedding")).numbers == 4
    pairs = torch.utils.data.TensorDataset(torch.from_numpy(VECTORS), torch.tensor(LABELS))
    assert load_source(pairs).numbers == 4
    splits = {"train": (VECTORS, LABELS, NAMES), "test": (VECTORS[:3], LABELS[:3], NAMES)}
    assert len(load_source(splits).test) == 3


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (np.zeros((15, 2, 2)), "got float64 (15, 2, 2, 1)"),
        (np.full((15, 4), "x"), "expected real numbers (N, D), got <U1 (15, 4)"),
        (np.zeros((15, 4), complex), "expected real numbers (N, D), got complex128 (15, 4)"),
        (np.zeros((15, 0)), "expected 1 to 8192 numbers each, got 0"),
        (np.zeros((15, 9000)), "expected 1 to 8192 numbers each, got 9000"),
        (np.zeros((14, 4)), "labels: expected a whole number for each of 14 vectors, got int64 (15,)"),
        ([[1.0, 2.0]] * 3 + [[1.0]] * 12, "expected one length, got 2 numbers in row 0 and 1 in row 3"),
        (scipy.sparse.csr_matrix(VECTORS), "expected an array, got a sparse matrix csr_matrix (15, 4)"),
    ],
)
def test_other_arrays_are_refused(vectors: Any, message: str) -> None:
    with refused(message):
        load(vectors)


def test_rows_that_are_not_finite_are_named_or_left_out() -> None:
    vectors = VECTORS.copy()
    vectors[2, 1], vectors[7, 0], vectors[8, 3] = np.nan, np.inf, 1e200  # the last one is too large for float32
    with refused("vectors: expected finite numbers, got NaN or infinite ones in rows 2, 7, 8"):
        load(vectors)
    source = load(vectors, skip_unreadable=True)
    assert source.skipped == ("row 2", "row 7", "row 8")
    assert len(source.train) + len(source.test) == 12
    with refused("in rows 0, 1, 2, 3, 4 and 4 more"):
        require_finite(np.full((9, 1), np.nan, np.float32))


def test_vectors_and_images_are_not_mixed(tmp_path: Path) -> None:
    with refused("data: expected images, to be resized to 32x32, got vectors of 4 numbers"):
        load_source((VECTORS, LABELS, NAMES), 32)
    images = np.zeros((15, 6, 6, 3), np.uint8)
    with refused("data: expected splits of one kind, got images and vectors of 4 numbers"):
        load_source({"train": (VECTORS, LABELS, NAMES), "test": (images, LABELS, NAMES)})
    with refused("data: expected vectors, as backbone features takes them", "got images"):
        load_lesson((images, LABELS, NAMES), None)
    with refused("expected vectors", "got images, or a table without --column NAME"):
        load_lesson(class_folders(tmp_path), None)
    with refused("column: expected none for data without columns, got 'x'"):
        load(VECTORS, column="x")
    with refused("vectors: expected vectors of 3 numbers, as in the first lesson, got 4"):
        load_lesson((VECTORS, LABELS, NAMES), None, 3)


@pytest.mark.parametrize("one", [VECTORS[0], torch.from_numpy(VECTORS[0]), VECTORS[0].tolist()])
def test_one_vector_is_a_batch_of_one(one: Any) -> None:
    assert np.array_equal(asked_vectors(one, 4), to_vectors(VECTORS[:1]))
    assert asked_vectors([], 4).shape == (0, 4)
    with refused("vectors: expected 5 numbers each, got 4; this learner takes vectors of 5 numbers"):
        asked_vectors(one, 5)
    with refused("expected real numbers (N, D), got str; this learner takes vectors of 4 numbers"):
        asked_vectors("photo.jpg", 4)


def test_scales_are_shared_unless_they_differ_much() -> None:
    def normalization(vectors: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
        stream = make_stream(load(vectors), StreamOptions(class_order="natural"), 1, 0)
        normalized = stream.normalization(stream.tasks[0].train.pixels)
        assert abs(normalized.mean()) < 1e-3
        assert abs(normalized.std(correction=0) - 1) < 0.1
        return stream.normalization.mean, stream.normalization.std

    mean, std = normalization(VECTORS)
    assert len(set(mean)) == len(set(std)) == 1
    mean, std = normalization(VECTORS * [1, 1, 1, 1000])
    assert len(set(mean)) == len(set(std)) == 4
    constant = VECTORS.copy()
    constant[:, 2] = 5
    assert all(value > 0 for value in make_stream(load(constant), StreamOptions(), 1, 0).normalization.std)
