"""Figures of what happened inside: where forgetting comes from, features that move, prototypes that move."""

from collections.abc import Mapping
from typing import Any

from pah.report.exhibit import Cell, Exhibit, Table, count_tasks, drawing, line_style
from pah.report.figures import GREY
from pah.report.pictures import moved
from pah.report.rundata import DIAGNOSED, Run


def lost_parts(diagnosis: Mapping[str, Any]) -> Exhibit:
    """What each old task lost, in its head and in its features."""
    tasks, mean = diagnosis["tasks"], diagnosis["mean"]
    parts = {"features": "feature_drift", "head": "head_drift"}
    with drawing() as (figure, [axes]):
        for index, (name, key) in enumerate(parts.items()):
            at = [of["task"] + 1 + 0.2 * (2 * index - 1) for of in tasks]
            axes.bar(at, [of[key] for of in tasks], 0.38, label=name, color=line_style(index)["color"])
        axes.axhline(0, color=GREY, linewidth=0.8)
        axes.set(xlabel="task", ylabel="accuracy lost, percentage points")
        axes.grid(visible=False, axis="x")
        count_tasks(axes.xaxis, len(tasks))
        axes.legend()
    words = (
        f"Two bars for each old task. On average it lost {mean['lost']:.1f} points since it was learned: "
        f"{mean['feature_drift']:.1f} in its features, what a new head would have lost too (below 0: gained), and "
        f"{mean['head_drift']:.1f} in its head, which the features still hold."
    )
    titles = ["task", "then", "now", "new head then", "new head now", "lost", "features", "head"]
    rows: list[list[Cell]] = [[str(of["task"] + 1), *(of[key] for key in DIAGNOSED)] for of in tasks]
    table = Table("Accuracy in %; lost = features + head, in percentage points", titles, rows)
    return Exhibit("lost-parts", "Forgetting: heads or features", words, figure, table)


def similarity(diagnosis: Mapping[str, Any]) -> Exhibit:
    """How alike each old task's features are to those right after it was learned."""
    tasks = diagnosis["tasks"]
    count = len(tasks[0]["similarity"])
    with drawing() as (figure, [axes]):
        for of in tasks:
            k = of["task"]
            axes.plot(range(k + 1, count + 1), of["similarity"], marker=".", markersize=4, **line_style(k))
            note: Any = {"textcoords": "offset points", "fontsize": 7, "color": line_style(k)["color"]}
            axes.annotate(str(k + 1), (k + 1, of["similarity"][0]), xytext=(0, 3), ha="center", **note)
        axes.set(xlabel="tasks learned", ylabel="likeness of features (CKA)")
        axes.margins(y=0.1)
        count_tasks(axes.xaxis, count)
    ends = [of["similarity"][-1] for of in tasks]
    words = (
        f"A line for each old task, from 1 when it was learned. At the end the features of the same images have a "
        f"likeness (linear CKA) of {min(ends):.2f} to {max(ends):.2f} to those of that moment."
    )
    titles = ["task", *(f"after {k + 1}" for k in range(count))]
    rows = [[str(of["task"] + 1), *[None] * of["task"], *of["similarity"]] for of in tasks]
    return Exhibit("features", "Features that move", words, figure, Table("Linear CKA, 0 to 1", titles, rows, digits=3))


def prototype_drift(run: Run) -> Exhibit | None:
    """How far each task's prototypes moved in their own task and since; None where it was not recorded."""
    moves = [
        (k, moved(of.start, of.learned), moved(of.learned, now))
        for k, (of, now) in enumerate(zip(run.prototypes, run.prototypes_now, strict=True))
        if of is not None
    ]
    found = [(k, own, since) for k, own, since in moves if own is not None and since is not None]
    if not found:
        return None
    parts = ("while its task was learned", "since then")
    with drawing() as (figure, [axes]):
        for index, name in enumerate(parts):
            at = [of[0] + 1 + 0.2 * (2 * index - 1) for of in found]
            axes.bar(at, [of[index + 1] for of in found], 0.38, label=name, color=line_style(index)["color"])
        axes.set(xlabel="task", ylabel="distance, relative to norm")
        axes.grid(visible=False, axis="x")
        count_tasks(axes.xaxis, len(run.matrix))
        axes.legend()
    own, since = ([of[index] for of in found] for index in (1, 2))
    words = (
        f"Two bars for each task: how far its prototypes moved, relative to their norm, while it was learned "
        f"({min(own):.3f} to {max(own):.3f}) and since then ({min(since):.3f} to {max(since):.3f})."
    )
    rows: list[list[Cell]] = [[str(k + 1), *of] for k, *of in found]
    table = Table("Distance of a task's prototypes, relative to their norm before", ["task", *parts], rows, digits=4)
    return Exhibit("prototype-drift", "Prototypes that move", words, figure, table)
