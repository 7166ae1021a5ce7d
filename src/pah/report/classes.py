"""Accuracy of single classes and the worst confusions, from a run's predictions."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pah.report.charts import CellValue, Chart, Table, line_style, new_figure, set_task_ticks
from pah.report.run_data import Run
from pah.training.evaluation import TaskPredictions, percent
from pah.training.metrics import Accuracy

MAX_CONFUSIONS = 20  # rows of a table of confusions


class ClassResult(NamedTuple):
    """A class: its accuracy in percent, task given, and the class that its images are most often taken for.

    The accuracy is None for a class without test images.
    """

    task: int
    name: str
    images: int
    accuracy: Accuracy
    taken_for: str | None


class Confusion(NamedTuple):
    """Images of one class that were taken for another class."""

    truth: str
    answer: str
    images: int
    share: float  # of the images of the class, percent


def class_results(answers: Sequence[TaskPredictions], names: Sequence[Sequence[str]]) -> list[ClassResult]:
    """Return the result of every class, task after task."""
    results = []
    for k, (task_answers, task_names) in enumerate(zip(answers, names, strict=True)):
        for label, name in enumerate(task_names):
            given = task_answers.task_given[task_answers.labels == label]
            counts = given.bincount(minlength=len(task_names))
            right = int(counts[label])
            counts[label] = 0
            other = task_names[int(counts.argmax())] if int(counts.max()) else None
            results.append(ClassResult(k, name, len(given), percent(right, len(given)), other))
    return results


def accuracies(run: Run, results: Sequence[ClassResult]) -> Chart:
    """Return a chart with a point for each class, by task."""
    measured = {result: result.accuracy for result in results if result.accuracy is not None}
    worst, best = min(measured, key=measured.__getitem__), max(measured, key=measured.__getitem__)
    with new_figure() as (figure, [axes]):
        points = {"linestyle": "", "marker": "o", "markersize": 3.5, "alpha": 0.75, "color": line_style(0)["color"]}
        axes.plot([result.task + 1 for result in measured], list(measured.values()), **points)
        last = run.matrix[-1]
        mean = {"linestyle": "", "marker": "_", "markersize": 14, "color": line_style(1)["color"]}
        axes.plot(range(1, len(last) + 1), last, label="the task's accuracy", **mean)
        axes.set(xlabel="task", ylabel="accuracy of a class, %")
        axes.grid(visible=False, axis="x")
        axes.set_xlim(0.4, len(last) + 0.6)
        set_task_ticks(axes.xaxis, len(last))
        figure.legend(loc="outside upper right", fontsize=8)
    words = (
        f"A dot for each of {len(measured)} classes, in the column of its task. The lowest is {worst.name} with "
        f"{worst.accuracy:.1f} %, the highest {best.name} with {best.accuracy:.1f} %."
    )
    rows: list[list[CellValue]] = [
        [result.name, str(result.task + 1), result.accuracy, str(result.images), result.taken_for] for result in results
    ]
    titles = ["class", "task", "accuracy, %", "images", "most often taken for"]
    table = Table("At the end, task given", titles, rows)
    return Chart("class-accuracy", "Accuracy of each class", words, figure, table)


def confusions(answers: Sequence[TaskPredictions], names: Sequence[Sequence[str]]) -> list[Table]:
    """Return tables of the classes that are confused most: with the task given, and with the task not given."""
    tables = [
        ("Task given", _worst_rows(_confusions_within_task(answers, names))),
        ("Task not given", _worst_rows(_confusions_among_all(answers, names))),
    ]
    titles = ["images of", "taken for", "images", "share, %"]
    return [Table(f"{setting}: the {len(rows)} worst confusions", titles, rows) for setting, rows in tables if rows]


def _worst_rows(all_confusions: Iterator[Confusion]) -> list[list[CellValue]]:
    """Return table rows of the confusions with the highest share."""
    worst = sorted(all_confusions, key=lambda confusion: confusion.share, reverse=True)[:MAX_CONFUSIONS]
    return [[truth, answer, str(images), share] for truth, answer, images, share in worst]


def _confusions_within_task(answers: Sequence[TaskPredictions], names: Sequence[Sequence[str]]) -> Iterator[Confusion]:
    """Yield the confusions of classes of one task, when the task is given."""
    for task_answers, task_names in zip(answers, names, strict=True):
        for label, name in enumerate(task_names):
            counts = task_answers.task_given[task_answers.labels == label].bincount(minlength=len(task_names))
            yield from _confusions_of_class(name, label, counts.tolist(), task_names)


def _confusions_among_all(answers: Sequence[TaskPredictions], names: Sequence[Sequence[str]]) -> Iterator[Confusion]:
    """Yield the confusions of classes of all tasks, when the task is not given."""
    all_names = [name for task_names in names for name in task_names]
    offset = 0
    for task_answers, task_names in zip(answers, names, strict=True):
        for label, name in enumerate(task_names):
            counts = task_answers.task_not_given[task_answers.labels == label].bincount(minlength=len(all_names))
            yield from _confusions_of_class(name, offset + label, counts.tolist(), all_names)
        offset += len(task_names)


def _confusions_of_class(name: str, own: int, counts: Sequence[int], names: Sequence[str]) -> Iterator[Confusion]:
    """Yield the confusions of the class `names[own]`, whose images got the answer i `counts[i]` times."""
    total = sum(counts)
    for other, images in enumerate(counts):
        if other != own and images:
            yield Confusion(name, names[other], images, 100 * images / total)
