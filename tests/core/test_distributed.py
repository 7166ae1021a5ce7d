"""Several processes, started by torchrun as users start them, learn what one process learns."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import together
from conftest import TINY, log, tiny
from helpers import digits
from pah import AugmentOptions, InputError, TrainingOptions, TrainState, train
from pah.cli import main
from pah.core import distributed
from pah.core.config import generator
from pah.data.augment import augment, recoloured
from pah.data.stream import training_batches
from pah.methods import METHODS
from pah.training import checkpoint

TESTS = Path(__file__).parents[1]
SHIFTED = AugmentOptions(crop=2, flip=True)


@contextmanager
def torchrun(processes: int, *words: str) -> Iterator["subprocess.Popen[str]"]:
    """`torchrun --nproc-per-node <processes> <words>`; stopped at the end, if it still runs."""
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


def said(err: str) -> list[str]:
    """What pah, and not torchrun, said on stderr."""
    return [line for line in err.splitlines() if line.startswith("pah: ")]


def compare(kinds: list[str], processes: int, folder: Path) -> None:
    """Learn in so many processes and in this one; every number of every state is nearly the same.

    HAT multiplies the gradients of its gates by hundreds, and with them what was rounded off.
    """
    with torchrun(processes, str(TESTS / "together.py"), str(folder), *kinds) as process:
        expected = {kind: together.after(kind) for kind in kinds}
        out, err = process.communicate(timeout=600)
    assert process.returncode == 0, out + err
    for kind in kinds:
        found = safetensors.torch.load_file(folder / f"{kind}.safetensors")
        assert {*found} == {*expected[kind]}
        for key, tensor in expected[kind].items():
            most = 1e-3 if kind == "hat" else 1e-4
            assert torch.allclose(found[key].double(), tensor.double(), rtol=1e-5, atol=most), f"{kind}: {key}"


def test_two_processes_learn_what_one_learns(tmp_path: Path) -> None:
    compare(["pah", "pah-plain", "der++"], 2, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_every_method_learns_the_same_in_several_processes(processes: int, tmp_path: Path) -> None:
    plain = [f"{name}-plain" for name in METHODS if name not in ("hat", "hn2", "pnn")]  # which need batch norm
    compare([*METHODS, *plain], processes, tmp_path)


@pytest.mark.parametrize("processes", [2, 3, 4])
def test_slices_of_a_batch_are_the_batch(processes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = digits(2, classes=4).tasks[:1]
    whole = list(training_batches(tasks, 29, SHIFTED, seed=0, epoch=1))
    monkeypatch.setattr(distributed, "count", lambda: processes)
    parts = []
    for index in range(processes):
        monkeypatch.setattr(distributed, "index", lambda index=index: index)
        parts.append(list(training_batches(tasks, 29, SHIFTED, seed=0, epoch=1)))
    assert any(len(batch.y) % processes for batch in whole), "no slices of unequal size"
    for batch, *slices in zip(whole, *parts, strict=True):
        for name in ("x", "y", "tasks", "pixels"):
            joined = torch.cat([getattr(part, name) for part in slices])
            assert torch.equal(joined, getattr(batch, name))
        assert {part.images for part in slices} == {batch.images} == {len(batch.y)}


def test_changing_a_slice_is_the_slice_of_what_is_changed() -> None:
    pixels = torch.randint(256, (9, 3, 6, 5), dtype=torch.uint8)
    whole = augment(pixels, SHIFTED, generator(0, "augment"))
    assert torch.equal(augment(pixels[4:7], SHIFTED, generator(0, "augment"), 4, 9), whole[4:7])
    x = torch.randn(9, 3, 6, 5)
    copies = recoloured(x, generator(0, "copies"))
    assert torch.equal(recoloured(x[4:7], generator(0, "copies"), 4, 9), copies[4:7])


def test_a_batch_too_small_to_be_shared_out_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "count", lambda: 4)
    options = TrainingOptions(batch_size=7)
    with pytest.raises(InputError, match=r"at least 2 images for each of 4 processes in every batch, got a batch of 6"):
        next(iter(train(together.made("pah"), digits(2, classes=4), options, SHIFTED, 0, TrainState())))


@pytest.mark.parametrize("words", [("compare",), ("learn", "animals"), ("data",)])
def test_what_several_processes_cannot_do_is_refused_in_one_line(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(distributed, "launched", lambda: True)
    first = iter([True, False])
    monkeypatch.setattr(distributed, "first_to_speak", lambda: next(first))
    for _ in range(2):
        assert main([*words]) == 2
    expected = f"pah: {words[0]}: expected one process, got several; torchrun is for pah run and pah resume\n"
    assert capsys.readouterr().err == expected


def test_a_killed_process_ends_the_run_with_one_line_and_one_process_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = ("run", *TINY, "--epochs", "40", "--out", str(folder), "--checkpoint_seconds", "0")
    with torchrun(2, "-m", "pah", *words) as process:
        wait_for(folder / "checkpoint" / checkpoint.FILE, process)
        os.kill(worker(process, 1), signal.SIGKILL)
        killed = time.monotonic()
        out, err = process.communicate(timeout=60)
    assert time.monotonic() - killed < 30
    assert process.returncode == 1
    assert said(err) == [
        f"pah: {folder}: expected an answer from every process of this run, but one has ended; "
        f"`pah resume {folder}` continues from the last checkpoint, with any number of them"
    ]
    epochs = [line for line in out.splitlines() if "epoch" in line]
    assert len(epochs) == len({*epochs}), "said twice"
    assert checkpoint.load(folder / "checkpoint")[1]["state"]["task"] < 2, "killed too late"
    assert main(["resume", str(folder)]) == 0
    assert len(log(folder)) == 3 * 40


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_stopped_goes_on_with_any_number_of_processes(number: signal.Signals, tmp_path: Path) -> None:
    words = ("run", *TINY, "--epochs", "30", "--sync-batchnorm")
    assert main([*words, "--out", str(tmp_path / "alone")]) == 0
    folder = tmp_path / "run"
    stopped = [f"pah: stopped, the state is saved; `pah resume {folder}` continues"]
    for processes, *command in ((2, *words, "--out", str(folder)), (4, "resume", str(folder))):
        done = len(log(folder)) if folder.exists() else 0
        with torchrun(processes, "-m", "pah", *command) as process:
            wait_for(folder / "log.jsonl", process, lines=done + 3)
            process.send_signal(number)
            assert said(process.communicate(timeout=60)[1]) == stopped
        assert done < len(log(folder)) < 90
    assert main(["resume", str(folder)]) == 0
    metrics, alone = (json.loads((f / "metrics.json").read_text()) for f in (folder, tmp_path / "alone"))
    assert len(log(folder)) == 90
    assert metrics["processes"] == 1  # those that ended it
    assert abs(metrics["average_accuracy"] - alone["average_accuracy"]) < 3  # one image is 0.5


def wait_for(file: Path, process: "subprocess.Popen[str]", lines: int = 0) -> None:
    while not file.exists() or len(file.read_bytes().splitlines()) < lines:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def worker(launcher: "subprocess.Popen[str]", rank: int) -> int:
    """The process id of a launcher's worker of that rank."""
    for children in Path(f"/proc/{launcher.pid}/task").glob("*/children"):
        for child in children.read_text().split():
            if f"RANK={rank}" in Path(f"/proc/{child}/environ").read_text().split("\0"):
                return int(child)
    raise AssertionError("no such worker")


def test_sync_batchnorm_is_a_switch() -> None:
    def of(*words: str) -> Any:
        return tiny(*words).training.sync_batch_norm

    assert [of(), of("--sync-batchnorm"), of("--sync-batchnorm", "--seed", "1"), of("--sync_batchnorm=false")] == [
        False,
        True,
        True,
        False,
    ]
