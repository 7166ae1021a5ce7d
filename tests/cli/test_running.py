"""`pah data` and `pah --version`: what is listed, as text and as JSON, and what is refused."""

import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from helpers import QUICK_LEARNER
from pah import ContinualLearner
from pah.cli import main


@pytest.fixture
def learner(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
    learner = ContinualLearner(config=QUICK_LEARNER)
    learner.learn("noise", (pixels, [i % 2 for i in range(40)], ["a, b", "c"]))
    learner.save(tmp_path / "learner")
    return tmp_path / "learner"


def test_a_learner_as_json(learner: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", str(learner), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    (task,) = content["tasks"]
    assert (content["method"], content["backbone"], content["image_shape"]) == ("pah", "convnet", [1, 8, 8])
    assert (task["name"], task["classes"]) == ("noise", ["a, b", "c"])
    (measured,) = task["accuracies"]
    assert measured["lesson"] == "noise"
    assert measured["before"] is None
    assert measured["images"] > 0
    assert content["bytes"] == (learner / "model.safetensors").stat().st_size


def test_a_benchmark_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "split-digits", "--tasks", "3", "--stream.class_order", "natural", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert [task["classes"] for task in content["tasks"]] == [["0", "1", "2", "3"], ["4", "5", "6"], ["7", "8", "9"]]
    assert content["image_shape"] == [1, 8, 8]
    assert all(task["training"] > task["test"] > 0 for task in content["tasks"])
    assert main(["data", "--json"]) == 0
    assert "split-digits" in json.loads(capsys.readouterr().out)


def test_a_name_that_is_neither_learner_nor_benchmark(
    learner: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, parts in (
        (["nolearner"], ("unknown learner or benchmark 'nolearner'", "split-digits")),
        ([str(tmp_path)], ("a benchmark or a learner", "without learner.json")),
        ([str(learner), "--tasks", "3"], ("no option but --json", "--tasks 3")),
    ):
        assert main(["data", *words]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert not [part for part in parts if part not in err], err


def test_options_without_effect_are_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["data", "split-digits", "--epochs", "3", "--tasks", "5", "--method", "lwf"]) == 0
    err = capsys.readouterr().err
    assert err == "pah: without effect on the images and tasks: --training.epochs=3, --method.name=lwf\n"
    words = ["--epochs", "1", "--backbone.width", "2", "--classes", "4", "--tasks", "2", "--out", str(tmp_path / "run")]
    assert main(["run", "split-digits", *words, "--method", "finetune", "--beside", "finetune"]) == 0
    assert "beside: finetune is run once" in capsys.readouterr().err


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"pah {version('pah')}\n"
