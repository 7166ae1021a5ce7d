"""An interrupted and resumed run equals an uninterrupted one, bit for bit; its folder is locked during the run."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from conftest import (
    EVENTS_PER_TASK,
    ONLY_AT_TASK_ENDS,
    TINY,
    DeathError,
    assert_same_run,
    contents,
    log,
    processes,
    results,
    run_until_death,
    tiny,
)
from pah.cli import main
from pah.methods import METHODS
from pah.runs.results import save_model
from pah.runs.run import resume_run, start_run
from pah.training import checkpoint
from pah.training.config import RunConfig, build_method

Uninterrupted = Callable[[RunConfig], Path]

KINDS = {
    **{name: ("--method", name) for name in METHODS},
    "snapshots": ("--snapshots", "true"),
    "shared optimizer": ("--method.prototype_optimizer", "shared"),
    "sgd": ("--optimizer.name", "sgd", "--optimizer.lr", "0.05", "--training.schedule", "constant"),
    "finetune with sgd": ("--method", "finetune", "--optimizer.name", "sgd", "--optimizer.lr", "0.05"),
    "flattened": ("--method.conditioning", "flatten"),
    "uneven tasks": ("--method.conditioning", "classwise", "--classes", "7"),
    "published choices": (
        *("--method.prototype_channels", "1", "--method.prototype_start", "random", "--method.over_tasks", "sum"),
        *("--method.direction", "student||teacher", "--method.teacher_batch_norm", "batch"),
        *("--training.test_batch_norm", "batch"),
    ),
    "augmented, validated": (
        *("--augment.crop", "1", "--augment.flip", "true", "--method.prototype_start", "mean"),
        *("--stream.validation", "0.2", "--training.evaluate_on", "validation"),
    ),
    **{
        f"best epoch kept, {name}": (
            *("--method", name, "--stream.validation", "0.2", "--training.keep_best", "true"),
            *("--optimizer.lr", "0.02", "--training.schedule", "constant"),
        )
        for name in ("pah", "si", "der++")
    },
    "a sample of old tasks": ("--method.old_tasks_per_step", "1", "--method.aligned_tasks_per_step", "1"),
    "residual network": ("--backbone", "resnet18-slim", "--epochs", "1"),
}


@pytest.mark.parametrize("checkpoint_seconds", [0, ONLY_AT_TASK_ENDS], ids=["saved every step", "saved at task ends"])
@pytest.mark.parametrize(
    "events",
    [
        pytest.param(1, id="task begun"),
        pytest.param(2, id="first step"),
        pytest.param(4, id="inside an epoch"),
        pytest.param(6, id="last step of an epoch"),
        pytest.param(7, id="between epochs"),
        pytest.param(EVENTS_PER_TASK - 1, id="last epoch of a task over"),
        pytest.param(EVENTS_PER_TASK, id="between tasks"),
        pytest.param(EVENTS_PER_TASK + 1, id="second task begun"),
        pytest.param(EVENTS_PER_TASK + 2, id="first step of the second task"),
        pytest.param(2 * EVENTS_PER_TASK + 8, id="inside the last task"),
        pytest.param(3 * EVENTS_PER_TASK, id="all tasks learned, no results written"),
    ],
)
def test_a_run_that_dies_anywhere_resumes_to_the_same_numbers(
    events: int, checkpoint_seconds: float, tmp_path: Path, uninterrupted: Uninterrupted
) -> None:
    config = tiny()
    run_until_death(config, tmp_path / "run", events, checkpoint_seconds)
    resume_run(config, tmp_path / "run")
    assert_same_run(tmp_path / "run", uninterrupted(config))


EVENTS_PER_TASK_OF = {"uneven tasks": 1 + 2 * (7 + 1) + 1, "residual network": 1 + 5 + 1 + 1}  # where unusual


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_run_survives_two_deaths(kind: str, tmp_path: Path, uninterrupted: Uninterrupted) -> None:
    config = tiny(*KINDS[kind])
    events = EVENTS_PER_TASK_OF.get(kind, EVENTS_PER_TASK)
    run_until_death(config, tmp_path / "run", events + 3, checkpoint_seconds=0)  # inside the second task
    run_until_death(config, tmp_path / "run", events, ONLY_AT_TASK_ENDS, run=resume_run)  # inside the third
    resume_run(config, tmp_path / "run")
    assert_same_run(tmp_path / "run", uninterrupted(config))


PATIENT = (  # the first task has its 6 epochs, the others stop before
    *("--stream.validation", "0.3", "--training.patience", "1", "--training.keep_best", "true", "--epochs", "6"),
    *("--optimizer.lr", "0.02", "--training.schedule", "constant", "--method", "finetune"),
)


def validations(folder: Path) -> list[tuple[float, int]]:
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [(line["validation_accuracy"], line["best_epoch"]) for line in lines]


def test_early_stopping_and_the_best_epoch_survive_a_death_at_every_event(
    tmp_path: Path, uninterrupted: Uninterrupted
) -> None:
    config = tiny(*PATIENT)
    reference = uninterrupted(config)
    metrics = results(reference)
    lines = [(task, epoch) for task, epoch, *_ in log(reference)]
    assert metrics["epochs_trained"] == [sum(task == k for task, _ in lines) for k in range(3)]
    assert min(metrics["epochs_trained"]) < 6
    for k, best in enumerate(metrics["best_epochs"]):
        accuracies = [a for (task, _), (a, _) in zip(lines, validations(reference), strict=True) if task == k]
        assert accuracies.index(max(accuracies)) == best
        assert metrics["epochs_trained"][k] in (6, best + 2)
    events = len(lines) * 5 + 6  # each epoch has four steps and its end
    for count, seconds in [(5, 0), (6, 0), (11, 0), (11, ONLY_AT_TASK_ENDS), (events // 2, 0), (events - 1, 0)]:
        folder = tmp_path / f"{count} {seconds}"
        run_until_death(config, folder, count, seconds)
        resume_run(config, folder)
        assert_same_run(folder, reference)
        assert validations(folder) == validations(reference)


@pytest.mark.parametrize("name", ["pah", "er"])
@pytest.mark.parametrize("finished", [True, False])
def test_a_run_goes_on_to_more_tasks_as_if_it_had_begun_with_them(
    finished: bool, name: str, tmp_path: Path, uninterrupted: Uninterrupted
) -> None:
    words, folder = (*TINY, "--method", name), tmp_path / "run"
    first = tiny("--method", name, "--stream.first", "1")
    if finished:
        start_run(first, folder)
        for stale in ("diagnosis.json", "report.html"):
            (folder / stale).touch()
    else:
        run_until_death(first, folder, 5, checkpoint_seconds=0)
    assert main(["resume", str(folder), "--first", "2"]) == 0
    assert_same_run(folder, uninterrupted(tiny("--method", name, "--stream.first", "2")))
    assert main(["run", *words, "--stream.first", "2", "--out", str(folder), "--resume_if_there"]) == 0  # as finished
    assert main(["resume", str(folder), "--stream.first", "3"]) == 0
    assert_same_run(folder, uninterrupted(tiny("--method", name, "--stream.first", "3")))


def test_a_run_that_dies_on_its_way_to_more_tasks_goes_on_to_them(tmp_path: Path, uninterrupted: Uninterrupted) -> None:
    config, folder = tiny("--stream.first", "3"), tmp_path / "run"
    start_run(tiny("--stream.first", "1"), folder)
    model = (folder / "model" / "learner.json").read_bytes()
    go_on = partial(resume_run, more_tasks=True)
    run_until_death(config, folder, EVENTS_PER_TASK + 1, ONLY_AT_TASK_ENDS, run=go_on)
    assert main(["report", str(folder)]) == 0
    assert (folder / "model" / "learner.json").read_bytes() == model  # until the run is finished again
    (folder / "report.html").unlink()
    shutil.rmtree(folder / "figures")
    assert main(["resume", str(folder)]) == 0
    assert_same_run(folder, uninterrupted(config))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--epochs", "9"), "resume: expected no training.epochs, got 9: a run keeps its epochs"),
        (("--first", "2"), "first: expected more than the run's 3 tasks, got 2"),
        (("--first", "4"), "stream.first: expected at most 3 tasks, got 4"),
    ],
)
def test_what_a_run_cannot_go_on_to_is_refused_in_one_line(
    words: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start_run(tiny("--stream.first", "3", "--epochs", "1"), tmp_path / "run")
    before = contents(tmp_path / "run")
    assert main(["resume", str(tmp_path / "run"), *words]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"pah: {message}")
    assert err.count("\n") == 1
    assert contents(tmp_path / "run") == before


def test_one_command_starts_a_run_resumes_it_and_prints_its_results(
    tmp_path: Path, uninterrupted: Uninterrupted, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    words = ["run", *TINY, "--out", str(folder), "--resume_if_there"]
    killed(*words, step=2)  # before the first checkpoint
    killed(*words, "--checkpoint_seconds", "0", step=16)
    assert main(words) == 0
    assert_same_run(folder, uninterrupted(tiny()))
    before = contents(folder)
    capsys.readouterr()
    assert main(words) == 0
    assert f"{results(folder)['average_accuracy']:.2f}" in capsys.readouterr().out
    assert main([*words, "--seed", "1"]) == 2
    assert "expected a folder without a run, got one that holds another run" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 2
    assert "resume_if_there: expected it or overwrite, got both" in capsys.readouterr().err
    assert contents(folder) == before


def test_after_a_death_between_log_and_checkpoint_the_log_has_every_epoch_once(
    tmp_path: Path, uninterrupted: Uninterrupted, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny()
    saves, save = itertools.count(1), checkpoint.save

    def die_at_the_seventh(*arguments: Any) -> None:
        if next(saves) == 7:  # the log has the first epoch's line, but no checkpoint follows
            raise DeathError
        save(*arguments)

    monkeypatch.setattr(checkpoint, "save", die_at_the_seventh)
    with pytest.raises(DeathError):
        start_run(config, tmp_path / "run", checkpoint_seconds=0)
    monkeypatch.undo()
    assert len(log(tmp_path / "run")) == 1
    resume_run(config, tmp_path / "run")
    assert_same_run(tmp_path / "run", uninterrupted(config))


@pytest.mark.parametrize(
    "incomplete", [b'{"task": 1, "ep', b"\0\0\0\0", b"\xff\xfe\n", b"12\n", b'{"task": "x", "epoch": 0}\n']
)
def test_an_incomplete_line_at_the_end_of_the_log_is_removed(
    incomplete: bytes, tmp_path: Path, uninterrupted: Uninterrupted
) -> None:
    config = tiny()
    run_until_death(config, tmp_path / "run", EVENTS_PER_TASK + 3, checkpoint_seconds=0)
    with (tmp_path / "run" / "log.jsonl").open("ab") as file:
        file.write(incomplete)
    resume_run(config, tmp_path / "run")
    assert_same_run(tmp_path / "run", uninterrupted(config))


def run_and_die(words: list[str], step: int | None, writing: tuple[str, int] | None) -> None:
    """Run a command that kills itself; the target of a child process.

    Args:
        words: The command line.
        step: The optimizer step before which the process is killed, counted from 1.
        writing: Name of a file and a number n; the process is killed with half of the file written for the n-th time.
    """
    torch.set_num_threads(1)
    steps, writes, replace = itertools.count(1), itertools.count(1), os.replace

    def before_step(*_: object) -> None:
        if next(steps) == step:
            os.kill(os.getpid(), signal.SIGKILL)

    def before_rename(new: Path, path: Path) -> None:
        if writing and Path(path).name == writing[0] and next(writes) == writing[1]:
            os.truncate(new, Path(new).stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        replace(new, path)

    register_optimizer_step_pre_hook(before_step)
    os.replace = before_rename  # type: ignore[assignment]
    sys.exit(main(words))


def killed(*words: str, step: int | None = None, writing: tuple[str, int] | None = None) -> None:
    """Run a command in a process that kills itself (see `run_and_die`)."""
    process = processes.Process(target=run_and_die, args=(list(words), step, writing))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    process.close()


@pytest.mark.parametrize(
    "death",
    [
        pytest.param({"step": 3}, id="inside the first epoch"),
        pytest.param({"step": 10 + 2 * 3}, id="inside a step of the second task, between its two optimizers"),
        pytest.param({"writing": ("state.safetensors", 1)}, id="in the first checkpoint"),
        pytest.param({"writing": ("state.safetensors", 2)}, id="in a later checkpoint"),
        pytest.param({"writing": ("0.safetensors", 1)}, id="in the initial prototypes of the first task"),
        pytest.param({"writing": ("1.safetensors", 2)}, id="in the prototypes after the second task"),
        pytest.param({"writing": ("model.safetensors", 1)}, id="in the model"),
        pytest.param({"writing": ("metrics.json", 1)}, id="in the metrics"),
    ],
)
def test_a_killed_process_resumes_to_the_same_numbers(
    death: dict[str, Any], tmp_path: Path, uninterrupted: Uninterrupted
) -> None:
    folder = tmp_path / "run"
    killed("run", *TINY, "--out", str(folder), **death)
    assert main(["resume", str(folder)]) == 0
    assert_same_run(folder, uninterrupted(tiny()))


def test_a_process_killed_twice_with_a_checkpoint_every_step_resumes_to_the_same_numbers(
    tmp_path: Path, uninterrupted: Uninterrupted
) -> None:
    folder = tmp_path / "run"
    killed("run", *TINY, "--out", str(folder), "--checkpoint_seconds", "0", writing=("state.safetensors", 15))
    killed("resume", str(folder), step=9)
    assert main(["resume", str(folder)]) == 0
    assert_same_run(folder, uninterrupted(tiny()))


def test_a_process_killed_while_writing_its_configuration_can_be_started_again(
    tmp_path: Path, uninterrupted: Uninterrupted, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    killed("run", *TINY, "--out", str(folder), writing=("config.yaml", 1))
    assert main(["resume", str(folder)]) == 2
    assert "found none" in capsys.readouterr().err
    assert main(["run", *TINY, "--out", str(folder)]) == 0
    assert_same_run(folder, uninterrupted(tiny()))


def test_ctrl_c_saves_the_state_and_prints_how_to_resume(tmp_path: Path, uninterrupted: Uninterrupted) -> None:
    words = (*TINY, "--epochs", "20", "--tasks", "2", "--classes", "4")
    folder = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "pah", "run", *words, "--out", str(folder)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    wait_for(folder / "log.jsonl", process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == f"pah: stopped, the state is saved; `pah resume {folder}` continues\n"
    task, epoch = (checkpoint.load(folder / "checkpoint")[1]["state"][key] for key in ("task", "epoch"))
    assert 0 < 20 * task + epoch == len(log(folder)) < 40
    assert main(["resume", str(folder)]) == 0
    assert_same_run(folder, uninterrupted(tiny(*words)))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_inside_a_step_stops_after_that_step(
    number: signal.Signals, tmp_path: Path, uninterrupted: Uninterrupted, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = itertools.count(1)
    hook = register_optimizer_step_pre_hook(lambda *_: signal.raise_signal(number) if next(steps) == 7 else None)
    status = main(["run", *TINY, "--out", str(tmp_path / "run")])
    hook.remove()
    assert status == 128 + number
    assert f"`pah resume {tmp_path / 'run'}` continues" in capsys.readouterr().err
    state = checkpoint.load(tmp_path / "run" / "checkpoint")[1]["state"]
    assert (state["task"], state["epoch"], state["step"]) == (0, 1, 2)
    assert main(["resume", str(tmp_path / "run")]) == 0
    assert_same_run(tmp_path / "run", uninterrupted(tiny()))


def wait_for(file: Path, process: "subprocess.Popen[str]") -> None:
    while not file.exists():
        assert process.poll() is None, "the process ended before training"
        time.sleep(0.01)


def test_ctrl_c_at_the_end_of_the_first_of_two_runs_stops_the_second(
    tmp_path: Path, uninterrupted: Uninterrupted, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*arguments: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        save_model(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr("pah.runs.run.save_model", interrupted)
        assert main(["run", *TINY, "--out", str(tmp_path / "run"), "--beside", "finetune"]) == 130
    assert f"`pah resume {tmp_path / 'run-finetune'}` continues" in capsys.readouterr().err
    assert main(["resume", str(tmp_path / "run-finetune")]) == 0
    assert_same_run(tmp_path / "run", uninterrupted(tiny()))
    assert_same_run(tmp_path / "run-finetune", uninterrupted(tiny("--method", "finetune")))


def run_and_hang(words: list[str], ready: Any) -> None:
    """Run a command that hangs before its third optimizer step; the target of a child process."""
    torch.set_num_threads(1)
    steps = itertools.count(1)

    def before_step(*_: object) -> None:
        if next(steps) == 3:
            ready.set()
            time.sleep(600)

    register_optimizer_step_pre_hook(before_step)
    main(words)


def test_a_folder_in_use_is_refused_until_its_process_is_killed(
    tmp_path: Path, uninterrupted: Uninterrupted, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    ready = processes.Event()
    words = ["run", *TINY, "--out", str(folder), "--checkpoint_seconds", "0"]
    process = processes.Process(target=run_and_hang, args=(words, ready))
    process.start()
    try:
        assert ready.wait(60)
        before = contents(folder)
        for second in (["resume", str(folder)], words, [*words, "--overwrite"]):
            assert main(second) == 2
            err = capsys.readouterr().err
            assert err == f"pah: {folder}: expected a free folder, got one in use by another process\n"
        assert contents(folder) == before
    finally:
        process.kill()
        process.join()
        process.close()
    assert main(["resume", str(folder)]) == 0
    assert_same_run(folder, uninterrupted(tiny()))


def test_the_same_command_and_seed_give_the_same_run(tmp_path: Path, uninterrupted: Uninterrupted) -> None:
    assert main(["run", *TINY, "--out", str(tmp_path / "run"), "--checkpoint_seconds", "0"]) == 0
    assert_same_run(tmp_path / "run", uninterrupted(tiny()))


def test_another_seed_changes_class_order_and_weights(uninterrupted: Uninterrupted) -> None:
    one, other = uninterrupted(tiny()), uninterrupted(tiny("--seed", "1"))
    assert results(one)["class_order"] != results(other)["class_order"]
    first, second = (build_method(tiny("--seed", seed), (1, 8, 8)).state_dict() for seed in "01")
    assert not torch.equal(first["network.backbone.body.0.weight"], second["network.backbone.body.0.weight"])


def test_resuming_a_finished_run_prints_its_results_and_changes_nothing(
    uninterrupted: Uninterrupted, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = uninterrupted(tiny())
    before, times = contents(folder), {path: path.stat().st_mtime_ns for path in folder.rglob("*.*")}
    assert main(["resume", str(folder)]) == 0
    assert f"{results(folder)['average_accuracy']:.2f}" in capsys.readouterr().out
    assert contents(folder) == before
    changed = [path.name for path, time_ns in times.items() if path.stat().st_mtime_ns != time_ns]
    assert changed in ([], [".lock"])
