"""A report as files: one HTML page that needs nothing else, and its figures as SVG and PDF in a folder beside it."""

import base64
import hashlib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from pah.core.config import InputError
from pah.core.files import write_file
from pah.report import comparing, exhibit, single
from pah.report.figures import require_matplotlib
from pah.report.pictures import MOMENTS
from pah.report.rundata import read_run
from pah.runs.folder import FIGURES, REPORT


def write_report(folders: Sequence[Path], out: Path | None = None) -> Path:
    """Write `report.html` and `figures/`, of one run or of several side by side; returns the page's path.

    Args:
        folders: Of the runs, at least one.
        out: Where the report goes; unless given, to the run itself or to the folder that holds all of the runs.

    Raises:
        InputError: a folder that is no run, a run without a learned task, runs that cannot be compared, no folder in
            common, an extra that is not installed, or a file that cannot be written.
    """
    require_extra()
    runs = [read_run(folder) for folder in folders]
    out = out or _place(folders)
    page = single.page_of(runs[0]) if len(runs) == 1 else comparing.page_of(runs)
    out.mkdir(parents=True, exist_ok=True)
    for section in page.sections:
        for shown in (*section.exhibits, *section.hidden):
            exhibit.save(shown, out / FIGURES)
    write_file(out / REPORT, rendered(page).encode())
    return out / REPORT


def require_extra() -> None:
    """Raise InputError unless matplotlib and jinja2 are installed."""
    require_matplotlib()
    try:
        import jinja2  # noqa: F401
    except ImportError:
        raise InputError("a report needs the extra: pip install 'pah[report]'") from None


def rendered(page: single.Page) -> str:
    """The page as HTML: whatever comes from data is escaped, and nothing but the page's own may be loaded or run."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    loader = PackageLoader("pah", "report")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    script = resources.files("pah.report").joinpath("script.js").read_text(encoding="utf-8")
    return environment.get_template("template.html.j2").render(
        page=page,
        inline=lambda shown: Markup(exhibit.inline(shown)),
        width=lambda shown: round(96 * shown.figure.get_figwidth()),
        is_number=lambda cell: isinstance(cell, int | float),
        figures=FIGURES,
        moments=MOMENTS,
        zip=zip,
        style=Markup(resources.files("pah.report").joinpath("style.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _place(folders: Sequence[Path]) -> Path:
    """Where a report goes unless told otherwise."""
    if len(folders) == 1:
        return folders[0]
    parents = {folder.resolve().parent for folder in folders}
    if len(parents) > 1:
        raise InputError("report: expected --out DIR for runs that lie in different folders, got none")
    return folders[0].parent
