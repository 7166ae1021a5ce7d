"""The report of several runs side by side: methods, or option settings of one method, over their seeds."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from pah.core.config import InputError
from pah.data.stream_options import StreamOptions
from pah.report import curves
from pah.report.charts import CellValue, Chart, Table, line_style, new_figure, set_task_ticks
from pah.report.figures import accuracy_against_forgetting
from pah.report.run_data import Run
from pah.report.run_page import Page, Section, different_options, relevant_options
from pah.study.bootstrap import CorrectMask
from pah.study.grid import first_difference
from pah.study.table import (
    MORE_COLUMNS,
    PERCENT_COLUMNS,
    REFERENCE,
    difference_intervals,
    format_interval,
    format_mean_std,
    format_value,
    percent_columns,
    summarise,
)
from pah.study.table_files import as_csv, as_latex, significantly_best

COLUMNS = 2  # of small plots
MEASURES = {
    "AA, %": "average_accuracy",
    "FM, points": "forgetting",
    "BWT, points": "backward_transfer",
    "LA, %": "learning_accuracy",
}


class Group(NamedTuple):
    """Runs that differ only in their seed."""

    label: str
    runs: Sequence[Run]

    def mean_and_std(self, key: str) -> tuple[float, float]:
        """Return mean and sample standard deviation of a metric over seeds; the latter is nan for one seed."""
        return mean_and_std([run.metrics[key] for run in self.runs])


def page_of(runs: Sequence[Run]) -> Page:
    """Return the report of several runs on one stream.

    Raises:
        InputError: a run is not finished, is not on the stream of the first run, or occurs twice.
    """
    _require_comparable(runs)
    groups = group_by_options(runs)
    all_metrics = [{**run.metrics, "method": group.label} for group in groups for run in group.runs]
    answers = _answers(groups)
    summary = summarise(all_metrics, difference_intervals(answers, REFERENCE))
    summary["significantly_best"] = significantly_best(summary["methods"], answers)
    charts = [_measures(groups), _accuracy_against_forgetting(summary), _averages(groups), _each_task(groups)]
    text = [
        f"{len(runs)} runs on {summary['benchmark']}, {summary['tasks']} tasks, measured on {summary['evaluated_on']} "
        "images. Mean ± sample standard deviation over seeds, if there are several."
    ]
    if others := _other_options(groups):
        text.append(f"The runs differ in more than method and seed: {', '.join(others)}.")
    sections = [
        Section("table", "Side by side", tables=[_summary_table(summary)]),
        Section("figures", "Figures", charts=charts),
        Section("runs", "The runs", tables=[_runs_table(groups)]),
    ]
    title = f"{len(groups)} methods on {summary['benchmark']}"
    return Page(title, text, [], sections, [], {"report.csv": as_csv(summary), "report.tex": as_latex(summary)})


def group_by_options(runs: Sequence[Run]) -> list[Group]:
    """Group runs that differ only in their seed; label each group by method, and by options where these differ."""
    by_options: dict[str, list[Run]] = {}
    for run in runs:
        by_options.setdefault(repr(sorted(relevant_options(run).items())), []).append(run)
    groups = list(by_options.values())
    first_runs = [group[0] for group in groups]
    return [Group(_label(group[0], first_runs), group) for group in groups]


def _label(run: Run, first_runs: Sequence[Run]) -> str:
    """Return the method's name, followed by the options in which the groups of this method differ."""
    same_method = [relevant_options(other) for other in first_runs if other.method == run.method]
    own = relevant_options(run)
    different = [name for name in own if any(other.get(name) != own[name] for other in same_method)]
    settings = ", ".join(f"{name.rpartition('.')[2]} {format_value(own[name])}" for name in different)
    return f"{run.method} ({settings})" if settings else run.method


def _require_comparable(runs: Sequence[Run]) -> None:
    """Raise InputError unless the runs are finished, on one stream, and with one class order per seed."""
    first = runs[0]
    orders: dict[int, tuple[Run, Any]] = {}
    for run in runs:
        if not run.finished:
            progress = f"{len(run.matrix)} of {run.tasks or 'its'} tasks"
            raise InputError(f"{run.folder}: expected finished runs to compare, got one that has learned {progress}")
        if _stream_facts(run) != _stream_facts(first):
            difference = first_difference(_stream_facts(run), _stream_facts(first))
            raise InputError(f"{run.folder}: expected a run on the stream of {first.folder}, got another: {difference}")
        order = run.metrics.get("class_order")
        first_with_seed, expected_order = orders.setdefault(run.metrics["seed"], (run, order))
        if order != expected_order:
            raise InputError(
                f"{run.folder}: expected the class order of {first_with_seed.folder}, got another at one seed"
            )


