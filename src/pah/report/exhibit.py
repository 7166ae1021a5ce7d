"""What a report shows: figures with their words and numbers, and how they are drawn, saved and put into a page."""

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

WIDTH, HEIGHT = 4.2, 3.0  # inches of a plot: its words can be read where it is as wide as a phone
EACH = 12  # tasks, up to which each has its number on an axis
INK = "#222222"
GRID = "#eeeeee"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")  # Okabe and Ito's that stand out from white
DASHES = ("-", "--", ":")
THEMED = {  # colours that a page may have otherwise: a dark one lightens them
    "#ffffff": "--paper",
    INK: "--ink",
    GREY: "--grey",
    GRID: "--grid",
    **{colour: f"--colour-{i}" for i, colour in enumerate(COLOURS)},
}
OF_REPORT: Any = STYLE | {
    "text.color": INK,
    "text.parse_math": False,  # a class may be called $x
    "axes.titlesize": 9,
    "grid.color": GRID,
    "axes.grid": True,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # text stays text
}
UNDATED = {"Date": None, "Creator": None, "Format": None, "Type": None}
Cell = str | float | None


class Table(NamedTuple):
    """Numbers and words: titles and as many cells in every row; None where there is nothing to say."""

    caption: str
    titles: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    digits: int = 2  # behind the point, of numbers below 1,000


class Exhibit(NamedTuple):
    """A figure, what it shows in words, and its numbers.

    Args:
        name: Of its files.
        title: Above it.
        words: What is to be seen, for whoever does not see it.
        figure: The drawing.
        table: All its numbers.
    """

    name: str
    title: str
    words: str
    figure: "Figure"
    table: Table


@contextmanager
def drawing(
    width: float = WIDTH, height: float = HEIGHT, rows: int = 1, columns: int = 1, **shared: Any
) -> Iterator[tuple["Figure", list["Axes"]]]:
    """A figure of so many inches and its axes, row by row, in the style of reports; `shared` as in `subplots`."""
    require_matplotlib()
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(OF_REPORT), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # of a class name in letters that the font lacks
        figure = Figure(figsize=(width, height), facecolor="white", layout="constrained")
        yield figure, list(figure.subplots(rows, columns, squeeze=False, **shared).flat)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # what was laid out once need not be for every file


def line_style(index: int) -> dict[str, Any]:
    """Colour and dashes of the n-th of several lines, the first twelve of which differ."""
    count = len(COLOURS)
    return {"color": COLOURS[index % count], "linestyle": DASHES[index // count % len(DASHES)]}


def count_tasks(axis: "Axis", tasks: int) -> None:
    """Whole numbers along an axis of tasks: each, or as many as there is room for."""
    from matplotlib.ticker import MaxNLocator

    if tasks <= EACH:
        axis.set_ticks(range(1, tasks + 1))
    else:
        axis.set_major_locator(MaxNLocator(integer=True))


def save(exhibit: Exhibit, folder: Path) -> None:
    """Write the figure as `<name>.svg` and `<name>.pdf`, each whole or not at all."""
    undated: dict[str, dict[str, Any]] = {"svg": UNDATED, "pdf": {"CreationDate": None}}
    for kind, metadata in undated.items():
        write_file(folder / f"{exhibit.name}.{kind}", _drawn(exhibit.figure, kind, metadata))


def inline(exhibit: Exhibit) -> str:
    """The figure as an SVG element of a page, in the page's colours.

    Its text is text; its ids are its own, as a page holds several figures.
    """
    svg = _drawn(exhibit.figure, "svg", UNDATED, **{"svg.fonttype": "none"}).decode()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style .*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' width="[\d.]+pt"| height="[\d.]+pt"', "", svg, count=2)
    svg = re.sub(r'( id="|href="#|url\(#)', rf"\1{exhibit.name}-", svg)
    themed = re.compile(f"(fill|stroke): ({'|'.join(THEMED)})")
    return themed.sub(lambda found: f"{found[1]}: var({THEMED[found[2]]})", svg)


def _drawn(figure: "Figure", kind: str, metadata: dict[str, Any], **style: Any) -> bytes:
    from matplotlib import rc_context

    data = io.BytesIO()
    with rc_context(OF_REPORT | style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")
        figure.savefig(data, format=kind, metadata=metadata)
    return data.getvalue()
