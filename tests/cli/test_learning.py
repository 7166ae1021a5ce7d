"""The commands on a learner: learn, predict, data and forget."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers import DIGITS
from pah import ContinualLearner
from pah.cli import main
from pah.core.files import locked

NEW = ("--image_size", "8", "--backbone", "convnet", "--backbone.width", "8", "--epochs", "4", "--augment.crop", "0")
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]

Refused = Callable[..., str]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of digits: low/zero, low/one, low/two, high/three, high/four."""
    root = tmp_path_factory.mktemp("photos")
    for y, pixels in zip(DIGITS.train.labels.tolist(), DIGITS.train.pixels[:, 0].numpy(), strict=True):
        if y < 5:
            folder = root / ("low" if y < 3 else "high") / WORDS[y]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / f"{len([*folder.iterdir()])}.png")
    return root


@pytest.fixture(scope="module")
def taught(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A learner of two lessons, which tests must not change."""
    folder = tmp_path_factory.mktemp("taught") / "digits"
    assert main(["learn", str(folder), "--name", "low", "--data", str(photos / "low"), *NEW]) == 0
    assert main(["learn", str(folder), "--name", "high", "--data", str(photos / "high"), "--epochs", "2"]) == 0
    return folder


@pytest.fixture
def learner(taught: Path, tmp_path: Path) -> Path:
    """A copy of the learner, which a test may change."""
    ContinualLearner.load(taught).save(tmp_path / "digits")
    return tmp_path / "digits"


@pytest.fixture
def refused(learner: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """A function that runs a command that must be refused without changing the learner, and returns the line."""

    def run(*words: str) -> str:
        before = {file.name: file.read_bytes() for file in learner.iterdir()}
        capsys.readouterr()
        assert main([*words]) == 2
        assert {file.name: file.read_bytes() for file in learner.iterdir()} == before
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        return err

    return run


def test_predict_classifies_files(taught: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(photos / "low" / name / "1.png") for name in ("zero", "one", "two")]
    assert main(["predict", str(taught), *files, "--task", "low", "--json"]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer["file"] for answer in answers] == files
    assert [answer["label"] for answer in answers] == ["zero", "one", "two"]
    assert main(["predict", str(taught), *files, "--unknown", "0.05"]) == 0
    shown = capsys.readouterr().out
    assert "probability" in shown
    assert main(["predict", str(taught), files[0], "--rule", "combined"]) == 0


def test_options_stay_until_a_lesson_changes_them(taught: Path) -> None:
    learner = ContinualLearner.load(taught)
    assert learner.config.training.epochs == 2
    assert learner.config.augment.crop == 0
    assert learner.config.stream.validation == 0.1


def test_data_lists_what_a_learner_knows(taught: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", str(taught)]) == 0
    shown = capsys.readouterr().out
    for part in ("low", "high", "three", "convnet", "8x8", "MB"):
        assert part in shown


def test_too_much_drift_ends_with_status_1_and_the_learner_as_it_was(
    learner: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (learner / "learner.json").read_bytes()
    harmful = ("--optimizer.lr", "1", "--training.schedule", "constant", "--max_drift", "0.05")
    words = ["learn", str(learner), "--name", "again", "--data", str(photos / "low"), *harmful]
    assert main([*words, "--held_out", f"low={photos / 'low'}", "--held_out", f"high={photos / 'high'}"]) == 1
    assert "rolled back" in capsys.readouterr().out
    assert (learner / "learner.json").read_bytes() == before


def test_a_forgotten_tasks_name_can_be_used_again(learner: Path, photos: Path, refused: Refused) -> None:
    again = ("learn", str(learner), "--name", "low", "--data", str(photos / "low"))
    assert "taught before" in refused(*again)
    assert main(["forget", str(learner), "--task", "low"]) == 0
    assert main([*again, "--only", "two, zero"]) == 0
    assert [task.classes for task in ContinualLearner.load(learner).tasks] == [("four", "three"), ("two", "zero")]


def test_unreadable_files_are_named_and_may_be_left_out(
    learner: Path, photos: Path, refused: Refused, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("zero", "one"):
        folder = tmp_path / "mixed" / name
        folder.mkdir(parents=True)
        for file in sorted((photos / "low" / name).iterdir())[:20]:
            (folder / file.name).write_bytes(file.read_bytes())
    bad = tmp_path / "mixed" / "one" / "bad.png"
    bad.write_bytes(b"no image")
    words = ("learn", str(learner), "--name", "mixed", "--data", str(tmp_path / "mixed"))
    assert str(bad) in refused(*words)
    assert main([*words, "--skip-unreadable"]) == 0
    out = capsys.readouterr().out.replace("\n", "")
    assert "left out, unreadable: one/bad.png" in out
    assert str(bad) not in out


def test_bad_commands(learner: Path, photos: Path, refused: Refused, tmp_path: Path) -> None:
    image = str(photos / "low" / "zero" / "1.png")
    new = ("learn", str(learner), "--name", "x", "--data", str(photos / "low"))
    (tmp_path / "README.md").write_text("mine")
    for words, parts in (
        (("learn", "--name", "x"), ("expected one learner folder",)),
        (("learn", "", "--name", "x", "--data", str(photos / "low")), ("expected one learner folder",)),
        (("learn", str(tmp_path), *new[2:]), ("README.md", "lose its own")),
        (("learn", str(learner), "--name", "x"), ("--data",)),
        (("learn", str(learner), "--data", str(photos)), ("--name",)),
        ((*new, "--backbone", "resnet18"), ("backbone", "convnet")),
        ((*new, "--method", "lwf"), ("method", "pah")),
        ((*new, "--image_size", "9"), ("image_size", "8")),
        ((*new, "--seed", "1"), ("seed", "first lesson")),
        ((*new, "--held_out", "low"), ("TASK=DATA", "'low'")),
        ((*new, "--epoch", "1"), ("unknown option 'epoch'",)),
        (("predict", str(learner)), ("a learner and images",)),
        (("predict", str(learner), image, "--task", "birds"), ("'birds'", "high, low")),
        (("predict", str(learner), image, "--unknown", "2"), ("unknown", "0.5")),
        (("predict", str(learner), image, "--rule", "guess"), ("'energy'", "got guess")),
        (("predict", str(learner), str(tmp_path / "none.png")), ("none.png", "No such file")),
        (("predict", str(photos), image), ("expected a learner folder",)),
        (("forget", str(learner), "--task", "birds"), ("'birds'",)),
    ):
        line = refused(*words)
        assert not [part for part in parts if part not in line], line


def test_a_learner_that_is_being_taught_is_refused_to_others(learner: Path, photos: Path, refused: Refused) -> None:
    with locked(learner):
        line = refused("learn", str(learner), "--name", "x", "--data", str(photos / "low"))
    assert "in use by another process" in line


def test_a_runs_model_is_a_learner(tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    words = ("--epochs", "2", "--backbone.width", "4", "--classes", "4", "--tasks", "2", "--stream.validation", "0.2")
    assert main(["run", "split-digits", *words, "--out", str(out)]) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    learner = ContinualLearner.load(out / "model")
    assert [lesson.accuracies for lesson in learner.history] == [
        dict(zip(metrics["task_names"], row, strict=False)) for row in metrics["accuracy_matrix"]
    ]
    assert all(task.quantiles for task in learner.tasks)
    capsys.readouterr()
    assert main(["predict", str(out / "model"), str(photos / "low" / "zero" / "1.png"), "--json"]) == 0
    assert np.isfinite(json.loads(capsys.readouterr().out)["probability"])
    assert main(["learn", str(out / "model"), "--name", "more", "--data", str(photos / "high"), "--epochs", "1"]) == 0
    assert [task.name for task in ContinualLearner.load(out / "model").tasks][-1] == "more"


def test_class_names_with_commas_and_task_names_with_equals_signs(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "photos"
    for old, new in (("zero", "zero, small"), ("one", "one"), ("two", "two")):
        (data / new).mkdir(parents=True)
        for file in sorted((photos / "low" / old).iterdir())[:12]:
            (data / new / file.name).write_bytes(file.read_bytes())
    learner = str(tmp_path / "learner")
    words = ["learn", learner, "--data", str(data)]
    quick = [*NEW, "--epochs", "1", "--training.min_steps", "0"]
    assert main([*words, "--name", "a=b", "--only", "zero, small", "--only", "one, two", *quick]) == 0
    assert main([*words, "--name", "a", "--only", "zero, small", "--only", "two"]) == 0
    (tmp_path / "only.yaml").write_text("only: ['zero, small', one]\n")
    held_out = ["--held_out", f"a=b={data}", "--held_out", f"a={data}", "--only", "one,two"]
    assert main([*words, "--name", "c", "--config", str(tmp_path / "only.yaml")]) == 0
    (tmp_path / "text.yaml").write_text("only: one,two\n")
    assert main([*words, "--name", "d", "--config", str(tmp_path / "text.yaml")]) == 0
    names = [task.classes for task in ContinualLearner.load(learner).tasks]
    assert names == [("zero, small", "one", "two"), ("zero, small", "two"), ("zero, small", "one"), ("one", "two")]
    capsys.readouterr()
    assert main([*words, "--name", "e", *held_out]) == 2  # "two" of the data is no class of the task "a"
    assert "expected classes of task 'a'" in capsys.readouterr().err
    assert main([*words, "--name", "e", "--only", "one,two", "--held_out", f"a=b={data}"]) == 0
    assert "a=b" in ContinualLearner.load(learner).history[-1].accuracies
    assert main([*words, "--name", "f", "--held_out", f"a=b={data}", "--held_out", f"a=b={data}"]) == 2
    assert "'a=b' once" in capsys.readouterr().err


def test_limits_without_effect_are_named(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["learn", str(tmp_path / "new"), "--name", "low", "--data", str(photos / "low"), *NEW, "--epochs", "1"]
    assert main([*words, "--max_drift", "0.1"]) == 0
    err = capsys.readouterr().err
    assert err == "pah: max_drift: without effect in the first lesson, as there are no old tasks\n"


@pytest.mark.parametrize(
    ("redirection", "environment"),
    [
        ("| head -1", {}),
        (">&-", {}),
        ("> /dev/full", {}),
        ("> out.txt", {"PYTHONIOENCODING": "cp1252"}),
    ],
)
def test_a_lesson_is_kept_although_its_output_is_lost(
    redirection: str, environment: dict[str, str], photos: Path, tmp_path: Path
) -> None:
    words = ["learn", "learner", "--name", "λόγος", "--data", str(photos / "high"), *NEW, "--progress", "json"]
    if environment:
        words = words[:-2]
    command = f'"$PYTHON" -m pah "$@" {redirection}; echo "${{PIPESTATUS[0]}}" >&2'
    done = subprocess.run(
        ["bash", "-c", command, "pah", *words],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHON": sys.executable} | environment,
    )
    *errors, status = done.stderr.splitlines()
    expected = ["pah: stdout: expected to write, got: No space left on device"] if "full" in redirection else []
    assert (errors, status) == (expected, "2" if "full" in redirection else "0")
    assert [task.name for task in ContinualLearner.load(tmp_path / "learner").tasks] == ["λόγος"]
