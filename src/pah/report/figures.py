"""The figure of a comparison. The only module that needs matplotlib, and imports it only where it draws."""

import io
import math
from collections.abc import Container, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pah.core.config import InputError
from pah.core.files import write_file
from pah.study.table import BOUNDS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

INCHES = (8.0, 5.6)
PLOT = (0.08, 0.16, 0.9, 0.78)  # of the figure: left, bottom, width, height; fixed, as labels are placed in pixels
MARKER = 6.0  # points
DPI = 200  # of the PNG
GREY = "#555555"
STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "svg.hashsalt": "pah",  # the same numbers give the same file
}
FAMILIES = {  # marker and colour (Okabe and Ito: apart with any colour vision)
    "without stored samples": ("o", "#0072B2"),
    "with stored samples": ("s", "#D55E00"),
    "grows its network": ("^", "#009E73"),
    "bound": ("D", GREY),
}
GROWS = 0.5  # the share of a model's parameters that belong to single tasks, from which it is said to grow
REACHES = (7, 14, 22, 32, 44, 58, 74)  # points from a marker to its name, nearest first; only there without a line
TURNS = (0, 8, 4, 12, 2, 14, 6, 10, 1, 15, 7, 9, 3, 13, 5, 11)  # sixteenths, best first: right, left, above, below, ...
WAYS = tuple((round(math.cos(turn * math.pi / 8), 3), round(math.sin(turn * math.pi / 8), 3)) for turn in TURNS)
HIDES, OUTSIDE = 20, 100  # what a name costs that covers something or leaves the axes; a line that does costs 1


class Point(NamedTuple):
    """A method in the figure, in percent; the standard deviations are None for a single seed."""

    name: str
    family: str
    x: float
    y: float
    x_std: float | None
    y_std: float | None


class Place(NamedTuple):
    """Where a name may be written: offsets from its marker in points, and what it covers, in pixels."""

    middle: tuple[float, float]
    end: tuple[float, float]  # of the line from the marker to the name's edge
    name: "Bbox"
    line: "list[Bbox]"  # empty beside the marker


def accuracy_against_forgetting(summary: Mapping[str, Any]) -> "Figure":
    """Average accuracy over forgetting, a labelled point a method, with the sample standard deviation over seeds.

    Args:
        summary: what `study.table.summarise` returns, or `comparison.json` holds.

    Raises:
        InputError: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    points = [_point(name, entry, summary["tasks"]) for name, entry in summary["methods"].items()]
    with rc_context(STYLE):
        figure = Figure(figsize=INCHES, facecolor="white")
        FigureCanvasAgg(figure)  # measures text, without a window
        axes = figure.add_axes(PLOT)
        for point in points:
            _draw(axes, point)
        axes.margins(0.1)
        axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())  # now, as labels are placed in pixels
        axes.grid(color="#EEEEEE")
        axes.set_axisbelow(True)
        axes.set_xlabel("forgetting FM, % (less is better)")
        axes.set_ylabel("average accuracy AA, % (more is better)")
        axes.set_title(f"{summary['benchmark']}, {summary['tasks']} tasks", loc="left", fontweight="bold")
        axes.set_title("bars: sample standard deviation over seeds", loc="right", fontsize=8, color=GREY)
        _legend(figure, {point.family for point in points})
        _label(axes, points)
    return figure


def save(figure: "Figure", path: Path) -> None:
    """Write `path`.svg and `path`.png, each whole or not at all; the same figure gives the same bytes.

    Raises:
        InputError: matplotlib is not installed, or a file cannot be written.
    """
    require_matplotlib()
    from matplotlib import rc_context

    undated: Mapping[str, dict[str, Any]] = {"svg": {"Date": None}, "png": {}}
    for kind, metadata in undated.items():
        data = io.BytesIO()
        with rc_context(STYLE):
            figure.savefig(data, format=kind, dpi=DPI, metadata=metadata)
        write_file(path.with_name(f"{path.name}.{kind}"), data.getvalue())


def require_matplotlib() -> None:
    """Raise InputError unless matplotlib is installed: an extra, imported only where something is drawn."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise InputError("figures need the extra: pip install 'pah[report]'") from None


def _point(name: str, entry: Mapping[str, Any], tasks: int) -> Point:
    x, y = entry["forgetting"], entry["average_accuracy"]
    return Point(name, _family(name, entry, tasks), x["mean"], y["mean"], x["std"], y["std"])


