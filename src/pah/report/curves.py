"""Figures of accuracy: the matrix, each task over time, and what is kept in the end."""

import math
from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from pah.report.exhibit import Cell, Exhibit, Table, count_tasks, drawing, line_style
from pah.report.rundata import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Matrix = Sequence[Sequence[float]]

NUMBERED = 12  # tasks, up to which the heat map says its numbers
VECTORS = 30  # tasks, up to which its cells are drawn one by one
PERCENT = "accuracy, %"


def accuracy_matrix(run: Run) -> Exhibit:
    """The matrix as a heat map."""
    matrix = run.matrix
    words = (
        f"Heat map of {len(matrix)} rows, one after each task learned, and {len(matrix)} columns, one for each task. "
        f"The last row, where the run {'ended' if run.finished else 'stands'}, reaches from {min(matrix[-1]):.1f} to "
        f"{max(matrix[-1]):.1f} %."
    )
    return Exhibit("accuracy-matrix", "Accuracy matrix", words, heat_map(matrix), matrix_table(matrix))


def heat_map(matrix: Matrix) -> "Figure":
    """A row after each task learned, a column for each task; accuracies in percent."""
    count = len(matrix)
    values = [[*row, *[math.nan] * (count - len(row))] for row in matrix]
    low, high = 10 * math.floor(min(map(min, matrix)) / 10), 10 * math.ceil(max(map(max, matrix)) / 10)
    high = max(high, low + 10)
    with drawing() as (figure, [axes]):
        edges = [k + 0.5 for k in range(count + 1)]
        cells = axes.pcolormesh(edges, edges, values, cmap="cividis", vmin=low, vmax=high, rasterized=count > VECTORS)
        figure.colorbar(cells, label=PERCENT)
        axes.grid(visible=False)
        axes.invert_yaxis()
        axes.set(xlabel="accuracy on task", ylabel="after learning task")
        count_tasks(axes.xaxis, count)
        count_tasks(axes.yaxis, count)
        for i, row in enumerate(matrix if count <= NUMBERED else (), 1):
            for j, accuracy in enumerate(row, 1):
                colour = "#fefefe" if accuracy < (low + high) / 2 else "#010101"  # the same in every theme
                axes.text(j, i, f"{accuracy:.0f}", ha="center", va="center", color=colour, fontsize=7)
    return figure


def matrix_table(matrix: Matrix) -> Table:
    """A row after each task learned, a column for each task."""
    count = len(matrix)
    rows: list[list[Cell]] = [[str(i), *row, *[None] * (count - i)] for i, row in enumerate(matrix, 1)]
    return Table("Accuracy in %", ["after task", *(f"on {k + 1}" for k in range(count))], rows)


def over_time(run: Run) -> Exhibit:
    """The accuracy of each task after it and every later one was learned."""
    matrix = run.matrix
    with drawing() as (figure, [axes]):
        draw_tasks(axes, matrix)
        axes.set(xlabel="tasks learned", ylabel=PERCENT)
    lost, worst = max((matrix[k][k] - matrix[-1][k], k) for k in range(len(matrix)))
    most = f"task {worst + 1} lost most, from {matrix[worst][worst]:.1f} to {matrix[-1][worst]:.1f} %"
    words = (
        f"A line for each of {len(matrix)} tasks, from when it was learned on: {most if lost > 0 else 'none lost any'}."
    )
    return Exhibit("accuracy-over-time", "Each task over time", words, figure, matrix_table(matrix))


def draw_tasks(axes: "Axes", matrix: Matrix) -> None:
    """A line for each task, with its number where it starts."""
    count = len(matrix)
    for k in range(count):
        of_task = [row[k] for row in matrix[k:]]
        axes.plot(range(k + 1, count + 1), of_task, marker=".", markersize=4, linewidth=1.2, **line_style(k))
        note: Any = {"textcoords": "offset points", "xytext": (-2, 4), "fontsize": 7, "color": line_style(k)["color"]}
        axes.annotate(str(k + 1), (k + 1, of_task[0]), ha="right", **note)
    axes.margins(0.06, 0.08)
    count_tasks(axes.xaxis, count)


def average_over_time(run: Run, finetune: Run | None) -> Exhibit:
    """The average accuracy over the tasks seen, with that of finetuning where it is known."""
    lines = {run.method: averages(run.matrix)}
    if finetune:
        lines["finetune"] = averages(finetune.matrix)
    with drawing() as (figure, [axes]):
        for index, (name, values) in enumerate(lines.items()):
            axes.plot(range(1, len(values) + 1), values, marker="o", markersize=4, label=name, **line_style(index))
        axes.set(xlabel="tasks learned", ylabel="average accuracy on tasks seen, %")
        count_tasks(axes.xaxis, len(run.matrix))
        axes.legend()
    words = "; ".join(
        f"{name}: from {of[0]:.1f} % after the first task to {of[-1]:.1f} %" for name, of in lines.items()
    )
    rows: list[list[Cell]] = [[str(k + 1), *(of[k] for of in lines.values())] for k in range(len(run.matrix))]
    table = Table("Average accuracy over the tasks seen, %", ["after task", *lines], rows)
    return Exhibit("average-over-time", "Average over all tasks seen", words + ".", figure, table)


def kept(run: Run, finetune: Run | None) -> Exhibit:
    """For each task, the accuracy right after it was learned and at the end; with that of finetuning where known."""
    both = [run, *([finetune] if finetune else [])]
    count = len(run.matrix)
    with drawing() as (figure, [axes]):
        for index, of in enumerate(both):
            then, now = _diagonal(of.matrix), of.matrix[-1]
            at = [k + 1 + 0.12 * (2 * index - len(both) + 1) for k in range(count)]
            colour = line_style(index)["color"]
            axes.vlines(at, now, then, color=colour, linewidth=1)
            points: Any = {"linestyle": "", "marker": "os"[index], "markersize": 4, "color": colour}
            axes.plot(at, then, fillstyle="none", label=f"{of.method}: just learned", **points)
            axes.plot(at, now, label=f"{of.method}: at the end", **points)
        axes.set(xlabel="task", ylabel=PERCENT)
        count_tasks(axes.xaxis, count)
        figure.legend(loc="outside upper center", ncols=2, fontsize=8)
    ends = [f"{of.method} keeps {fmean(of.matrix[-1]):.1f} of {fmean(_diagonal(of.matrix)):.1f} %" for of in both]
    words = (
        f"For each task two points a method, its accuracy just learned and at the end. On average {', '.join(ends)}."
    )
    titles = [f"{of.method} {when}" for of in both for when in ("just learned", "at the end")]
    rows: list[list[Cell]] = [
        [str(k + 1), *(row[k] for of in both for row in (of.matrix[k], of.matrix[-1]))] for k in range(count)
    ]
    return Exhibit(
        "kept",
        "What is kept",
        words,
        figure,
        Table("Accuracy in %, just learned and at the end", ["task", *titles], rows),
    )


def averages(matrix: Matrix) -> list[float]:
    """The average accuracy over the tasks seen, after each."""
    return [fmean(row) for row in matrix]


def _diagonal(matrix: Matrix) -> list[float]:
    return [row[-1] for row in matrix]
