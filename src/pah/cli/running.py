"""The commands `pah run`, `pah resume`, `pah diagnose` and `pah data`: one run, and the stream that it learns."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from rich.console import Console

from pah.cli import display, learning, options, reporting, watching
from pah.cli.arguments import split_arguments
from pah.cli.errors import end_with
from pah.cli.stopping import STOPPED, Stop
from pah.core import distributed
from pah.core.config import InputError
from pah.core.devices import find_device
from pah.core.files import write_json
from pah.data.benchmarks import BENCHMARKS
from pah.learner.store import LEARNER_FILE
from pah.methods.base import MethodOptions
from pah.runs import diagnosis
from pah.runs.folder import CONFIG, DIAGNOSIS, REPORT, refuse_other_run
from pah.runs.run import resume_run, start_run
from pah.training.config import RunConfig, load_stream

DIAGNOSE = (
    "Show where a finished run's forgetting comes from; RUN is its folder. For each old task, new heads are fitted to "
    "the features right after the task and at the end of the run, and their accuracies are compared. The run must have "
    "been made with --snapshots true. Writes RUN/diagnosis.json."
)


def run(console: Console, arguments: list[str]) -> int:
    """Run `pah run`: learn a stream, and again with each method of `--beside`."""
    request = options.run_request(arguments)
    progress = watching.first_process_only(request.progress)
    console, device = watching.console_for(progress, console), find_device(request.device)
    others = {config: folder_beside(request, config) for config in request.beside if config != request.config}
    if not request.overwrite:
        for config, folder in others.items():  # fail before the first run trains for an hour
            refuse_other_run(folder, config.as_dict())
    finished = []
    with Stop() as stop:
        for config, folder in ({request.config: request.out} | others).items():
            with watching.watch_run(console, progress, config, folder) as watch:
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
                    return end_stopped_run(folder, stop)
                watch.ended(results)
            finished.append((results, folder))
            console.print(display.matrix_table(results))
    show_results(console, finished)
    if distributed.is_main_process():
        reporting.report_finished(console, [folder for _, folder in finished])
    return 0


def resume(console: Console, arguments: list[str]) -> int:
    """Run `pah resume`: continue a run from its checkpoint."""
    positional, named = split_arguments(arguments)
    progress, device_name = options.resume_options(named)
    device = find_device(device_name)
    folder = distributed.run_on_main_process(lambda: run_folder("resume", positional))
    config = distributed.run_on_main_process(lambda: options.read_config(folder / CONFIG))
    progress = watching.first_process_only(watching.with_earlier_trackers(progress, folder))
    console = watching.console_for(progress, console)
    with Stop() as stop, watching.watch_run(console, progress, config, folder) as watch:
        try:
            results = resume_run(config, folder, watch=watch, stop=stop, device=device)
        except STOPPED:
            return end_stopped_run(folder, stop)
        watch.ended(results)
    console.print(display.matrix_table(results))
    show_results(console, [(results, folder)])
    if distributed.is_main_process() and not (folder / REPORT).exists():
        reporting.report_finished(console, [folder])
    return 0


def diagnose(console: Console, arguments: list[str]) -> int:
    """Run `pah diagnose`: split a finished run's forgetting into the losses of its heads and of its features."""
    if set(arguments) & {"-h", "--help"}:
        ArgumentParser(prog="pah diagnose", usage="pah diagnose RUN", description=DIAGNOSE).parse_args(["-h"])
    folder = run_folder("diagnose", arguments)
    diagnoses = diagnosis.diagnose(options.read_config(folder / CONFIG), folder)
    write_json(folder / DIAGNOSIS, diagnosis.as_dict(diagnoses))
    console.print(display.diagnosis_table(diagnoses))
    console.print(display.DIAGNOSIS_LEGEND, highlight=False, soft_wrap=True)
    console.print(f"results in {folder / DIAGNOSIS}", highlight=False, soft_wrap=True)
    return 0


def data(console: Console, arguments: list[str]) -> int:
    """Run `pah data`: list the benchmarks, the tasks and classes of one, or what a learner knows."""
    if not arguments:
        for name, entry in BENCHMARKS.items():
            console.print(f"{name:20} {entry.summary}", highlight=False)
        return 0
    if len(arguments) == 1 and (Path(arguments[0]) / LEARNER_FILE).is_file():
        learning.show_learner(console, Path(arguments[0]))
        return 0
    config = options.data_config(arguments)
    entry = BENCHMARKS[config.benchmark]
    stream = load_stream(dataclasses.replace(config, method_options=MethodOptions()))
    channels, height, width = stream.image_shape
    console.print(f"{config.benchmark}: {entry.summary}", highlight=False)
    console.print(
        f"images {height}x{width}, {'grey' if channels == 1 else 'colour'}, from {stream.origin}", highlight=False
    )
    console.print(display.class_order_line(config, stream), highlight=False)
    console.print(display.stream_table(stream))
    return 0


def run_folder(command: str, arguments: Sequence[str]) -> Path:
    """Return the run folder that the arguments name; InputError unless there is exactly one."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        raise InputError(f"{command}: expected one run folder, got {' '.join(arguments) or 'none'}")
    folder = Path(arguments[0])
    if not (folder / CONFIG).is_file():
        raise InputError(f"{folder}: expected a run folder, which holds {CONFIG}, found none")
    return folder


def folder_beside(request: options.RunRequest, config: RunConfig) -> Path:
    """Return the folder of a run of `--beside`."""
    if request.out == request.config.folder and config.folder != request.out:
        return config.folder
    return request.out.with_name(f"{request.out.name}-{config.method}")


def show_results(console: Console, finished: list[tuple[dict[str, Any], Path]]) -> None:
    """Print the metrics of the finished runs and their folders."""
    console.print(display.summary_table([results for results, _ in finished]))
    console.print(display.LEGEND, highlight=False, soft_wrap=True)
    for results, folder in finished:
        console.print(f"{results['method']}: results in {folder}", highlight=False, soft_wrap=True)


def end_stopped_run(folder: Path, stop: Stop) -> int:
    """Print how to continue, and return the exit status of a process that the signal stopped."""
    if not (folder / CONFIG).is_file():
        return end_with("stopped before training began", stop.status)
    return end_with(f"stopped, the state is saved; `pah resume {folder}` continues", stop.status)
