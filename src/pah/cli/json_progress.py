"""What a program sees of runs, studies and lessons: JSON on stdout, a line an event, and nothing else there.

A line's `event` says which other fields it has; tasks and epochs are counted from 0, as in `log.jsonl`.
"""

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pah.core.config import unknown
from pah.learner.learner import ContinualLearner, DriftError
from pah.runs.run import Progress as Happened
from pah.study.grid import Outcome, Running
from pah.training.state import EpochDone, Event, StepDone, TaskBegun

PROGRESS = ("text", "json")  # for people, for programs


def require_progress(name: str) -> None:
    """Raise InputError for a kind of progress that there is not."""
    if name not in PROGRESS:
        raise unknown("progress", name, PROGRESS)


def say(event: str, **fields: Any) -> None:
    """One line, at once: whoever reads waits for it."""
    print(json.dumps({"event": event, **fields}), flush=True)


def say_progress(folder: Path, happened: Happened) -> None:
    """`epoch`: what the log says of it, and the time left; `task`: the accuracies on each task so far, percent."""
    event, config = happened.event, happened.config
    if isinstance(event, StepDone | TaskBegun):
        return
    run = {"run": str(folder), "method": config.method, "seed": config.seed, "tasks": len(happened.stream.tasks)}
    if isinstance(event, EpochDone):
        epochs = config.training.epochs_of(event.task)
        say("epoch", **run, epochs=epochs, **asdict(event), seconds_left=round(happened.seconds_left, 1))
    else:
        say("task", **run, name=happened.stream.tasks[event.task].name, **asdict(event))


def say_done(folder: Path, metrics: dict[str, Any]) -> None:
    """`done`: a run's metrics, as `metrics.json` holds them."""
    say("done", run=str(folder), metrics=metrics)


def say_running(folder: Path, running: Running) -> None:
    """`running`: how far a run is that another machine makes, now and then."""
    say("running", run=str(folder), **asdict(running))


def say_failed(outcome: Outcome) -> None:
    """`failed`: why a study's run came to no end."""
    say("failed", run=str(outcome.cell.folder), reason=outcome.reason)


def say_study(folder: Path, outcomes: Sequence[Outcome], summary: dict[str, Any] | None) -> None:
    """`study`: how many of its runs are done, how many failed, and the summary as its JSON file holds it."""
    failed = sum(outcome.metrics is None for outcome in outcomes)
    say("study", folder=str(folder), done=len(outcomes) - failed, failed=failed, summary=summary)


class LessonLines(AbstractContextManager["LessonLines"]):
    """Says how a lesson goes; as `learning.LessonView` shows it."""

    def __init__(self, folder: Path, task: str, epochs: int) -> None:
        self.lesson: dict[str, Any] = {"learner": str(folder), "task": task}
        self.epochs = epochs

    def __exit__(self, *error: object) -> None:
        pass

    def __call__(self, event: Event) -> None:
        """`epoch`: as that of a run; here `task` is the name that is taught."""
        if isinstance(event, EpochDone):
            say("epoch", epochs=self.epochs, **asdict(event) | self.lesson)

    def rolled_back(self, error: DriftError) -> None:
        """`rolled back`: why the learner stays as it was."""
        say("rolled back", **self.lesson, reason=str(error))

    def done(self, learner: ContinualLearner, folder: Path) -> None:
        """`done`: accuracies measured after the lesson, percent; drift, what old tasks are estimated to have lost."""
        lesson = learner.history[-1]
        of = {"accuracies": lesson.accuracies, "drift": lesson.drift, "notes": lesson.notes}
        say("done", **self.lesson, **of)
