"""`--progress json` writes its events to stdout, and nothing else."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from conftest import TINY
from helpers import DIGITS
from pah.cli import main

STUDY = ("--epochs", "1", "--backbone.width", "2", "--classes", "4", "--tasks", "2")
NEW = ("--image_size", "8", "--backbone", "convnet", "--backbone.width", "4", "--epochs", "2", "--augment.crop", "0")

Events = list[dict[str, Any]]


@pytest.fixture
def events_of(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that runs a command with `--progress json` and returns its events; stderr must stay empty."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str, status: int = 0) -> Events:
        capfd.readouterr()
        assert main([*words, "--progress", "json"]) == status
        out, err = capfd.readouterr()
        assert err == ""
        return [json.loads(line) for line in out.splitlines()]

    return run


def metrics(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return content


def test_a_run_writes_its_epochs_as_logged_its_tasks_and_its_metrics(events_of: Any, tmp_path: Path) -> None:
    lines = events_of("run", *TINY, "--out", "run", "--beside", "finetune")
    assert [line["event"] for line in lines] == 2 * [*3 * ["epoch", "epoch", "task"], "done"]
    for run, own in (("run", lines[:10]), ("run-finetune", lines[10:])):
        assert all(line["run"] == run for line in own)
        log = [json.loads(line) for line in Path(run, "log.jsonl").read_text().splitlines()]
        assert all(line.pop("peak_memory_mb") > 0 for line in log)
        epochs = [line for line in own if line["event"] == "epoch"]
        assert [{key: line[key] for key in log[0]} for line in epochs] == log
        assert all((line["tasks"], line["epochs"]) == (3, 2) for line in epochs)
        assert epochs[0]["seconds_left"] > epochs[-1]["seconds_left"] == 0
        expected = metrics(tmp_path / run)
        tasks = [line for line in own if line["event"] == "task"]
        assert [line["accuracies"] for line in tasks] == expected["accuracy_matrix"]
        assert [line["name"] for line in tasks] == expected["task_names"]
        assert own[-1]["metrics"] == expected


def test_a_resumed_run_writes_its_remaining_events_and_a_finished_one_its_metrics(
    events_of: Any, tmp_path: Path, unfinished: Path
) -> None:
    shutil.copytree(unfinished, tmp_path / "run")
    lines = events_of("resume", "run")
    assert [line["event"] for line in lines] == ["epoch", "epoch", "task", "epoch", "epoch", "task", "done"]
    assert events_of("resume", "run") == [{"event": "done", "run": "run", "metrics": metrics(tmp_path / "run")}]


def test_a_study_writes_the_end_of_each_run_and_its_summary(events_of: Any, tmp_path: Path) -> None:
    words = ("split-digits", *STUDY, "--out", "study")
    lines = events_of("compare", *words, "--methods", "finetune,pah")
    assert [line["event"] for line in lines] == [*2 * [*2 * ["epoch", "task"], "done"], "study"]
    assert [line["run"] for line in lines if line["event"] == "done"] == ["study/finetune-seed0", "study/pah-seed0"]
    assert lines[4]["metrics"] == metrics(tmp_path / "study" / "finetune-seed0")
    summary = json.loads((tmp_path / "study" / "comparison.json").read_text())
    assert lines[-1] == {"event": "study", "folder": "study", "done": 2, "failed": 0, "summary": summary}


def test_a_failed_run_of_a_study_writes_its_reason(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["ablate", "split-digits", *STUDY, "--out", str(tmp_path / "s"), "--vary", "optimizer.lr=1e30"]
    assert main([*words, "--progress", "json"]) == 1
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    (failed,) = (line for line in lines if line["event"] == "failed")
    assert "lr" in failed["reason"]
    assert (lines[-1]["done"], lines[-1]["failed"]) == (1, 1)
    assert lines[-1]["summary"] == json.loads((tmp_path / "s" / "ablation.json").read_text())


def test_a_lesson_writes_its_epochs_and_its_result(events_of: Any, tmp_path: Path) -> None:
    for name, classes in {"low": (0, 1), "high": (3, 4)}.items():
        for y in classes:
            (tmp_path / name / str(y)).mkdir(parents=True)
            for k, pixels in enumerate(DIGITS.train.pixels[DIGITS.train.labels == y][:40, 0]):
                Image.fromarray(np.asarray(pixels)).save(tmp_path / name / str(y) / f"{k}.png")
    lines = events_of("learn", "learner", "--name", "low", "--data", "low", *NEW)
    assert [line["event"] for line in lines] == ["epoch", "epoch", "done"]
    assert [line["epoch"] for line in lines[:2]] == [0, 1]
    assert all((line["learner"], line["task"]) == ("learner", "low") for line in lines)
    assert 0 <= lines[-1]["accuracies"]["low"] <= 100
    harmful = ("--optimizer.lr", "0.1", "--epochs", "8", "--max_drift", "0.05")
    rolled_back = events_of("learn", "learner", "--name", "high", "--data", "high", *harmful, status=1)[-1]
    assert rolled_back["event"] == "rolled back"
    assert "expected no old task to lose more than 5 points" in rolled_back["reason"]
    assert list(events_of("learn", "learner", "--name", "high", "--data", "high")[-1]["drift"]) == ["low"]


@pytest.mark.parametrize("command", ["run", "compare", "ablate", "resume", "learn"])
def test_an_unknown_progress_format_is_refused(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, *([] if command in ("run", "compare", "ablate") else ["x"]), "--progress", "jsn"]) == 2
    assert capsys.readouterr().err == "pah: unknown progress 'jsn'; did you mean 'json'?\n"


def test_a_program_may_read_line_by_line_and_stop(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "pah", "run", *TINY, "--epochs", "200", "--out", str(tmp_path / "run")]
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*words, "--progress", "json"], env=env, **pipes)
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["event"] == "epoch", "it is written during the training"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert all(json.loads(line)["event"] in ("epoch", "task") for line in out.splitlines())
    assert err.count("\n") == 1
