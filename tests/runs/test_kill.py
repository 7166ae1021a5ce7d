"""Runs of all methods are killed a hundred times at random moments, resumed, and give the same results.

    python -m pytest -m slow tests/runs/test_kill.py -s       # prints the counts

Signal, moment and checkpoint interval are drawn from a generator that is seeded with `SEED` and the number of the run.
"""

import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import TINY, assert_same_run, processes, tiny
from pah.cli import main, reporting
from pah.methods import METHODS
from pah.training import checkpoint
from pah.training.config import RunConfig

SEED = 7
DEATHS = 100
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
CHECKPOINT_SECONDS = ("0", "0.05", "180")
MAX_STOP_SECONDS = 5.0  # from SIGTERM or SIGINT to the end of the process
Uninterrupted = Callable[[RunConfig], Path]


def command(words: list[str], started: Any, err: Path) -> None:
    """Run a command and signal its start; the target of a child process."""
    torch.set_num_threads(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    reporting.report_finished = lambda *_: (
        None
    )  # the report is written after everything is saved, and takes longer than the run
    with err.open("w") as sys.stderr:
        started.set()
        sys.exit(main(words))


def run(words: list[str], err: Path, kill: tuple[float, signal.Signals] | None = None) -> tuple[int, float]:
    """Run a command and return its exit status and its duration.

    With `kill`, the signal is sent after that many seconds, and the duration is counted from the signal.
    """
    ready = processes.Event()
    process = processes.Process(target=command, args=(words, ready, err))
    process.start()
    assert ready.wait(60)
    started = time.monotonic()
    if kill is not None:
        process.join(kill[0])
        started = time.monotonic()
        if process.is_alive() and process.pid is not None:
            os.kill(process.pid, kill[1])
    process.join(120)
    assert process.exitcode is not None, "the process hangs"
    status, seconds = process.exitcode, time.monotonic() - started
    process.close()
    return status, seconds


@pytest.mark.slow
def test_killing_runs_at_random_moments_changes_no_result(tmp_path: Path, uninterrupted: Uninterrupted) -> None:
    deaths: Counter[str] = Counter()
    stages: Counter[str] = Counter()
    slowest_stop, tries = 0.0, 0
    durations: dict[str, float] = {}
    err = tmp_path / "err"
    while sum(deaths.values()) < DEATHS:
        method = list(METHODS)[tries % len(METHODS)]
        if method not in durations:
            status, durations[method] = run(["run", *TINY, "--method", method, "--out", str(tmp_path / method)], err)
            assert status == 0
        rng = random.Random(f"{SEED}/{tries}")
        folder = tmp_path / f"run{tries}"
        tries += 1
        words = ["run", *TINY, "--method", method, "--out", str(folder)]
        words += ["--checkpoint_seconds", rng.choice(CHECKPOINT_SECONDS)]
        while True:  # the run is killed until it ends by itself
            kill = (rng.uniform(0, durations[method]), rng.choice(SIGNALS)) if rng.random() < 0.7 else None
            status, seconds = run(words, err, kill)
            if status == 0:
                break
            assert kill is not None
            expected = -kill[1] if kill[1] == signal.SIGKILL else 128 + kill[1]
            assert status in (expected, -kill[1]), err.read_text()  # negative: before the command handled signals
            deaths[kill[1].name] += 1
            stages[stage(folder)] += 1
            if kill[1] != signal.SIGKILL:
                slowest_stop = max(slowest_stop, seconds)
                assert seconds < MAX_STOP_SECONDS
            if (folder / "config.yaml").exists():
                words = ["resume", str(folder)]
        assert_same_run(folder, uninterrupted(tiny("--method", method)))
    print(f"\n{sum(deaths.values())} deaths in {tries} runs of {len(METHODS)} methods: {dict(deaths)}; {dict(stages)}")
    print(f"slowest stop after SIGTERM or SIGINT: {slowest_stop:.2f} s")


def stage(folder: Path) -> str:
    """Return how far the run was when it died."""
    if not checkpoint.exists(folder / "checkpoint"):
        return "before its first checkpoint"
    state = checkpoint.load(folder / "checkpoint")[1]["state"]  # no warning: killing a run damages no file
    return f"in task {state['task'] + 1}" if state["task"] < 3 else "all tasks learned"
