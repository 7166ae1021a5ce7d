"""Charts of a report: figures with a description and a table of their numbers, and how they are drawn and saved."""

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pah.core.files import write_file
from pah.report.figures import GREY, STYLE, require_matplotlib

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 4.2, 3.0  # inches of a plot: its text stays readable on a phone
MAX_TICKS = 12  # tasks, up to which an axis numbers each task
INK = "#222222"
GRID = "#eeeeee"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")  # Okabe and Ito's that stand out from white
DASHES = ("-", "--", ":")
THEME_VARIABLES = {  # colours of a drawing -> CSS variables, which the dark theme changes
    "#ffffff": "--paper",
    INK: "--ink",
    GREY: "--grey",
    GRID: "--grid",
    **{colour: f"--colour-{i}" for i, colour in enumerate(COLOURS)},
}
REPORT_STYLE: Any = STYLE | {
    "text.color": INK,
    "text.parse_math": False,  # a class name may contain $
    "axes.titlesize": 9,
    "grid.color": GRID,
    "axes.grid": True,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # text stays text
}
NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}  # equal figures give equal files
CellValue = str | float | None


class Table(NamedTuple):
    """A table: titles, and rows with one cell per title; None is an empty cell."""

    caption: str
    titles: Sequence[str]
    rows: Sequence[Sequence[CellValue]]
    digits: int = 2  # after the decimal point, for numbers below 1,000


class Chart(NamedTuple):
    """A figure with a description and its numbers.

    Args:
        name: Name of its files.
        title: Heading above it.
        words: Description for readers who cannot see the figure.
        figure: The drawing.
        table: All its numbers.
    """

    name: str
    title: str
    words: str
    figure: "Figure"
    table: Table


@contextmanager
def new_figure(
    width: float = WIDTH, height: float = HEIGHT, rows: int = 1, columns: int = 1, **shared: Any
) -> Iterator[tuple["Figure", list["Axes"]]]:
    """Yield a figure in the style of reports and its axes, row by row; the layout is fixed at the end.

    Args:
        width: in inches.
        height: in inches.
        rows: number of rows of axes.
        columns: number of columns of axes.
        shared: further arguments of `subplots`, e.g. `sharex`.
    """
    require_matplotlib()
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(REPORT_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a class name may have letters that the font lacks
        figure = Figure(figsize=(width, height), facecolor="white", layout="constrained")
        yield figure, list(figure.subplots(rows, columns, squeeze=False, **shared).flat)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # otherwise each saved file computes the layout again


def line_style(index: int) -> dict[str, Any]:
    """Return colour and dashes of line `index`; the first twelve lines differ."""
    count = len(COLOURS)
    return {"color": COLOURS[index % count], "linestyle": DASHES[index // count % len(DASHES)]}


def set_task_ticks(axis: "Axis", tasks: int) -> None:
    """Number the tasks along an axis with whole numbers: every task, or as many as there is space for."""
    from matplotlib.ticker import MaxNLocator

    if tasks <= MAX_TICKS:
        axis.set_ticks(range(1, tasks + 1))
    else:
        axis.set_major_locator(MaxNLocator(integer=True))


def save(chart: Chart, folder: Path) -> None:
    """Write the figure as `<name>.svg` and `<name>.pdf`, each file atomically."""
    metadata_by_format: dict[str, dict[str, Any]] = {"svg": NO_METADATA, "pdf": {"CreationDate": None}}
    for file_format, metadata in metadata_by_format.items():
        write_file(folder / f"{chart.name}.{file_format}", _rendered(chart.figure, file_format, metadata))


def inline_svg(chart: Chart) -> str:
    """Return the figure as an SVG element for a page, in the colours of the page's theme.

    Text stays text. The ids begin with the chart's name, because a page holds several figures.
    """
    svg = _rendered(chart.figure, "svg", NO_METADATA, **{"svg.fonttype": "none"}).decode()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style .*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' width="[\d.]+pt"| height="[\d.]+pt"', "", svg, count=2)
    svg = re.sub(r'( id="|href="#|url\(#)', rf"\1{chart.name}-", svg)
    themed_colour = re.compile(f"(fill|stroke): ({'|'.join(THEME_VARIABLES)})")
    return themed_colour.sub(lambda match: f"{match[1]}: var({THEME_VARIABLES[match[2]]})", svg)


def _rendered(figure: "Figure", file_format: str, metadata: dict[str, Any], **style: Any) -> bytes:
    """Return the content of the figure's file in a format of matplotlib."""
    from matplotlib import rc_context

    data = io.BytesIO()
    with rc_context(REPORT_STYLE | style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")
        figure.savefig(data, format=file_format, metadata=metadata)
    return data.getvalue()
