"""Turn the arguments of `pah resume` and `pah diagnose` into checked requests."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from jsonargparse import ArgumentError, ArgumentParser

from pah.cli.errors import readable_error
from pah.cli.options import ProgressOptions, progress_options
from pah.cli.parser import add_device, add_progress, add_resume
from pah.core.config import InputError, require
from pah.core.devices import DeviceName
from pah.runs.folder import CONFIG
from pah.training.config import RunConfig

RESUME = (
    "Continue a run that was stopped or killed; RUN is its folder. The result is the same as without the stop: on a "
    "CPU with the same number of threads, bit for bit. The data must not have changed since the run began."
)
DIAGNOSE = (
    "Show where a finished run's forgetting comes from; RUN is its folder. For each old task, new heads are fitted to "
    "the features right after the task and at the end of the run, and their accuracies are compared. The run must have "
    "been made with --snapshots true. Writes RUN/diagnosis.json."
)


class ResumeRequest(NamedTuple):
    """The request of a `pah resume` command."""

    progress: ProgressOptions
    device: DeviceName
    data: str | None  # another place of the same data
    first: int | None  # go on to this number of tasks


def resume_request(named: Sequence[str], folder: Path) -> ResumeRequest:
    """Return the request of the options of `pah resume`; InputError if they are invalid.

    Args:
        named: The options, as `--full_name=value`.
        folder: The run folder, for messages.
    """
    parser = ArgumentParser(
        prog="pah resume", exit_on_error=False, usage="pah resume RUN [--OPTION VALUE] ...", description=RESUME
    )
    add_progress(parser)
    add_device(parser)
    add_resume(parser)
    for option in named:
        name, _, value = option.removeprefix("--").partition("=")
        if name in ("training.epochs", "training.first_epochs"):
            raise InputError(
                f"resume: expected no {name}, got {value}: a run keeps its epochs, because tasks cannot get more of "
                "them after later tasks were learned; a run with others is made by "
                f"`pah run --config {folder / CONFIG} --{name} {value} --out FOLDER`"
            )
    try:
        options = parser.parse_args([option.replace("--stream.first=", "--first=") for option in named])
    except ArgumentError as error:
        raise readable_error(str(error), parser) from None
    return ResumeRequest(progress_options(options), options.device, options.data, options.first)


def resumed_config(stored: RunConfig, request: ResumeRequest) -> RunConfig:
    """Return the configuration with which a run goes on.

    Args:
        stored: The configuration in the run's folder.
        request: What the user asked for.

    Raises:
        InputError: the run cannot go on to this number of tasks.
    """
    config = dataclasses.replace(stored, data=request.data or stored.data)
    if request.first is None or request.first == stored.stream.first:
        return config
    learned = stored.stream.first
    require(
        learned is not None, "first", "a run that was made with --stream.first; this one has all tasks", request.first
    )
    require(learned is None or request.first > learned, "first", f"more than the run's {learned} tasks", request.first)
    return dataclasses.replace(config, stream=dataclasses.replace(stored.stream, first=request.first))


def diagnosed_data(named: Sequence[str]) -> str | None:
    """Return the option `data` of `pah diagnose`; InputError for other options."""
    parser = ArgumentParser(
        prog="pah diagnose", exit_on_error=False, usage="pah diagnose RUN [--data PATH]", description=DIAGNOSE
    )
    data_help = "folder or hub id where the run's data are now"
    parser.add_argument("--data", type=str | None, default=None, metavar="PATH", help=data_help)
    try:
        data: str | None = parser.parse_args(list(named)).data
    except ArgumentError as error:
        raise readable_error(str(error), parser) from None
    return data
