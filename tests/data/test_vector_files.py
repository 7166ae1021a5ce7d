"""Vectors in .npz files: the names of the arrays, splits, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_sets import NAMES, refused
from pah.data.read_options import ReadOptions
from pah.data.sources import load_source

VECTORS = np.random.default_rng(0).normal(size=(15, 4))
LABELS = np.array([0, 1, 2] * 5)


@pytest.mark.parametrize("vectors", ["vectors", "embeddings", "features", "X", "X_train"])
@pytest.mark.parametrize("labels", ["labels", "y"])
def test_arrays_have_the_usual_names(tmp_path: Path, vectors: str, labels: str) -> None:
    np.savez(tmp_path / "a.npz", **{vectors: VECTORS, labels: LABELS, "class_names": NAMES, "ids": LABELS})  # type: ignore[arg-type]
    source = load_source(tmp_path / "a.npz")
    assert (source.class_names, source.numbers, len(source.train)) == (tuple(NAMES), 4, 12)
    assert source.origin == str(tmp_path / "a.npz")
    assert source.notes == ("not used: the array ids",)


def test_labels_may_be_names_and_there_may_be_a_test_part(tmp_path: Path) -> None:
    texts = np.array(NAMES)[LABELS]
    np.savez(tmp_path / "a.npz", X_train=VECTORS, y_train=texts, X_test=VECTORS[:6], y_test=texts[:6])
    source = load_source(str(tmp_path / "a.npz"))
    assert (len(source.train), len(source.test), source.class_names) == (15, 6, tuple(NAMES))
    assert not source.test_from_train


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": VECTORS}, "expected an array vectors or embeddings or features or X, got a"),
        ({"X": VECTORS}, "expected an array labels or y beside the vectors, got none"),
        ({"X": VECTORS, "features": VECTORS, "y": LABELS}, "expected one array of"),
        ({"X": VECTORS, "y": LABELS[:3]}, "labels: expected a whole number for each of 15 vectors, got int64 (3,)"),
        (
            {"X": VECTORS.reshape(15, 2, 2), "y": LABELS},
            "vectors: expected real numbers (N, D), got float64 (15, 2, 2)",
        ),
        ({"X": VECTORS, "y": LABELS.astype(object)}, "got Python objects in y, which are never unpickled"),
        ({"X": np.full((15, 4), np.nan), "y": LABELS}, "vectors: expected finite numbers, got NaN or infinite ones in"),
        ({"X": VECTORS, "y": LABELS, "names": NAMES[:2]}, "labels: expected 0 to 1, as there are 2 names, got 2"),
    ],
)
def test_other_content_is_refused_with_the_files_name(tmp_path: Path, arrays: Any, message: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with refused("a.npz: ", message):
        load_source(tmp_path / "a.npz")


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", X=VECTORS, y=LABELS)
    content = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "short.npz").write_bytes(content[:300])
    (tmp_path / "damaged.npz").write_bytes(content[:200] + b"x" * 50 + content[250:])
    (tmp_path / "text.npz").write_text("no array")
    for name in ("short", "damaged", "text", "missing"):
        with refused(f"{name}.npz: expected an .npz file"):
            load_source(tmp_path / f"{name}.npz")
    with refused("column: expected none for", "a.npz, got 'X'"):
        load_source(tmp_path / "a.npz", None, ReadOptions(column="X"))
