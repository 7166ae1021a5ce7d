"""The command `pah report`, and the report that a run ends with."""

import sys
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentError, ArgumentParser
from rich.console import Console

from pah.cli.arguments import bare_and_named
from pah.cli.parser import readable
from pah.core.config import InputError
from pah.report.page import write_report
from pah.runs.folder import FIGURES

ABOUT = "Write report.html and, for papers, each of its figures as SVG and PDF: of one run, or of several side by side."


def report(console: Console, words: list[str]) -> int:
    """`pah report`: a page of one run, or of several side by side."""
    bare, named = bare_and_named(words)
    parser = ArgumentParser(
        prog="pah report", exit_on_error=False, usage="pah report RUN... [--out DIR]", description=ABOUT
    )
    where = "where they go (default: the run's folder, or the one that holds all of the runs)"
    parser.add_argument("--out", type=str | None, default=None, metavar="DIR", help=where)
    try:
        out = parser.parse_args(named).out
    except ArgumentError as error:
        raise readable(str(error), parser) from None
    if not bare:
        raise InputError("report: expected one run folder or several, got none")
    say_report(console, write_report(list(map(Path, bare)), Path(out) if out else None))
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
