"""Disk faults: full, read-only, slow or missing disks, and damaged files. A run stops with one line or continues."""

import itertools
import os
import shutil
import signal
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from conftest import EVENTS_PER_TASK, ONLY_AT_TASK_ENDS, TINY, assert_same_run, run_until_death, tiny
from pah.cli import main
from pah.cli.stopping import Stop
from pah.core.config import InputError, RecoveryWarning
from pah.training import checkpoint
from pah.training.config import RunConfig

Uninterrupted = Callable[[RunConfig], Path]
Loaded = tuple[dict[str, torch.Tensor], dict[str, Any]]


@pytest.fixture
def run(tmp_path: Path, unfinished: Path) -> Path:
    """Return a copy of the unfinished run, with two checkpoints within its second task."""
    shutil.copytree(unfinished, tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "missing"])
def test_a_damaged_checkpoint_is_replaced_by_the_previous_one(
    damage: str, run: Path, uninterrupted: Uninterrupted, capsys: pytest.CaptureFixture[str]
) -> None:
    state = run / "checkpoint" / checkpoint.FILE
    data = bytearray(state.read_bytes())
    data[len(data) // 2] ^= 1
    state.write_bytes(bytes({"truncated": data[: len(data) // 2], "flipped": data}.get(damage, b"")))
    if damage == "missing":
        state.unlink()
    assert main(["resume", str(run)]) == 0
    err = capsys.readouterr().err
    assert err.startswith(f"pah: {state}: expected a")
    assert err.endswith("; continuing from the previous checkpoint\n")
    assert err.count("\n") == 1
    assert_same_run(run, uninterrupted(tiny()))


def test_damage_of_a_checkpoint_is_detected(run: Path) -> None:
    folder = run / "checkpoint"
    path, previous_path = folder / checkpoint.FILE, folder / checkpoint.PREVIOUS_FILE
    content, last = path.read_bytes(), checkpoint.load(folder)
    previous_path.rename(path)
    previous = checkpoint.load(folder)
    path.rename(previous_path)
    accepted, all_damages = 0, list(damages(content))
    assert len(all_damages) > 200
    for damaged in all_damages:
        path.write_bytes(damaged)
        loaded, warned = try_load(folder)
        assert loaded is not None, "the previous checkpoint is not damaged"
        if warned:
            assert same(loaded, previous)
        else:
            accepted += 1
            assert same(loaded, last)
    assert accepted < 0.05 * len(all_damages), "only damage to white space in the header is not detected"
    previous_path.write_bytes(previous_path.read_bytes()[:-1])
    path.write_bytes(content[:-1])
    with pytest.raises(InputError, match=r"state\.safetensors: expected a whole checkpoint"):
        checkpoint.load(folder)


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_a_complete_checkpoint_exists_at_any_moment_of_a_save(
    links: bool, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run / "checkpoint"
    tensors, _ = checkpoint.load(folder)
    replace, numbers = os.replace, []

    def replace_and_load(new: Path, path: Path) -> None:
        for after in (False, True):
            if after:
                replace(new, path)
            loaded, warned = try_load(folder)
            assert loaded is not None
            assert not (links and warned)
            numbers.append(loaded[1]["number"])

    def no_links(*_: object) -> None:
        raise OSError

    checkpoint.save(folder, tensors, {"number": 0})
    monkeypatch.setattr(os, "replace", replace_and_load)
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    for number in (1, 2):
        checkpoint.save(folder, tensors, {"number": number})
    assert numbers == [0, 0, 0, 1, 1, 1, 1, 2]
    assert sorted(path.name for path in folder.iterdir()) == [checkpoint.PREVIOUS_FILE, checkpoint.FILE]


def damages(content: bytes) -> Iterator[bytes]:
    """Yield damaged versions of a file: truncated or with a bit flipped, in its length, its header and its tensors."""
    rng = np.random.default_rng(0)
    header = 8 + int.from_bytes(content[:8], "little")
    edges = [*range(9), header - 1, header, header + 1, len(content) - 1]
    ranges = [(8, header, 60), (header, len(content), 50)]
    inside = [int(position) for low, high, count in ranges for position in rng.integers(low, high, size=count)]
    for position in [*edges, *inside]:
        yield content[:position]
        flipped = bytearray(content)
        flipped[min(position, len(content) - 1)] ^= 1 << int(rng.integers(8))
        yield bytes(flipped)


def try_load(folder: Path) -> tuple[Loaded | None, bool]:
    """Return the loaded checkpoint, or None if it is refused, and whether there was a warning."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            loaded = checkpoint.load(folder)
        except InputError:
            return None, False
    return loaded, any(warning.category is RecoveryWarning for warning in caught)


def same(one: Loaded, other: Loaded) -> bool:
    """Return whether two checkpoints hold the same tensors and facts."""
    return (
        one[1] == other[1]
        and sorted(one[0]) == sorted(other[0])
        and all(torch.equal(tensor, other[0][name]) for name, tensor in one[0].items())
    )


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a mounted file system with 300 kB of space."""
    disk = tmp_path / "disk"
    disk.mkdir()
    process = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "pah-test", str(disk)], capture_output=True)
    if process.returncode:
        pytest.skip("needs the right to mount a file system")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def remount(disk: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(disk)], check=True)


def test_a_full_disk_stops_the_run_which_continues_with_more_space(
    small_disk: Path, uninterrupted: Uninterrupted, capsys: pytest.CaptureFixture[str]
) -> None:
    run = small_disk / "run"
    assert main(["run", *TINY, "--out", str(run)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "expected to write" in err
    assert "No space left on device" in err
    remount(small_disk, "size=20m")
    assert main(["resume", str(run)]) == 0
    assert_same_run(run, uninterrupted(tiny()))


def test_a_read_only_disk_stops_the_run_which_continues_when_it_is_writable(
    small_disk: Path, uninterrupted: Uninterrupted, capsys: pytest.CaptureFixture[str]
) -> None:
    run = small_disk / "run"
    remount(small_disk, "size=20m")
    run_until_death(tiny(), run, EVENTS_PER_TASK + 3, ONLY_AT_TASK_ENDS)
    remount(small_disk, "ro")
    assert main(["resume", str(run)]) == 2
    assert main(["run", *TINY, "--out", str(small_disk / "other")]) == 2
    for line in capsys.readouterr().err.splitlines():
        assert line.startswith(f"pah: {small_disk}")
        assert line.endswith("Read-only file system")
    remount(small_disk, "rw")
    assert main(["resume", str(run)]) == 0
    assert_same_run(run, uninterrupted(tiny()))


def remove_folder_after(folder: Path, step: int) -> Any:
    """Remove the folder after that optimizer step, counted from 1; return the hook."""
    steps = itertools.count(1)
    return register_optimizer_step_post_hook(lambda *_: shutil.rmtree(folder) if next(steps) == step else None)


@pytest.mark.parametrize("seconds", ["0", "1000"])
def test_a_run_whose_folder_was_removed_stops_and_does_not_create_it_again(
    seconds: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    hook = remove_folder_after(run, 7)
    status = main(["run", *TINY, "--out", str(run), "--checkpoint_seconds", seconds])
    hook.remove()
    assert status == 2
    err = capsys.readouterr().err
    assert err.startswith(f"pah: {run}")
    assert err.endswith("No such file or directory\n")
    assert not run.exists()


def test_a_run_whose_checkpoints_were_removed_writes_new_ones(tmp_path: Path, uninterrupted: Uninterrupted) -> None:
    run = tmp_path / "run"
    hook = remove_folder_after(run / "checkpoint", 15)
    assert main(["run", *TINY, "--out", str(run), "--checkpoint_seconds", "0"]) == 0
    hook.remove()
    assert_same_run(run, uninterrupted(tiny()))


def test_a_run_on_a_slow_disk_continues(
    tmp_path: Path, uninterrupted: Uninterrupted, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def slow(handle: int) -> None:
        time.sleep(0.1)  # longer than the time between checkpoints
        fsync(handle)

    monkeypatch.setattr(os, "fsync", slow)
    assert main(["run", *TINY, "--out", str(tmp_path / "run"), "--checkpoint_seconds", "0.05"]) == 0
    assert_same_run(tmp_path / "run", uninterrupted(tiny()))


def test_a_stop_during_a_long_evaluation_ends_the_run_without_losing_a_step(
    tmp_path: Path, uninterrupted: Uninterrupted, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"

    def endless(*_: object) -> None:
        signal.raise_signal(signal.SIGTERM)
        time.sleep(60)

    monkeypatch.setattr(Stop, "SECONDS", 0.1)
    started = time.monotonic()
    with monkeypatch.context() as patch:
        patch.setattr("pah.training.loop.evaluate", endless)
        assert main(["run", *TINY, "--out", str(run)]) == 128 + signal.SIGTERM
    assert time.monotonic() - started < 30
    assert capsys.readouterr().err == f"pah: stopped, the state is saved; `pah resume {run}` continues\n"
    assert checkpoint.load(run / "checkpoint")[1]["state"]["epoch"] == 2, "all epochs of the first task"
    assert main(["resume", str(run)]) == 0
    assert_same_run(run, uninterrupted(tiny()))


def test_a_stop_before_training_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def endless(_: RunConfig) -> None:
        signal.raise_signal(signal.SIGINT)
        time.sleep(60)

    monkeypatch.setattr(Stop, "SECONDS", 0.1)
    monkeypatch.setattr("pah.runs.run.load_stream", endless)
    assert main(["run", *TINY, "--out", str(tmp_path / "run")]) == 130
    assert capsys.readouterr().err == "pah: stopped before training began\n"
    assert not (tmp_path / "run").exists()
