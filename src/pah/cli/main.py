"""The commands.

Exit status: 0 done, 1 some runs of a study failed, 2 bad input (one line on stderr), 130 after Ctrl-C with the state
saved.
"""

import dataclasses
import logging
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from rich.console import Console
from rich.table import Table

from pah import checkpoint, diagnosis, ranks, runs
from pah.cli import display, learning, lines, options, reporting, serving, watching
from pah.cli.stopping import STOPPED, Stop
from pah.cli.words import bare_and_named
from pah.config import InputError, RecoveryWarning, unknown
from pah.data.benchmarks import BENCHMARKS
from pah.devices import find_device
from pah.methods.base import MethodOptions
from pah.runconfig import RunConfig, load_stream
from pah.runfolder import CONFIG, DIAGNOSIS, LEARNER, REPORT, refuse_other_run
from pah.study import ablation
from pah.study.cluster import engine
from pah.study.comparison import choose, prepare, write
from pah.study.grid import Outcome, require_own

USAGE = """usage: pah COMMAND ...

  pah run [BENCHMARK]      learn a stream of tasks and measure what is kept   (pah run --help)
  pah compare [BENCHMARK]  the same stream with several methods and seeds     (pah compare --help)
  pah ablate [BENCHMARK]   how one method's options change its result         (pah ablate --help)
  pah resume RUN           continue a run that was stopped or killed          (pah resume --help)
  pah diagnose RUN         where a finished run's forgetting comes from: its heads or its features
  pah report RUN ...       a page to look at: one run, or several side by side [--out DIR]
  pah data [BENCHMARK]     a benchmark's tasks, classes, and where its images come from

  pah learn LEARNER        teach a learner a task of your own images          (pah learn --help)
  pah predict LEARNER IMAGE...   what is on the images                        (pah predict --help)
  pah export LEARNER       backbone and head of a task as an ONNX file        (pah export --help)
  pah forget LEARNER       remove a task from a learner
  pah data LEARNER         what a learner knows
  pah app [LEARNER]        a page to ask it and to teach it                   (pah app --help)
"""
DIAGNOSE = (
    "Where a finished run's forgetting comes from, RUN being its folder: for each old task, what new heads on the "
    "features of then and of today tell apart. Needs a run with --snapshots true; writes RUN/diagnosis.json."
)


