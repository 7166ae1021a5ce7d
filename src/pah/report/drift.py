"""Charts of drift: accuracy lost in features and in heads, change of features, change of prototypes."""

from collections.abc import Mapping
from typing import Any

from pah.report.charts import CellValue, Chart, Table, line_style, new_figure, set_task_ticks
from pah.report.figures import GREY
from pah.report.prototype_pictures import relative_distance
from pah.report.run_data import DIAGNOSED, Run


def lost_parts(diagnosis: Mapping[str, Any]) -> Chart:
    """Return the accuracy that each old task lost in its head and in its features."""
    tasks, mean = diagnosis["tasks"], diagnosis["mean"]
    parts = {"features": "feature_drift", "head": "head_drift"}
    with new_figure() as (figure, [axes]):
        for index, (name, key) in enumerate(parts.items()):
            positions = [task["task"] + 1 + 0.2 * (2 * index - 1) for task in tasks]
            axes.bar(positions, [task[key] for task in tasks], 0.38, label=name, color=line_style(index)["color"])
        axes.axhline(0, color=GREY, linewidth=0.8)
        axes.set(xlabel="task", ylabel="accuracy lost, percentage points")
        axes.grid(visible=False, axis="x")
        set_task_ticks(axes.xaxis, tasks[-1]["task"] + 1)
        axes.legend()
    words = (
        f"Two bars for each old task. On average a task lost {mean['lost']:.1f} points since it was learned: "
        f"{mean['feature_drift']:.1f} in its features, which a new head would lose too (below 0: gained), and "
        f"{mean['head_drift']:.1f} in its head, which a new head would recover."
    )
    titles = ["task", "then", "now", "new head then", "new head now", "lost", "features", "head"]
    rows: list[list[CellValue]] = [[str(task["task"] + 1), *(task[key] for key in DIAGNOSED)] for task in tasks]
    table = Table("Accuracy in %; lost = features + head, in percentage points", titles, rows)
    return Chart("lost-parts", "Forgetting: heads or features", words, figure, table)


def similarity(diagnosis: Mapping[str, Any]) -> Chart:
    """Return the similarity of each old task's features to those right after the task was learned."""
    tasks = diagnosis["tasks"]
    count = tasks[0]["task"] + len(tasks[0]["similarity"])  # a task without test images is not among them
    with new_figure() as (figure, [axes]):
        for task in tasks:
            k, values = task["task"], task["similarity"]
            axes.plot(range(k + 1, count + 1), values, marker=".", markersize=4, **line_style(k))
            label: Any = {"textcoords": "offset points", "fontsize": 7, "color": line_style(k)["color"]}
            axes.annotate(str(k + 1), (k + 1, values[0]), xytext=(0, 3), ha="center", **label)
        axes.set(xlabel="tasks learned", ylabel="similarity of features (CKA)")
        axes.margins(y=0.1)
        set_task_ticks(axes.xaxis, count)
    ends = [task["similarity"][-1] for task in tasks]
    words = (
        "A line for each old task, which starts at 1 when the task was learned. At the end, the features of the same "
        f"images have a similarity (linear CKA) of {min(ends):.2f} to {max(ends):.2f} to those right after learning."
    )
    titles = ["task", *(f"after {k + 1}" for k in range(count))]
    rows = [[str(task["task"] + 1), *[None] * task["task"], *task["similarity"]] for task in tasks]
    table = Table("Linear CKA, 0 to 1", titles, rows, digits=3)
    return Chart("features", "Change of features", words, figure, table)


def prototype_drift(run: Run) -> Chart | None:
    """Return how far each task's prototypes moved in their own task and since; None if it was not recorded."""
    distances = [
        (k, relative_distance(recorded.start, recorded.learned), relative_distance(recorded.learned, now))
        for k, (recorded, now) in enumerate(zip(run.prototypes, run.prototypes_now, strict=True))
        if recorded is not None
    ]
    measured = [(k, own, since) for k, own, since in distances if own is not None and since is not None]
    if not measured:
        return None
    parts = ("while its task was learned", "since then")
    with new_figure() as (figure, [axes]):
        for index, name in enumerate(parts):
            positions = [row[0] + 1 + 0.2 * (2 * index - 1) for row in measured]
            axes.bar(
                positions, [row[index + 1] for row in measured], 0.38, label=name, color=line_style(index)["color"]
            )
        axes.set(xlabel="task", ylabel="distance, relative to norm")
        axes.grid(visible=False, axis="x")
        set_task_ticks(axes.xaxis, len(run.matrix))
        axes.legend()
    own, since = ([row[index] for row in measured] for index in (1, 2))
    words = (
        f"Two bars for each task: how far its prototypes moved, relative to their norm, while it was learned "
        f"({min(own):.3f} to {max(own):.3f}) and since then ({min(since):.3f} to {max(since):.3f})."
    )
    rows: list[list[CellValue]] = [[str(k + 1), *values] for k, *values in measured]
    table = Table("Distance of a task's prototypes, relative to their norm before", ["task", *parts], rows, digits=4)
    return Chart("prototype-drift", "Change of prototypes", words, figure, table)
