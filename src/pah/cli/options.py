"""Turn the arguments of a command into a checked request."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from jsonargparse import Namespace

from pah.cli.arguments import FLAGS, NUMBER_LISTS, SHORT_NAMES, merge_repeated, with_full_names
from pah.cli.json_progress import require_progress
from pah.cli.parser import config_of, parse, with_changes
from pah.core.config import InputError, require, unknown_name_error
from pah.core.devices import DeviceName
from pah.methods import METHODS
from pah.study.ablation import Ablation, Panel, flat_options
from pah.study.comparison import Comparison
from pah.study.ray_driver import ClusterOptions
from pah.tracking.trackers import require_trackers
from pah.training.config import RunConfig

FIGURE_3 = (  # default factors of `pah ablate`: those of figure 3 of the PAH paper
    "method.prototype_size=5,10,16,20",
    "method.stability=0,0.1,0.25,0.5,1,3",
    "method.alignment=0,1",
    "method.prototype_start=semantic,random",
)


class ProgressOptions(NamedTuple):
    """How a command reports its progress."""

    format: str  # one of `json_progress.PROGRESS`
    trackers: tuple[str, ...]


def progress_options(options: Namespace) -> ProgressOptions:
    """Return the progress options; InputError for an unknown format, or a tracker that is unknown or not installed."""
    require_progress(options.progress)
    trackers = tuple(dict.fromkeys(_split_names(options.track)))
    require_trackers(trackers)
    return ProgressOptions(options.progress, trackers)


class RunRequest(NamedTuple):
    """The request of a `pah run` command."""

    config: RunConfig
    out: Path
    beside: list[RunConfig]
    overwrite: bool
    resume_if_there: bool
    checkpoint_seconds: float
    progress: ProgressOptions
    device: DeviceName


def run_request(arguments: Sequence[str]) -> RunRequest:
    """Return the request of the arguments after `pah run`; InputError if they are invalid."""
    options = parse(with_full_names(arguments), "run")
    config = config_of(options)
    others = [
        dataclasses.replace(config, method=name, method_options=METHODS[name].options())
        for name in _method_names(options.beside)
    ]
    out = Path(options.out) if options.out else config.folder
    require(options.checkpoint_seconds >= 0, "checkpoint_seconds", "at least 0", options.checkpoint_seconds)
    progress = progress_options(options)
    if options.overwrite and options.resume_if_there:
        raise InputError("resume_if_there: expected it or overwrite, got both")
    return RunRequest(
        config,
        out,
        others,
        options.overwrite,
        options.resume_if_there,
        options.checkpoint_seconds,
        progress,
        options.device,
    )


def data_config(arguments: Sequence[str]) -> RunConfig:
    """Return the configuration whose stream `pah data` lists; InputError if the arguments are invalid."""
    return config_of(parse(with_full_names(arguments), "data"))


class CompareRequest(NamedTuple):
    """The request of a `pah compare` command."""

    comparison: Comparison
    checkpoint_seconds: float
    cluster: ClusterOptions | None  # None: run in this process
    progress: ProgressOptions
    device: DeviceName


def compare_request(arguments: Sequence[str]) -> CompareRequest:
    """Return the request of the arguments after `pah compare`; InputError if they are invalid.

    An option `--<method>.<option>` applies to that method only, `--buffer` to each method with a buffer.
    """
    arguments = with_full_names(arguments)
    if set(arguments) & FLAGS:
        parse(arguments, "compare")  # prints the help, or refuses the flag
    options = [argument for argument in arguments if not argument.startswith("--methods=")]
    lists = [argument.partition("=")[2] for argument in arguments if argument.startswith("--methods=")]
    methods = _method_names(lists[-1]) if lists else list(METHODS)
    if not methods:
        raise InputError("methods: expected at least one, got none")
    require(len(set(methods)) == len(methods), "methods", "each once", lists[-1:] and lists[-1])
    owners = _method_of_options(options, methods)
    parsed = {name: parse(_arguments_of_method(name, options, owners), "compare") for name in methods}
    first = parsed[methods[0]]
    require(first.tune >= 0, "tune", "at least 0", first.tune)
    require(first.checkpoint_seconds >= 0, "checkpoint_seconds", "at least 0", first.checkpoint_seconds)
    configs = tuple(config_of(options) for options in parsed.values())
    folder = Path(first.out) if first.out else Path("runs") / f"compare-{first.benchmark}"
    comparison = Comparison(configs, _parse_seeds(first.seeds), folder, first.tune)
    return CompareRequest(
        comparison, first.checkpoint_seconds, _cluster_options(first), progress_options(first), first.device
    )


def _method_of_options(options: Sequence[str], methods: Sequence[str]) -> dict[str, str]:
    """Return the method of each option `--<method>.<option>`; InputError if no compared method can use an option."""
    owners = {
        option: name for option in options for name in METHODS if option.startswith(f"--{name}.") and name != "method"
    }
    others = sorted(set(owners.values()) - set(methods))
    if others:
        raise InputError(f"{others[0]}: expected options of a method that is compared, got those of another")
    with_buffer = [name for name in methods if hasattr(METHODS[name].options, "buffer")]
    if any(option.startswith("--method.buffer") for option in options) and not with_buffer:
        raise InputError(f"buffer: expected a method with a buffer among those compared, got {', '.join(methods)}")
    return owners


def _arguments_of_method(method: str, options: Sequence[str], owners: Mapping[str, str]) -> list[str]:
    """Return the options that apply to one of the compared methods, its own as `--method.<option>`."""
    arguments = [f"--method.name={method}"]
    for option in options:
        if option in owners:
            if owners[option] == method:
                arguments.append(f"--method.{option.removeprefix(f'--{method}.')}")
        elif not option.startswith("--method."):
            arguments.append(option)
        elif not option.startswith("--method.buffer"):
            name = option.partition("=")[0]
            raise InputError(f"{name}: expected --<method>.<option>, as several methods are compared")
        elif hasattr(METHODS[method].options, "buffer"):
            arguments.append(option)
    return arguments


class AblateRequest(NamedTuple):
    """The request of a `pah ablate` command."""

    ablation: Ablation
    checkpoint_seconds: float
    cluster: ClusterOptions | None  # None: run in this process
    progress: ProgressOptions
    device: DeviceName


def ablate_request(arguments: Sequence[str]) -> AblateRequest:
    """Return the request of the arguments after `pah ablate`; InputError if they are invalid."""
    arguments = merge_repeated(merge_repeated(with_full_names(arguments), "--vary"), "--grid")
    options = parse(arguments, "ablate")
    require(options.checkpoint_seconds >= 0, "checkpoint_seconds", "at least 0", options.checkpoint_seconds)
    base = config_of(options)
    seeds = _parse_seeds(options.seeds)
    require(bool(seeds), "seeds", "at least one", options.seeds)
    if options.vary and options.grid:
        raise InputError("grid: expected --vary or --grid, got both")
    if not (options.vary or options.grid) and base.method != "pah":
        raise InputError(f"vary: expected what to vary (--vary or --grid), as the method is {base.method}, got none")
    panels = (_crossed if options.grid else _one_at_a_time)(base, options.grid or options.vary or FIGURE_3)
    folder = Path(options.out) if options.out else Path("runs") / f"ablate-{base.benchmark}"
    ablation = Ablation(base, panels, seeds, folder)
    return AblateRequest(
        ablation, options.checkpoint_seconds, _cluster_options(options), progress_options(options), options.device
    )


def _one_at_a_time(base: RunConfig, texts: Sequence[str]) -> tuple[Panel, ...]:
    """Return a panel for each factor: the base with each of the factor's values, and the base itself."""
    panels = []
    for name, values in _parse_factors(base, texts).items():
        configs = [with_changes(base, {name: value}, "ablate") for value in values]
        panels.append(Panel((name,), tuple(dict.fromkeys(configs if base in configs else [base, *configs]))))
    return tuple(panels)