def main(words: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit status."""
    words = list(sys.argv[1:] if words is None else words)
    if not words or words[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if words else 2
    try:
        command = _command(words[0])
        with warnings.catch_warnings(), ranks.joined():
            if not sys.warnoptions:
                warnings.simplefilter("ignore")  # libraries' notes to developers are no answer to a user
            warnings.simplefilter("always", RecoveryWarning)
            warnings.showwarning = show_warning  # type: ignore[assignment]  # where in the code it arose is no answer
            # the name of a class or folder may look like markup or an emoji
            return command(Console(quiet=not ranks.is_first(), markup=False, emoji=False), words[1:])
    except ranks.LostError as error:
        return say(str(error), 1)
    except KeyboardInterrupt:  # before training began: there is nothing to save
        return 130
    except Exception as error:
        if (line := in_a_line(error, words[0])) is None:
            raise
        return say(line, 2)


def in_a_line(error: Exception, command: str) -> str | None:
    """What to say of an error that is no fault of the program; None if it is one."""
    reason = " ".join(str(error).split())
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, OSError):  # what nobody foresaw: a path too long, a folder that may not be entered
        return f"{error.filename or command}: expected to read or write, got: {error.strerror or reason}"
    # torch says "can't allocate memory", "out of memory" or "storage size calculation overflowed"
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and re.search("memory|overflowed", reason)):
        return f"{command}: expected enough memory, got: {reason or 'too little'}"
    return None


def show_warning(message: Warning | str, kind: type[Warning], *_: object) -> None:
    """Say what was damaged and made good in a line; what else a person asked Python to show, as it is."""
    print(f"pah: {message}" if kind is RecoveryWarning else f"{kind.__name__}: {message}", file=sys.stderr)


def _command(name: str) -> Callable[[Console, list[str]], int]:
    """The command of that name; InputError if there is none, or if it is none for several processes."""
    if name not in COMMANDS:
        raise unknown("command", name, COMMANDS)
    if ranks.launched() and name not in TOGETHER:
        raise InputError(f"{name}: expected one process, got several; torchrun is for pah {' and pah '.join(TOGETHER)}")
    return COMMANDS[name]


def say(line: str, status: int) -> int:
    """Tell why the command ends, once for all processes that work on it; returns its exit status."""
    if ranks.first_to_speak():
        print(f"pah: {line}", file=sys.stderr, flush=True)
    return status


def run(console: Console, words: list[str]) -> int:
    """`pah run`: learn a stream, with other methods beside it if asked."""
    request = options.run_request(words)
    watchers = watching.first_alone(request.watchers)
    console, device = watching.console_for(watchers, console), find_device(request.device)
    others = {config: beside(request, config) for config in request.beside if config != request.config}
    if not request.overwrite:
        for config, folder in others.items():  # not only when the first has trained for an hour
            refuse_other_run(folder, config.as_dict())
    finished = []
    with Stop() as stop:
        for config, folder in ({request.config: request.out} | others).items():
            with watching.of_run(console, watchers, config, folder) as watch:
                try:
                    results = runs.start(
                        config,
                        folder,
                        overwrite=request.overwrite,
                        watch=watch,
                        stop=stop,
                        checkpoint_seconds=request.checkpoint_seconds,
                        device=device,
                    )
                except STOPPED:
                    return say_stopped(folder, stop)
                watch.ended(results)
            finished.append((results, folder))
            console.print(display.matrix_table(results))
    show(console, finished)
    if ranks.is_first():
        reporting.report_finished(console, [folder for _, folder in finished])
    return 0


def resume(console: Console, words: list[str]) -> int:
    """`pah resume`: continue a run from its checkpoint."""
    bare, named = bare_and_named(words)
    asked, device_name = options.resume_options(named)
    device = find_device(device_name)
    folder = ranks.from_first(lambda: run_folder("resume", bare))
    config = ranks.from_first(lambda: options.read_config(folder / CONFIG))
    watchers = watching.first_alone(watching.remembered(asked, folder))
    console = watching.console_for(watchers, console)
    with Stop() as stop, watching.of_run(console, watchers, config, folder) as watch:
        try:
            results = runs.resume(config, folder, watch=watch, stop=stop, device=device)
        except STOPPED:
            return say_stopped(folder, stop)
        watch.ended(results)
    console.print(display.matrix_table(results))
    show(console, [(results, folder)])
    if ranks.is_first() and not (folder / REPORT).exists():
        reporting.report_finished(console, [folder])
    return 0


def compare(console: Console, words: list[str]) -> int:
    """`pah compare`: a grid of methods and seeds, and the table that it makes."""
    request = options.compare_request(words)
    comparison, seconds, watchers = request.comparison, request.checkpoint_seconds, request.watchers
    console = watching.console_for(watchers, console)
    configs = comparison.configs
    watched = partial(watching.of_study, console, watchers, folder=comparison.folder)
    with engine(request.place, request.device) as run_cells:
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
        tables = [display.comparison_table(summary)]
    if watchers.progress == "json":
        lines.say_study(comparison.folder, outcomes, summary)
    return show_study(console, tables, comparison.folder / "comparison.md", outcomes)


def ablate(console: Console, words: list[str]) -> int:
    """`pah ablate`: a grid of one method's options and seeds, and the tables that it makes."""
    request = options.ablate_request(words)
    console = watching.console_for(request.watchers, console)
    cells = request.ablation.cells()
    with engine(request.place, request.device) as run_cells:
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
        tables = display.ablation_tables(summary)
    if request.watchers.progress == "json":
        lines.say_study(request.ablation.folder, outcomes, summary)
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


def diagnose(console: Console, words: list[str]) -> int:
    """`pah diagnose`: split a finished run's forgetting into what heads and what features lost."""
    if set(words) & {"-h", "--help"}:
        ArgumentParser(prog="pah diagnose", usage="pah diagnose RUN", description=DIAGNOSE).parse_args(["-h"])
    folder = run_folder("diagnose", words)
    found = diagnosis.diagnose(options.read_config(folder / CONFIG), folder)
    checkpoint.write_json(folder / DIAGNOSIS, diagnosis.as_dict(found))
    console.print(display.diagnosis_table(found))
    console.print(display.DIAGNOSIS_LEGEND, highlight=False, soft_wrap=True)
    console.print(f"results in {folder / DIAGNOSIS}", highlight=False, soft_wrap=True)
    return 0


def run_folder(command: str, words: Sequence[str]) -> Path:
    """The one run folder that the words name; InputError if they name something else."""
    if len(words) != 1 or words[0].startswith("-"):
        raise InputError(f"{command}: expected one run folder, got {' '.join(words) or 'none'}")
    folder = Path(words[0])
    if not (folder / CONFIG).is_file():
        raise InputError(f"{folder}: expected a run folder, which holds {CONFIG}, found none")
    return folder


def data(console: Console, words: list[str]) -> int:
    """`pah data`: list the benchmarks, or one benchmark's tasks and classes."""
    if not words:
        for name, bench in BENCHMARKS.items():
            console.print(f"{name:20} {bench.summary}", highlight=False)
        return 0
    if len(words) == 1 and (Path(words[0]) / LEARNER).is_file():
        learning.show(console, Path(words[0]))
        return 0
    config = options.data_config(words)
    bench = BENCHMARKS[config.benchmark]
    stream = load_stream(dataclasses.replace(config, method_options=MethodOptions()))
    channels, height, width = stream.image_shape
    console.print(f"{config.benchmark}: {bench.summary}", highlight=False)
    console.print(
        f"images {height}x{width}, {'grey' if channels == 1 else 'colour'}, from {stream.where}", highlight=False
    )
    console.print(f"class order: {config.stream.class_order}, seed {config.seed}", highlight=False)
    console.print(display.stream_table(stream))
    return 0


def beside(request: options.Request, config: RunConfig) -> Path:
    """The folder of a run beside the one that was asked for."""
    if request.out == request.config.folder and config.folder != request.out:
        return config.folder
    return request.out.with_name(f"{request.out.name}-{config.method}")


def show(console: Console, finished: list[tuple[dict[str, Any], Path]]) -> None:
    """The metrics of the finished runs, and where they lie."""
    console.print(display.summary_table([results for results, _ in finished]))
    console.print(display.LEGEND, highlight=False, soft_wrap=True)
    for results, folder in finished:
        console.print(f"{results['method']}: results in {folder}", highlight=False, soft_wrap=True)


def say_stopped(folder: Path, stop: Stop) -> int:
    """Tell how to go on; the status a shell expects of a process stopped by that signal."""
    if not (folder / CONFIG).is_file():
        return say("stopped before training began", stop.status)
    return say(f"stopped, the state is saved; `pah resume {folder}` continues", stop.status)


COMMANDS = {
    "run": run,
    "compare": compare,
    "ablate": ablate,
    "resume": resume,
    "diagnose": diagnose,
    "report": reporting.report,
    "data": data,
    "learn": learning.learn,
    "predict": learning.predict,
    "export": learning.export,
    "forget": learning.forget,
    "app": serving.app,
}

TOGETHER = ("run", "resume")  # what several processes can do together

logging.getLogger("datasets").setLevel(logging.ERROR)
