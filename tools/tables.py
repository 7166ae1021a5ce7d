"""Write the tables in README.md and docs/ from the files under results/.

    python tools/tables.py            write each table between its two marker comments
    python tools/tables.py --check    write nothing; exit with status 1 if a page is not up to date

The markers of a table are <!-- NAME:begin --> and <!-- NAME:end -->. `TABLES` says which page has which tables.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from backbone_table import backbones_table
from measurement_tables import (
    avalanche_table,
    estimate_table,
    inference_table,
    small_lessons_table,
    small_summary_row,
    step_ratio_table,
    step_table,
    three_lessons_table,
)
from pretrained_tables import few_images_table, photo_lessons_table
from run_tables import LEGEND, comparisons, read_runs, runs_table, summary_rows

from pah.core.config import InputError
from pah.study.table import markdown_table

ROOT = Path(__file__).resolve().parent.parent


def summary_table(results: Path) -> str:
    """Return the README's three rows of results as a Markdown table."""
    small_row = small_summary_row(results / "small-lessons" / "table.json")
    titles = ["PAH on", "seeds", "AA, %", "FM, points", "what it shows"]
    return markdown_table([titles, ["---", *["---:"] * 3, "---"], *summary_rows(read_runs(results)), small_row])


TABLES: dict[str, dict[str, Callable[[Path], str]]] = {  # page -> name of the markers -> table from results/
    "README.md": {"summary": summary_table},
    "docs/results.md": {
        "results": lambda results: f"{runs_table(read_runs(results))}\n\n{LEGEND}",
        "comparison": comparisons,
        "few": lambda results: few_images_table(results / "pretrained" / "few-images.json"),
        "small": lambda results: small_lessons_table(results / "small-lessons" / "table.json"),
        "estimate": lambda results: estimate_table(results / "small-lessons" / "gauge.json"),
        "lessons": lambda results: three_lessons_table(results / "three-lessons.json"),
        "inference": lambda results: inference_table(results / "task-inference" / "test.json"),
    },
    "docs/own-data.md": {"photos": lambda results: photo_lessons_table(results / "pretrained" / "photo-lessons.json")},
    "docs/performance.md": {
        "steps": lambda results: step_table(results / "step-cost.json"),
        "ratios": step_ratio_table,
        "avalanche": lambda results: avalanche_table(results / "against-avalanche.json"),
    },
    "docs/backbones.md": {"backbones": lambda results: backbones_table(results / "timm-backbones.json")},
}


def with_table(text: str, page: str, name: str, table: str) -> str:
    """Return a page's text with `table` between the markers of that name.

    Raises:
        InputError: the text does not have one marker of each kind, in this order.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, begin_found, rest = text.partition(begin)
    _, end_found, after = rest.partition(end)
    if not (begin_found and end_found) or begin in rest or end in before + after:
        raise InputError(f"{page}: expected {begin} and, after it, {end}, once each")
    return f"{before}{begin}\n\n{table}\n\n{end}{after}"


def page_with_tables(root: Path, page: str) -> str:
    """Return the text that a page should have."""
    text = (root / page).read_text(encoding="utf-8")
    for name, make in TABLES[page].items():
        text = with_table(text, page, name, make(root / "results"))
    return text


def main(words: Sequence[str] | None = None) -> int:
    """Write or check all pages; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a page is not up to date")
    parser.add_argument("--root", type=Path, default=ROOT, help="folder that holds README.md, docs/ and results/")
    options = parser.parse_args(words)
    try:
        wanted = {options.root / page: page_with_tables(options.root, page) for page in TABLES}
        stale = [path for path, text in wanted.items() if path.read_text(encoding="utf-8") != text]
    except (InputError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    if options.check and stale:
        names = ", ".join(str(path.relative_to(options.root)) for path in stale)
        print(
            f"{names}: expected the tables made from results/, got others: run python tools/tables.py", file=sys.stderr
        )
        return 1
    if not options.check:
        for path in stale:
            path.write_text(wanted[path], encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
