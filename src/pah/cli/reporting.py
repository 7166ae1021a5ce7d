"""The command `pah report`, and the report at the end of a run."""

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentError, ArgumentParser
from rich.console import Console

from pah.cli.arguments import split_arguments
from pah.cli.errors import readable_error
from pah.cli.printing import say
from pah.core.config import InputError
from pah.report.write import write_report
from pah.runs.folder import FIGURES

DESCRIPTION = "Write report.html for one run or for several side by side, and its figures as SVG and PDF for papers."


def report(console: Console, arguments: list[str]) -> int:
    """Run `pah report`: write a report of one run, or of several side by side."""
    positional, named = split_arguments(arguments)
    parser = ArgumentParser(
        prog="pah report", exit_on_error=False, usage="pah report RUN... [--out DIR]", description=DESCRIPTION
    )
    out_help = "folder of the report (default: the run's folder, or the folder that contains all of the runs)"
    parser.add_argument("--out", type=str | None, default=None, metavar="DIR", help=out_help)
    try:
        out = parser.parse_args(named).out
    except ArgumentError as error:
        raise readable_error(str(error), parser) from None
    if not positional:
        raise InputError("report: expected one run folder or several, got none")
    print_report_paths(console, write_report(list(map(Path, positional)), Path(out) if out else None))
    return 0


def report_finished(console: Console, folders: Sequence[Path]) -> None:
    """Write a report in each finished run's folder. If that fails, print the reason: the runs are still complete."""
    try:
        for folder in folders:
            print_report_paths(console, write_report([folder]))
    except (InputError, OSError) as error:
        say(f"no report: {error}")


def print_report_paths(console: Console, page: Path) -> None:
    """Print the paths of a report and of its figures."""
    console.print(f"report in {page}, figures in {page.parent / FIGURES}", highlight=False, soft_wrap=True)
