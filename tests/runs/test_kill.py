"""A hundred deaths at random moments, over all methods: whatever is resumed ends as if nothing had happened.

    python -m pytest -m slow tests/test_kill.py -s       # prints the figures

What kills, when, and how often checkpoints are written are drawn by a generator that `SEED` and the run's number name.
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
CHECKPOINTS = ("0", "0.05", "180")  # seconds between them
STOPS_WITHIN = 5.0  # seconds from a signal that asks to the end of the process
Uninterrupted = Callable[[RunConfig], Path]


def command(words: list[str], begun: Any, err: Path) -> None:
    """In a process of its own: run a command, and say when it begins."""
    torch.set_num_threads(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    reporting.report_finished = lambda *_: None  # it comes after all is saved, and takes longer than the run
    with err.open("w") as sys.stderr:
        begun.set()
        sys.exit(main(words))


def run(words: list[str], err: Path, kill: tuple[float, signal.Signals] | None = None) -> tuple[int, float]:
    """A command's exit status, and how many seconds it took; from the signal on, if it was killed after so many."""
    begun = processes.Event()
    process = processes.Process(target=command, args=(words, begun, err))
    process.start()
    assert begun.wait(60)
    started = time.monotonic()
    if kill is not None:
        process.join(kill[0])
        started = time.monotonic()
        if process.is_alive() and process.pid is not None:
            os.kill(process.pid, kill[1])
    process.join(120)
    assert process.exitcode is not None, "hangs"
    status, seconds = process.exitcode, time.monotonic() - started
    process.close()
    return status, seconds


@pytest.mark.slow
def test_a_hundred_deaths_at_random_moments_change_nothing(tmp_path: Path, uninterrupted: Uninterrupted) -> None:
    deaths: Counter[str] = Counter()
    where: Counter[str] = Counter()
    slowest, tries = 0.0, 0
    lasts: dict[str, float] = {}
    err = tmp_path / "err"
    while sum(deaths.values()) < DEATHS:
        method = list(METHODS)[tries % len(METHODS)]
        if method not in lasts:
            status, lasts[method] = run(["run", *TINY, "--method", method, "--out", str(tmp_path / method)], err)
            assert status == 0
        rng = random.Random(f"{SEED}/{tries}")
        folder = tmp_path / f"run{tries}"
        tries += 1
        words = ["run", *TINY, "--method", method, "--out", str(folder)]
        words += ["--checkpoint_seconds", rng.choice(CHECKPOINTS)]
        while True:  # killed again and again, until it lives to its end
            kill = (rng.uniform(0, lasts[method]), rng.choice(SIGNALS)) if rng.random() < 0.7 else None
            status, seconds = run(words, err, kill)
            if status == 0:
                break
            assert kill is not None
            died = -kill[1] if kill[1] == signal.SIGKILL else 128 + kill[1]
            assert status in (died, -kill[1]), err.read_text()  # -: it came before anything was there to save
            deaths[kill[1].name] += 1
            where[stage(folder)] += 1
            if kill[1] != signal.SIGKILL:
                slowest = max(slowest, seconds)
                assert seconds < STOPS_WITHIN
            if (folder / "config.yaml").exists():
                words = ["resume", str(folder)]
        assert_same_run(folder, uninterrupted(tiny("--method", method)))
    print(f"\n{sum(deaths.values())} deaths in {tries} runs of {len(METHODS)} methods: {dict(deaths)}; {dict(where)}")
    print(f"slowest stop after SIGTERM or SIGINT: {slowest:.2f} s")


def stage(folder: Path) -> str:
    """How far the run had come when it died."""
    if not checkpoint.there(folder / "checkpoint"):
        return "before its first checkpoint"
    state = checkpoint.load(folder / "checkpoint")[1]["state"]  # without a warning: a death tears nothing
    return f"in task {state['task'] + 1}" if state["task"] < 3 else "all tasks learned"
