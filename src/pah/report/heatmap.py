"""The accuracy matrix as a picture: what each lesson taught, kept and cost."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pah.metrics import Matrix
from pah.report.figures import STYLE, require_matplotlib

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CELL = 0.52  # inches, of one accuracy
MARGIN = (2.2, 1.5)  # inches beside and above the cells
COLOURS = "cividis"  # alike for all colour vision, dark to light in print as well
LEGIBLE = 20  # tasks, up to which the numbers stand in the cells
LONGEST = 18  # characters of a task's name


def accuracy_heatmap(matrix: Matrix, task_names: Sequence[str]) -> "Figure":
    """A row after each task learned, a column for each task, from 0 to 100 %.

    Args:
        matrix: Accuracies in percent; row i has i + 1 numbers.
        task_names: A name for each row.

    Raises:
        InputError: matplotlib is not installed.
        ValueError: there is not one name a row.
    """
    require_matplotlib()
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    names = [_short(name) for name, _ in zip(task_names, matrix, strict=True)]
    tasks = len(names)
    square = [[*row, *[float("nan")] * (tasks - len(row))] for row in matrix]
    side = CELL * max(tasks, 4) if tasks <= LEGIBLE else CELL * LEGIBLE
    with rc_context(STYLE):
        figure = Figure(figsize=(side + MARGIN[0], side + MARGIN[1]), facecolor="white", layout="constrained")
        axes = figure.subplots()
        image = axes.imshow(square, cmap=COLOURS, vmin=0, vmax=100)
        if tasks <= LEGIBLE:
            for i, row in enumerate(matrix):
                for j, accuracy in enumerate(row):
                    colour = "black" if accuracy > 55 else "white"
                    axes.text(j, i, f"{accuracy:.0f}", ha="center", va="center", color=colour)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        axes.set_xticks(range(tasks), names, rotation=45, ha="right")
        axes.set_yticks(range(tasks), names)
        axes.set_xlabel("accuracy on")
        axes.set_ylabel("after learning")
        figure.colorbar(image, ax=axes, label="accuracy, %", shrink=0.8)
    return figure


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"
