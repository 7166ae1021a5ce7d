"""The display of a run: a live bar on a terminal, plain lines elsewhere, and tables at the end."""

import time
from collections.abc import Sequence
from statistics import fmean
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Table

from pah.data.stream import Stream
from pah.runs.diagnosis import TaskDiagnosis
from pah.runs.progress import Progress
from pah.study.ablation import panel_rows
from pah.study.table import NO_VALUE, table_rows
from pah.training.config import RunConfig
from pah.training.state import EpochDone, ImagesRead, StepDone, TaskBegun, TaskDone

MAX_COLUMNS = 6  # of a study's table on a terminal
IMAGES_READ = "images through the frozen backbone"
LINE_SECONDS = 10.0  # between the lines that say how many images were read, where there is no bar
SMOOTHING = 0.9  # weight of the old speed at each step


class RunDisplay:
    """Shows the progress of a run; a context manager that is given to the run as its `watch`."""

    def __init__(self, console: Console, config: RunConfig) -> None:
        self.console = console
        self.live = console.is_terminal
        self.speed = 0.0  # images a second, smoothed
        self.last_line = time.monotonic()
        self.terms: dict[str, float] = {}  # the last loss terms
        self.bar = Bar(
            TextColumn("[bold]{task.fields[method]}"),
            TextColumn("task {task.fields[position]}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[detail]}"),
            console=console,
            disable=not self.live,
        )
        self.method = config.method
        self.row = self.bar.add_task("", total=None, method=config.method, position="-", detail="")

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def __call__(self, progress: Progress) -> None:
        """Show one event of the run."""
        event = progress.event
        if isinstance(event, TaskBegun):
            self._show_notes(event, progress)
        elif isinstance(event, StepDone) and self.live:
            self._show_step(event, progress)
        elif isinstance(event, ImagesRead):
            self._show_read(event)
        elif isinstance(event, EpochDone) and not self.live:
            self._show_epoch(event, progress)
        elif isinstance(event, TaskDone):
            self._show_task(event, progress)

    def _show_notes(self, event: TaskBegun, progress: Progress) -> None:
        """Show at the start of a run what was left out of its data."""
        source = progress.stream.source
        for note in source.notes if source and event.task == 0 else ():
            self.console.print(note, highlight=False, soft_wrap=True, markup=False)

    def _show_read(self, event: ImagesRead) -> None:
        """Show how many images passed through a frozen backbone; without a bar, a line every few seconds."""
        self.bar.update(self.row, total=event.total, completed=event.done, detail=IMAGES_READ)
        if not self.live and time.monotonic() - self.last_line >= LINE_SECONDS:
            self.console.print(f"{self.method}  {event.done} of {event.total} {IMAGES_READ}", highlight=False)
            self.last_line = time.monotonic()

    def _show_step(self, event: StepDone, progress: Progress) -> None:
        state, epochs = progress.state, progress.config.training.epochs_of(progress.state.task)
        speed = event.images / event.seconds
        self.speed = SMOOTHING * self.speed + (1 - SMOOTHING) * speed if self.speed else speed
        self.terms = event.terms or self.terms
        terms = "  ".join(f"{name} {value:.3f}" for name, value in self.terms.items())
        self.bar.update(
            self.row,
            total=event.steps_done + event.steps_left,
            completed=event.steps_done,
            position=f"{state.task + 1}/{len(progress.stream.tasks)}  epoch {state.epoch + 1}/{epochs}",
            detail=f"{terms}  {self.speed:.0f} images/s  {time_left(progress.seconds_left)} left",
        )

    def _show_epoch(self, event: EpochDone, progress: Progress) -> None:
        terms = "  ".join(f"{name} {value:.4f}" for name, value in event.terms.items())
        if event.validation_accuracy is not None:
            terms += f"  validation {event.validation_accuracy:.1f} %"
        self.console.print(
            f"{self.method}  task {event.task + 1}/{len(progress.stream.tasks)}  "
            f"epoch {event.epoch + 1}/{progress.config.training.epochs_of(event.task)}  {terms}  "
            f"{event.images_per_second:.0f} images/s  {time_left(progress.seconds_left)} left",
            highlight=False,
            soft_wrap=True,
        )

    def _show_task(self, event: TaskDone, progress: Progress) -> None:
        accuracies = " ".join(_accuracy_text(accuracy) for accuracy in event.accuracies)
        self.console.print(
            f"{self.method}  learned task {event.task + 1} ({progress.stream.tasks[event.task].name}); "
            f"accuracy on each task so far, %: {accuracies}",
            highlight=False,
            soft_wrap=True,
        )


def comparison_table(summary: dict[str, Any]) -> Table:
    """Return a comparison's table with a row for each method, cut to the columns that fit on a terminal."""
    return _first_columns(table_rows(summary), MAX_COLUMNS)


def ablation_tables(summary: dict[str, Any]) -> list[Table]:
    """Return an ablation's tables, one for each panel, cut to the columns that fit on a terminal."""
    return [
        _first_columns(
            panel_rows(summary, panel), MAX_COLUMNS - 1 + len(panel["factors"]), name_columns=len(panel["factors"])
        )
        for panel in summary["panels"]
    ]


