"""`pah compare` and `pah ablate`: grids of runs, their tables and figures."""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pah.cli import display, json_progress, options, watching
from pah.cli.stopping import STOPPED, Stop
from pah.report.ablation import effects
from pah.report.figures import accuracy_against_forgetting, require_matplotlib, save
from pah.study import ablation
from pah.study.cluster import engine
from pah.study.comparison import choose, prepare, write
from pah.study.grid import Outcome, require_own


def compare(console: Console, words: list[str]) -> int:
    """`pah compare`: a grid of methods and seeds, and the table that it makes."""
    request = options.compare_request(words)
    comparison, seconds, watchers = request.comparison, request.checkpoint_seconds, request.watchers
    console = watching.console_for(watchers, console)
    configs = comparison.configs
    watched = partial(watching.of_study, console, watchers, folder=comparison.folder)
    with engine(request.place, request.device) as run_cells:
        require_matplotlib()  # not only once all is trained
        prepare(comparison)
        with Stop() as stop:
            try:
                if comparison.trials:
                    with watched(cells=comparison.trial_cells(), what="trials") as watch:
                        configs = choose(comparison, watch, stop, seconds, run_cells)
                    require_own(comparison.cells(configs))
                cells = comparison.cells(configs)
                with watched(cells=cells, what="runs") as watch:
                    outcomes = run_cells(cells, watch, stop, seconds)
            except STOPPED:
                return say_study_stopped(stop)
    tables, summary = [], None
    if any(outcome.metrics is not None for outcome in outcomes):
        summary = write(comparison.folder, outcomes)
        save(accuracy_against_forgetting(summary), comparison.folder / "comparison")
        tables = [display.comparison_table(summary)]
    if watchers.progress == "json":
        json_progress.say_study(comparison.folder, outcomes, summary)
    return show_study(console, tables, comparison.folder / "comparison.md", outcomes)


def ablate(console: Console, words: list[str]) -> int:
    """`pah ablate`: a grid of one method's options and seeds, and the tables that it makes."""
    request = options.ablate_request(words)
    console = watching.console_for(request.watchers, console)
    cells = request.ablation.cells()
    with engine(request.place, request.device) as run_cells:
        require_matplotlib()
        ablation.prepare(request.ablation)
        with Stop() as stop:
            try:
                with watching.of_study(console, request.watchers, cells, "runs", request.ablation.folder) as watch:
                    outcomes = run_cells(cells, watch, stop, request.checkpoint_seconds)
            except STOPPED:
                return say_study_stopped(stop)
    tables, summary = [], None
    if any(outcome.metrics is not None for outcome in outcomes):
        summary = ablation.write(request.ablation, outcomes)
        save(effects(summary), request.ablation.folder / "ablation")
        tables = display.ablation_tables(summary)
    if request.watchers.progress == "json":
        json_progress.say_study(request.ablation.folder, outcomes, summary)
    return show_study(console, tables, request.ablation.folder / "ablation.md", outcomes)


def say_study_stopped(stop: Stop) -> int:
    """Tell how to go on; the status a shell expects of a process stopped by that signal."""
    print("pah: stopped, the state is saved; the same command continues", file=sys.stderr)
    return stop.status


def show_study(console: Console, tables: list[Table], whole: Path, outcomes: Sequence[Outcome]) -> int:
    """A study's tables, where they stand whole, and what failed; the exit status."""
    for table in tables:
        console.print(table)
    if tables:
        console.print(display.LEGEND, highlight=False, soft_wrap=True)
        console.print(f"the whole table: {whole}", highlight=False, soft_wrap=True)
    console.print(f"results in {whole.parent}", highlight=False, soft_wrap=True)
    failed = [outcome for outcome in outcomes if outcome.metrics is None]
    for outcome in failed:
        print(f"pah: {outcome.cell.folder.name} failed: {outcome.reason}", file=sys.stderr)
    return 1 if failed else 0
