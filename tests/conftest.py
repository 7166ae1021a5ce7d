"""Tiny runs on the handwritten digits, ways to cut them short, and what two equal runs have in common."""

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
EVENTS_A_TASK = 14  # of a tiny run: the task's beginning, two epochs of five steps, each with an end, and its end
ONLY_TASK_ENDS = 1e9  # seconds between checkpoints
MEASURED = {"seconds", "images_per_second", "peak_memory_mb", "commit", "device"}  # what differs between equal runs

QUIET = ("disable-gpu", "disable-quic", "no-first-run", "disable-background-networking", "disable-component-update")

# real processes, to be killed: forked off one server that has imported what takes long
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["pah.cli", "sklearn.datasets", "torch._dynamo"])


class DeathError(BaseException):
    """Stands for a SIGKILL: nothing in pah catches it."""


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Numbers that are compared bit for bit are made by one thread, in every process."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_report(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs end without their report, which takes longer than they do, but where reports are tested."""
    if not request.module.__name__.startswith("test_report"):
        monkeypatch.setattr(reporting, "report_finished", lambda *_: None)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """A browser without windows; it asks nobody for updates."""
    from playwright.sync_api import sync_playwright

    path = which("chromium")
    assert path, "expected chromium on the path: apt-get install chromium"
    arguments = ["--no-sandbox", "--disable-sync", *(f"--{name}" for name in QUIET)]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[RunConfig], Path]:
    """The folder of a configuration's whole run; each is trained once. Not to be changed."""

    @cache
    def folder_of(config: RunConfig) -> Path:
        folder = tmp_path_factory.mktemp("uninterrupted") / "run"
        start_run(config, folder)
        return folder

    return folder_of


@pytest.fixture(scope="session")
def unfinished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the tiny run, dead in its second task, its checkpoint in the middle of an epoch. To be copied."""
    folder = tmp_path_factory.mktemp("unfinished") / "run"
    cut_short(tiny(), folder, EVENTS_A_TASK + 1 + 3, checkpoint_seconds=0)
    return folder


def tiny(*words: str) -> RunConfig:
    """The configuration of a tiny run, with what the words change."""
    return options.run_request([*TINY, *words]).config


def dying_after(events: int) -> Callable[[object], None]:
    """A `watch` that dies at that event, counted from 1."""
    left = iter(range(events - 1, -1, -1))

    def watch(_: object) -> None:
        if next(left) == 0:
            raise DeathError

    return watch


def cut_short(
    config: RunConfig,
    folder: Path,
    events: int,
    checkpoint_seconds: float,
    go: Callable[..., dict[str, Any]] = start_run,
) -> None:
    """Start (or resume) a run that dies after so many events."""
    with pytest.raises(DeathError):
        go(config, folder, watch=dying_after(events), checkpoint_seconds=checkpoint_seconds)
    assert not (folder / "metrics.json").exists(), "it was to die before its end"


def results(folder: Path) -> dict[str, Any]:
    """A finished run's metrics, without what differs between two equal runs."""
    metrics = json.loads((folder / "metrics.json").read_text())
    return {key: value for key, value in metrics.items() if key not in MEASURED}


def log(folder: Path) -> list[tuple[int, int, dict[str, float], float]]:
    """A run's log, without times."""
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [(line["task"], line["epoch"], line["terms"], line["lr"]) for line in lines]


def assert_same_run(folder: Path, reference: Path) -> None:
    """Both folders hold the same finished run: every number, every bit of every weight, and nothing else."""
    assert results(folder) == results(reference)
    assert log(folder) == log(reference)
    weights, expected = (safetensors.torch.load_file(f / "model" / "model.safetensors") for f in (folder, reference))
    assert list(weights) == list(expected)
    different = [name for name, tensor in weights.items() if not torch.equal(tensor, expected[name])]
    assert not different
    found, wanted = contents(folder), contents(reference)
    assert {*found} == {*wanted}
    same = [name for name in wanted if name in ("config.yaml", "model/learner.json") or name.startswith("prototypes/")]
    assert all(found[name] == wanted[name] for name in same)


def contents(folder: Path, but: Iterable[str] = (".lock",)) -> dict[str, bytes]:
    """All files below a folder, by their path in it."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in but)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
