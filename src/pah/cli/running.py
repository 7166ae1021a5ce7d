"""The commands `pah run`, `pah resume`, `pah diagnose` and `pah data`: one run, and the stream that it learns."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from pah.cli import display, learning, options, reporting, resume_options, watching
from pah.cli.arguments import split_arguments
from pah.cli.errors import end_with
from pah.cli.printing import json_line, say
from pah.cli.stopping import STOPPED, Stop
from pah.core import distributed
from pah.core.config import InputError, unknown_name_error
from pah.core.devices import find_device
from pah.core.files import write_json
from pah.data.benchmarks import BENCHMARKS
from pah.data.decode import MixedSizesError
from pah.data.decode_cache import cache_folder, clear_cache
from pah.data.sources import count_images
from pah.data.stream import Stream
from pah.learner.store import LEARNER_FILE
from pah.methods.base import MethodOptions
from pah.runs import diagnosis
from pah.runs.folder import CONFIG, DIAGNOSIS, REPORT, holds_run, refuse_other_run
from pah.runs.run import resume_run, start_run
from pah.training.config import RunConfig, load_stream, stream_of

DATA_FILES = (".npz", ".parquet")  # what `pah data` takes in place of a benchmark
# options of a run that `pah data` accepts although they change nothing that it lists
WITHOUT_EFFECT = ("--method.", "--backbone.", "--optimizer.", "--augment.", "--training.")


def run(console: Console, arguments: list[str]) -> int:
    """Run `pah run`: learn a stream, and again with each method of `--beside`."""
    request = options.run_request(arguments)
    progress = watching.first_process_only(request.progress)
    console, device = watching.console_for(progress, console), find_device(request.device)
    others = {config: folder_beside(request, config) for config in request.beside if config != request.config}
    if request.config in request.beside:
        say(f"beside: {request.config.method} is run once, as it has the same options as the run itself")
    to_resume = _runs_to_resume(request, {request.config: request.out} | others)
    if not request.overwrite:
        for config, folder in others.items():  # fail before the first run trains for an hour
            if config not in to_resume:
                refuse_other_run(folder, config.as_dict())
    finished = []
    with Stop() as stop:
        for config, folder in ({request.config: request.out} | others).items():
            start = resume_run if config in to_resume else partial(start_run, overwrite=request.overwrite)
            trackers = watching.with_earlier_trackers(progress, folder) if config in to_resume else progress
            with watching.watch_run(console, watching.first_process_only(trackers), config, folder) as watch:
                try:
                    results = start(
                        config,
                        folder,
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
    request = resume_options.resume_request(named, Path(*positional[:1]))
    device = find_device(request.device)
    folder = distributed.run_on_main_process(lambda: run_folder("resume", positional))
    stored = distributed.run_on_main_process(lambda: options.read_config(folder / CONFIG))
    config = resume_options.resumed_config(stored, request)
    progress = watching.first_process_only(watching.with_earlier_trackers(request.progress, folder))
    console = watching.console_for(progress, console)
    with Stop() as stop, watching.watch_run(console, progress, config, folder) as watch:
        try:
            results = resume_run(
                config,
                folder,
                more_tasks=config.stream.first != stored.stream.first,
                watch=watch,
                stop=stop,
                device=device,
            )
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
    positional, named = split_arguments(arguments)
    data = resume_options.diagnosed_data(named)
    folder = run_folder("diagnose", positional)
    config = options.read_config(folder / CONFIG)
    diagnoses = diagnosis.diagnose(dataclasses.replace(config, data=data or config.data), folder)
    write_json(folder / DIAGNOSIS, diagnosis.as_dict(diagnoses))
    console.print(display.diagnosis_table(diagnoses))
    console.print(display.DIAGNOSIS_LEGEND, highlight=False, soft_wrap=True)
    console.print(f"results in {folder / DIAGNOSIS}", highlight=False, soft_wrap=True)
    return 0


def data(console: Console, arguments: list[str]) -> int:
    """Run `pah data`: list the benchmarks, the tasks and classes of one, or what a learner knows."""
    if arguments in ([], ["--json"]):
        _list_benchmarks(console, as_json=bool(arguments))
        return 0
    if any(argument.replace("-", "_").strip("_") == "clear_cache" for argument in arguments):
        return clear_decoded_images(console, arguments)
    positional, named = split_arguments(arguments)
    if positional and (Path(positional[0]) / LEARNER_FILE).is_file():
        if len(positional) > 1 or not set(named) <= {"--json"}:
            raise InputError(f"data: expected a learner, and no option but --json, got {' '.join(arguments)}")
        (learning.print_learner if named else partial(learning.show_learner, console))(Path(positional[0]))
        return 0
    if len(positional) == 1 and Path(positional[0]).suffix.lower() in DATA_FILES:
        arguments = ["split", f"--data={positional[0]}", *named]
    elif len(positional) == 1 and positional[0] not in BENCHMARKS:
        raise _unknown_data(positional[0])
    config = options.data_config([argument for argument in arguments if argument != "--json"])
    _list_benchmark(console, config, as_json="--json" in named)
    if without_effect := [name for name in named if name.startswith(WITHOUT_EFFECT)]:
        say(f"without effect on the images and tasks: {', '.join(without_effect)}")
    return 0


def _list_benchmarks(console: Console, as_json: bool) -> None:
    """Print the names of all benchmarks with a summary of each."""
    if as_json:
        print(json_line({name: entry.summary for name, entry in BENCHMARKS.items()}))
        return
    for name, entry in BENCHMARKS.items():
        console.print(f"{name:20} {entry.summary}", highlight=False)


def _list_benchmark(console: Console, config: RunConfig, as_json: bool) -> None:
    """Print the images and the tasks of a benchmark."""
    stream, images = _stream_and_images(dataclasses.replace(config, method_options=MethodOptions()))
    if as_json:
        print(json_line(display.stream_as_dict(config, stream)))
        return
    console.print(f"{config.benchmark}: {BENCHMARKS[config.benchmark].summary}", highlight=False)
    console.print(f"{images}, from {stream.origin}", highlight=False)
    for note in stream.source.notes if stream.source else ():
        console.print(note, highlight=False, soft_wrap=True, markup=False)
    console.print(display.class_order_line(config, stream), highlight=False)
    console.print(display.stream_table(stream))


def _unknown_data(name: str) -> InputError:
    """Return the error for a name that is neither a benchmark nor the folder of a learner."""
    if Path(name).is_dir():
        return InputError(f"{name}: expected a benchmark or a learner, got a folder without {LEARNER_FILE}")
    return unknown_name_error("learner or benchmark", name, BENCHMARKS)


def _runs_to_resume(request: options.RunRequest, runs: Mapping[RunConfig, Path]) -> set[RunConfig]:
    """Return the runs that `--resume_if_there` continues: those whose folders hold them already."""
    if not request.resume_if_there:
        return set()
    return distributed.run_on_main_process(lambda: {config for config, path in runs.items() if holds_run(path, config)})


def _stream_and_images(config: RunConfig) -> tuple[Stream, str]:
    """Return the stream of a configuration, and its images in words; images of several sizes are only counted."""
    try:
        stream = load_stream(config)
    except MixedSizesError:
        if config.data is None:
            raise
        stream = stream_of(config, count_images(config.data, config.read_options))
        return stream, "images of several sizes (`--image_size N` makes them N x N for a run)"
    channels, height, width = stream.image_shape
    if stream.source and stream.source.numbers is not None:
        return stream, f"vectors of {channels} numbers"
    return stream, f"images {height}x{width}, {'grey' if channels == 1 else 'colour'}"


def clear_decoded_images(console: Console, arguments: Sequence[str]) -> int:
    """Run `pah data --clear_cache`: delete the decoded data sets and print what was freed."""
    if len(arguments) != 1:
        raise InputError(f"clear_cache: expected no other argument, got {' '.join(arguments)}")
    freed, folder = clear_cache(), cache_folder()
    left = "; data sets that a process is decoding were left" if any(folder.glob("*/")) else ""
    console.print(f"freed {freed / 10**6:,.1f} MB in {folder}{left}", highlight=False, soft_wrap=True)
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
