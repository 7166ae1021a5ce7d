"""`pah run`, `pah resume`, `pah diagnose` and `pah data`: one run, and what it would learn."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from rich.console import Console

from pah.cli import display, learning, options, reporting, watching
from pah.cli.arguments import bare_and_named
from pah.cli.errors import say
from pah.cli.stopping import STOPPED, Stop
from pah.core import distributed
from pah.core.config import InputError
from pah.core.devices import find_device
from pah.core.files import write_json
from pah.data.benchmarks import BENCHMARKS
from pah.learner.store import LEARNER
from pah.methods.base import MethodOptions
from pah.runs import diagnosis
from pah.runs.folder import CONFIG, DIAGNOSIS, REPORT, refuse_other_run
from pah.runs.run import resume_run, start_run
from pah.training.config import RunConfig, load_stream

DIAGNOSE = (
    "Where a finished run's forgetting comes from, RUN being its folder: for each old task, what new heads on the "
    "features of then and of today tell apart. Needs a run with --snapshots true; writes RUN/diagnosis.json."
)


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
                    results = start_run(
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
    if distributed.is_first():
        reporting.report_finished(console, [folder for _, folder in finished])
    return 0


def resume(console: Console, words: list[str]) -> int:
    """`pah resume`: continue a run from its checkpoint."""
    bare, named = bare_and_named(words)
    asked, device_name = options.resume_options(named)
    device = find_device(device_name)
    folder = distributed.from_first(lambda: run_folder("resume", bare))
    config = distributed.from_first(lambda: options.read_config(folder / CONFIG))
    watchers = watching.first_alone(watching.remembered(asked, folder))
    console = watching.console_for(watchers, console)
    with Stop() as stop, watching.of_run(console, watchers, config, folder) as watch:
        try:
            results = resume_run(config, folder, watch=watch, stop=stop, device=device)
        except STOPPED:
            return say_stopped(folder, stop)
        watch.ended(results)
    console.print(display.matrix_table(results))
    show(console, [(results, folder)])
    if distributed.is_first() and not (folder / REPORT).exists():
        reporting.report_finished(console, [folder])
    return 0


def diagnose(console: Console, words: list[str]) -> int:
    """`pah diagnose`: split a finished run's forgetting into what heads and what features lost."""
    if set(words) & {"-h", "--help"}:
        ArgumentParser(prog="pah diagnose", usage="pah diagnose RUN", description=DIAGNOSE).parse_args(["-h"])
    folder = run_folder("diagnose", words)
    found = diagnosis.diagnose(options.read_config(folder / CONFIG), folder)
    write_json(folder / DIAGNOSIS, diagnosis.as_dict(found))
    console.print(display.diagnosis_table(found))
    console.print(display.DIAGNOSIS_LEGEND, highlight=False, soft_wrap=True)
    console.print(f"results in {folder / DIAGNOSIS}", highlight=False, soft_wrap=True)
    return 0


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


def run_folder(command: str, words: Sequence[str]) -> Path:
    """The one run folder that the words name; InputError if they name something else."""
    if len(words) != 1 or words[0].startswith("-"):
        raise InputError(f"{command}: expected one run folder, got {' '.join(words) or 'none'}")
    folder = Path(words[0])
    if not (folder / CONFIG).is_file():
        raise InputError(f"{folder}: expected a run folder, which holds {CONFIG}, found none")
    return folder


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