def _family(name: str, entry: Mapping[str, Any], tasks: int) -> str:
    """The key of FAMILIES that a method belongs to."""
    if name in BOUNDS:
        return "bound"
    if entry["stored_samples"]:
        return "with stored samples"
    grows = tasks * entry["parameters_per_new_task"] >= GROWS * entry["parameters"]
    return "grows its network" if grows else "without stored samples"


def _draw(axes: "Axes", point: Point) -> None:
    """A method's marker and error bars."""
    marker, colour = FAMILIES[point.family]
    axes.errorbar(
        point.x,
        point.y,
        xerr=point.x_std,
        yerr=point.y_std,
        marker=marker,
        color=colour,
        markersize=MARKER,
        elinewidth=0.8,
        capsize=2,
        capthick=0.8,
    )


def _legend(figure: "Figure", families: Container[str]) -> None:
    """The families that occur, below the axes."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], linestyle="", marker=marker, color=colour, label=family)
        for family, (marker, colour) in FAMILIES.items()
        if family in families
    ]
    figure.legend(handles=handles, loc="lower center", ncols=len(handles), frameon=False)


def _label(axes: "Axes", points: Sequence[Point]) -> None:
    """Write each method's name at the nearest place where it covers least, with a line to it where that is far."""
    ink = [_ink(axes, point) for point in points]
    written: list[Bbox] = []
    for point, own in zip(points, ink, strict=True):
        where: Any = {"xy": (point.x, point.y), "textcoords": "offset points"}
        colour = FAMILIES[point.family][1]
        name = axes.annotate(point.name, xytext=(0, 0), ha="center", va="center", fontsize=8, color=colour, **where)
        places = [_place(axes, name.get_window_extent(), reach, way) for reach in REACHES for way in WAYS]
        others = written + [box for boxes in ink if boxes is not own for box in boxes]
        covered = partial(_covered, axes.get_window_extent(), own, others)
        best = next((place for place in places if not covered(place)), None) or min(places, key=covered)
        name.set_position(best.middle)
        written += [best.name, *best.line]
        if best.line:
            line = {"arrowstyle": "-", "color": colour, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 0}
            axes.annotate("", xytext=best.end, arrowprops=line, **where)


def _place(axes: "Axes", box: "Bbox", reach: int, way: tuple[float, float]) -> Place:
    """Where a name comes to lie `reach` points away; `box` is what it covers while it lies on its marker, in pixels."""
    pixels = axes.figure.dpi / 72  # of a point
    half = box.width / pixels / 2, box.height / pixels / 2
    end = reach * way[0], reach * way[1]
    middle = end[0] + half[0] * _sign(way[0]), end[1] + half[1] * _sign(way[1])
    marker = type(box).from_bounds(box.x0 + box.width / 2, box.y0 + box.height / 2, 1, 1)
    steps = [pixels * step for step in range(REACHES[0], reach, 5)]
    line = [marker.translated(step * way[0], step * way[1]) for step in steps]
    return Place(middle, end, box.translated(middle[0] * pixels, middle[1] * pixels), line)


def _covered(frame: "Bbox", own: "list[Bbox]", others: "list[Bbox]", place: Place) -> int:
    """What a place costs: 0 if the name covers nothing and lies in the frame, and its line covers no `others`."""
    outside = not (frame.contains(*place.name.min) and frame.contains(*place.name.max))
    lines = sum(box.count_overlaps(others) for box in place.line)
    return HIDES * place.name.count_overlaps(own + others) + lines + OUTSIDE * outside


def _sign(number: float) -> int:
    return (number > 0) - (number < 0)


def _ink(axes: "Axes", point: Point) -> "list[Bbox]":
    """What a point covers, in pixels: its error bars, as wide as its marker."""
    from matplotlib.transforms import Bbox

    x_std, y_std = point.x_std or 0.0, point.y_std or 0.0
    bars = [
        Bbox.from_extents(point.x - x_std, point.y, point.x + x_std, point.y),
        Bbox.from_extents(point.x, point.y - y_std, point.x, point.y + y_std),
    ]
    return [axes.transData.transform_bbox(bar).padded(MARKER / 2 * axes.figure.dpi / 72) for bar in bars]
