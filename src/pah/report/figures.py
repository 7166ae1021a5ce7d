"""The figure of a comparison: average accuracy against forgetting.

matplotlib is an optional extra, so the functions that draw import it.
"""

import io
import math
import os
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
PLOT = (0.08, 0.16, 0.9, 0.78)  # of the figure: left, bottom, width, height; fixed, because labels are placed in pixels
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
    "svg.hashsalt": "pah",  # equal numbers give equal files
}
FAMILIES = {  # marker and colour (Okabe and Ito: distinct for all kinds of colour vision)
    "without stored samples": ("o", "#0072B2"),
    "with stored samples": ("s", "#D55E00"),
    "grows its network": ("^", "#009E73"),
    "bound": ("D", GREY),
}
GROWTH_SHARE = 0.5  # of the parameters that belong to single tasks, from which a method counts as growing
DISTANCES = (7, 14, 22, 32, 44, 58, 74)  # points from a marker to its name, nearest first; beyond the first with a line
SIXTEENTHS = (0, 8, 4, 12, 2, 14, 6, 10, 1, 15, 7, 9, 3, 13, 5, 11)  # of a turn, best first: right, left, above, ...
DIRECTIONS = tuple((round(math.cos(k * math.pi / 8), 3), round(math.sin(k * math.pi / 8), 3)) for k in SIXTEENTHS)
OVERLAP_COST, OUTSIDE_COST = 20, 100  # of a name that covers something or leaves the axes; a covering line costs 1


class Point(NamedTuple):
    """A method in the figure, in percent; the standard deviations are None for a single seed."""

    name: str
    family: str
    x: float
    y: float
    x_std: float | None
    y_std: float | None


class LabelPosition(NamedTuple):
    """A possible position of a name: offsets from its marker in points, and the boxes that it covers, in pixels."""

    centre: tuple[float, float]
    line_end: tuple[float, float]  # of the line from the marker to the name's edge
    name_box: "Bbox"
    line_boxes: "list[Bbox]"  # empty if the name is next to the marker


