"""Several processes that torchrun starts learn the same as one process."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import safetensors.torch
import torch

import distributed_worker
from conftest import TINY, log, tiny
from helpers import digits
from pah import AugmentOptions, InputError, TrainingOptions, TrainState, train
from pah.cli import main
from pah.core import distributed
from pah.core.config import generator
from pah.data.augment import augment, recolour
from pah.data.stream import training_batches
from pah.methods import METHODS
from pah.training import checkpoint

TESTS = Path(__file__).parents[1]
SHIFTED = AugmentOptions(crop=2, flip=True)


@contextmanager
def torchrun(processes: int, *words: str) -> Iterator["subprocess.Popen[str]"]:
    """Run `torchrun --nproc-per-node <processes> <words>`; terminate it at the end if it is still running."""
    process = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()  # it ends its workers
            process.communicate(timeout=60)


def error_lines(err: str) -> list[str]:
    """Return the lines on stderr that pah printed, not torchrun."""
    return [line for line in err.splitlines() if line.startswith("pah: ")]


def assert_same_as_one_process(kinds: list[str], processes: int, folder: Path) -> None:
    """Learn in this number of processes and in this one, and compare every number of every state.

    HAT multiplies the gradients of its gates by hundreds, and so the rounding errors too; its tolerance is larger.
    """
    with torchrun(processes, str(TESTS / "distributed_worker.py"), str(folder), *kinds) as process:
        expected = {kind: distributed_worker.train_kind(kind) for kind in kinds}
        out, err = process.communicate(timeout=600)
    assert process.returncode == 0, out + err
    for kind in kinds:
        loaded = safetensors.torch.load_file(folder / f"{kind}.safetensors")
        assert {*loaded} == {*expected[kind]}
        for key, tensor in expected[kind].items():
            tolerance = 1e-3 if kind == "hat" else 1e-4
            assert torch.allclose(loaded[key].double(), tensor.double(), rtol=1e-5, atol=tolerance), f"{kind}: {key}"


def test_two_processes_learn_the_same_as_one(tmp_path: Path) -> None:
    assert_same_as_one_process(["pah", "pah-plain", "der++"], 2, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_every_method_learns_the_same_in_several_processes(processes: int, tmp_path: Path) -> None:
    plain = [f"{name}-plain" for name in METHODS if name not in ("hat", "hn2", "pnn")]  # these need batch norm
    assert_same_as_one_process([*METHODS, *plain], processes, tmp_path)


@pytest.mark.parametrize("processes", [2, 3, 4])
def test_slices_of_a_batch_form_the_whole_batch(processes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = digits(2, classes=4).tasks[:1]
    whole = list(training_batches(tasks, 29, SHIFTED, seed=0, epoch=1))
    monkeypatch.setattr(distributed, "world_size", lambda: processes)
    parts = []
    for index in range(processes):
        monkeypatch.setattr(distributed, "rank", lambda index=index: index)
        parts.append(list(training_batches(tasks, 29, SHIFTED, seed=0, epoch=1)))
    assert any(len(batch.y) % processes for batch in whole), "no slices of unequal size"
    for batch, *slices in zip(whole, *parts, strict=True):
        for name in ("x", "y", "tasks", "pixels"):
            concatenated = torch.cat([getattr(part, name) for part in slices])
            assert torch.equal(concatenated, getattr(batch, name))
        assert {part.global_size for part in slices} == {batch.global_size} == {len(batch.y)}


def test_augmenting_a_slice_equals_the_slice_of_the_augmented_batch() -> None:
    pixels = torch.randint(256, (9, 3, 6, 5), dtype=torch.uint8)
    whole = augment(pixels, SHIFTED, generator(0, "augment"))
    assert torch.equal(augment(pixels[4:7], SHIFTED, generator(0, "augment"), 4, 9), whole[4:7])
    x = torch.randn(9, 3, 6, 5)
    copies = recolour(x, generator(0, "copies"))
    assert torch.equal(recolour(x[4:7], generator(0, "copies"), 4, 9), copies[4:7])


def test_a_batch_with_too_few_images_for_all_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 4)
    options = TrainingOptions(batch_size=7)
    with pytest.raises(InputError, match=r"at least 2 images for each of 4 processes in every batch, got a batch of 6"):
        next(
            iter(
                train(
                    distributed_worker.untrained_method("pah"), digits(2, classes=4), options, SHIFTED, 0, TrainState()
                )
            )
        )


@pytest.mark.parametrize("words", [("compare",), ("learn", "animals"), ("data",)])
def test_commands_for_one_process_are_refused_under_torchrun(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(distributed, "is_distributed", lambda: True)
    first = iter([True, False])
    monkeypatch.setattr(distributed, "claim_error_report", lambda: next(first))
    for _ in range(2):
        assert main([*words]) == 2
    expected = f"pah: {words[0]}: expected one process, got several; torchrun is for pah run and pah resume\n"
    assert capsys.readouterr().err == expected


def test_a_killed_process_ends_the_run_and_one_process_can_resume_it(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = ("run", *TINY, "--epochs", "40", "--out", str(folder), "--checkpoint_seconds", "0")
    with torchrun(2, "-m", "pah", *words) as process:
        wait_for(folder / "checkpoint" / checkpoint.FILE, process)
        os.kill(worker(process, 1), signal.SIGKILL)
        killed = time.monotonic()
        out, err = process.communicate(timeout=60)
    assert time.monotonic() - killed < 30
    assert process.returncode == 1
    assert error_lines(err) == [
        f"pah: {folder}: expected an answer from every process of this run, but one has ended; "
        f"`pah resume {folder}` continues from the last checkpoint, with any number of them"
    ]
    epochs = [line for line in out.splitlines() if "epoch" in line]
    assert len(epochs) == len({*epochs}), "printed by both processes"
    assert checkpoint.load(folder / "checkpoint")[1]["state"]["task"] < 2, "killed too late"
    assert main(["resume", str(folder)]) == 0
    assert len(log(folder)) == 3 * 40


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_resumes_with_any_number_of_processes(number: signal.Signals, tmp_path: Path) -> None:
    words = ("run", *TINY, "--epochs", "30", "--sync-batchnorm")
    assert main([*words, "--out", str(tmp_path / "alone")]) == 0
    folder = tmp_path / "run"
    stopped = [f"pah: stopped, the state is saved; `pah resume {folder}` continues"]
    for processes, *command in ((2, *words, "--out", str(folder)), (4, "resume", str(folder))):
        done = len(log(folder)) if folder.exists() else 0
        with torchrun(processes, "-m", "pah", *command) as process:
            wait_for(folder / "log.jsonl", process, lines=done + 3)
            process.send_signal(number)
            assert error_lines(process.communicate(timeout=60)[1])[-1:] == stopped
        assert done < len(log(folder)) < 90
    assert main(["resume", str(folder)]) == 0
    metrics, alone = (json.loads((f / "metrics.json").read_text()) for f in (folder, tmp_path / "alone"))
    assert len(log(folder)) == 90
    assert metrics["processes"] == 1  # the number that finished the run
    assert abs(metrics["average_accuracy"] - alone["average_accuracy"]) < 3  # one image is 0.5 points


@pytest.mark.slow
def test_one_command_starts_and_restarts_a_run_of_several_processes(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = ("run", *TINY, "--epochs", "10", "--out", str(folder), "--resume_if_there", "--checkpoint_seconds", "0")
    with torchrun(2, "-m", "pah", *words) as process:
        wait_for(folder / "log.jsonl", process, lines=3)
        os.kill(worker(process, 1), signal.SIGKILL)
        process.communicate(timeout=60)
    for finished in (False, True):
        assert (folder / "metrics.json").exists() == finished
        with torchrun(2, "-m", "pah", *words) as process:
            out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        assert error_lines(err) == []
        assert out.count(f"pah: results in {folder}") == 1
    assert len(log(folder)) == 30
    metrics = json.loads((folder / "metrics.json").read_text())
    assert [part["processes"] for part in metrics["parts"]] == [2]


def wait_for(file: Path, process: "subprocess.Popen[str]", lines: int = 0) -> None:
    while not file.exists() or len(file.read_bytes().splitlines()) < lines:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def worker(launcher: "subprocess.Popen[str]", rank: int) -> int:
    """Return the process id of the launcher's worker of that rank."""
    for children in Path(f"/proc/{launcher.pid}/task").glob("*/children"):
        for child in children.read_text().split():
            if f"RANK={rank}" in Path(f"/proc/{child}/environ").read_text().split("\0"):
                return int(child)
    raise AssertionError("no such worker")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), False),
        (("--sync-batchnorm",), True),
        (("--sync-batchnorm", "--seed", "1"), True),
        (("--sync_batchnorm=false",), False),
    ],
)
def test_sync_batchnorm_is_a_switch(words: tuple[str, ...], expected: bool) -> None:
    assert tiny(*words).training.sync_batch_norm == expected
