"""Write a report: one self-contained HTML page, and its figures as SVG and PDF in a folder beside it."""

import base64
import hashlib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from pah.core.config import InputError
from pah.core.files import write_file
from pah.report import charts, comparison_page, run_page
from pah.report.figures import require_matplotlib
from pah.report.prototype_pictures import MOMENTS
from pah.report.run_data import read_run
from pah.runs.folder import FIGURES, REPORT


def write_report(folders: Sequence[Path], out: Path | None = None) -> Path:
    """Write `report.html` and `figures/` of one run or of several runs side by side; return the page's path.

    The table of several runs is also written as `report.csv` and `report.tex`.

    Args:
        folders: run folders, at least one.
        out: folder for the report; by default the run's folder, or the common parent folder of several runs.

    Raises:
        InputError: a folder is no run, a run has not learned a task, the runs cannot be compared or have no common
            parent folder, an extra is not installed, or a file cannot be written.
    """
    require_extra()
    runs = [read_run(folder) for folder in folders]
    out = out or _default_folder(folders)
    page = run_page.page_of(runs[0]) if len(runs) == 1 else comparison_page.page_of(runs)
    out.mkdir(parents=True, exist_ok=True)
    for section in page.sections:
        for chart in (*section.charts, *section.file_only):
            charts.save(chart, out / FIGURES)
    for name, text in page.files.items():
        write_file(out / name, text.encode())
    write_file(out / REPORT, render(page).encode())
    return out / REPORT


def require_extra() -> None:
    """Raise InputError unless matplotlib and jinja2 are installed."""
    require_matplotlib()
    try:
        import jinja2  # noqa: F401
    except ImportError:
        raise InputError("a report needs the extra: in a clone of pah, run pip install -e '.[report]'") from None


def render(page: run_page.Page) -> str:
    """Return the page as HTML; text from the data is escaped, and the page loads and runs only its own content."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    loader = PackageLoader("pah", "report")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    script = resources.files("pah.report").joinpath("script.js").read_text(encoding="utf-8")
    return environment.get_template("template.html.j2").render(
        page=page,
        inline=lambda chart: Markup(charts.inline_svg(chart)),
        width=lambda chart: round(96 * chart.figure.get_figwidth()),
        is_number=lambda cell: isinstance(cell, int | float),
        figures=FIGURES,
        moments=MOMENTS,
        zip=zip,
        style=Markup(resources.files("pah.report").joinpath("style.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _default_folder(folders: Sequence[Path]) -> Path:
    """Return the run's own folder, or the common parent folder of several runs."""
    if len(folders) == 1:
        return folders[0]
    parents = {folder.resolve().parent for folder in folders}
    if len(parents) > 1:
        raise InputError("report: expected --out DIR for runs that lie in different folders, got none")
    return folders[0].parent
