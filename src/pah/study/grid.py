"""Run a grid of cells in one study folder: start new cells, resume interrupted ones, skip finished ones.

<study>/study.yaml  <study>/<cell>/ one run folder per cell

Several processes may work on one grid. A cell belongs to the process that holds the lock of its folder.
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
from pah.core.files import LOCK, FolderBusyError
from pah.runs.folder import CONFIG, METRICS, PREDICTIONS, OccupiedError
from pah.runs.progress import Progress, StoppedError
from pah.runs.results import read_predictions
from pah.runs.run import resume_run, start_run
from pah.study.bootstrap import CorrectMask
from pah.training.config import RunConfig

STUDY = "study.yaml"
ERROR = "error.txt"  # traceback of a cell that failed with an unexpected error
POLL_SECONDS = 2.0  # between two looks at cells that other processes hold
CELL_OPTIONS = ("method", "seed")  # the options in which the cells of a comparison differ


@dataclass(frozen=True)
class Cell:
    """One run of a grid: its configuration and its run folder."""

    config: RunConfig
    folder: Path
    data_fingerprint: str | None = None  # that the data must have; None for any data


@dataclass(frozen=True)
class Outcome:
    """The end of a cell: its metrics, or None and the reason why it has none."""

    cell: Cell
    metrics: dict[str, Any] | None
    reason: str = ""


@dataclass(frozen=True)
class Waiting:
    """Event: the cell is not running at present, for this reason."""

    reason: str = "in another process"


@dataclass(frozen=True)
class Running:
    """Event: progress of a cell that runs on another machine."""

    task: int  # the task being learned, from 0; equal to `tasks` when all are learned
    tasks: int
    seconds_left: float
    where: str  # address of the other machine; a key of the JSON progress output


Event = Progress | Running | Waiting | Outcome
Watch = Callable[[Cell, Event], None]
Stop = Callable[[], bool]
Engine = Callable[[Sequence[Cell], Watch, Stop, float], list[Outcome]]  # `run_cells`, or its equivalent on a cluster


def claim_folder(folder: Path, config: RunConfig, cell_options: Container[str] = CELL_OPTIONS) -> None:
    """Write `study.yaml` into a new study folder, or check that an existing one belongs to this study.

    Args:
        folder: the study folder; created if it does not exist.
        config: the configuration of any cell.
        cell_options: top-level options in which cells may differ; they are not part of `study.yaml`.

    Raises:
        InputError: the folder belongs to another study, or holds other files.
    """
    path, shared = folder / STUDY, shared_options(config.as_dict(), cell_options)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / LOCK):  # two processes may begin a study at the same time
        if path.is_file():
            _require_same_study(folder, config, files.read_yaml(path), shared, cell_options)
        elif any(file.name != LOCK for file in folder.iterdir()):
            raise InputError(f"{folder}: expected a study's folder or an empty one, got one without {STUDY}")
        else:
            files.write_file(path, yaml.safe_dump(shared, sort_keys=False, allow_unicode=True).encode())


def _require_same_study(
    folder: Path,
    config: RunConfig,
    written: Mapping[str, Any],
    shared: Mapping[str, Any],
    cell_options: Container[str],
) -> None:
    """Raise InputError unless `study.yaml`, read as `written`, holds the `shared` options."""
    if ("method" in written) != ("method" in shared):  # only an ablation has one method for all cells
        kind = "an ablation" if "method" in written else "a comparison"
        raise InputError(f"{folder}: expected a folder of this study, got that of {kind}")
    existing = shared_options(config.completed(written), cell_options)
    if existing != shared:
        difference = first_difference(existing, shared)
        raise InputError(f"{folder}: expected a folder of this study, got another's: {difference}")


def shared_options(config: Mapping[str, Any], cell_options: Container[str] = CELL_OPTIONS) -> dict[str, Any]:
    """Return the options that all cells of a study share; the path of the data is not among them."""
    return {key: value for key, value in config.items() if key != "data" and key not in cell_options}


def require_matching_folders(cells: Iterable[Cell]) -> None:
    """Raise InputError if a cell's folder holds a run with another configuration."""
    for cell in cells:
        path = cell.folder / CONFIG
        if path.is_file():
            existing, expected = cell.config.completed(files.read_yaml(path)), cell.config.as_dict()
            if {**existing, "data": None} != {**expected, "data": None}:
                difference = first_difference(existing, expected)
                raise InputError(f"{cell.folder}: expected this study's run, got another: {difference}")


