"""Draws the README's picture: what two methods still know of every task, and their average as they learn.

python tools/picture.py                      results/split-cifar100/{pah,finetune}-seed0 -> docs/picture.{svg,png}
python tools/picture.py RUN RUN --out PATH   two other runs on the same stream
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
from pah.core.files import read_json
from pah.report.figures import GREY, STYLE

ROOT = Path(__file__).resolve().parent.parent
RUNS = ROOT / "results" / "split-cifar100"

INCHES = (9.4, 3.25)  # about 900 px wide as an SVG: GitHub shows a README's pictures at that width
DPI = 200  # of the PNG, for sharp screens
MAP = "viridis"  # as even with any colour vision, and in grey
COLOURS = ("#0072B2", "#D55E00")  # blue and vermilion (Okabe and Ito): apart with any colour vision
LIGHT = 55  # percent: on cells above it, dark digits read better
KEPT = 5.0  # points of forgetting up to which a method may be said to keep what it learned
WORDS = {"pah": "PAH", "finetune": "finetuning", "joint": "joint training"}


@dataclass(frozen=True)
class Result:
    """A run's method in words, the stream it learned, its accuracy matrix R and its forgetting, in percent."""

    method: str
    stream: tuple[str, list[int], int]  # benchmark, class order, number of tasks
    matrix: list[list[float]]  # R[i][j]: on task j after learning task i, j <= i
    forgetting: float

    @property
    def title(self) -> str:
        """What its numbers say, in plain words."""
        return f"{self.method} keeps what it learned" if self.forgetting <= KEPT else f"{self.method} forgets"


def read_result(folder: Path) -> Result:
    """The run in `folder`; InputError if its metrics.json is missing or incomplete."""
    path = folder / "metrics.json"
    metrics = read_json(path)
    try:
        matrix, method = metrics["accuracy_matrix"], metrics["method"]
        stream = (metrics["benchmark"], metrics["class_order"], len(matrix))
        return Result(WORDS.get(method, method), stream, matrix, metrics["forgetting"])
    except KeyError as error:
        raise InputError(f"{path}: expected {error}, got none") from None


def draw(results: tuple[Result, Result]) -> Figure:
    """Both accuracy matrices, and beside them both averages."""
    figure = Figure(figsize=INCHES, facecolor="white", layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for axes, result in zip((left, middle), results, strict=True):
        draw_matrix(axes, result)
    left.set_ylabel("after learning task")
    draw_averages(right, results)
    return figure


def draw_matrix(axes: Axes, result: Result) -> None:
    """The accuracy matrix as a heat map from 0 to 100 %, its numbers in the cells."""
    tasks = len(result.matrix)
    cells = np.full((tasks, tasks), np.nan)
    for i, row in enumerate(result.matrix):
        cells[i, : len(row)] = row
    axes.imshow(cells, cmap=MAP, vmin=0, vmax=100)
    size = min(7.5, 95 / tasks)  # points: three digits fit into a cell
    for i, row in enumerate(result.matrix):
        for j, accuracy in enumerate(row):
            colour = "black" if accuracy > LIGHT else "white"
            axes.text(j, i, f"{accuracy:.0f}", ha="center", va="center", color=colour, fontsize=size)
    names = [str(task + 1) for task in range(tasks)]
    axes.set_xticks(range(tasks), names, fontsize=size)
    axes.set_yticks(range(tasks), names, fontsize=size)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("accuracy on task, %")
    axes.set_title(result.title, loc="left", fontweight="bold")
    evidence = f"{statistics.fmean(result.matrix[-1]):.1f} % at the end,\n{result.forgetting:.1f} points forgotten"
    axes.text(1, 1, evidence, ha="right", va="top", color=GREY, transform=axes.transAxes)  # in the empty corner


def draw_averages(axes: Axes, results: Sequence[Result]) -> None:
    """Average accuracy over the tasks seen so far, a line for each method that says its name and where it ends."""
    last = len(results[0].matrix)
    tasks = range(1, last + 1)
    lines = [[statistics.fmean(row) for row in result.matrix] for result in results]
    highest = max(averages[-1] for averages in lines)
    for result, averages, colour in zip(results, lines, COLOURS, strict=True):
        axes.plot(tasks, averages, color=colour, marker="o", markersize=3.5, linewidth=1.8, clip_on=False)
        axes.annotate(
            f"{result.method}\n{averages[-1]:.1f} %",
            (last, averages[-1]),
            xytext=(7, 0),
            textcoords="offset points",
            va="bottom" if averages[-1] == highest else "top",  # labels stay apart where lines end close together
            color=colour,
            fontweight="bold",
            annotation_clip=False,
        )
    axes.set_box_aspect(1)  # as tall as the matrices
    axes.set_ylim(0, 100)
    axes.set_xticks(range(last, 0, -math.ceil(last / 10)))  # at most ten, the last task among them
    axes.grid(axis="y", color="#E5E5E5")
    axes.set_axisbelow(True)
    axes.set_xlabel("tasks learned")
    axes.set_title("average over tasks so far, %", loc="left", fontweight="bold")


def save(figure: Figure, out: Path) -> None:
    """Write `out`.svg and `out`.png, without the date: the same runs give the same files."""
    figure.savefig(out.with_name(f"{out.name}.svg"), metadata={"Date": None})
    figure.savefig(out.with_name(f"{out.name}.png"), dpi=DPI)


def main(words: Sequence[str] | None = None) -> int:
    """Draw; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("protected", nargs="?", type=Path, default=RUNS / "pah-seed0", help="run folder of one method")
    parser.add_argument("other", nargs="?", type=Path, default=RUNS / "finetune-seed0", help="and of the other")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "picture", help="path without its ending")
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
