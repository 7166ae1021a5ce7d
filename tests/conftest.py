"""Tiny runs on the handwritten digits, functions that interrupt them, and the comparison of two runs."""

import json
import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from shutil import which
from typing import Any

import pytest
import safetensors.torch
import torch

from pah.cli import options, reporting
from pah.runs.run import start_run
from pah.training.config import RunConfig

TINY = ("--epochs", "2", "--training.batch_size", "64", "--backbone.width", "4", "--classes", "6", "--tasks", "3")
EVENTS_PER_TASK = 14  # of a tiny run: TaskBegun, two epochs of five steps and an EpochDone each, TaskDone
ONLY_AT_TASK_ENDS = 1e9  # seconds between checkpoints
VARYING_KEYS = {
    "seconds",
    "images_per_second",
    "peak_memory_mb",
    "commit",
    "device",
    "parts",
}  # keys that differ between equal runs

BROWSER_FLAGS = (
    "disable-gpu",
    "disable-quic",
    "no-first-run",
    "disable-background-networking",
    "disable-component-update",
)

# processes that tests may kill: forked from a server that has already imported the slow modules
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["pah.cli", "sklearn.datasets", "torch._dynamo"])


class DeathError(BaseException):
    """Simulates a SIGKILL: nothing in pah catches it."""


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Use one thread in every process, so that results are equal bit for bit."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_report(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write no report at the end of a run, because it takes longer than the run, except in tests of reports."""
    if not request.module.__name__.startswith("test_report"):
        monkeypatch.setattr(reporting, "report_finished", lambda *_: None)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """Return a headless browser, which does not check for updates."""
    from playwright.sync_api import sync_playwright

    path = which("chromium")
    assert path, "expected chromium on the path: apt-get install chromium"
    arguments = ["--no-sandbox", "--disable-sync", *(f"--{name}" for name in BROWSER_FLAGS)]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[RunConfig], Path]:
    """Return a function to the folder of a configuration's complete run. Each is trained once; do not change it."""

    @cache
    def folder_of(config: RunConfig) -> Path:
        folder = tmp_path_factory.mktemp("uninterrupted") / "run"
        start_run(config, folder)
        return folder

    return folder_of


@pytest.fixture(scope="session")
def unfinished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny run that died within an epoch of its second task. Copy it before use."""
    folder = tmp_path_factory.mktemp("unfinished") / "run"
    run_until_death(tiny(), folder, EVENTS_PER_TASK + 1 + 3, checkpoint_seconds=0)
    return folder


def tiny(*words: str) -> RunConfig:
    """Return the configuration of a tiny run with these command-line words added."""
    return options.run_request([*TINY, *words]).config


def dying_after(events: int) -> Callable[[object], None]:
    """Return a `watch` that raises DeathError at that event, counted from 1."""
    events_left = iter(range(events - 1, -1, -1))

    def watch(_: object) -> None:
        if next(events_left) == 0:
            raise DeathError

    return watch


def run_until_death(
    config: RunConfig,
    folder: Path,
    events: int,
    checkpoint_seconds: float,
    run: Callable[..., dict[str, Any]] = start_run,
) -> None:
    """Start (or resume) a run that dies at that event, counted from 1."""
    with pytest.raises(DeathError):
        run(config, folder, watch=dying_after(events), checkpoint_seconds=checkpoint_seconds)
    assert not (folder / "metrics.json").exists(), "the run must die before its end"


def results(folder: Path) -> dict[str, Any]:
    """Return a finished run's metrics without the keys that differ between equal runs."""
    metrics = json.loads((folder / "metrics.json").read_text())
    return {key: value for key, value in metrics.items() if key not in VARYING_KEYS}


def log(folder: Path) -> list[tuple[int, int, dict[str, float], float]]:
    """Return a run's log without times."""
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [(line["task"], line["epoch"], line["terms"], line["lr"]) for line in lines]


def assert_same_run(folder: Path, reference: Path) -> None:
    """Assert that both folders hold the same finished run: the same files, metrics, logs and weights, bit for bit."""
    assert results(folder) == results(reference)
    assert log(folder) == log(reference)
    weights, expected = (safetensors.torch.load_file(f / "model" / "model.safetensors") for f in (folder, reference))
    assert list(weights) == list(expected)
    different = [name for name, tensor in weights.items() if not torch.equal(tensor, expected[name])]
    assert not different
    files, expected_files = contents(folder), contents(reference)
    assert {*files} == {*expected_files}
    same = [
        name
        for name in expected_files
        if name in ("config.yaml", "model/learner.json") or name.startswith("prototypes/")
    ]
    assert all(files[name] == expected_files[name] for name in same)


def contents(folder: Path, ignore: Iterable[str] = (".lock",)) -> dict[str, bytes]:
    """Return the content of all files below a folder by relative path, except files with an ignored name."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in ignore)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