def accuracy_against_forgetting(summary: Mapping[str, Any]) -> "Figure":
    """Draw average accuracy over forgetting: a labelled point per method, bars of the standard deviation over seeds.

    Args:
        summary: the content of `comparison.json`, as `study.table.summarise` returns it.

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
        FigureCanvasAgg(figure)  # measures text without a window
        axes = figure.add_axes(PLOT)
        for point in points:
            _draw(axes, point)
        axes.margins(0.1)
        axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())  # fixed, because labels are placed in pixels
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
    """Write `path`.svg and `path`.png, each file atomically; equal figures give equal bytes.

    Raises:
        InputError: matplotlib is not installed, or a file cannot be written.
    """
    require_matplotlib()
    from matplotlib import rc_context

    metadata_by_format: Mapping[str, dict[str, Any]] = {"svg": {"Date": None}, "png": {}}
    for file_format, metadata in metadata_by_format.items():
        data = io.BytesIO()
        with rc_context(STYLE):
            figure.savefig(data, format=file_format, dpi=DPI, metadata=metadata)
        write_file(path.with_name(f"{path.name}.{file_format}"), data.getvalue())


def require_matplotlib() -> None:
    """Raise InputError unless matplotlib is installed.

    The variable MPLBACKEND is hidden while matplotlib reads it, because a value that another environment has set, such
    as that of a notebook, would be an error. Figures are written to files and need no backend.
    """
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise InputError("figures need the extra: in a clone of pah, run pip install -e '.[report]'") from None
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend


def _point(name: str, entry: Mapping[str, Any], tasks: int) -> Point:
    x, y = entry["forgetting"], entry["average_accuracy"]
    return Point(name, _family(name, entry, tasks), x["mean"], y["mean"], x["std"], y["std"])


def _family(name: str, entry: Mapping[str, Any], tasks: int) -> str:
    """Return the key in FAMILIES of a method."""
    if name in BOUNDS:
        return "bound"
    if entry["stored_samples"]:
        return "with stored samples"
    grows = tasks * entry["parameters_per_new_task"] >= GROWTH_SHARE * entry["parameters"]
    return "grows its network" if grows else "without stored samples"


def _draw(axes: "Axes", point: Point) -> None:
    """Draw a method's marker and error bars."""
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
    """Draw the legend of the families that occur, below the axes."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], linestyle="", marker=marker, color=colour, label=family)
        for family, (marker, colour) in FAMILIES.items()
        if family in families
    ]
    figure.legend(handles=handles, loc="lower center", ncols=len(handles), frameon=False)


def _label(axes: "Axes", points: Sequence[Point]) -> None:
    """Write each name at the nearest position that covers least, with a line to the marker if it is not next to it."""
    boxes_by_point = [_point_boxes(axes, point) for point in points]
    written: list[Bbox] = []
    for point, own in zip(points, boxes_by_point, strict=True):
        anchor: Any = {"xy": (point.x, point.y), "textcoords": "offset points"}
        colour = FAMILIES[point.family][1]
        name = axes.annotate(point.name, xytext=(0, 0), ha="center", va="center", fontsize=8, color=colour, **anchor)
        name_box = name.get_window_extent()
        positions = [
            _label_position(axes, name_box, distance, direction) for distance in DISTANCES for direction in DIRECTIONS
        ]
        others = written + [box for boxes in boxes_by_point if boxes is not own for box in boxes]
        cost = partial(_position_cost, axes.get_window_extent(), own, others)
        best = next((position for position in positions if not cost(position)), None) or min(positions, key=cost)
        name.set_position(best.centre)
        written += [best.name_box, *best.line_boxes]
        if best.line_boxes:
            line = {"arrowstyle": "-", "color": colour, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 0}
            axes.annotate("", xytext=best.line_end, arrowprops=line, **anchor)


def _label_position(axes: "Axes", box: "Bbox", distance: int, direction: tuple[float, float]) -> LabelPosition:
    """Return the position of a name `distance` points away; `box` is the name's box in pixels while on its marker."""
    pixels = axes.figure.dpi / 72  # per point
    half = box.width / pixels / 2, box.height / pixels / 2
    end = distance * direction[0], distance * direction[1]
    centre = end[0] + half[0] * _sign(direction[0]), end[1] + half[1] * _sign(direction[1])
    marker = type(box).from_bounds(box.x0 + box.width / 2, box.y0 + box.height / 2, 1, 1)
    steps = [pixels * step for step in range(DISTANCES[0], distance, 5)]
    line = [marker.translated(step * direction[0], step * direction[1]) for step in steps]
    return LabelPosition(centre, end, box.translated(centre[0] * pixels, centre[1] * pixels), line)


def _position_cost(frame: "Bbox", own: "list[Bbox]", others: "list[Bbox]", position: LabelPosition) -> int:
    """Return 0 if name and line cover nothing and the name lies in the frame; the more they cover, the higher."""
    outside = not (frame.contains(*position.name_box.min) and frame.contains(*position.name_box.max))
    crossings = sum(box.count_overlaps(others) for box in position.line_boxes)
    return OVERLAP_COST * position.name_box.count_overlaps(own + others) + crossings + OUTSIDE_COST * outside


def _sign(number: float) -> int:
    return (number > 0) - (number < 0)


def _point_boxes(axes: "Axes", point: Point) -> "list[Bbox]":
    """Return the boxes that a point covers, in pixels: its error bars, as wide as its marker."""
    from matplotlib.transforms import Bbox

    x_std, y_std = point.x_std or 0.0, point.y_std or 0.0
    bars = [
        Bbox.from_extents(point.x - x_std, point.y, point.x + x_std, point.y),
        Bbox.from_extents(point.x, point.y - y_std, point.x, point.y + y_std),
    ]
    return [axes.transData.transform_bbox(bar).padded(MARKER / 2 * axes.figure.dpi / 72) for bar in bars]