def run_cells(
    cells: Sequence[Cell], watch: Watch, stop: Stop, checkpoint_seconds: float, device: torch.device = CPU
) -> list[Outcome]:
    """Run all cells one after another and return their outcomes in the order of `cells`.

    A failed cell is reported, and the others still run. A cell that another process holds is waited for.

    Args:
        cells: the runs and their folders.
        watch: called with each event of each cell.
        stop: asked after each training step whether to stop.
        checkpoint_seconds: time between two checkpoints.
        device: where to train.

    Raises:
        StoppedError: `stop` returned true; the state of the current run is saved.
    """
    outcomes: dict[Cell, Outcome] = {}
    held_elsewhere: set[Cell] = set()
    while len(outcomes) < len(cells):
        progressed = False
        for cell in cells:
            if cell in outcomes:
                continue
            if stop():
                raise StoppedError
            outcome = run_cell(cell, watch, stop, checkpoint_seconds, device)
            if outcome is None:
                if cell not in held_elsewhere:
                    watch(cell, Waiting())
                held_elsewhere.add(cell)
                continue
            outcomes[cell], progressed = outcome, True
            watch(cell, outcome)
        if not progressed:
            time.sleep(POLL_SECONDS)
    return [outcomes[cell] for cell in cells]


def run_cell(
    cell: Cell, watch: Watch, stop: Stop, checkpoint_seconds: float, device: torch.device = CPU
) -> Outcome | None:
    """Start or resume one cell and return its outcome; None if another process holds its folder.

    Raises:
        StoppedError: `stop` returned true; the state is saved.
    """
    if (cell.folder / METRICS).is_file():
        return Outcome(cell, files.read_json(cell.folder / METRICS))
    start_or_resume = resume_run if (cell.folder / CONFIG).is_file() else start_run
    try:
        metrics = start_or_resume(
            cell.config,
            cell.folder,
            watch=lambda progress: watch(cell, progress),
            stop=stop,
            checkpoint_seconds=checkpoint_seconds,
            device=device,
            data_fingerprint=cell.data_fingerprint,
        )
    except FolderBusyError:
        return None
    except OccupiedError as error:  # another process started the cell while this one loaded the data
        return None if _holds_this_run(cell) else Outcome(cell, None, str(error))
    except InputError as error:
        return Outcome(cell, None, str(error))
    except StoppedError:
        raise
    except Exception as error:  # an unexpected error ends this cell only
        files.write_file(cell.folder / ERROR, traceback.format_exc().encode())
        first_line = next(iter(str(error).splitlines()), "")
        return Outcome(cell, None, f"{type(error).__name__}: {first_line} (details: {cell.folder / ERROR})")
    (cell.folder / ERROR).unlink(missing_ok=True)
    return Outcome(cell, metrics)


def _holds_this_run(cell: Cell) -> bool:
    """Return whether the cell's folder holds a run with the cell's configuration."""
    try:
        require_matching_folders([cell])
    except InputError:
        return False
    return (cell.folder / CONFIG).is_file()


def correct_answers(folder: Path) -> list[CorrectMask]:
    """Return, for each task, which test images the finished run in a folder answered correctly, task given."""
    return [(answers.task_given == answers.labels).numpy() for answers in read_predictions(folder / PREDICTIONS)]


def first_difference(existing: Any, expected: Any, name: str = "") -> str:
    """Return the first difference of two configurations as text, e.g. "training.epochs is 3, not 4"."""
    if isinstance(existing, dict) and isinstance(expected, dict):
        for key in [*expected, *existing]:
            if existing.get(key) != expected.get(key):
                return first_difference(existing.get(key), expected.get(key), f"{name}.{key}".strip("."))
    return f"{name} is {existing}, not {expected}"
