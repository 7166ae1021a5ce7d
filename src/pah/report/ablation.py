"""The figure of an ablation: average accuracy and forgetting over the values of each option that was varied."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pah.report.figures import MARKER, STYLE, require_matplotlib
from pah.study.table import shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 2  # of panels
PANEL = (4.6, 3.2)  # inches
CELL = 0.6  # inches, at least, along x
LONG = 10  # letters of a label, from which it is turned
APART = 0.09  # of the distance of two values: between AA and FM at one value


class Measure(NamedTuple):
    """A quantity with an axis of its own: its name in a summary, and how it is drawn (Okabe and Ito)."""

    key: str
    label: str
    marker: str
    colour: str
    shift: float


AA = Measure("average_accuracy", "AA", "o", "#0072B2", -APART)
FM = Measure("forgetting", "FM", "s", "#D55E00", APART)
QUOTED: Mapping[
    str, Mapping[str | None, Mapping[Any, tuple[float, float]]]
] = {  # AA and FM by benchmark, option and value
    "split-cifar100": {  # arXiv 2505.07450, ablation of PAH
        "method.prototype_size": {5: (73.72, 1.89), 10: (74.46, 1.71), 16: (73.52, 1.76), 20: (71.95, 2.66)},
        "method.prototype_start": {"random": (72.54, 2.32), "semantic": (74.46, 1.71)},
    }
}


def effects(summary: Mapping[str, Any]) -> "Figure":
    """A plot for each panel: AA on the left axis and FM on the right, with the sample standard deviation over seeds.

    Values stand evenly spaced, numbers in their order and joined by a line. Where the paper reports the same option on
    the same benchmark, its figures stand beside ours, hollow.

    Args:
        summary: what `study.ablation.summarise` returns, or `ablation.json` holds.

    Raises:
        InputError: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    panels = summary["panels"]
    columns = min(COLUMNS, len(panels))
    lines = math.ceil(len(panels) / columns)
    wide = max(PANEL[0], *(CELL * (len(panel["rows"]) + 2) for panel in panels))
    with rc_context(STYLE):
        figure = Figure(figsize=(wide * columns, PANEL[1] * lines + 0.9), facecolor="white", layout="constrained")
        spaces = list(figure.subplots(lines, columns, squeeze=False).flat)
        for axes, panel in zip(spaces, panels, strict=False):
            _draw(axes, summary, panel)
        for axes in spaces[len(panels) :]:
            axes.set_axis_off()
        title = f"{summary['benchmark']}: what each option changes"
        figure.suptitle(f"{title}\nbars: sample standard deviation over seeds", x=0.01, ha="left", fontsize=9)
        handles = {line.get_label(): line for axes in figure.axes for line in axes.containers}
        figure.legend(handles=list(handles.values()), loc="outside lower center", ncols=len(handles), frameon=False)
    return figure


def _draw(left: "Axes", summary: Mapping[str, Any], panel: Mapping[str, Any]) -> None:
    """One panel: ours filled, what the paper reports hollow and a little further from the middle."""
    factor = panel["factors"][0] if len(panel["factors"]) == 1 else None
    quoted = {shown(value): (value, of) for value, of in QUOTED.get(summary["benchmark"], {}).get(factor, {}).items()}
    values = {_label(row): row["values"] for row in panel["rows"]} | {text: [of[0]] for text, of in quoted.items()}
    cells = {_label(row): row["cell"] for row in panel["rows"]}
    numeric = all(len(of) == 1 and type(of[0]) in (int, float) for of in values.values())
    labels = sorted(values, key=lambda text: values[text][0]) if numeric else list(values)
    ours = [(x, summary["cells"][cells[text]]) for x, text in enumerate(labels) if text in cells]
    for axes, measure, index in ((left, AA, 0), (left.twinx(), FM, 1)):
        _points(axes, measure, ours, "-" if numeric else "")
        if quoted:
            xs = [labels.index(text) + 2 * measure.shift for text in quoted]
            label = f"{measure.label}: paper, quoted"
            ys = [of[index] for _, of in quoted.values()]
            style: Any = {"marker": measure.marker, "color": measure.colour, "markersize": MARKER, "fillstyle": "none"}
            axes.errorbar(xs, ys, linestyle="", label=label, **style)
        axes.set_ylabel(f"{measure.label}, %", color=measure.colour)
        axes.tick_params(axis="y", colors=measure.colour)
    left.figure.axes[-1].spines["right"].set_visible(True)
    left.grid(color="#EEEEEE")
    left.set_axisbelow(True)
    marked = [f"{text}\nbase" if cells.get(text) == summary["reference"] else text for text in labels]
    turned: Any = {"rotation": 30, "ha": "right"} if max(map(len, labels)) > LONG else {}
    left.set_xticks(range(len(labels)), marked, **turned)
    left.set_xlim(-0.5, len(labels) - 0.5)
    left.set_xlabel(", ".join(panel["short"]))


def _points(axes: "Axes", measure: Measure, cells: Sequence[tuple[int, Mapping[str, Any]]], line: str) -> None:
    """Means and error bars of one measure; no bar where there is a single seed."""
    of = [cell[measure.key] for _, cell in cells]
    axes.errorbar(
        [x + measure.shift for x, _ in cells],
        [each["mean"] for each in of],
        yerr=[math.nan if each["std"] is None else each["std"] for each in of],
        label=f"{measure.label}, {'left' if measure is AA else 'right'} axis",
        marker=measure.marker,
        color=measure.colour,
        linestyle=line,
        linewidth=1,
        markersize=MARKER,
        elinewidth=0.8,
        capsize=2,
    )


def _label(row: Mapping[str, Any]) -> str:
    """What stands below a cell: the values of the panel's options."""
    return ", ".join(map(shown, row["values"]))
