"""The commands `pah compare` and `pah ablate`: grids of runs with their tables and figures."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pah.cli import display, json_progress, options, watching
from pah.cli.printing import say
from pah.cli.stopping import STOPPED, Stop
from pah.report.ablation import effects
from pah.report.figures import accuracy_against_forgetting, require_matplotlib, save
from pah.study import ablation
from pah.study.cluster import engine
from pah.study.comparison import prepare, tune_options, write_summary
from pah.study.conditions import conditions_paragraph
from pah.study.grid import Outcome, require_matching_folders


def compare(console: Console, arguments: list[str]) -> int:
    """Run `pah compare`: train several methods with several seeds, and print their table."""
    request = options.compare_request(arguments)
    comparison, seconds, progress = request.comparison, request.checkpoint_seconds, request.progress
    console = watching.console_for(progress, console)
    configs = comparison.configs
    watch_study = partial(watching.watch_study, console, progress, folder=comparison.folder)
    with engine(request.cluster, request.device) as run_cells:
        require_matplotlib()  # fail before the training, not after it
        comparison = prepare(comparison)
        with Stop() as stop:
            try:
                if comparison.trials:
                    with watch_study(cells=comparison.trial_cells(), kind="trials") as watch:
                        configs = tune_options(comparison, watch, stop, seconds, run_cells)
                    require_matching_folders(comparison.cells(configs))
                cells = comparison.cells(configs)
                with watch_study(cells=cells, kind="runs") as watch:
                    outcomes = run_cells(cells, watch, stop, seconds)
            except STOPPED:
                return end_stopped_study(stop)
    tables, notes, summary = [], [], None
    if any(outcome.metrics is not None for outcome in outcomes):
        summary = write_summary(comparison.folder, outcomes)
        save(accuracy_against_forgetting(summary), comparison.folder / "comparison")
        tables = [display.comparison_table(summary)]
        notes = conditions_paragraph(summary)
    if progress.format == "json":
        json_progress.write_study(comparison.folder, outcomes, summary)
    return show_study(console, tables, notes, comparison.folder / "comparison.md", outcomes)


def ablate(console: Console, arguments: list[str]) -> int:
    """Run `pah ablate`: train one method with several values of its options, and print the tables."""
    request = options.ablate_request(arguments)
    folder = request.ablation.folder
    console = watching.console_for(request.progress, console)
    with engine(request.cluster, request.device) as run_cells:
        require_matplotlib()
        cells = ablation.prepare(request.ablation).cells()
        with Stop() as stop:
            try:
                with watching.watch_study(console, request.progress, cells, "runs", folder) as watch:
                    outcomes = run_cells(cells, watch, stop, request.checkpoint_seconds)
            except STOPPED:
                return end_stopped_study(stop)
    tables, notes, summary = [], [], None
    if any(outcome.metrics is not None for outcome in outcomes):
        summary = ablation.write_summary(request.ablation, outcomes)
        save(effects(summary), folder / "ablation")
        tables = display.ablation_tables(summary)
        notes = conditions_paragraph(summary)
    if request.progress.format == "json":
        json_progress.write_study(folder, outcomes, summary)
    return show_study(console, tables, notes, folder / "ablation.md", outcomes)


def end_stopped_study(stop: Stop) -> int:
    """Print how to continue, and return the exit status of a process that the signal stopped."""
    say("stopped, the state is saved; the same command continues")
    return stop.status


def show_study(
    console: Console, tables: list[Table], notes: list[str], full_table: Path, outcomes: Sequence[Outcome]
) -> int:
    """Print a study's tables, notes on them, the paths of its results and its failures; return the exit status."""
    for table in tables:
        console.print(table)
    if tables:
        for note in (display.LEGEND, *notes):
            console.print(note, highlight=False, soft_wrap=True)
        console.print(f"the whole table: {full_table}", highlight=False, soft_wrap=True)
    console.print(f"results in {full_table.parent}", highlight=False, soft_wrap=True)
    failed = [outcome for outcome in outcomes if outcome.metrics is None]
    for outcome in failed:
        say(f"{outcome.cell.folder.name} failed: {outcome.reason}")
    return 1 if failed else 0
