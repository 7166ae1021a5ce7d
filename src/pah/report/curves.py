"""Charts of accuracy: the accuracy matrix, each task over time, and accuracy after learning and at the end."""

import math
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from pah.report.charts import CellValue, Chart, Table, line_style, new_figure, set_task_ticks
from pah.report.run_data import Run
from pah.training import metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Matrix = Sequence[Sequence[float]]  # nan for a task without test images

MAX_NUMBERED = 12  # tasks, up to which the heat map shows its numbers
MAX_VECTOR = 30  # tasks, up to which its cells are vector graphics
PERCENT = "accuracy, %"


def accuracy_matrix(run: Run) -> Chart:
    """Return the accuracy matrix as a heat map."""
    matrix = run.matrix
    words = (
        f"Heat map of {len(matrix)} rows, one after each task learned, and {len(matrix)} columns, one for each task. "
        f"The last row, {'at the end of the run' if run.finished else 'the latest of this unfinished run'}, has "
        f"accuracies from {min(_known(matrix[-1])):.1f} to {max(_known(matrix[-1])):.1f} %."
    )
    return Chart("accuracy-matrix", "Accuracy matrix", words, heat_map(matrix), matrix_table(matrix))


def heat_map(matrix: metrics.Matrix) -> "Figure":
    """Return a heat map with a row after each task learned and a column for each task; accuracies in percent."""
    count = len(matrix)
    numbers = [[math.nan if accuracy is None else accuracy for accuracy in row] for row in matrix]
    values = [[*row, *[math.nan] * (count - len(row))] for row in numbers]
    known = _known(accuracy for row in numbers for accuracy in row)
    low, high = 10 * math.floor(min(known) / 10), 10 * math.ceil(max(known) / 10)
    high = max(high, low + 10)
    with new_figure() as (figure, [axes]):
        edges = [k + 0.5 for k in range(count + 1)]
        cells = axes.pcolormesh(
            edges, edges, values, cmap="cividis", vmin=low, vmax=high, rasterized=count > MAX_VECTOR
        )
        figure.colorbar(cells, label=PERCENT)
        axes.grid(visible=False)
        axes.invert_yaxis()
        axes.set(xlabel="accuracy on task", ylabel="after learning task")
        set_task_ticks(axes.xaxis, count)
        set_task_ticks(axes.yaxis, count)
        for i, row in enumerate(numbers if count <= MAX_NUMBERED else (), 1):
            for j, accuracy in enumerate(row, 1):
                colour = "#fefefe" if accuracy < (low + high) / 2 else "#010101"  # the same in every theme
                text = "–" if math.isnan(accuracy) else f"{accuracy:.0f}"
                axes.text(j, i, text, ha="center", va="center", color=colour, fontsize=7)
    return figure


def matrix_table(matrix: Matrix) -> Table:
    """Return the matrix as a table: a row after each task learned, a column for each task."""
    count = len(matrix)
    rows = [[str(i), *map(cell, row), *[None] * (count - i)] for i, row in enumerate(matrix, 1)]
    return Table("Accuracy in %", ["after task", *(f"on {k + 1}" for k in range(count))], rows)


def accuracy_over_time(run: Run) -> Chart:
    """Return the accuracy of each task after it and after every later task."""
    matrix = run.matrix
    with new_figure() as (figure, [axes]):
        draw_tasks(axes, matrix)
        axes.set(xlabel="tasks learned", ylabel=PERCENT)
    lost, worst = max(
        (-math.inf if math.isnan(row[-1]) else row[-1] - matrix[-1][k], k) for k, row in enumerate(matrix)
    )
    largest = f"Task {worst + 1} lost most, from {matrix[worst][worst]:.1f} to {matrix[-1][worst]:.1f} %."
    words = f"A line for each of {len(matrix)} tasks, which starts when the task was learned. "
    words += largest if lost > 0 else "No task lost accuracy."
    return Chart("accuracy-over-time", "Each task over time", words, figure, matrix_table(matrix))