def _crossed(base: RunConfig, texts: Sequence[str]) -> tuple[Panel, ...]:
    """Return one panel: the base with every combination of the factors' values."""
    factors = _parse_factors(base, texts)
    combinations = (dict(zip(factors, values, strict=True)) for values in itertools.product(*factors.values()))
    configs = [with_changes(base, combination, "ablate") for combination in combinations]
    return (Panel(tuple(factors), tuple(dict.fromkeys(configs))),)


def _parse_factors(base: RunConfig, texts: Sequence[str]) -> dict[str, list[str]]:
    """Return texts such as "method.stability=0,1" as an option's full name and its values, which are not checked."""
    known = {name: value for name, value in flat_options(base).items() if "." in name}
    factors: dict[str, list[str]] = {}
    for text in texts:
        name, _, value_text = text.partition("=")
        name = "--" + name.strip().removeprefix("--").replace("-", "_")
        name = SHORT_NAMES.get(name, name).removeprefix("--")
        separator = ";" if ";" in value_text else ","
        values = [value.strip() for value in value_text.split(separator) if value.strip()]
        if not values:
            raise InputError(f"vary or grid: expected NAME=V1,V2,..., got {text!r}")
        if name not in known:
            raise unknown_name_error("option", name, known)
        require(name not in factors, f"vary or grid {name}", "each option once", text)
        are_lists = all(value.startswith("[") for value in values)
        is_allowed = are_lists or f"--{name}" in NUMBER_LISTS or not isinstance(known[name], list)
        require(is_allowed, f"vary or grid {name}", "lists, as in [64];[64,64]", text)
        factors[name] = values
    return factors


def _cluster_options(options: Namespace) -> ClusterOptions | None:
    """Return the cluster of `--ray`; None without it: the runs are made in this process."""
    if options.ray is not None:
        return ClusterOptions(options.ray, options.ray_cpus, options.ray_gpus, options.ray_memory, options.device)
    for name in ("cpus", "gpus", "memory"):
        if options[f"ray_{name}"] != getattr(ClusterOptions, name):
            raise InputError(f"ray_{name}: expected --ray ADDRESS with it, got none")
    return None


def _parse_seeds(text: str) -> tuple[int, ...]:
    """Return "0,1,2" as numbers, and "none" as no seed, which makes `pah compare` only tune."""
    names = [] if text == "none" else [name.strip() for name in text.split(",")]
    if not all(name.removeprefix("-").isdecimal() for name in names):
        raise InputError(f"seeds: expected whole numbers with commas between them, or none, got {text!r}")
    seeds = tuple(int(name) for name in names)
    require(len(set(seeds)) == len(seeds), "seeds", "each once", text)
    return seeds


def read_config(path: Path) -> RunConfig:
    """Return the configuration of a run folder's `config.yaml`."""
    try:
        return config_of(parse([f"--config={path}"], "run"))
    except InputError as error:  # the options are in a file, so the message must name it
        message = str(error)
        raise InputError(message if message.startswith(str(path)) else f"{path}: {message}") from None


def _method_names(text: str) -> list[str]:
    """Return names with commas between them as a list; InputError if one is no method."""
    names = _split_names(text)
    for name in names:
        if name not in METHODS:
            raise unknown_name_error("method", name, METHODS)
    return names


def _split_names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]
