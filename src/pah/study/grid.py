"""A grid of runs in one folder: run what is missing, resume what was cut, skip what is done.

<study>/study.yaml  <study>/<cell>/ a run folder each

Several processes may work on one grid: a cell belongs to the process that holds its folder's lock.
"""

import time
import traceback
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from filelock import FileLock

from pah.core import files
from pah.core.config import InputError
from pah.core.devices import CPU
from pah.core.files import LOCK, BusyError
from pah.runs.folder import CONFIG, METRICS, PREDICTIONS, OccupiedError
from pah.runs.results import read_predictions
from pah.runs.run import Progress, StoppedError, resume_run, start_run
from pah.study.bootstrap import Correct
from pah.training.config import RunConfig

STUDY = "study.yaml"
ERROR = "error.txt"  # in a cell that failed for a reason that nobody foresaw
LOOK_AGAIN = 2.0  # seconds between looks at cells that other processes hold
OF_A_CELL = ("method", "seed")  # what the cells of a comparison differ in


@dataclass(frozen=True)
class Cell:
    """A run of a grid and the folder that it goes to."""

    config: RunConfig
    folder: Path


@dataclass(frozen=True)
class Outcome:
    """How a cell ended: with metrics, or for a reason without."""

    cell: Cell
    metrics: dict[str, Any] | None
    reason: str = ""


@dataclass(frozen=True)
class Waiting:
    """The cell does not run yet, or no longer, and for what reason."""

    reason: str = "in another process"


@dataclass(frozen=True)
class Running:
    """How far a cell is that runs on another machine."""

    task: int  # that it learns, from 0; the number of tasks when all are learned
    tasks: int
    seconds_left: float
    where: str  # the machine's address


Event = Progress | Running | Waiting | Outcome
Watch = Callable[[Cell, Event], None]
Stop = Callable[[], bool]
Engine = Callable[[Sequence[Cell], Watch, Stop, float], list[Outcome]]  # `run_cells`, or what does the same elsewhere


def claim(folder: Path, config: RunConfig, but: Container[str] = OF_A_CELL) -> None:
    """Make `folder` the study of this configuration (what it has by cell aside), or find that it is.

    Raises:
        InputError: it is the folder of another study, or of something else.
    """
    path, shared = folder / STUDY, shared_part(config.as_dict(), but)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / LOCK):  # two processes may begin a study at once
        if path.is_file():
            written = files.read_yaml(path)
            if ("method" in written) != ("method" in shared):  # one kind's cells are not the other's
                kind = "an ablation" if "method" in written else "a comparison"
                raise InputError(f"{folder}: expected a folder of this study, got that of {kind}")
            found = shared_part(config.completed(written), but)
            if found != shared:
                raise InputError(
                    f"{folder}: expected a folder of this study, got another's: {difference(found, shared)}"
                )
        elif any(file.name != LOCK for file in folder.iterdir()):
            raise InputError(f"{folder}: expected a study's folder or an empty one, got one without {STUDY}")
        else:
            files.write_file(path, yaml.safe_dump(shared, sort_keys=False, allow_unicode=True).encode())


def shared_part(config: Mapping[str, Any], but: Container[str] = OF_A_CELL) -> dict[str, Any]:
    """What all cells of a study have in common; where on a machine the data lie is no part of it."""
    return {key: value for key, value in config.items() if key != "data" and key not in but}


def require_own(cells: Iterable[Cell]) -> None:
    """Raise InputError if a cell's folder holds a run of another configuration."""
    for cell in cells:
        path = cell.folder / CONFIG
        if path.is_file():
            found, wanted = cell.config.completed(files.read_yaml(path)), cell.config.as_dict()
            if {**found, "data": None} != {**wanted, "data": None}:
                raise InputError(f"{cell.folder}: expected this study's run, got another: {difference(found, wanted)}")


def run_cells(
    cells: Sequence[Cell], watch: Watch, stop: Stop, checkpoint_seconds: float, device: torch.device = CPU
) -> list[Outcome]:
    """Bring every cell to an end, one after another; returns once each has one, be it in another process.

    A cell that fails is reported, and the rest goes on.

    Raises:
        StoppedError: `stop` said so; what was trained is saved.
    """
    ended: dict[Cell, Outcome] = {}
    held: set[Cell] = set()
    while len(ended) < len(cells):
        worked = False
        for cell in cells:
            if cell in ended:
                continue
            if stop():
                raise StoppedError
            outcome = run_cell(cell, watch, stop, checkpoint_seconds, device)
            if outcome is None:
                if cell not in held:
                    watch(cell, Waiting())
                held.add(cell)
                continue
            ended[cell], worked = outcome, True
            watch(cell, outcome)
        if not worked:
            time.sleep(LOOK_AGAIN)
    return [ended[cell] for cell in cells]


def run_cell(
    cell: Cell, watch: Watch, stop: Stop, checkpoint_seconds: float, device: torch.device = CPU
) -> Outcome | None:
    """Bring one cell to its end, from wherever it stands; None if another process holds it.

    Raises:
        StoppedError: `stop` said so; what was trained is saved.
    """
    if (cell.folder / METRICS).is_file():
        return Outcome(cell, files.read_json(cell.folder / METRICS))
    go = resume_run if (cell.folder / CONFIG).is_file() else start_run
    try:
        metrics = go(
            cell.config,
            cell.folder,
            watch=lambda progress: watch(cell, progress),
            stop=stop,
            checkpoint_seconds=checkpoint_seconds,
            device=device,
        )
    except BusyError:
        return None
    except OccupiedError as error:  # another process began it while this one loaded the data
        return None if _is_own(cell) else Outcome(cell, None, str(error))
    except InputError as error:
        return Outcome(cell, None, str(error))
    except StoppedError:
        raise
    except Exception as error:  # whatever it is, it is one cell's
        files.write_file(cell.folder / ERROR, traceback.format_exc().encode())
        first = next(iter(str(error).splitlines()), "")
        return Outcome(cell, None, f"{type(error).__name__}: {first} (details: {cell.folder / ERROR})")
    (cell.folder / ERROR).unlink(missing_ok=True)
    return Outcome(cell, metrics)


def _is_own(cell: Cell) -> bool:
    """Whether the cell's folder holds this cell's run."""
    try:
        require_own([cell])
    except InputError:
        return False
    return (cell.folder / CONFIG).is_file()


def correct(folder: Path) -> list[Correct]:
    """For each task, which of its images the finished run in this folder answered correctly, task given."""
    return [(of.given == of.labels).numpy() for of in read_predictions(folder / PREDICTIONS)]


def difference(found: Any, wanted: Any, name: str = "") -> str:
    """The first place where two configurations differ, in words: "training.epochs is 3, not 4"."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in [*wanted, *found]:
            if found.get(key) != wanted.get(key):
                return difference(found.get(key), wanted.get(key), f"{name}.{key}".strip("."))
    return f"{name} is {found}, not {wanted}"
