"""Connect runs and studies with what shows their progress: the console, JSON lines and trackers."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from pah.cli import json_progress
from pah.cli.display import RunDisplay
from pah.cli.grid_display import GridDisplay
from pah.cli.options import ProgressOptions
from pah.cli.printing import PlainConsole, say
from pah.core import distributed
from pah.core.config import InputError
from pah.runs.progress import Progress
from pah.study.grid import Cell, Event, Outcome, Running, Watch
from pah.tracking.sending import Tracking, tools_of_run
from pah.tracking.trackers import require_trackers
from pah.training.config import RunConfig
from pah.training.state import EpochDone, TaskDone


def with_earlier_trackers(options: ProgressOptions, folder: Path) -> ProgressOptions:
    """Return the options with the trackers that tools_of_run this run before, as far as they are still installed."""
    trackers = list(options.trackers)
    for name in tools_of_run(folder):
        try:
            require_trackers([name])
        except InputError as error:  # not requested now, so a warning is enough
            warn(str(error))
        else:
            trackers.append(name)
    return options._replace(trackers=tuple(dict.fromkeys(trackers)))


def first_process_only(options: ProgressOptions) -> ProgressOptions:
    """Return the options in the first of several processes that train together; the others show nothing."""
    return options if distributed.is_main_process() else ProgressOptions("text", ())


def console_for(options: ProgressOptions, console: Console) -> Console:
    """Return the console, or a silent one if stdout is for JSON lines."""
    return PlainConsole(quiet=True) if options.format == "json" else console


@dataclass(frozen=True)
class RunWatch:
    """Passes a run's events to the display and the trackers; call `ended` with the metrics at the end."""

    show: Callable[[Progress], None]
    show_end: Callable[[dict[str, Any]], None]
    tracking: Tracking
    config: RunConfig
    folder: Path

    def __call__(self, progress: Progress) -> None:
        if isinstance(progress.event, EpochDone | TaskDone):
            self.tracking.update(self.folder, self.config, progress.state.matrix)
        self.show(progress)

    def ended(self, metrics: dict[str, Any]) -> None:
        """Pass on the metrics of the finished run."""
        self.tracking.finish(self.folder, self.config, metrics)
        self.show_end(metrics)


@contextmanager
def watch_run(console: Console, options: ProgressOptions, config: RunConfig, folder: Path) -> Iterator[RunWatch]:
    """Yield the `watch` of one run."""
    with ExitStack() as stack:
        tracking = stack.enter_context(closing(Tracking(options.trackers, folder, warn)))
        if options.format == "json":
            show, end = partial(json_progress.write_progress, folder), partial(json_progress.write_done, folder)
            yield RunWatch(show, end, tracking, config, folder)
        else:
            display = stack.enter_context(RunDisplay(console, config))
            yield RunWatch(display, lambda _: None, tracking, config, folder)


@contextmanager
def watch_study(
    console: Console, options: ProgressOptions, cells: Sequence[Cell], kind: str, folder: Path
) -> Iterator[Watch]:
    """Yield the `watch` of a study's runs.

    Args:
        console: Where to print.
        options: How to show the progress.
        cells: The runs.
        kind: What the runs are called, such as "trials".
        folder: Folder of the study.
    """
    with ExitStack() as stack:
        tracking = stack.enter_context(closing(Tracking(options.trackers, folder, warn)))
        show: Watch = _write_json
        if options.format != "json":
            show = stack.enter_context(GridDisplay(console, cells, kind))

        def watch(cell: Cell, event: Event) -> None:
            _track(tracking, cell, event)
            show(cell, event)

        yield watch


def _track(tracking: Tracking, cell: Cell, event: Event) -> None:
    if isinstance(event, Outcome):
        if event.metrics is None:
            tracking.leave(cell.folder)
        else:
            tracking.finish(cell.folder, cell.config, event.metrics)
    elif isinstance(event, Progress) and isinstance(event.event, EpochDone | TaskDone):
        tracking.update(cell.folder, cell.config, event.state.matrix)


def _write_json(cell: Cell, event: Event) -> None:
    if isinstance(event, Progress):
        json_progress.write_progress(cell.folder, event)
    elif isinstance(event, Running):
        json_progress.write_running(cell.folder, event)
    elif isinstance(event, Outcome):
        if event.metrics is None:
            json_progress.write_failed(event)
        else:
            json_progress.write_done(cell.folder, event.metrics)


def warn(line: str) -> None:
    """Print a problem that stops nothing as a line on stderr."""
    say(line)
