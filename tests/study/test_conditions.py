"""A study's runs have all seen the same data, and its table says if they were made under different conditions."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pah.cli import main, options
from pah.core.config import InputError
from pah.runs.progress import StoppedError
from pah.study import comparison
from pah.study.conditions import conditions_paragraph, different_conditions, require_one_data_set
from pah.study.grid import run_cells

NETWORK = ("--backbone", "convnet", "--backbone.width", "4", "--training.batch_size", "8")
WORDS = ("split", "--data", "photos", "--tasks", "2", "--epochs", "1", *NETWORK, "--out", "study")
COMPARE = ("compare", *WORDS, "--methods", "finetune,er")
ABLATE = ("ablate", *WORDS, "--method", "finetune", "--vary", "optimizer.lr=0.001,0.01")


@pytest.fixture(autouse=True)
def _photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a folder `photos` of four class folders, in the working directory."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(256, size=(40, 8, 8), dtype=np.uint8)
    for i, image in enumerate(pixels):
        file = tmp_path / "photos" / "abcd"[i % 4] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)


def add_an_image() -> None:
    shutil.copy("photos/a/0.png", "photos/a/99.png")


def metrics(cell: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path("study", cell, "metrics.json").read_text())
    return found


@pytest.mark.parametrize(("command", "cell"), [(COMPARE, "er-seed0"), (ABLATE, "lr=0.01-seed0")])
def test_a_study_is_not_continued_on_other_data(
    command: tuple[str, ...], cell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command]) == 0
    shutil.rmtree(Path("study") / cell)
    add_an_image()
    capsys.readouterr()
    assert main([*command]) == 2
    err = capsys.readouterr().err
    assert err.startswith("pah: study: expected the data of its runs, got other images, labels or class names from")
    assert err.count("\n") == 1
    assert not (Path("study") / cell).exists()
    Path("photos/a/99.png").unlink()
    Path("photos").rename("moved")  # the same data at another place
    assert main([*command, "--data", "moved"]) == 0


def test_an_interrupted_cell_goes_on_with_the_same_data_at_another_place_only(
    capsys: pytest.CaptureFixture[str],
) -> None:
    request = options.compare_request([*COMPARE[1:]]).comparison
    stops = iter([False] * 3)
    with pytest.raises(StoppedError):
        run_cells(comparison.prepare(request).cells(request.configs), _unseen, lambda: next(stops, True), 0.0)
    add_an_image()
    assert main([*COMPARE]) == 2
    assert "than finetune-seed0 had" in capsys.readouterr().err
    Path("photos/a/99.png").unlink()
    Path("photos").rename("moved")
    assert main([*COMPARE, "--data", "moved"]) == 0
    assert metrics("finetune-seed0")["data_fingerprint"] == metrics("er-seed0")["data_fingerprint"]


def test_data_that_change_during_a_study_stop_the_cells_after_it() -> None:
    prepared = comparison.prepare(options.compare_request([*COMPARE[1:]]).comparison)
    first, second = prepared.cells(prepared.configs)
    assert run_cells([first], _unseen, _never, 1e9)[0].metrics is not None
    add_an_image()
    (outcome,) = run_cells([second], _unseen, _never, 1e9)
    assert outcome.metrics is None
    assert "expected the data of this study, got other images" in outcome.reason


def test_a_study_of_an_older_version_goes_on_with_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*COMPARE]) == 0
    for cell in ("finetune-seed0", "er-seed0"):
        old = {k: v for k, v in metrics(cell).items() if k not in ("data_fingerprint", "data_counts", "parts")}
        Path("study", cell, "metrics.json").write_text(json.dumps(old))
    capsys.readouterr()
    assert main([*COMPARE]) == 0
    err = capsys.readouterr().err
    assert err.startswith("pah: study: 2 runs were made by an older pah")
    assert err.count("\n") == 1


def test_runs_on_different_data_form_no_table(capsys: pytest.CaptureFixture[str]) -> None:
    run = ("run", *WORDS[:-2], "--method", "finetune", "--out")
    assert main([*run, "one"]) == 0
    add_an_image()
    assert main([*run, "other", "--optimizer.lr", "0.01"]) == 0
    capsys.readouterr()
    assert main(["report", "one", "other"]) == 2
    assert "expected a run on the data of" in capsys.readouterr().err
    require_one_data_set([("a", {"data_fingerprint": "1"}), ("b", {}), ("c", {"data_fingerprint": "1"})])
    with pytest.raises(InputError, match="c: expected a run on the data of a"):
        require_one_data_set([("a", {"data_fingerprint": "1"}), ("c", {"data_fingerprint": "2"})])


@pytest.mark.parametrize(
    ("command", "cell", "table"), [(COMPARE, "er-seed0", "comparison"), (ABLATE, "lr=0.01-seed0", "ablation")]
)
def test_different_threads_are_said_under_the_table(
    command: tuple[str, ...], cell: str, table: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command]) == 0
    assert "same conditions" not in Path("study", f"{table}.md").read_text() + capsys.readouterr().out
    changed = metrics(cell)
    changed["parts"][0]["versions"]["threads"] = "64"
    Path("study", cell, "metrics.json").write_text(json.dumps(changed))
    assert main([*command]) == 0
    for text in (Path("study", f"{table}.md").read_text(), capsys.readouterr().out):
        assert "Not all runs were made under the same conditions: threads 1 and 64." in text
    assert json.loads(Path("study", f"{table}.json").read_text())["conditions"] == {"threads": ["1", "64"]}


def test_conditions_of_older_runs_are_those_of_their_last_process() -> None:
    old = {"device": "cpu", "processes": 1, "versions": {"torch": "2.0", "threads": "1"}}
    unknown: dict[str, Any] = {"device": None, "processes": None, "versions": None}
    new = {**old, "versions": {"torch": "2.1", "threads": "1"}}
    assert different_conditions([old, {"parts": [unknown, new]}]) == {"torch": ["2.0", "2.1"]}
    assert different_conditions([{}]) == {}
    assert conditions_paragraph({}) == []


def _unseen(*_: object) -> None:
    return None


def _never() -> bool:
    return False
