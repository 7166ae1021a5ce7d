"""`pah compare`: the grid starts new runs and resumes interrupted ones; the table agrees with the runs."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from conftest import TINY, assert_same_run, contents
from pah.cli import main, options
from pah.cli.grid_display import GridDisplay
from pah.core import files
from pah.core.config import NonFiniteLossError
from pah.core.files import locked
from pah.methods.bounds import Finetune
from pah.methods.pah_options import PAHOptions
from pah.methods.regularization import LwFOptions
from pah.runs.progress import StoppedError
from pah.runs.results import read_predictions
from pah.study import grid, tuning
from pah.study.comparison import prepare, tune_options, write_summary
from pah.study.grid import Cell, Outcome, Waiting, run_cells
from pah.training.config import RunConfig
from pah.training.metrics import summary

WORDS = ("split-digits", *TINY, "--epochs", "1")
GRID = ("--methods", "pah,finetune,er", "--seeds", "0,1")


def compare(folder: Path, *words: str) -> int:
    return main(["compare", *WORDS, "--out", str(folder), *words])


def metrics(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = files.read_json(folder / "metrics.json")
    return found


def never() -> bool:
    return False


def unseen(*_: object) -> None:
    return None


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished study of three methods and two seeds; tests must not change it."""
    folder = tmp_path_factory.mktemp("study") / "digits"
    assert compare(folder, *GRID) == 0
    return folder


def test_the_summary_agrees_with_the_runs(study: Path) -> None:
    summary = json.loads((study / "comparison.json").read_text())
    assert list(summary["methods"]) == ["pah", "finetune", "er"]
    for method, entry in summary["methods"].items():
        runs = [metrics(study / f"{method}-seed{seed}") for seed in (0, 1)]
        accuracies = [run["average_accuracy"] for run in runs]
        assert entry["n"] == 2
        assert entry["average_accuracy"]["mean"] == pytest.approx(sum(accuracies) / 2)
        assert entry["stored_samples"] == (200 if method == "er" else 0)
    pah = summary["methods"]["pah"]["average_accuracy"]["mean"]
    for method in ("finetune", "er"):
        entry = summary["methods"][method]
        interval = entry["minus_reference"]
        assert interval["difference"] == pytest.approx(entry["average_accuracy"]["mean"] - pah)
        assert interval["low"] <= interval["difference"] <= interval["high"]
    assert summary["missing"] == []
    table = (study / "comparison.md").read_text()
    assert all(f"| {method} | 2 |" in table for method in ("pah", "finetune", "er"))
    assert (study / "comparison.svg").read_text().startswith("<?xml")
    assert (study / "comparison.png").read_bytes().startswith(b"\x89PNG")


def test_predictions_agree_with_the_accuracies(study: Path) -> None:
    for folder in study.glob("*-seed*"):
        found = metrics(folder)
        answers = read_predictions(folder / "predictions.safetensors")
        given = [100 * (task.task_given == task.labels).double().mean().item() for task in answers]
        assert given == pytest.approx(found["accuracy_matrix"][-1])
        right = [task.task_not_given == task.labels + 2 * k for k, task in enumerate(answers)]
        share = 100 * sum(int(r.sum()) for r in right) / sum(len(r) for r in right)
        assert share == pytest.approx(found["class_incremental_accuracy"])


def test_methods_share_all_options_except_their_own(study: Path) -> None:
    configs = [yaml.safe_load((folder / "config.yaml").read_text()) for folder in study.glob("*-seed0")]
    shared = [{key: value for key, value in config.items() if key != "method"} for config in configs]
    assert len(shared) == 3
    assert all(config == shared[0] for config in shared)


