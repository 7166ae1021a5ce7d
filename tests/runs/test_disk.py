"""Disks that are full, read-only, slow, gone or lie: a run stops in one line or goes on, and never goes on wrongly."""

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

from conftest import EVENTS_A_TASK, ONLY_TASK_ENDS, TINY, assert_same_run, cut_short, tiny
from pah.cli import main
from pah.cli.stopping import Stop
from pah.core.config import InputError, RecoveryWarning
from pah.training import checkpoint
from pah.training.config import RunConfig

Uninterrupted = Callable[[RunConfig], Path]
Facts = tuple[dict[str, torch.Tensor], dict[str, Any]]


@pytest.fixture
def run(tmp_path: Path, unfinished: Path) -> Path:
    """A run folder of the test's own, with two checkpoints inside its second task."""
    shutil.copytree(unfinished, tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("damage", ["cut", "turned", "empty", "missing"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before_it(
    damage: str, run: Path, uninterrupted: Uninterrupted, capsys: pytest.CaptureFixture[str]
) -> None:
    state = run / "checkpoint" / checkpoint.FILE
    data = bytearray(state.read_bytes())
    data[len(data) // 2] ^= 1
    state.write_bytes(bytes({"cut": data[: len(data) // 2], "turned": data}.get(damage, b"")))
    if damage == "missing":
        state.unlink()
    assert main(["resume", str(run)]) == 0
    err = capsys.readouterr().err
    assert err.startswith(f"pah: {state}: expected a")
    assert err.endswith("; going on from the one before it\n")
    assert err.count("\n") == 1
    assert_same_run(run, uninterrupted(tiny()))


def test_no_torn_checkpoint_is_ever_taken_for_whole(run: Path) -> None:
    folder = run / "checkpoint"
    path, older_path = folder / checkpoint.FILE, folder / checkpoint.BEFORE
    whole, newer = path.read_bytes(), checkpoint.load(folder)
    older_path.rename(path)
    older = checkpoint.load(folder)
    path.rename(older_path)
    taken, all_damages = 0, list(damages(whole))
    assert len(all_damages) > 200
    for damaged in all_damages:
        path.write_bytes(damaged)
        found, warned = loaded(folder)
        assert found is not None, "the one before it is whole"
        if warned:
            assert same(found, older)
        else:
            taken += 1
            assert same(found, newer)
    assert taken < 0.05 * len(all_damages), "but for white space in the header, every damage is noticed"
    older_path.write_bytes(older_path.read_bytes()[:-1])
    path.write_bytes(whole[:-1])
    with pytest.raises(InputError, match=r"state\.safetensors: expected a whole checkpoint"):
        checkpoint.load(folder)


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_at_any_moment_of_a_save_a_whole_checkpoint_is_there(
    links: bool, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run / "checkpoint"
    tensors, _ = checkpoint.load(folder)
    replace, seen = os.replace, []

    def looking(new: Path, path: Path) -> None:
        for after in (False, True):
            if after:
                replace(new, path)
            found, warned = loaded(folder)
            assert found is not None
            assert not (links and warned)
            seen.append(found[1]["number"])

    def no_links(*_: object) -> None:
        raise OSError

    checkpoint.save(folder, tensors, {"number": 0})
    monkeypatch.setattr(os, "replace", looking)
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    for number in (1, 2):
        checkpoint.save(folder, tensors, {"number": number})
    assert seen == [0, 0, 0, 1, 1, 1, 1, 2]
    assert sorted(path.name for path in folder.iterdir()) == [checkpoint.BEFORE, checkpoint.FILE]


def damages(whole: bytes) -> Iterator[bytes]:
    """What may be left of a file: cut off or with a bit turned, in its length, its header and its tensors."""
    rng = np.random.default_rng(0)
    header = 8 + int.from_bytes(whole[:8], "little")
    edges = [*range(9), header - 1, header, header + 1, len(whole) - 1]
    ranges = [(8, header, 60), (header, len(whole), 50)]
    inside = [int(place) for low, high, count in ranges for place in rng.integers(low, high, size=count)]
    for place in [*edges, *inside]:
        yield whole[:place]
        turned = bytearray(whole)
        turned[min(place, len(whole) - 1)] ^= 1 << int(rng.integers(8))
        yield bytes(turned)


def loaded(folder: Path) -> tuple[Facts | None, bool]:
    """What a folder's checkpoint is read as, and whether with a warning."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            found = checkpoint.load(folder)
        except InputError:
            return None, False
    return found, any(of.category is RecoveryWarning for of in said)


def same(one: Facts, other: Facts) -> bool:
    """Whether two checkpoints hold the same numbers and facts."""
    tensors = [list(of[0]) for of in (one, other)]
    return (
        one[1] == other[1]
        and sorted(tensors[0]) == sorted(tensors[1])
        and all(torch.equal(tensor, other[0][name]) for name, tensor in one[0].items())
    )


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, with 300 kB of space."""
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "pah-test", str(disk)], capture_output=True)
    if made.returncode:
        pytest.skip("needs the right to mount a file system")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def remount(disk: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(disk)], check=True)


def test_a_disk_that_is_full_stops_the_run_and_with_more_room_it_goes_on(
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


def test_a_disk_that_becomes_read_only_stops_the_run_and_writable_again_it_goes_on(
    small_disk: Path, uninterrupted: Uninterrupted, capsys: pytest.CaptureFixture[str]
) -> None:
    run = small_disk / "run"
    remount(small_disk, "size=20m")
    cut_short(tiny(), run, EVENTS_A_TASK + 3, ONLY_TASK_ENDS)
    remount(small_disk, "ro")
    assert main(["resume", str(run)]) == 2
    assert main(["run", *TINY, "--out", str(small_disk / "other")]) == 2
    for line in capsys.readouterr().err.splitlines():
        assert line.startswith(f"pah: {small_disk}")
        assert line.endswith("Read-only file system")
    remount(small_disk, "rw")
    assert main(["resume", str(run)]) == 0
    assert_same_run(run, uninterrupted(tiny()))


def vanishing(folder: Path, at: int) -> Any:
    """Have the folder gone after the n-th optimizer step."""
    steps = itertools.count(1)
    return register_optimizer_step_post_hook(lambda *_: shutil.rmtree(folder) if next(steps) == at else None)


@pytest.mark.parametrize("seconds", ["0", "1000"])
def test_a_run_whose_folder_has_vanished_says_so_and_leaves_no_half_of_one(
    seconds: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    hook = vanishing(run, 7)
    status = main(["run", *TINY, "--out", str(run), "--checkpoint_seconds", seconds])
    hook.remove()
    assert status == 2
    err = capsys.readouterr().err
    assert err.startswith(f"pah: {run}")
    assert err.endswith("No such file or directory\n")
    assert not run.exists()


def test_a_run_whose_checkpoints_have_vanished_makes_new_ones(tmp_path: Path, uninterrupted: Uninterrupted) -> None:
    run = tmp_path / "run"
    hook = vanishing(run / "checkpoint", 15)
    assert main(["run", *TINY, "--out", str(run), "--checkpoint_seconds", "0"]) == 0
    hook.remove()
    assert_same_run(run, uninterrupted(tiny()))


def test_a_run_on_a_slow_disk_goes_on(
    tmp_path: Path, uninterrupted: Uninterrupted, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def slow(handle: int) -> None:
        time.sleep(0.1)  # longer than the time between checkpoints
        fsync(handle)

    monkeypatch.setattr(os, "fsync", slow)
    assert main(["run", *TINY, "--out", str(tmp_path / "run"), "--checkpoint_seconds", "0.05"]) == 0
    assert_same_run(tmp_path / "run", uninterrupted(tiny()))


def test_a_run_that_is_asked_to_stop_while_it_evaluates_for_long_is_cut_off_and_loses_no_step(
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


def test_a_run_that_is_asked_to_stop_before_it_began_says_so(
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
