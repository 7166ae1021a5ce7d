"""What a person sees of a run: a live display on a terminal, plain lines elsewhere, tables at the end."""

from collections.abc import Sequence
from statistics import fmean
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from pah.data.stream import Stream
from pah.runs.diagnosis import TaskDiagnosis
from pah.runs.run import Progress as Happened
from pah.study.ablation import panel_rows
from pah.study.table import table_rows
from pah.training.config import RunConfig
from pah.training.state import EpochDone, StepDone, TaskDone

SHOWN = 6  # columns of a study's table
SMOOTHING = 0.9  # of the shown speed, per step


class Watcher:
    """Shows a run as it goes; used as a context, handed to the run as its `watch`."""

    def __init__(self, console: Console, config: RunConfig) -> None:
        self.console = console
        self.live = console.is_terminal
        self.speed = 0.0  # images a second
        self.terms: dict[str, float] = {}  # those known last
        self.bar = Progress(
            TextColumn("[bold]{task.fields[method]}"),
            TextColumn("task {task.fields[where]}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[detail]}"),
            console=console,
            disable=not self.live,
        )
        self.method = config.method
        self.row = self.bar.add_task("", total=None, method=config.method, where="-", detail="")

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def __call__(self, happened: Happened) -> None:
        """Show one event."""
        event = happened.event
        if isinstance(event, StepDone):
            if self.live:
                self._step(event, happened)
        elif isinstance(event, EpochDone):
            if not self.live:
                self._epoch(event, happened)
        elif isinstance(event, TaskDone):
            self._task(event, happened)

    def _step(self, event: StepDone, happened: Happened) -> None:
        state, epochs = happened.state, happened.config.training.epochs_of(happened.state.task)
        now = event.images / event.seconds
        self.speed = SMOOTHING * self.speed + (1 - SMOOTHING) * now if self.speed else now
        steps = event.steps_done + event.steps_left
        self.terms = event.terms or self.terms
        terms = "  ".join(f"{name} {value:.3f}" for name, value in self.terms.items())
        self.bar.update(
            self.row,
            total=steps,
            completed=event.steps_done,
            where=f"{state.task + 1}/{len(happened.stream.tasks)}  epoch {state.epoch + 1}/{epochs}",
            detail=f"{terms}  {self.speed:.0f} images/s  {time_left(happened.seconds_left)} left",
        )

    def _epoch(self, event: EpochDone, happened: Happened) -> None:
        terms = "  ".join(f"{name} {value:.4f}" for name, value in event.terms.items())
        self.console.print(
            f"{self.method}  task {event.task + 1}/{len(happened.stream.tasks)}  "
            f"epoch {event.epoch + 1}/{happened.config.training.epochs_of(event.task)}  {terms}  "
            f"{event.images_per_second:.0f} images/s  {time_left(happened.seconds_left)} left",
            highlight=False,
            soft_wrap=True,
        )

    def _task(self, event: TaskDone, happened: Happened) -> None:
        accuracies = " ".join(f"{accuracy:.1f}" for accuracy in event.accuracies)
        self.console.print(
            f"{self.method}  learned task {event.task + 1} ({happened.stream.tasks[event.task].name}); "
            f"accuracy on each task so far, %: {accuracies}",
            highlight=False,
            soft_wrap=True,
        )


def comparison_table(summary: dict[str, Any]) -> Table:
    """The first columns of a comparison, as many as a terminal is wide: a row a method."""
    return _first_columns(table_rows(summary), SHOWN)


def ablation_tables(summary: dict[str, Any]) -> list[Table]:
    """The first columns of an ablation's tables: one a factor, or one of all combinations."""
    panels = summary["panels"]
    return [
        _first_columns(panel_rows(summary, of), SHOWN - 1 + len(of["factors"]), len(of["factors"])) for of in panels
    ]


def _first_columns(rows: list[list[str]], shown: int, names: int = 1) -> Table:
    """Titles and rows as a table of so many columns, the first of which are `names`."""
    table = Table()
    for i, title in enumerate(rows[0][:shown]):
        table.add_column(title, justify="left" if i < names else "right", no_wrap=i <= names)
    for row in rows[1:]:
        table.add_row(*(cell.replace("**", "") for cell in row[:shown]))
    return table


def time_left(seconds: float) -> str:
    """Seconds as a person says them."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def matrix_table(results: dict[str, Any]) -> Table:
    """The accuracy matrix: a row after each task learned, a column for each task."""
    table = Table(title=f"{results['method']} on {results['benchmark']}: accuracy in % (seed {results['seed']})")
    table.add_column("after task", justify="right")
    for k in range(len(results["accuracy_matrix"])):
        table.add_column(f"on {k + 1}", justify="right")
    for k, row in enumerate(results["accuracy_matrix"]):
        table.add_row(str(k + 1), *(f"{accuracy:.1f}" for accuracy in row))
    return table


LEGEND = "in %: AA average accuracy, FM forgetting, BWT backward transfer, LA learning accuracy"


def summary_table(all_results: list[dict[str, Any]]) -> Table:
    """The metrics of runs side by side."""
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
        table.add_row(results["method"], *(f"{results[key]:.2f}" for key in columns.values()))
    return table


DIAGNOSIS_LEGEND = """\
Accuracy in % on each old task's test images: right after it was learned (then), after the last task (now), and with a
new linear head fitted to the features of either moment on the task's training images. What was lost between then and
now is what a new head would have lost too (features) and the rest, which today's features still hold (head). CKA: how
alike the task's features are, then and now. Prototypes: how far they moved, relative to their norm."""


def diagnosis_table(found: Sequence[TaskDiagnosis]) -> Table:
    """Where the forgetting of each old task comes from, and the means."""
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
    for of in found:
        numbers = (of.then, of.now, of.refitted_then, of.refitted_now, of.lost, of.feature_drift, of.head_drift)
        drift = "–" if of.prototype_drift is None else f"{of.prototype_drift:.2f}"
        table.add_row(str(of.task + 1), *(f"{number:.1f}" for number in numbers), f"{of.similarity[-1]:.2f}", drift)
    lost, features, head = (fmean(getattr(of, key) for of in found) for key in ("lost", "feature_drift", "head_drift"))
    table.add_row("mean", "", "", "", "", f"{lost:.1f}", f"{features:.1f}", f"{head:.1f}", "", "")
    return table


def stream_table(stream: Stream) -> Table:
    """The tasks of a stream, their classes and their numbers of images."""
    table = Table()
    for title in ("task", "classes", "training", "validation", "test"):
        table.add_column(title, justify="left" if title == "classes" else "right")
    for task in stream.tasks:
        counts = (len(task.train), len(task.validation), len(task.test))
        table.add_row(str(task.index + 1), ", ".join(task.class_names), *map(str, counts))
    return table