def _stream_facts(run: Run) -> dict[str, Any]:
    """Return what the runs of a comparison must have in common."""
    facts = {key: run.metrics[key] for key in ("benchmark", "evaluated_on")}
    facts |= {"tasks": len(run.matrix), "image_size": run.config.get("image_size")}
    return facts | {"stream": asdict(StreamOptions()) | dict(run.config.get("stream", {}))}


def _other_options(groups: Sequence[Group]) -> list[str]:
    """Return the options, except those of the method, in which the groups differ."""
    first = groups[0].runs[0]
    return list(dict.fromkeys(name for group in groups for name in different_options(first, group.runs[0])))


def _answers(groups: Sequence[Group]) -> dict[str, dict[int, list[CorrectMask]]]:
    """Return which test images were answered correctly, by group, seed and task, for runs that stored predictions."""
    answers: dict[str, dict[int, list[CorrectMask]]] = {}
    for group in groups:
        for run in group.runs:
            if run.answers is not None:
                correct = [(task.task_given == task.labels).numpy() for task in run.answers]
                answers.setdefault(group.label, {})[run.metrics["seed"]] = correct
    return answers


def mean_and_std(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and sample standard deviation; the latter is nan for a single value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan


def _summary_table(summary: Mapping[str, Any]) -> Table:
    """Return a table with a row per group; every cell begins with its number, so that columns can be sorted."""
    more = {title: key for title, key in percent_columns(summary["methods"]).items() if title in MORE_COLUMNS}
    titles = ["method", "seeds", *PERCENT_COLUMNS, f"AA minus {REFERENCE.upper()}", *more, "stored samples"]
    rows: list[list[CellValue]] = [
        [
            label,
            str(entry["n"]),
            *(format_mean_std(list(entry[key]["by_seed"].values())) for key in PERCENT_COLUMNS.values()),
            format_interval(entry["minus_reference"]) if entry["minus_reference"] else None,
            *(format_mean_std(list(entry[key]["by_seed"].values())) if key in entry else None for key in more.values()),
            round(entry["stored_samples"]),
            round(entry["parameters"]),
            round(entry["parameters_per_new_task"]),
            entry["seconds"] / 60,
        ]
        for label, entry in summary["methods"].items()
    ]
    caption = "Percent; AA minus PAH with its 95 % interval from a paired bootstrap over seeds and images"
    return Table(caption, [*titles, "parameters", "per new task", "minutes"], rows)


def _measures(groups: Sequence[Group]) -> Chart:
    """Return each measure's mean and standard deviation: a panel per measure, a line per group."""
    positions = list(range(len(groups)))[::-1]
    with new_figure(5.6, 1.2 + 0.42 * len(groups) + 1.2, 2, 2, sharey=True) as (figure, panels):
        for axes, (title, key) in zip(panels, MEASURES.items(), strict=True):
            for position, group in zip(positions, groups, strict=True):
                mean, std = group.mean_and_std(key)
                style: Any = {"marker": "o", "markersize": 4, "capsize": 2, "color": line_style(0)["color"]}
                axes.errorbar(mean, position, xerr=std, **style)
            axes.set_title(title, loc="left")
            axes.set_yticks(positions, [group.label for group in groups])
            axes.margins(0.12, 0.12)
    rows: list[list[CellValue]] = [
        [group.label, *(number for key in MEASURES.values() for number in _mean_and_std_cells(group, key))]
        for group in groups
    ]
    titles = ["method", *(title for name in MEASURES for title in (name, "standard deviation"))]
    best = max(groups, key=lambda group: group.mean_and_std("average_accuracy")[0])
    words = (
        f"Four panels with a point for each of {len(groups)} methods and bars of one standard deviation over seeds. "
        f"{best.label} has the highest average accuracy, {best.mean_and_std('average_accuracy')[0]:.1f} %."
    )
    return Chart("measures", "Measures", words, figure, Table("Over seeds", titles, rows))


def _mean_and_std_cells(group: Group, key: str) -> list[CellValue]:
    mean, std = group.mean_and_std(key)
    return [mean, None if math.isnan(std) else std]


def _accuracy_against_forgetting(summary: Mapping[str, Any]) -> Chart:
    """Return average accuracy over forgetting, a point per group."""
    rows: list[list[CellValue]] = [
        [label, *(entry[key][part] for key in ("average_accuracy", "forgetting") for part in ("mean", "std"))]
        for label, entry in summary["methods"].items()
    ]
    titles = ["method", "AA, %", "standard deviation", "FM, points", "standard deviation"]
    words = (
        "A point for each method, with average accuracy on the vertical axis and forgetting on the horizontal axis. "
        "The upper left corner is best."
    )
    figure, table = accuracy_against_forgetting(summary), Table("Over seeds", titles, rows)
    return Chart("accuracy-against-forgetting", "Accuracy against forgetting", words, figure, table)


def _averages(groups: Sequence[Group]) -> Chart:
    """Return the average accuracy over the tasks seen, a line per group."""
    count = len(groups[0].runs[0].matrix)
    lines = {
        group.label: [
            mean_and_std(values)
            for values in zip(*(curves.average_accuracies(run.matrix) for run in group.runs), strict=True)
        ]
        for group in groups
    }
    with new_figure(5.6, 3.0 + 0.18 * math.ceil(len(groups) / COLUMNS)) as (figure, [axes]):
        for index, (label, values) in enumerate(lines.items()):
            means, stds = zip(*values, strict=True)
            style = {"marker": "o", "markersize": 3, "capsize": 2, "linewidth": 1.2, **line_style(index)}
            axes.errorbar(range(1, count + 1), means, yerr=stds, label=label, **style)
        axes.set(xlabel="tasks learned", ylabel="average accuracy on tasks seen, %")
        set_task_ticks(axes.xaxis, count)
        figure.legend(loc="outside lower center", ncols=COLUMNS, fontsize=8)
    rows: list[list[CellValue]] = [
        [label, *(curves.cell(mean) for mean, _ in values)] for label, values in lines.items()
    ]
    table = Table("Mean over seeds, %", ["method", *(f"after {k + 1}" for k in range(count))], rows)
    words = "; ".join(f"{label}: {values[-1][0]:.1f} % at the end" for label, values in lines.items())
    return Chart("averages", "Average over all tasks seen", f"A line for each method. {words}.", figure, table)


def _each_task(groups: Sequence[Group]) -> Chart:
    """Return the accuracy of each task over time, a panel per group; means over seeds."""
    panel_rows = math.ceil(len(groups) / COLUMNS)
    shared: Any = {"sharex": True, "sharey": True}
    rows: list[list[CellValue]] = []
    with new_figure(5.6, 0.5 + 1.9 * panel_rows, panel_rows, COLUMNS, **shared) as (figure, panels):
        for axes, group in zip(panels, groups, strict=False):
            matrix = mean_matrix([run.matrix for run in group.runs])
            curves.draw_tasks(axes, matrix)
            axes.set_title(group.label, loc="left")
            rows += [
                [group.label, str(i), *map(curves.cell, row), *[None] * (len(matrix) - i)]
                for i, row in enumerate(matrix, 1)
            ]
        for axes in panels[len(groups) :]:
            axes.set_axis_off()
        figure.supxlabel("tasks learned", fontsize=9)
        figure.supylabel(curves.PERCENT, fontsize=9)
    titles = ["method", "after task", *(f"on {k + 1}" for k in range(len(groups[0].runs[0].matrix)))]
    words = (
        f"A panel for each of {len(groups)} methods with a line for each task, which starts when the task was learned."
    )
    return Chart("side-by-side", "Each task over time", words, figure, Table("Mean over seeds, %", titles, rows))


def mean_matrix(matrices: Sequence[curves.Matrix]) -> list[list[float]]:
    """Return the element-wise mean of accuracy matrices of the same size."""
    return [[statistics.fmean(cells) for cells in zip(*rows, strict=True)] for rows in zip(*matrices, strict=True)]


def _runs_table(groups: Sequence[Group]) -> Table:
    """Return a table with a row per run."""
    keys = ("average_accuracy", "forgetting")
    rows: list[list[CellValue]] = [
        [group.label, str(run.metrics["seed"]), *(run.metrics[key] for key in keys), str(run.folder)]
        for group in groups
        for run in group.runs
    ]
    return Table("In %", ["method", "seed", "AA", "FM", "folder"], rows)
