"""The command `pah report`, and the report that a run ends with."""

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from pah.cli.words import bare_and_named
from pah.config import InputError
from pah.report.page import write_report
from pah.runfolder import FIGURES

USAGE = """usage: pah report RUN ... [--out DIR]

Write report.html and, for papers, each of its figures as SVG and PDF: of one run, or of several side by side.

  --out DIR  where they go; unless given, to the run's folder, or to the one that holds all of the runs
"""


def report(console: Console, words: list[str]) -> int:
    """`pah report`: a page of one run, or of several side by side."""
    if set(words) & {"-h", "--help"}:
        print(USAGE, end="")
        return 0
    bare, named = bare_and_named(words)
    out = [word.removeprefix("--out=") for word in named if word.startswith("--out=")]
    if other := [word for word in named if not word.startswith("--out=")]:
        raise InputError(f"report: expected run folders and --out DIR, got {other[0]}")
    if not bare:
        raise InputError("report: expected one run folder or several, got none")
    say_report(console, write_report(list(map(Path, bare)), Path(out[-1]) if out else None))
    return 0


def report_finished(console: Console, folders: Sequence[Path]) -> None:
    """A report in each finished run's folder. The runs are whole: what keeps a report from being written is told."""
    try:
        for folder in folders:
            say_report(console, write_report([folder]))
    except (InputError, OSError) as error:
        print(f"pah: no report: {error}", file=sys.stderr)


def say_report(console: Console, page: Path) -> None:
    """Where a report lies."""
    console.print(f"report in {page}, figures in {page.parent / FIGURES}", highlight=False, soft_wrap=True)
