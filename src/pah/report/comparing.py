"""The report of several runs: methods, or options of one, side by side, with the spread over seeds."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from pah.core.config import InputError
from pah.data.stream import StreamOptions
from pah.report import curves
from pah.report.exhibit import Cell, Exhibit, Table, count_tasks, drawing, line_style
from pah.report.figures import accuracy_against_forgetting
from pah.report.rundata import Run
from pah.report.single import Page, Section, choices, differing
from pah.study.bootstrap import Correct
from pah.study.grid import difference
from pah.study.table import PERCENT, REFERENCE, differences, shown, spread, summarise, with_interval

COLUMNS = 2  # of small plots
MEASURES = {
    "AA, %": "average_accuracy",
    "FM, points": "forgetting",
    "BWT, points": "backward_transfer",
    "LA, %": "learning_accuracy",
}


class Group(NamedTuple):
    """Runs that differ in their seed alone."""

    label: str
    runs: Sequence[Run]

    def spread_of(self, key: str) -> tuple[float, float]:
        """Mean and sample standard deviation over seeds, nan of a single one."""
        return mean_and_std([run.metrics[key] for run in self.runs])


def page_of(runs: Sequence[Run]) -> Page:
    """The report of several runs on one stream.

    Raises:
        InputError: a run that is not finished or not on the stream of the first, or one that is there twice.
    """
    _check(runs)
    groups = grouped(runs)
    summary = summarise([{**run.metrics, "method": of.label} for of in groups for run in of.runs], _intervals(groups))
    exhibits = [_measures(groups), _against(summary), _averages(groups), _side_by_side(groups)]
    words = [
        f"{len(runs)} runs on {summary['benchmark']}, {summary['tasks']} tasks, measured on {summary['evaluated_on']} "
        "images. Mean ± sample standard deviation over seeds, where there are several."
    ]
    if others := _other_options(groups):
        words.append(f"The runs differ in more than method and seed: {', '.join(others)}.")
    sections = [
        Section("table", "Side by side", tables=[_table(summary)]),
        Section("figures", "Figures", exhibits=exhibits),
        Section("runs", "The runs", tables=[_list(groups)]),
    ]
    return Page(f"{len(groups)} methods on {summary['benchmark']}", words, [], sections, [])


def grouped(runs: Sequence[Run]) -> list[Group]:
    """Runs that differ in their seed alone together; named by method, and by options where a method is there twice."""
    by_options: dict[str, list[Run]] = {}
    for run in runs:
        by_options.setdefault(repr(sorted(choices(run).items())), []).append(run)
    found = list(by_options.values())
    return [Group(_label(of[0], [other[0] for other in found]), of) for of in found]


def _label(run: Run, firsts: Sequence[Run]) -> str:
    alike = [choices(other) for other in firsts if other.method == run.method]
    own = choices(run)
    vary = [name for name in own if any(other.get(name) != own[name] for other in alike)]
    chosen = ", ".join(f"{name.rpartition('.')[2]} {shown(own[name])}" for name in vary)
    return f"{run.method} ({chosen})" if chosen else run.method


def _check(runs: Sequence[Run]) -> None:
    """Raise InputError unless the runs can stand in one comparison."""
    first = runs[0]
    orders: dict[int, tuple[Run, Any]] = {}
    for run in runs:
        if not run.finished:
            done = f"{len(run.matrix)} of {run.tasks or 'its'} tasks"
            raise InputError(f"{run.folder}: expected finished runs to compare, got one that has learned {done}")
        if _stream(run) != _stream(first):
            other = difference(_stream(run), _stream(first))
            raise InputError(f"{run.folder}: expected a run on the stream of {first.folder}, got another: {other}")
        order = run.metrics.get("class_order")
        with_seed, known = orders.setdefault(run.metrics["seed"], (run, order))
        if order != known:
            raise InputError(f"{run.folder}: expected the class order of {with_seed.folder}, got another at one seed")


def _stream(run: Run) -> dict[str, Any]:
    """What the runs of a comparison have in common."""
    facts = {key: run.metrics[key] for key in ("benchmark", "evaluated_on")}
    facts |= {"tasks": len(run.matrix), "image_size": run.config.get("image_size")}
    return facts | {"stream": asdict(StreamOptions()) | dict(run.config.get("stream", {}))}


def _other_options(groups: Sequence[Group]) -> list[str]:
    """The options beside those of the method in which the groups differ."""
    first = groups[0].runs[0]
    return list(dict.fromkeys(name for of in groups for name in differing(first, of.runs[0])))


def _intervals(groups: Sequence[Group]) -> dict[str, Any]:
    """For each group whose runs kept their answers, its difference in AA to the reference."""
    answers: dict[str, dict[int, list[Correct]]] = {}
    for of in groups:
        for run in of.runs:
            if run.answers is not None:
                correct = [(task.given == task.labels).numpy() for task in run.answers]
                answers.setdefault(of.label, {})[run.metrics["seed"]] = correct
    return differences(answers, REFERENCE)


def mean_and_std(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation, nan of a single value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan


def _table(summary: Mapping[str, Any]) -> Table:
    """A row a group; numbers first in every cell, so that it can be sorted."""
    titles = ["method", "seeds", *PERCENT, f"AA minus {REFERENCE.upper()}", "stored samples", "parameters"]
    rows: list[list[Cell]] = [
        [
            label,
            str(of["n"]),
            *(spread(list(of[key]["by_seed"].values())) for key in PERCENT.values()),
            with_interval(of["minus_reference"]) if of["minus_reference"] else None,
            round(of["stored_samples"]),
            round(of["parameters"]),
            round(of["parameters_per_new_task"]),
            of["seconds"] / 60,
        ]
        for label, of in summary["methods"].items()
    ]
    caption = "Percent; AA minus PAH with its 95 % interval from a paired bootstrap over seeds and images"
    return Table(caption, [*titles, "per new task", "minutes"], rows)


def _measures(groups: Sequence[Group]) -> Exhibit:
    """Each measure's mean and spread, a panel a measure, a line a group."""
    places = list(range(len(groups)))[::-1]
    with drawing(5.6, 1.2 + 0.42 * len(groups) + 1.2, 2, 2, sharey=True) as (figure, panels):
        for axes, (title, key) in zip(panels, MEASURES.items(), strict=True):
            for place, of in zip(places, groups, strict=True):
                mean, std = of.spread_of(key)
                axes.errorbar(mean, place, xerr=std, marker="o", markersize=4, capsize=2, color=line_style(0)["color"])
            axes.set_title(title, loc="left")
            axes.set_yticks(places, [of.label for of in groups])
            axes.margins(0.12, 0.12)
    rows: list[list[Cell]] = [[of.label, *(n for key in MEASURES.values() for n in _numbers(of, key))] for of in groups]
    titles = ["method", *(title for name in MEASURES for title in (name, "standard deviation"))]
    best = max(groups, key=lambda of: of.spread_of("average_accuracy")[0])
    words = (
        f"Four panels with a point for each of {len(groups)} methods and bars of one standard deviation over seeds. "
    )
    words += f"The highest average accuracy has {best.label}, {best.spread_of('average_accuracy')[0]:.1f} %."
    return Exhibit("measures", "Measures", words, figure, Table("Over seeds", titles, rows))


