"""The table of a comparison as CSV, with all digits, and as LaTeX, with a significantly best method in bold."""

import csv
import io
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pah.study.bootstrap import CorrectMask
from pah.study.table import (
    BOLD,
    BOUNDS,
    NO_VALUE,
    best_without_samples,
    competitors,
    difference_intervals,
    legend,
    percent_columns,
    table_rows,
)

INTERVAL_TITLES = {"difference": "minus_reference", "low": "minus_reference_low", "high": "minus_reference_high"}
COSTS = ("stored_samples", "parameters", "parameters_per_new_task", "relative_seconds")
LATEX_ESCAPES = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "[": "{[}",  # after the end of a row, a bracket would begin an option
    "±": r"$\pm$",
    NO_VALUE: "--",
}
BOLD_BEGIN = BOLD.partition(":")[0]  # of the legend's sentence on Markdown, where any best method is bold
LATEX_NOTE = (
    "Bold: the highest mean AA of the methods without stored samples, except the bounds ({bounds}), if its difference "
    "to each of the others is significant over at least two seeds. Put \\usepackage{{booktabs}} into the preamble."
)


def as_csv(summary: Mapping[str, Any]) -> str:
    """Return a comparison's table as CSV: a row per method, with the names of `metrics.json` as titles.

    The numbers are those of the Markdown table with all their digits; a number that is not known is an empty cell.

    Args:
        summary: the content of `comparison.json`, as `study.table.summarise` returns it.
    """
    columns = list(percent_columns(summary["methods"]).values())
    rows = [dict(_csv_cells(name, entry, columns)) for name, entry in summary["methods"].items()]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _csv_cells(name: str, entry: Mapping[str, Any], columns: list[str]) -> Iterator[tuple[str, Any]]:
    """Yield title and value of each cell of a method's row."""
    yield from (("method", name), ("n", entry["n"]))
    for key in columns:
        over_seeds = entry.get(key, {})
        yield from ((key, over_seeds.get("mean")), (f"{key}_std", over_seeds.get("std")))
    interval = entry["minus_reference"] or {}
    for part, title in INTERVAL_TITLES.items():
        yield title, interval.get(part)
    yield from ((key, entry[key]) for key in COSTS)


def as_latex(summary: Mapping[str, Any]) -> str:
    """Return a comparison's table as a LaTeX tabular with the lines of booktabs; the legend is a comment above it.

    Args:
        summary: the content of `comparison.json`, as `study.table.summarise` returns it.
    """
    titles, *rows = table_rows(summary)
    best = summary.get("significantly_best")
    body = []
    for row in rows:
        cells = [_latex_cell(cell.replace("**", "")) for cell in row]
        if row[0] == best:
            accuracy = titles.index("AA")
            cells[accuracy] = f"\\textbf{{{cells[accuracy]}}}"
        body.append(_latex_row(cells))
    note = textwrap.fill(LATEX_NOTE.format(bounds=", ".join(BOUNDS)), width=118)
    explanation = f"{legend(summary).partition(BOLD_BEGIN)[0]}{note}"
    comment = [f"% {line}".rstrip() for line in explanation.splitlines()]
    head = [f"\\begin{{tabular}}{{l{'r' * (len(titles) - 1)}}}", "\\toprule", _latex_row(map(_latex_cell, titles))]
    return "\n".join([*comment, *head, "\\midrule", *body, "\\bottomrule", "\\end{tabular}"]) + "\n"


def _latex_row(cells: Iterable[str]) -> str:
    return " & ".join(cells) + " \\\\"


def _latex_cell(text: str) -> str:
    """Return the text of a cell in LaTeX: special characters are escaped, and a minus is one."""
    escaped = "".join(LATEX_ESCAPES.get(character, character) for character in text)
    return re.sub(r"(?<![\w-])-(?=\d)", "$-$", escaped)


def significantly_best(
    methods: Mapping[str, Mapping[str, Any]], answers: Mapping[str, Mapping[int, Sequence[CorrectMask]]]
) -> str | None:
    """Return the method with the highest mean AA, as in `best_without_samples`, if it is significantly the best.

    That is so if its difference to each of its competitors has an interval without 0, over at least two seeds.

    Args:
        methods: the part "methods" of `summarise`'s result.
        answers: as in `difference_intervals`.
    """
    names = competitors(methods)
    best, *equal = best_without_samples(methods) or [None]
    if best is None or equal or len(names) < 2:
        return None
    intervals = difference_intervals({name: answers.get(name, {}) for name in names}, best)
    beaten = [name for name, found in intervals.items() if found.high < 0 and found.seeds > 1]
    return best if len(beaten) == len(names) - 1 else None