def test_finished_runs_are_not_repeated_when_a_study_is_extended(tmp_path: Path) -> None:
    assert compare(tmp_path / "s", "--methods", "finetune", "--seeds", "0") == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "s" / "finetune-seed0").rglob("*")}
    assert compare(tmp_path / "s", "--methods", "finetune,pah", "--seeds", "0,1") == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "s" / "finetune-seed0").rglob("*")} == before
    assert len(list((tmp_path / "s").glob("*-seed*/metrics.json"))) == 4
    assert compare(tmp_path / "s", "--methods", "pah", "--seeds", "0") == 0  # and the table keeps what the folder holds
    summary = json.loads((tmp_path / "s" / "comparison.json").read_text())
    assert {name: entry["n"] for name, entry in summary["methods"].items()} == {"pah": 2, "finetune": 2}


@pytest.mark.parametrize("steps", [1, 8, 40])
def test_a_study_that_is_stopped_and_continued_equals_an_uninterrupted_one(
    steps: int, study: Path, tmp_path: Path
) -> None:
    request = options.compare_request([*WORDS, *GRID, "--out", str(tmp_path / "s")])
    prepare(request.comparison)
    cells, asked = request.comparison.cells(request.comparison.configs), 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked > steps

    with pytest.raises(StoppedError):
        run_cells(cells, unseen, stop, 180.0)
    assert compare(tmp_path / "s", *GRID) == 0
    for folder in study.glob("*-seed*"):
        assert_same_run(tmp_path / "s" / folder.name, folder)
        same = (path / "predictions.safetensors" for path in (tmp_path / "s" / folder.name, folder))
        assert next(same).read_bytes() == next(same).read_bytes()


def test_ctrl_c_stops_a_study_and_the_same_command_continues(study: Path, tmp_path: Path) -> None:
    words = [*WORDS, *GRID, "--out", str(tmp_path / "s")]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": env}
    process = subprocess.Popen([sys.executable, "-m", "pah", "compare", *words], **pipes)
    assert process.stdout is not None
    while "started" not in (line := process.stdout.readline()):
        assert line, "it ended too early"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[1] == "pah: stopped, the state is saved; the same command continues\n"
    assert process.returncode == 130
    assert main(["compare", *words]) == 0
    for folder in study.glob("*-seed*"):
        assert_same_run(tmp_path / "s" / folder.name, folder)


