"""Progress for programs (`--progress json`): one line of JSON on stdout for each event, and nothing else there.

The field `event` tells which other fields a line has. Tasks and epochs are counted from 0, as in `log.jsonl`.
"""

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pah.core.config import unknown_name_error
from pah.learner.held_out import DriftError
from pah.learner.learner import ContinualLearner
from pah.runs.progress import Progress
from pah.study.grid import Outcome, Running
from pah.training.state import EpochDone, Event, ImagesRead, StepDone, TaskBegun

PROGRESS = ("text", "json")  # for people, for programs


def require_progress(name: str) -> None:
    """Raise InputError unless the name is one of `PROGRESS`."""
    if name not in PROGRESS:
        raise unknown_name_error("progress", name, PROGRESS)


def write_event(event: str, **fields: Any) -> None:
    """Print an event as one line, and flush it."""
    print(json.dumps({"event": event, **fields}), flush=True)


def write_progress(folder: Path, progress: Progress) -> None:
    """Write `epoch`, with the fields of the log and the time left, or `task`, with the accuracies so far in percent."""
    event, config = progress.event, progress.config
    if isinstance(event, StepDone | TaskBegun | ImagesRead):
        return
    run = {"run": str(folder), "method": config.method, "seed": config.seed, "tasks": len(progress.stream.tasks)}
    if isinstance(event, EpochDone):
        epochs = config.training.epochs_of(event.task)
        write_event("epoch", **run, epochs=epochs, **event.as_dict(), seconds_left=round(progress.seconds_left, 1))
    else:
        write_event("task", **run, name=progress.stream.tasks[event.task].name, **asdict(event))


def write_done(folder: Path, metrics: dict[str, Any]) -> None:
    """Write `done` with a run's metrics, as in `metrics.json`."""
    write_event("done", run=str(folder), metrics=metrics)


def write_running(folder: Path, running: Running) -> None:
    """Write `running` with the progress of a run on another machine."""
    write_event("running", run=str(folder), **asdict(running))


def write_failed(outcome: Outcome) -> None:
    """Write `failed` with the reason why a study's run failed."""
    write_event("failed", run=str(outcome.cell.folder), reason=outcome.reason)


def write_study(folder: Path, outcomes: Sequence[Outcome], summary: dict[str, Any] | None) -> None:
    """Write `study` with the numbers of finished and failed runs, and the summary as in the study's JSON file."""
    failed = sum(outcome.metrics is None for outcome in outcomes)
    write_event("study", folder=str(folder), done=len(outcomes) - failed, failed=failed, summary=summary)


class LessonEvents(AbstractContextManager["LessonEvents"]):
    """Writes the progress of a lesson; it has the interface of `learning.LessonDisplay`.

    Args:
        folder: Folder of the learner.
        task: Name of the new task.
        epochs: Number of epochs of the lesson.
    """

    def __init__(self, folder: Path, task: str, epochs: int) -> None:
        self.lesson: dict[str, Any] = {"learner": str(folder), "task": task}
        self.epochs = epochs

    def __exit__(self, *error: object) -> None:
        pass

    def __call__(self, event: Event) -> None:
        """Write `epoch` as for a run, but with the task's name as `task`."""
        if isinstance(event, EpochDone):
            write_event("epoch", epochs=self.epochs, **event.as_dict() | self.lesson)

    def rolled_back(self, error: DriftError) -> None:
        """Write `rolled back` with the reason."""
        write_event("rolled back", **self.lesson, reason=str(error))

    def done(self, learner: ContinualLearner, folder: Path) -> None:
        """Write `done` with the accuracies in percent, the estimated loss of each old task (drift) and the notes."""
        lesson = learner.history[-1]
        fields = {key: getattr(lesson, key) for key in ("accuracies", "before", "images", "drift", "notes")}
        write_event("done", **self.lesson, **fields)
