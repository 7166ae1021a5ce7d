"""Who watches what a command does: a person or a program, and the trackers."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from pah.cli import json_progress
from pah.cli.display import Watcher
from pah.cli.gridview import GridWatcher
from pah.cli.options import Watchers
from pah.core import distributed
from pah.core.config import InputError
from pah.runs.run import Progress as Happened
from pah.study.grid import Cell, Event, Outcome, Running, Watch
from pah.tracking.sending import Tracking, tracked
from pah.tracking.tools import require_tools
from pah.training.config import RunConfig
from pah.training.state import EpochDone, TaskDone


def remembered(asked: Watchers, folder: Path) -> Watchers:
    """As asked; and a run that was tracked before is tracked again, by each tool that is still installed."""
    found = list(asked.track)
    for name in tracked(folder):
        try:
            require_tools([name])
        except InputError as error:  # nobody asked for it now
            warn(str(error))
        else:
            found.append(name)
    return asked._replace(track=tuple(dict.fromkeys(found)))


def first_alone(asked: Watchers) -> Watchers:
    """As asked; but of several processes that learn together only the first one tells anybody."""
    return asked if distributed.is_first() else Watchers("text", ())


def console_for(asked: Watchers, console: Console) -> Console:
    """The console of a command: a mute one where stdout belongs to a program."""
    return Console(quiet=True) if asked.progress == "json" else console


@dataclass(frozen=True)
class RunWatch:
    """Hands a run's events on; `ended` is to be called with its metrics."""

    show: Callable[[Happened], None]
    show_end: Callable[[dict[str, Any]], None]
    tracking: Tracking
    config: RunConfig
    folder: Path

    def __call__(self, happened: Happened) -> None:
        if isinstance(happened.event, EpochDone | TaskDone):
            self.tracking.update(self.folder, self.config, happened.state.matrix)
        self.show(happened)

    def ended(self, metrics: dict[str, Any]) -> None:
        """The run is over."""
        self.tracking.finish(self.folder, self.config, metrics)
        self.show_end(metrics)


@contextmanager
def of_run(console: Console, asked: Watchers, config: RunConfig, folder: Path) -> Iterator[RunWatch]:
    """What watches one run."""
    with ExitStack() as opened:
        tracking = opened.enter_context(closing(Tracking(asked.track, folder, warn)))
        if asked.progress == "json":
            said, end = partial(json_progress.say_progress, folder), partial(json_progress.say_done, folder)
            yield RunWatch(said, end, tracking, config, folder)
        else:
            shown = opened.enter_context(Watcher(console, config))
            yield RunWatch(shown, lambda _: None, tracking, config, folder)


@contextmanager
def of_study(console: Console, asked: Watchers, cells: Sequence[Cell], what: str, folder: Path) -> Iterator[Watch]:
    """What watches the runs of the study in `folder`, which are, say, its "trials"."""
    with ExitStack() as opened:
        tracking = opened.enter_context(closing(Tracking(asked.track, folder, warn)))
        show: Watch = _say
        if asked.progress != "json":
            show = opened.enter_context(GridWatcher(console, cells, what))

        def watch(cell: Cell, happened: Event) -> None:
            _track(tracking, cell, happened)
            show(cell, happened)

        yield watch


def _track(tracking: Tracking, cell: Cell, happened: Event) -> None:
    if isinstance(happened, Outcome):
        if happened.metrics is None:
            tracking.leave(cell.folder)
        else:
            tracking.finish(cell.folder, cell.config, happened.metrics)
    elif isinstance(happened, Happened) and isinstance(happened.event, EpochDone | TaskDone):
        tracking.update(cell.folder, cell.config, happened.state.matrix)


def _say(cell: Cell, happened: Event) -> None:
    if isinstance(happened, Happened):
        json_progress.say_progress(cell.folder, happened)
    elif isinstance(happened, Running):
        json_progress.say_running(cell.folder, happened)
    elif isinstance(happened, Outcome):
        if happened.metrics is None:
            json_progress.say_failed(happened)
        else:
            json_progress.say_done(cell.folder, happened.metrics)


def warn(line: str) -> None:
    """A line on stderr of what goes wrong but stops nothing."""
    print(f"pah: {line}", file=sys.stderr)