def test_two_processes_share_a_grid_and_train_each_cell_once(study: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "pah", "compare", *WORDS, *GRID, "--out", str(tmp_path / "s")]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=env) for _ in range(2)]
    said = [process.communicate(timeout=300)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    names = sorted(name for text in said for name in re.findall(r"(\S+)  started", text))
    assert names == sorted(folder.name for folder in study.glob("*-seed*"))
    for folder in study.glob("*-seed*"):
        assert_same_run(tmp_path / "s" / folder.name, folder)
    mine, theirs = (json.loads((path / "comparison.json").read_text())["methods"] for path in (tmp_path / "s", study))
    assert [entry["average_accuracy"] for entry in mine.values()] == [e["average_accuracy"] for e in theirs.values()]


def test_a_cell_of_another_process_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid, "POLL_SECONDS", 0.05)
    cell = Cell(options.run_request([*TINY, "--epochs", "1"]).config, tmp_path / "pah-seed0")
    seen: list[object] = []
    with locked(cell.folder):
        thread = threading.Thread(
            target=lambda: seen.extend(run_cells([cell], lambda _, e: seen.append(e), never, 1e9))
        )
        thread.start()
        while not seen:
            pass
        assert isinstance(seen[0], Waiting)
    thread.join()
    assert isinstance(seen[-1], Outcome)
    assert seen[-1].metrics == metrics(cell.folder)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("out of luck\nand more"), "RuntimeError: out of luck"),
        (NonFiniteLossError("L_hm", math.nan), "loss term L_hm became nan in task 1"),
    ],
)
def test_a_failed_cell_is_reported_and_the_others_run(
    error: Exception,
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def broken(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(Finetune, "observe", broken)
        assert compare(tmp_path / "s", "--methods", "finetune,pah", "--seeds", "0") == 1
    captured = capsys.readouterr()
    assert "pah-seed0  done" in captured.out
    assert captured.err.startswith(f"pah: finetune-seed0 failed: {reason}")
    assert captured.err.count("\n") == 1
    summary = json.loads((tmp_path / "s" / "comparison.json").read_text())
    assert [(cell["method"], cell["seed"]) for cell in summary["missing"]] == [("finetune", 0)]
    assert reason in (tmp_path / "s" / "comparison.md").read_text()
    details = tmp_path / "s" / "finetune-seed0" / "error.txt"
    assert details.exists() == isinstance(error, RuntimeError)
    assert not details.exists() or "Traceback" in details.read_text()
    assert compare(tmp_path / "s", "--methods", "finetune,pah", "--seeds", "0") == 0
    assert not details.exists()
    assert json.loads((tmp_path / "s" / "comparison.json").read_text())["missing"] == []


def config(*words: str) -> RunConfig:
    return options.run_request([*TINY, *words]).config


@pytest.mark.parametrize("count", [1, 3, 99])
def test_trials_begin_with_the_options_as_given_and_are_seeded(count: int) -> None:
    found = tuning.trials(config("--method", "der++", "--method.alpha", "0.7"), count)
    assert found[0].alpha == 0.7  # type: ignore[attr-defined]
    assert len(found) == len(set(found)) == min(count, 7)  # 3 x 2 combinations and the one as given
    assert found == tuning.trials(config("--method", "der++", "--method.alpha", "0.7"), count)
    assert len(tuning.trials(config("--method", "finetune"), 5)) == 1


def test_a_trial_learns_three_tasks_and_uses_no_test_image() -> None:
    trial = tuning.trial_config(config("--tasks", "5", "--classes", "10"), PAHOptions())
    assert trial.training.evaluate_on == "validation"
    assert trial.stream.validation == 0.1
    assert trial.stream.first == 3
    assert tuning.trial_config(config("--tasks", "2"), PAHOptions()).stream.first == 2


def test_the_best_trial_on_validation_data_is_chosen_and_used(tmp_path: Path) -> None:
    words = ("--methods", "pah,lwf,finetune", "--seeds", "1", "--tune", "2")
    assert compare(tmp_path / "s", *words) == 0
    log = json.loads((tmp_path / "s" / "tuning" / "tuning.json").read_text())
    assert set(log["methods"]) == {"pah", "lwf"}
    for method, trials in log["methods"].items():
        assert len(trials) == 2
        best = max(trials, key=lambda trial: trial["expected"])
        assert [trial["chosen"] for trial in trials] == [trial is best for trial in trials]
        used = yaml.safe_load((tmp_path / "s" / f"{method}-seed1" / "config.yaml").read_text())
        assert used["method"]["stability"] == best["options"]["stability"]
        assert used["training"]["evaluate_on"] == "test"
        for i, trial in enumerate(trials):
            found = metrics(tmp_path / "s" / "tuning" / f"{method}-trial{i}")
            assert found["evaluated_on"] == "validation"
            assert found["average_accuracy"] == trial["average_accuracy"]
    before = contents(tmp_path / "s", ignore=(".lock", "comparison.svg", "comparison.png"))
    assert compare(tmp_path / "s", *words) == 0  # nothing is trained twice
    assert contents(tmp_path / "s", ignore=(".lock", "comparison.svg", "comparison.png")) == before


def trial(stability: float, rows: list[list[float]]) -> Outcome:
    """Return a finished trial of LwF with this accuracy matrix."""
    cell = Cell(RunConfig(method="lwf", method_options=LwFOptions(stability=stability)), Path("x"))
    return Outcome(cell, {"accuracy_matrix": rows, **summary(rows)})


def test_the_trial_with_the_highest_expected_final_accuracy_is_chosen() -> None:
    plastic = trial(1, [[80.0], [76.0, 80.0], [72.0, 76.0, 80.0]])  # each task costs the old ones 4 points
    stable = trial(2, [[76.0], [75.0, 76.0], [74.0, 75.0, 76.0]])  # 1 point
    again = trial(3, [[76.0], [75.0, 76.0], [74.0, 75.0, 76.0]])
    # after ten tasks, each old one is followed by 4.5 others on average
    assert tuning.expected_accuracy(plastic.metrics or {}, 10) == pytest.approx(80 - 4 * 4.5)
    assert tuning.expected_accuracy(stable.metrics or {}, 10) == pytest.approx(76 - 1 * 4.5)
    assert tuning.expected_accuracy(plastic.metrics or {}, 3) == pytest.approx(76)  # as it is
    assert tuning.best_options([plastic, stable, again], 3) == LwFOptions(stability=1)
    assert tuning.best_options([plastic, stable, again], 10) == LwFOptions(stability=2)
    failed = Outcome(plastic.cell, None)
    assert tuning.best_options([failed, stable], 3) == LwFOptions(stability=2)
    assert tuning.best_options([failed], 3) is None


def test_seeds_none_runs_only_the_tuning(tmp_path: Path) -> None:
    assert compare(tmp_path / "s", "--methods", "lwf", "--seeds", "none", "--tune", "2") == 0
    assert (tmp_path / "s" / "tuning" / "tuning.json").is_file()
    assert not list((tmp_path / "s").glob("*-seed*"))


def test_a_method_whose_trials_failed_keeps_its_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = options.compare_request([*WORDS, "--methods", "pah", "--tune", "2", "--out", str(tmp_path / "s")])

    def broken(*_: object) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr("pah.runs.run.train", broken)
    assert tune_options(request.comparison, unseen, never, 180.0) == request.comparison.configs
    log = json.loads((tmp_path / "s" / "tuning" / "tuning.json").read_text())
    assert [trial["failed"].startswith("RuntimeError: no") for trial in log["methods"]["pah"]] == [True, True]


def test_options_of_one_method_and_the_buffer_reach_the_right_methods() -> None:
    words = ("--methods", "pah,lwf,er,der++", "--buffer", "77", "--lwf.stability", "9", "--der++.alpha=0.5")
    pah, lwf, er, derpp = options.compare_request([*WORDS, *words]).comparison.configs
    assert pah == options.run_request(WORDS).config
    assert lwf.method_options.stability == 9  # type: ignore[attr-defined]
    assert [o.method_options.buffer for o in (er, derpp)] == [77, 77]  # type: ignore[attr-defined]
    assert derpp.method_options.alpha == 0.5  # type: ignore[attr-defined]


def test_the_live_view_shows_the_grid(tmp_path: Path) -> None:
    run = config("--epochs", "1")
    cells = [Cell(run, tmp_path / f"{method}-seed{seed}") for method in ("pah", "lwf") for seed in (0, 1)]
    console = Console(force_terminal=True, width=100, record=True)
    with GridDisplay(console, cells, "runs") as watch:
        run_cells(cells[:1], watch, never, 1e9)
        watch(cells[1], Outcome(cells[1], None, "it broke"))
        watch(cells[2], Waiting())
        console.print(watch.table())
    text = console.export_text()
    for part in ("pah", "lwf", "seed0", "seed1", "AA ", "failed", "in another process", "waiting"):
        assert part in text
    assert re.search(r"1/4 runs done, 1 failed, about \d+ s left", text)


Refused = Callable[..., str]


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Return a function that expects a command to fail with status 2 and no changed file; it returns the error line."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> str:
        capsys.readouterr()
        before = contents(tmp_path)
        assert main(["compare", *words]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert contents(tmp_path) == before
        return err

    return run


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("--methods", "pah,lwff"), ("method 'lwff'", "'lwf'")),
        (("--methods", ","), ("methods: expected at least one",)),
        (("--methods", "pah,pah"), ("methods: expected each once", "pah,pah")),
        (("--seeds", "0,1,0"), ("seeds: expected each once, got '0,1,0'",)),
        (("--seeds", "0,x"), ("seeds: expected whole numbers", "'0,x'")),
        (("--seeds", ""), ("seeds",)),
        (("--methods", "pah,lwf", "--buffer", "100"), ("buffer: expected a method with a buffer", "pah, lwf")),
        (("--methods", "er", "--buffer", "9"), ("method.buffer: expected at least", "10 classes", "got 9")),
        (("--methods", "er", "--buffer", "0"), ("method.buffer: expected at least 1", "got 0")),
        (("--methods", "pah", "--lwf.stability", "1"), ("lwf: expected options of a method that is compared",)),
        (("--methods", "lwf", "--lwf.stablity", "1"), ("option 'method.stablity'", "'method.stability'")),
        (("--methods", "pah,lwf", "--method.stability", "1"), ("expected --<method>.<option>",)),
        (("--method", "pah"), ("--method.name: expected --<method>.<option>",)),
        (("--tune", "-1"), ("tune: expected at least 0, got -1",)),
        (("--seed", "1"), ("option 'seed'", "'seeds'")),
        (("--stream.tasks", "7"), ("stream.tasks",)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) and value and value[0].startswith("--") else "",
)
def test_invalid_arguments_are_refused(words: tuple[str, ...], parts: tuple[str, ...], refused: Refused) -> None:
    line = refused("split-digits", *words)
    assert all(part in line for part in parts), line


def test_a_buffer_for_a_run_of_a_method_without_one_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--method", "lwf", "--buffer", "100"]) == 2
    assert (
        "method.buffer: expected a method with a buffer (er, agem, der, der++, gcr), got lwf" in capsys.readouterr().err
    )


def test_the_folder_of_another_study_is_refused(study: Path, tmp_path: Path, refused: Refused) -> None:
    line = refused(*WORDS, *GRID, "--epochs", "2", "--out", str(study))
    assert f"{study}/pah-seed0: expected this study's run, got another: training.epochs is 1, not 2" in line
    line = refused(*WORDS, "--methods", "lwf", "--epochs", "2", "--out", str(study))
    assert f"{study}: expected a folder of this study, got another's: training.epochs is 1, not 2" in line
    line = refused(*WORDS, *GRID, "--pah.stability", "4", "--out", str(study))
    assert "pah-seed0: expected this study's run, got another: method.stability is" in line
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "note.txt").write_text("mine")
    assert "expected a study's folder or an empty one" in refused(*WORDS, "--out", "other")