def draw_tasks(axes: "Axes", matrix: Matrix) -> None:
    """Draw a line for each task, with the task's number at its start."""
    count = len(matrix)
    for k in range(count):
        accuracies = [row[k] for row in matrix[k:]]
        axes.plot(range(k + 1, count + 1), accuracies, marker=".", markersize=4, linewidth=1.2, **line_style(k))
        label: Any = {"textcoords": "offset points", "xytext": (-2, 4), "fontsize": 7, "color": line_style(k)["color"]}
        axes.annotate(str(k + 1), (k + 1, accuracies[0]), ha="right", **label)
    axes.margins(0.06, 0.08)
    set_task_ticks(axes.xaxis, count)


def average_over_time(run: Run, finetune: Run | None) -> Chart:
    """Return the average accuracy over the tasks seen, with that of finetuning if given."""
    lines = {run.method: average_accuracies(run.matrix)}
    if finetune:
        lines["finetune"] = average_accuracies(finetune.matrix)
    with new_figure() as (figure, [axes]):
        for index, (name, values) in enumerate(lines.items()):
            axes.plot(range(1, len(values) + 1), values, marker="o", markersize=4, label=name, **line_style(index))
        axes.set(xlabel="tasks learned", ylabel="average accuracy on tasks seen, %")
        set_task_ticks(axes.xaxis, len(run.matrix))
        axes.legend()
    words = "; ".join(
        f"{name}: from {_known(values)[0]:.1f} % after the first task to {values[-1]:.1f} %"
        for name, values in lines.items()
    )
    rows = [[str(k + 1), *(cell(values[k]) for values in lines.values())] for k in range(len(run.matrix))]
    table = Table("Average accuracy over the tasks seen, %", ["after task", *lines], rows)
    return Chart("average-over-time", "Average over all tasks seen", words + ".", figure, table)


def learned_and_final(run: Run, finetune: Run | None) -> Chart:
    """Return each task's accuracy right after it was learned and at the end, with those of finetuning if given."""
    runs = [run, *([finetune] if finetune else [])]
    count = len(run.matrix)
    with new_figure() as (figure, [axes]):
        for index, shown in enumerate(runs):
            learned, final = _diagonal(shown.matrix), shown.matrix[-1]
            positions = [k + 1 + 0.12 * (2 * index - len(runs) + 1) for k in range(count)]
            colour = line_style(index)["color"]
            axes.vlines(positions, final, learned, color=colour, linewidth=1)
            points: Any = {"linestyle": "", "marker": "os"[index], "markersize": 4, "color": colour}
            axes.plot(positions, learned, fillstyle="none", label=f"{shown.method}: just learned", **points)
            axes.plot(positions, final, label=f"{shown.method}: at the end", **points)
        axes.set(xlabel="task", ylabel=PERCENT)
        set_task_ticks(axes.xaxis, count)
        figure.legend(loc="outside upper center", ncols=2, fontsize=8)
    means = [
        f"{shown.method} had {fmean(_known(_diagonal(shown.matrix))):.1f} % and has "
        f"{fmean(_known(shown.matrix[-1])):.1f} %"
        for shown in runs
    ]
    words = (
        "For each task, two points per method: its accuracy right after it was learned and at the end. "
        f"On average {', '.join(means)}."
    )
    titles = [f"{shown.method} {moment}" for shown in runs for moment in ("just learned", "at the end")]
    rows: list[list[CellValue]] = [
        [str(k + 1), *(cell(row[k]) for shown in runs for row in (shown.matrix[k], shown.matrix[-1]))]
        for k in range(count)
    ]
    table = Table("Accuracy in %, just learned and at the end", ["task", *titles], rows)
    return Chart("kept", "Accuracy right after learning and at the end", words, figure, table)


def average_accuracies(matrix: Matrix) -> list[float]:
    """Return the average accuracy over the tasks seen, after each task; nan if none of them has test images."""
    return [fmean(known) if (known := _known(row)) else math.nan for row in matrix]


def cell(accuracy: float) -> CellValue:
    """Return an accuracy as the cell of a table, which is empty for nan."""
    return None if math.isnan(accuracy) else accuracy


def _known(values: Iterable[float]) -> list[float]:
    return [value for value in values if not math.isnan(value)]


def _diagonal(matrix: Matrix) -> list[float]:
    """Return each task's accuracy right after it was learned."""
    return [row[-1] for row in matrix]