def _numbers(of: Group, key: str) -> list[Cell]:
    mean, std = of.spread_of(key)
    return [mean, None if math.isnan(std) else std]


def _against(summary: Mapping[str, Any]) -> Exhibit:
    rows: list[list[Cell]] = [
        [label, *(of[key][part] for key in ("average_accuracy", "forgetting") for part in ("mean", "std"))]
        for label, of in summary["methods"].items()
    ]
    titles = ["method", "AA, %", "standard deviation", "FM, points", "standard deviation"]
    words = "A point for each method: average accuracy upwards, forgetting to the right; best is the upper left corner."
    figure = accuracy_against_forgetting(summary)
    return Exhibit(
        "accuracy-against-forgetting", "Accuracy against forgetting", words, figure, Table("Over seeds", titles, rows)
    )


def _averages(groups: Sequence[Group]) -> Exhibit:
    """The average accuracy over the tasks seen, a line a group."""
    count = len(groups[0].runs[0].matrix)
    found = {
        of.label: [mean_and_std(v) for v in zip(*(curves.averages(run.matrix) for run in of.runs), strict=True)]
        for of in groups
    }
    with drawing(5.6, 3.0 + 0.18 * math.ceil(len(groups) / COLUMNS)) as (figure, [axes]):
        for index, (label, values) in enumerate(found.items()):
            means, stds = zip(*values, strict=True)
            style = {"marker": "o", "markersize": 3, "capsize": 2, "linewidth": 1.2, **line_style(index)}
            axes.errorbar(range(1, count + 1), means, yerr=stds, label=label, **style)
        axes.set(xlabel="tasks learned", ylabel="average accuracy on tasks seen, %")
        count_tasks(axes.xaxis, count)
        figure.legend(loc="outside lower center", ncols=COLUMNS, fontsize=8)
    rows: list[list[Cell]] = [[label, *(mean for mean, _ in values)] for label, values in found.items()]
    table = Table("Mean over seeds, %", ["method", *(f"after {k + 1}" for k in range(count))], rows)
    words = "; ".join(f"{label}: {values[-1][0]:.1f} % at the end" for label, values in found.items())
    return Exhibit("averages", "Average over all tasks seen", f"A line for each method. {words}.", figure, table)


def _side_by_side(groups: Sequence[Group]) -> Exhibit:
    """The accuracy of each task over time, a panel a group; means over seeds."""
    lines = math.ceil(len(groups) / COLUMNS)
    shared: Any = {"sharex": True, "sharey": True}
    rows: list[list[Cell]] = []
    with drawing(5.6, 0.5 + 1.9 * lines, lines, COLUMNS, **shared) as (figure, panels):
        for axes, of in zip(panels, groups, strict=False):
            matrix = mean_matrix([run.matrix for run in of.runs])
            curves.draw_tasks(axes, matrix)
            axes.set_title(of.label, loc="left")
            rows += [[of.label, str(i), *row, *[None] * (len(matrix) - i)] for i, row in enumerate(matrix, 1)]
        for axes in panels[len(groups) :]:
            axes.set_axis_off()
        figure.supxlabel("tasks learned", fontsize=9)
        figure.supylabel(curves.PERCENT, fontsize=9)
    titles = ["method", "after task", *(f"on {k + 1}" for k in range(len(groups[0].runs[0].matrix)))]
    words = f"A panel for each of {len(groups)} methods with a line for each task, from when it was learned on."
    return Exhibit("side-by-side", "Each task over time", words, figure, Table("Mean over seeds, %", titles, rows))


def mean_matrix(matrices: Sequence[curves.Matrix]) -> list[list[float]]:
    """The mean of accuracy matrices of one size, cell by cell."""
    return [[statistics.fmean(cells) for cells in zip(*rows, strict=True)] for rows in zip(*matrices, strict=True)]


def _list(groups: Sequence[Group]) -> Table:
    rows: list[list[Cell]] = [
        [
            of.label,
            str(run.metrics["seed"]),
            run.metrics["average_accuracy"],
            run.metrics["forgetting"],
            str(run.folder),
        ]
        for of in groups
        for run in of.runs
    ]
    return Table("In %", ["method", "seed", "AA", "FM", "folder"], rows)
