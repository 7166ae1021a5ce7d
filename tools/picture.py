"""Draw the README's picture: the accuracy of two methods on every task, and their average accuracy over time.

python tools/picture.py                      draw PAH with the recipe `best` and finetuning with the recipe `fast`
python tools/picture.py RUN RUN --out PATH   draw two other runs on the same stream

Without --out, the picture is written to docs/picture.svg and docs/picture.png.
"""

import argparse
import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pah.core.config import InputError
from pah.core.files import read_json, read_yaml
from pah.report.figures import GREY, STYLE

ROOT = Path(__file__).resolve().parent.parent
PROTECTED = ROOT / "results" / "best" / "pah-seed0"
UNPROTECTED = ROOT / "results" / "fast" / "finetune-seed0"  # no run without protection has the width of `best`

INCHES = (9.4, 3.25)  # about 900 px wide as an SVG: GitHub shows a README's pictures at that width
DPI = 200  # of the PNG, for sharp screens
COLOUR_MAP = "viridis"  # perceptually uniform, also in grey and with any colour vision
LINE_COLOURS = ("#0072B2", "#D55E00")  # blue and vermilion (Okabe and Ito): distinct with any colour vision
LIGHT_CELL = 55  # percent: on lighter cells, dark digits are easier to read
LITTLE_FORGETTING = 5.0  # points up to which a title says that a method keeps what it learned
METHOD_NAMES = {"pah": "PAH", "finetune": "finetuning", "joint": "joint training"}


@dataclass(frozen=True)
class Result:
    """What the picture shows of a run.

    Args:
        method: Name of the method in words.
        network: Name and options of the backbone.
        stream: Benchmark, class order and number of tasks.
        matrix: Accuracies in percent: matrix[i][j] is the one on task j after learning task i, for j <= i.
        forgetting: In percentage points.
    """

    method: str
    network: dict[str, object]
    stream: tuple[str, list[int], int]
    matrix: list[list[float]]
    forgetting: float

    @property
    def title(self) -> str:
        """Return one sentence on how much the method forgets."""
        return (
            f"{self.method} keeps what it learned" if self.forgetting <= LITTLE_FORGETTING else f"{self.method} forgets"
        )


def read_result(folder: Path) -> Result:
    """Return the run in `folder`.

    Raises:
        InputError: its metrics.json or config.yaml is missing or incomplete.
    """
    metrics, config = read_json(folder / "metrics.json"), read_yaml(folder / "config.yaml")
    try:
        matrix, method = metrics["accuracy_matrix"], metrics["method"]
        stream = (metrics["benchmark"], metrics["class_order"], len(matrix))
        return Result(METHOD_NAMES.get(method, method), config["backbone"], stream, matrix, metrics["forgetting"])
    except KeyError as error:
        raise InputError(f"{folder}: expected {error} in metrics.json or config.yaml, got none") from None


def draw(results: tuple[Result, Result]) -> Figure:
    """Return a figure with both accuracy matrices and, beside them, both averages."""
    figure = Figure(figsize=INCHES, facecolor="white", layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for axes, result in zip((left, middle), results, strict=True):
        draw_matrix(axes, result, differing_options(results, result))
    left.set_ylabel("after learning task")
    draw_averages(right, results)
    return figure


def differing_options(results: Sequence[Result], shown: Result) -> str:
    """Return the options of the shown result's backbone that are not the same in all results, one in each line."""
    differing = [key for key in shown.network if any(other.network.get(key) != shown.network[key] for other in results)]
    return "".join(f"\n{key.replace('_', ' ')} {shown.network[key]}" for key in differing)


def draw_matrix(axes: Axes, result: Result, note: str) -> None:
    """Draw the accuracy matrix as a heat map from 0 to 100 % with its numbers, and its summary followed by the note."""
    tasks = len(result.matrix)
    cells = np.full((tasks, tasks), np.nan)
    for i, row in enumerate(result.matrix):
        cells[i, : len(row)] = row
    axes.imshow(cells, cmap=COLOUR_MAP, vmin=0, vmax=100)
    size = min(7.5, 95 / tasks)  # points: three digits fit into a cell
    for i, row in enumerate(result.matrix):
        for j, accuracy in enumerate(row):
            colour = "black" if accuracy > LIGHT_CELL else "white"
            axes.text(j, i, f"{accuracy:.0f}", ha="center", va="center", color=colour, fontsize=size)
    names = [str(task + 1) for task in range(tasks)]
    axes.set_xticks(range(tasks), names, fontsize=size)
    axes.set_yticks(range(tasks), names, fontsize=size)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("accuracy on task, %")
    axes.set_title(result.title, loc="left", fontweight="bold")
    summary = f"{statistics.fmean(result.matrix[-1]):.1f} % at the end,\n{result.forgetting:.1f} points forgotten"
    axes.text(1, 1, summary + note, ha="right", va="top", color=GREY, transform=axes.transAxes)  # in the empty corner


def draw_averages(axes: Axes, results: Sequence[Result]) -> None:
    """Draw the average accuracy over the tasks seen so far as one line for each method, labelled at its end."""
    last = len(results[0].matrix)
    tasks = range(1, last + 1)
    lines = [[statistics.fmean(row) for row in result.matrix] for result in results]
    highest = max(averages[-1] for averages in lines)
    for result, averages, colour in zip(results, lines, LINE_COLOURS, strict=True):
        axes.plot(tasks, averages, color=colour, marker="o", markersize=3.5, linewidth=1.8, clip_on=False)
        axes.annotate(
            f"{result.method}\n{averages[-1]:.1f} %",
            (last, averages[-1]),
            xytext=(7, 0),
            textcoords="offset points",
            va="bottom" if averages[-1] == highest else "top",  # so that labels of close lines do not overlap
            color=colour,
            fontweight="bold",
            annotation_clip=False,
        )
    axes.set_box_aspect(1)  # the height of the matrices
    axes.set_ylim(0, 100)
    axes.set_xticks(range(last, 0, -math.ceil(last / 10)))  # at most ten, including the last task
    axes.grid(axis="y", color="#E5E5E5")
    axes.set_axisbelow(True)
    axes.set_xlabel("tasks learned")
    axes.set_title("average over tasks so far, %", loc="left", fontweight="bold")


def save(figure: Figure, out: Path) -> None:
    """Write `out`.svg and `out`.png without a date, so that the same runs give the same files."""
    figure.savefig(out.with_name(f"{out.name}.svg"), metadata={"Date": None})
    figure.savefig(out.with_name(f"{out.name}.png"), dpi=DPI)


def main(words: Sequence[str] | None = None) -> int:
    """Draw the picture; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("protected", nargs="?", type=Path, default=PROTECTED, help="run folder of one method")
    parser.add_argument("other", nargs="?", type=Path, default=UNPROTECTED, help="run folder of the other method")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "docs" / "picture", help="path of the files without their ending"
    )
    options = parser.parse_args(words)
    try:
        results = read_result(options.protected), read_result(options.other)
        if results[0].stream != results[1].stream:
            raise InputError(f"{options.other}: expected a run on the stream of {options.protected}, got another")
        with mpl.rc_context(STYLE):
            save(draw(results), options.out)
    except (InputError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