def test_a_study_written_before_an_option_existed_continues(study: Path, tmp_path: Path, refused: Refused) -> None:
    study = shutil.copytree(study, tmp_path / "s")
    for name in ("study.yaml", "pah-seed0/config.yaml"):
        written = yaml.safe_load((study / name).read_text())
        del written["training"]["schedule"]
        (study / name).write_text(yaml.safe_dump(written))
    assert compare(study, *GRID) == 0
    line = refused(*WORDS, *GRID, "--training.schedule", "constant", "--out", str(study))
    assert "training.schedule is one-cycle, not constant" in line
    (study / "study.yaml").write_text("- 1\n")
    assert "study.yaml: expected options by name, got list" in refused(*WORDS, "--methods", "si", "--out", str(study))


def test_without_matplotlib_nothing_is_trained(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "pip install -e '.[report]'" in refused(*WORDS, *GRID)


def test_a_folder_without_finished_runs_has_no_table(study: Path, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="expected at least one finished run"):
        write_summary(tmp_path, [])


def test_method_options_in_a_file_apply_to_that_method_only(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    content = {
        "method": {"name": "pah", "stability": 0.25, "hidden": [8]},
        "training": {"epochs": 3, "flip_test": True},
    }
    file.write_text(yaml.safe_dump({"benchmark": "split-digits", "data": None, **content}))
    words = ["--config", str(file), "--methods", "lwf,pah,finetune", "--lwf.stability", "7"]
    configs = options.compare_request(words).comparison.configs
    assert [config.method for config in configs] == ["lwf", "pah", "finetune"]
    assert [getattr(config.method_options, "stability", None) for config in configs] == [7, 0.25, None]
    assert getattr(configs[1].method_options, "hidden", None) == (8,)
    assert {(config.training.epochs, config.training.flip_test) for config in configs} == {(3, True)}
