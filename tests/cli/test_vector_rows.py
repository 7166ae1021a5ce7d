"""Vectors on the command line: taught, answered row by row, listed, and learned by a run."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from sklearn.datasets import load_digits

from pah.app.answers import AcceptedLearner
from pah.cli import main
from pah.core.config import InputError

X, Y = load_digits(return_X_y=True)
X, Y = X[:400], Y[:400]
QUICK = ("--epochs", "2", "--training.min_steps", "0")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a learner of vectors, which tests must not change, and with files of vectors."""
    root = tmp_path_factory.mktemp("root")
    np.savez(root / "low.npz", X=X[Y < 5], y=Y[Y < 5])
    column = pyarrow.array([*X[Y >= 5].astype(np.float32)])
    labels = [f"digit {y}" for y in Y[Y >= 5]]
    pyarrow.parquet.write_table(pyarrow.table({"embedding": column, "label": labels}), root / "high.parquet")
    bad = X[:4].copy()
    bad[1] = np.nan
    np.savez(root / "bad.npz", vectors=bad)
    for name, data in (("low", ("low.npz",)), ("high", ("high.parquet", "--column", "embedding"))):
        assert main(["learn", str(root / "v"), "--name", name, "--data", str(root / data[0]), *data[1:], *QUICK]) == 0
    return root


def answers(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_each_row_is_answered(root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(root)
    assert main(["predict", "v", "low.npz", "high.parquet", "--column", "embedding", "--json"]) == 0
    found = answers(capsys.readouterr().out)
    assert len(found) == len(X)
    assert (found[0]["file"], found[3]["file"], found[-1]["file"]) == (
        "low.npz[0]",
        "low.npz[3]",
        f"high.parquet[{sum(Y >= 5) - 1}]",
    )
    assert main(["predict", "v", "low.npz"]) == 0
    assert "low.npz[7]" in capsys.readouterr().out


def test_rows_and_files_that_cannot_be_read_are_reported(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(root)
    assert main(["predict", "v", "bad.npz", "high.parquet", "none.npz", "--json"]) == 2
    out, error = capsys.readouterr()
    assert [answer["file"] for answer in answers(out)] == ["bad.npz[0]", "bad.npz[2]", "bad.npz[3]"]
    assert error.splitlines() == [
        "pah: bad.npz: expected finite numbers, got NaN or infinite ones in row 1",
        "pah: high.parquet: expected an .npz file, or a .parquet file and --column NAME, as this learner takes vectors "
        "of 64 numbers, got another file",
        "pah: none.npz: expected an .npz file, found none",
        "pah: 3 of 6 vectors could not be read",
    ]
    assert main(["predict", "v", "bad.npz", "--skip_unreadable", "true"]) == 0


def test_files_and_learners_are_listed(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(root)
    assert main(["data", "low.npz"]) == 0
    assert "vectors of 64 numbers, from low.npz" in capsys.readouterr().out
    assert main(["data", "high.parquet", "--column", "embedding", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert (listed["numbers"], listed["image_shape"]) == (64, None)
    assert main(["data", "v"]) == 0
    assert "pah on features, vectors of 64 numbers" in capsys.readouterr().out
    assert main(["data", "v", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["numbers"] == 64


@pytest.mark.parametrize("method", ["pah", "er"])
def test_a_run_learns_vectors(root: Path, tmp_path: Path, method: str) -> None:
    arguments = ["run", "split", "--data", str(root / "low.npz"), "--backbone", "features", "--tasks", "2"]
    arguments += ["--method", method, "--epochs", "5", "--optimizer.lr", "0.02", "--out", str(tmp_path / "run")]
    assert main(arguments) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["average_accuracy"] > 80
    assert main(["predict", str(tmp_path / "run" / "model"), str(root / "low.npz")]) == 0


def test_what_has_no_effect_on_vectors_is_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, message in (
        (("--image_size", "32"), "image_size: expected none with backbone features, got 32"),
        (("--augment.flip", "true"), "augment.flip: expected false with backbone features, got True"),
        (("--backbone", "convnet"), "data: expected images, to be resized to 64x64, got vectors of 64 numbers"),
        (("--column", "X"), "column: expected none for"),
    ):
        assert main(["learn", str(root / "new"), "--name", "x", "--data", str(root / "low.npz"), *options]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert not (root / "new" / "learner.json").exists()


def test_the_page_refuses_a_learner_of_vectors(root: Path) -> None:
    with pytest.raises(InputError, match="expected a learner of images, got one that takes vectors of 64 numbers"):
        _ = AcceptedLearner(root / "v").learner
