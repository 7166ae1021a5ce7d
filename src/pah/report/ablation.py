"""The figure of an ablation: average accuracy and forgetting over the values of each varied option."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pah.report.figures import MARKER, STYLE, require_matplotlib
from pah.study.table import format_value

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 2  # of panels
PANEL_INCHES = (4.6, 3.2)
VALUE_INCHES = 0.6  # least width per value along x
MAX_LABEL_LENGTH = 10  # characters; longer labels are rotated
SHIFT = 0.09  # between AA and FM at one value, as a share of the distance between two values


class Measure(NamedTuple):
    """A quantity with its own axis: its key in a summary, and how it is drawn (colours of Okabe and Ito)."""

    key: str
    label: str
    marker: str
    colour: str
    shift: float


AA = Measure("average_accuracy", "AA", "o", "#0072B2", -SHIFT)
FM = Measure("forgetting", "FM", "s", "#D55E00", SHIFT)
QUOTED: Mapping[
    str, Mapping[str | None, Mapping[Any, tuple[float, float]]]
] = {  # AA and FM by benchmark, option and value
    "split-cifar100": {  # arXiv 2505.07450, ablation of PAH
        "method.prototype_size": {5: (73.72, 1.89), 10: (74.46, 1.71), 16: (73.52, 1.76), 20: (71.95, 2.66)},
        "method.prototype_start": {"random": (72.54, 2.32), "semantic": (74.46, 1.71)},
    }
}


def effects(summary: Mapping[str, Any]) -> "Figure":
    """Draw a plot per panel: AA on the left axis and FM on the right, with the standard deviation over seeds.

    Values are evenly spaced; numbers are sorted and joined by a line. If the paper reports the same option on the same
    benchmark, its numbers are shown as hollow markers beside the measured ones.

    Args:
        summary: the content of `ablation.json`, as `study.ablation.summarise` returns it.

    Raises:
        InputError: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    panels = summary["panels"]
    columns = min(COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    width = max(PANEL_INCHES[0], *(VALUE_INCHES * (len(panel["rows"]) + 2) for panel in panels))
    with rc_context(STYLE):
        figure = Figure(
            figsize=(width * columns, PANEL_INCHES[1] * rows + 0.9), facecolor="white", layout="constrained"
        )
        all_axes = list(figure.subplots(rows, columns, squeeze=False).flat)
        for axes, panel in zip(all_axes, panels, strict=False):
            _draw_panel(axes, summary, panel)
        for axes in all_axes[len(panels) :]:
            axes.set_axis_off()
        title = f"{summary['benchmark']}: what each option changes"
        figure.suptitle(f"{title}\nbars: sample standard deviation over seeds", x=0.01, ha="left", fontsize=9)
        handles = {line.get_label(): line for axes in figure.axes for line in axes.containers}
        figure.legend(handles=list(handles.values()), loc="outside lower center", ncols=len(handles), frameon=False)
    return figure


def _draw_panel(left: "Axes", summary: Mapping[str, Any], panel: Mapping[str, Any]) -> None:
    """Draw one panel: measured values filled, quoted ones hollow and shifted a little further."""
    quoted = _quoted_values(summary["benchmark"], panel["factors"])
    cells = {_label(row): row["cell"] for row in panel["rows"]}
    labels, numeric = _sorted_labels(panel, quoted)
    measured = [(x, summary["cells"][cells[text]]) for x, text in enumerate(labels) if text in cells]
    for axes, measure, index in ((left, AA, 0), (left.twinx(), FM, 1)):
        _draw_measured(axes, measure, measured, "-" if numeric else "")
        if quoted:
            xs = [labels.index(text) + 2 * measure.shift for text in quoted]
            ys = [accuracy_and_forgetting[index] for _, accuracy_and_forgetting in quoted.values()]
            style: Any = {"marker": measure.marker, "color": measure.colour, "markersize": MARKER, "fillstyle": "none"}
            axes.errorbar(xs, ys, linestyle="", label=f"{measure.label}: paper, quoted", **style)
        axes.set_ylabel(f"{measure.label}, %", color=measure.colour)
        axes.tick_params(axis="y", colors=measure.colour)
    left.figure.axes[-1].spines["right"].set_visible(True)
    left.grid(color="#EEEEEE")
    left.set_axisbelow(True)
    tick_labels = [f"{text}\nbase" if cells.get(text) == summary["reference"] else text for text in labels]
    rotation: Any = {"rotation": 30, "ha": "right"} if max(map(len, labels)) > MAX_LABEL_LENGTH else {}
    left.set_xticks(range(len(labels)), tick_labels, **rotation)
    left.set_xlim(-0.5, len(labels) - 0.5)
    left.set_xlabel(", ".join(panel["short"]))


def _quoted_values(benchmark: str, factors: Sequence[str]) -> dict[str, tuple[Any, tuple[float, float]]]:
    """Return the paper's values of a panel's only option with their AA and FM, by label; empty if there are none."""
    option = factors[0] if len(factors) == 1 else None
    quoted = QUOTED.get(benchmark, {}).get(option, {})
    return {format_value(value): (value, measures) for value, measures in quoted.items()}


def _sorted_labels(panel: Mapping[str, Any], quoted: Mapping[str, tuple[Any, Any]]) -> tuple[list[str], bool]:
    """Return the labels of all measured and quoted values, and whether they are single numbers, then sorted."""
    values = {_label(row): row["values"] for row in panel["rows"]}
    values |= {text: [value] for text, (value, _) in quoted.items()}
    numeric = all(len(value) == 1 and type(value[0]) in (int, float) for value in values.values())
    return (sorted(values, key=lambda text: values[text][0]) if numeric else list(values)), numeric


def _draw_measured(axes: "Axes", measure: Measure, cells: Sequence[tuple[int, Mapping[str, Any]]], line: str) -> None:
    """Draw means and error bars of one measure; a single seed has no bar."""
    values = [cell[measure.key] for _, cell in cells]
    axes.errorbar(
        [x + measure.shift for x, _ in cells],
        [value["mean"] for value in values],
        yerr=[math.nan if value["std"] is None else value["std"] for value in values],
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
    """Return the label below a cell: the values of the panel's options."""
    return ", ".join(map(format_value, row["values"]))