def _first_columns(rows: list[list[str]], columns: int, name_columns: int = 1) -> Table:
    """Return the first columns of rows as a table; the first row holds the titles, the first columns hold names."""
    table = Table()
    for i, title in enumerate(rows[0][:columns]):
        table.add_column(title, justify="left" if i < name_columns else "right", no_wrap=i <= name_columns)
    for row in rows[1:]:
        table.add_row(*(cell.replace("**", "") for cell in row[:columns]))
    return table


def time_left(seconds: float) -> str:
    """Return a duration as text, such as "3 min 05 s"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def matrix_table(results: dict[str, Any]) -> Table:
    """Return the accuracy matrix: a row after each learned task, a column for each task."""
    table = Table(title=f"{results['method']} on {results['benchmark']}: accuracy in % (seed {results['seed']})")
    table.add_column("after task", justify="right")
    for k in range(len(results["accuracy_matrix"])):
        table.add_column(f"on {k + 1}", justify="right")
    for k, row in enumerate(results["accuracy_matrix"]):
        table.add_row(str(k + 1), *map(_accuracy_text, row))
    return table


def _accuracy_text(accuracy: float | None) -> str:
    return NO_VALUE if accuracy is None else f"{accuracy:.1f}"


LEGEND = "in %: AA average accuracy, FM forgetting, BWT backward transfer, LA learning accuracy"


def summary_table(all_results: list[dict[str, Any]]) -> Table:
    """Return the metrics of runs, a row for each run."""
    table = Table()
    table.add_column("method")
    columns = {
        "AA": "average_accuracy",
        "FM": "forgetting",
        "BWT": "backward_transfer",
        "LA": "learning_accuracy",
        "task not given": "class_incremental_accuracy",
    }
    for title in columns:
        table.add_column(title, justify="right")
    for results in all_results:
        values = (results[key] for key in columns.values())
        table.add_row(results["method"], *(NO_VALUE if value is None else f"{value:.2f}" for value in values))
    return table


DIAGNOSIS_LEGEND = """\
Accuracy in % on each old task's test images: right after the task was learned (then), after the last task (now), and
with a new linear head fitted to the features of that moment on the task's training images. Lost: then minus now. It is
split into what a new head loses too (features) and the rest, which a new head recovers (head). CKA: similarity of the
task's features then and now. Prototypes: how far they moved, relative to their norm."""


def diagnosis_table(diagnoses: Sequence[TaskDiagnosis]) -> Table:
    """Return the causes of the forgetting of each old task, and their means."""
    table = Table()
    for title in (
        "task",
        "then",
        "now",
        "new head then",
        "new head now",
        "lost",
        "features",
        "head",
        "CKA",
        "prototypes",
    ):
        table.add_column(title, justify="right")
    for task in diagnoses:
        numbers = (
            task.then,
            task.now,
            task.refitted_then,
            task.refitted_now,
            task.lost,
            task.feature_drift,
            task.head_drift,
        )
        drift = "–" if task.prototype_drift is None else f"{task.prototype_drift:.2f}"
        table.add_row(str(task.task + 1), *(f"{number:.1f}" for number in numbers), f"{task.similarity[-1]:.2f}", drift)
    lost, features, head = (
        fmean(getattr(task, field) for task in diagnoses) for field in ("lost", "feature_drift", "head_drift")
    )
    table.add_row("mean", "", "", "", "", f"{lost:.1f}", f"{features:.1f}", f"{head:.1f}", "", "")
    return table


def class_order_line(config: RunConfig, stream: Stream) -> str:
    """Return how a stream's classes are ordered, and how many classes of the data set it leaves out."""
    order, order_seed = config.stream.class_order, config.stream.order_seed
    line = f"class order: {'as listed' if isinstance(order, tuple) else order}, seed {config.seed}"
    if order_seed is not None:
        line = f"class order: stream.order_seed {order_seed}, seed {config.seed}"
    left_out = stream.classes_left_out
    return f"{line}; classes left out: {left_out}" if left_out else line


def stream_table(stream: Stream) -> Table:
    """Return the tasks of a stream with their classes and numbers of images."""
    table = Table()
    for title in ("task", "classes", "training", "validation", "test"):
        table.add_column(title, justify="left" if title == "classes" else "right")
    for task in stream.tasks:
        counts = (len(task.train), len(task.validation), len(task.test))
        table.add_row(str(task.index + 1), ", ".join(task.class_names), *map(str, counts))
    return table


def stream_as_dict(config: RunConfig, stream: Stream) -> dict[str, Any]:
    """Return what `pah data` lists of a benchmark as JSON; tasks are counted from 0.

    The image shape (C, H, W) is None if the images have several sizes: then they are only counted, as single pixels.
    """
    return {
        "benchmark": config.benchmark,
        "origin": stream.origin,
        "notes": list(stream.source.notes) if stream.source else [],
        "image_shape": None if stream.image_shape[1:] == (1, 1) else list(stream.image_shape),
        "class_order": config.stream.class_order,
        "seed": config.seed,
        "tasks": [
            {
                "task": task.index,
                "name": task.name,
                "classes": list(task.class_names),
                "training": len(task.train),
                "validation": len(task.validation),
                "test": len(task.test),
            }
            for task in stream.tasks
        ],
    }
