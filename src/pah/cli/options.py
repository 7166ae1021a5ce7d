"""What a command was asked to do: words -> a checked request."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from jsonargparse import ArgumentError, ArgumentParser, Namespace

from pah.cli.arguments import FLAGS, SHORT, full_names, joined
from pah.cli.json_progress import require_progress
from pah.cli.parser import add_device, add_watchers, changed, config_of, parse, readable
from pah.core.config import InputError, require, unknown
from pah.core.devices import DeviceName
from pah.methods import METHODS
from pah.study.ablation import Ablation, Panel, flat
from pah.study.comparison import Comparison
from pah.study.ray_driver import Place
from pah.tracking.tools import require_tools
from pah.training.config import RunConfig

FIGURE_3 = (  # of the paper: what is varied unless said otherwise
    "method.prototype_size=5,10,16,20",
    "method.stability=0,0.1,0.25,0.5,1,3",
    "method.alignment=0,1",
    "method.prototype_start=semantic,random",
)


RESUME = (
    "Continue a run that was stopped or killed, RUN being its folder. It ends as it would have without the stop: on a "
    "CPU bit for bit, with the same number of threads."
)


class Watchers(NamedTuple):
    """Who is to watch what a command does."""

    progress: str  # one of `lines.PROGRESS`
    track: tuple[str, ...]  # the trackers


def watchers_of(options: Namespace) -> Watchers:
    """Those that the options name; InputError if there is no such one, or a tracker is not installed."""
    require_progress(options.progress)
    names = tuple(dict.fromkeys(_listed(options.track)))
    require_tools(names)
    return Watchers(options.progress, names)


class Request(NamedTuple):
    """What `pah run` was asked to do."""

    config: RunConfig
    out: Path
    beside: list[RunConfig]
    overwrite: bool
    checkpoint_seconds: float
    watchers: Watchers
    device: DeviceName


def run_request(words: Sequence[str]) -> Request:
    """The request that the words after `pah run` make; InputError if they are not understood."""
    words = full_names(words)
    options = parse(words, "run")
    config = config_of(options)
    others = [
        dataclasses.replace(config, method=name, method_options=METHODS[name].options())
        for name in _names(options.beside)
    ]
    out = Path(options.out) if options.out else config.folder
    require(options.checkpoint_seconds >= 0, "checkpoint_seconds", "at least 0", options.checkpoint_seconds)
    watchers = watchers_of(options)
    return Request(config, out, others, options.overwrite, options.checkpoint_seconds, watchers, options.device)


def resume_options(named: Sequence[str]) -> tuple[Watchers, DeviceName]:
    """What the options of `pah resume` say, which are of no run but of who watches it and where it goes on."""
    parser = ArgumentParser(
        prog="pah resume", exit_on_error=False, usage="pah resume RUN [--OPTION VALUE] ...", description=RESUME
    )
    add_watchers(parser)
    add_device(parser)
    try:
        options = parser.parse_args(list(named))
    except ArgumentError as error:
        raise readable(str(error), parser) from None
    return watchers_of(options), options.device


def data_config(words: Sequence[str]) -> RunConfig:
    """The run whose stream the words after `pah data` ask about; InputError if they are not understood."""
    return config_of(parse(full_names(words), "data"))


class CompareRequest(NamedTuple):
    """What `pah compare` was asked to do."""

    comparison: Comparison
    checkpoint_seconds: float
    place: Place | None  # None: here
    watchers: Watchers
    device: DeviceName


def compare_request(words: Sequence[str]) -> CompareRequest:
    """The request that the words after `pah compare` make; InputError if they are not understood.

    A word `--<method>.<option>` is for that method alone, `--buffer` for each that has one.
    """
    words = full_names(words)
    if set(words) & FLAGS:
        parse(words, "compare")  # help, or what the parser says of the rest
    said = [word for word in words if not word.startswith("--methods=")]
    listed = [word.partition("=")[2] for word in words if word.startswith("--methods=")]
    methods = _names(listed[-1]) if listed else list(METHODS)
    if not methods:
        raise InputError("methods: expected at least one, got none")
    require(len(set(methods)) == len(methods), "methods", "each once", listed[-1:] and listed[-1])
    of_method = {word: name for word in said for name in METHODS if word.startswith(f"--{name}.") and name != "method"}
    foreign = sorted(set(of_method.values()) - set(methods))
    if foreign:
        raise InputError(f"{foreign[0]}: expected options of a method that is compared, got those of another")
    with_buffer = [name for name in methods if hasattr(METHODS[name].options, "buffer")]
    if any(word.startswith("--method.buffer") for word in said) and not with_buffer:
        raise InputError(f"buffer: expected a method with a buffer among those compared, got {', '.join(methods)}")
    parsed = {name: parse(_words_for(name, said, of_method), "compare") for name in methods}
    first = parsed[methods[0]]
    require(first.tune >= 0, "tune", "at least 0", first.tune)
    require(first.checkpoint_seconds >= 0, "checkpoint_seconds", "at least 0", first.checkpoint_seconds)
    configs = tuple(config_of(options) for options in parsed.values())
    folder = Path(first.out) if first.out else Path("runs") / f"compare-{first.benchmark}"
    comparison = Comparison(configs, _seeds(first.seeds), folder, first.tune)
    return CompareRequest(comparison, first.checkpoint_seconds, _place(first), watchers_of(first), first.device)


def _words_for(method: str, said: Sequence[str], of_method: Mapping[str, str]) -> list[str]:
    """The words that concern one of the methods compared, its own options as `--method.<option>`."""
    words = [f"--method.name={method}"]
    for word in said:
        if word in of_method:
            if of_method[word] == method:
                words.append(f"--method.{word.removeprefix(f'--{method}.')}")
        elif not word.startswith("--method."):
            words.append(word)
        elif not word.startswith("--method.buffer"):
            raise InputError(f"{word.partition('=')[0]}: expected --<method>.<option>, as several methods are compared")
        elif hasattr(METHODS[method].options, "buffer"):
            words.append(word)
    return words


class AblateRequest(NamedTuple):
    """What `pah ablate` was asked to do."""

    ablation: Ablation
    checkpoint_seconds: float
    place: Place | None  # None: here
    watchers: Watchers
    device: DeviceName


def ablate_request(words: Sequence[str]) -> AblateRequest:
    """The request that the words after `pah ablate` make; InputError if they are not understood."""
    words = full_names(words)
    words = joined(joined(words, "--vary"), "--grid")
    options = parse(words, "ablate")
    require(options.checkpoint_seconds >= 0, "checkpoint_seconds", "at least 0", options.checkpoint_seconds)
    base = config_of(options)
    seeds = _seeds(options.seeds)
    require(bool(seeds), "seeds", "at least one", options.seeds)
    if options.vary and options.grid:
        raise InputError("grid: expected --vary or --grid, got both")
    if not (options.vary or options.grid) and base.method != "pah":
        raise InputError(f"vary: expected what to vary (--vary or --grid), as the method is {base.method}, got none")
    panels = (_crossed if options.grid else _one_at_a_time)(base, options.grid or options.vary or FIGURE_3)
    folder = Path(options.out) if options.out else Path("runs") / f"ablate-{base.benchmark}"
    found = Ablation(base, panels, seeds, folder)
    return AblateRequest(found, options.checkpoint_seconds, _place(options), watchers_of(options), options.device)


def _one_at_a_time(base: RunConfig, said: Sequence[str]) -> tuple[Panel, ...]:
    """A panel for each factor: the base with each of its values, and the base itself."""
    panels = []
    for name, values in _factors(base, said).items():
        found = [changed(base, {name: value}, "ablate") for value in values]
        panels.append(Panel((name,), tuple(dict.fromkeys(found if base in found else [base, *found]))))
    return tuple(panels)


def _crossed(base: RunConfig, said: Sequence[str]) -> tuple[Panel, ...]:
    """One panel: the base with every combination of the factors' values."""
    factors = _factors(base, said)
    combinations = (dict(zip(factors, values, strict=True)) for values in itertools.product(*factors.values()))
    found = [changed(base, combination, "ablate") for combination in combinations]
    return (Panel(tuple(factors), tuple(dict.fromkeys(found))),)


def _factors(base: RunConfig, said: Sequence[str]) -> dict[str, list[str]]:
    """ "method.stability=0,1" as an option's dotted name and its values, which are not checked yet."""
    known = {name: value for name, value in flat(base).items() if "." in name}
    factors: dict[str, list[str]] = {}
    for text in said:
        name, _, listed = text.partition("=")
        name = "--" + name.strip().removeprefix("--").replace("-", "_")
        name = SHORT.get(name, name).removeprefix("--")
        values = [value.strip() for value in listed.split(";" if ";" in listed else ",") if value.strip()]
        if not values:
            raise InputError(f"vary or grid: expected NAME=V1,V2,..., got {text!r}")
        if name not in known:
            raise unknown("option", name, known)
        require(name not in factors, f"vary or grid {name}", "each option once", text)
        lists = all(value.startswith("[") for value in values)
        require(lists or not isinstance(known[name], list), f"vary or grid {name}", "lists, as in [64];[64,64]", text)
        factors[name] = values
    return factors


def _place(options: Namespace) -> Place | None:
    """The cluster that was asked for; None: the runs are made here."""
    if options.ray is not None:
        return Place(options.ray, options.ray_cpus, options.ray_gpus, options.ray_memory, options.device)
    for name in ("cpus", "gpus", "memory"):
        if options[f"ray_{name}"] != getattr(Place, name):
            raise InputError(f"ray_{name}: expected --ray ADDRESS with it, got none")
    return None


def _seeds(listed: str) -> tuple[int, ...]:
    """ "0,1,2" as numbers; "none" as no seed at all, which leaves it at tuning."""
    names = [] if listed == "none" else [name.strip() for name in listed.split(",")]
    if not all(name.removeprefix("-").isdecimal() for name in names):
        raise InputError(f"seeds: expected whole numbers with commas between them, or none, got {listed!r}")
    seeds = tuple(int(name) for name in names)
    require(len(set(seeds)) == len(seeds), "seeds", "each once", listed)
    return seeds


def read_config(path: Path) -> RunConfig:
    """The configuration of a run folder's `config.yaml`."""
    try:
        return config_of(parse([f"--config={path}"], "run"))
    except InputError as error:  # nobody typed an option here: say which file it stands in
        message = str(error)
        raise InputError(message if message.startswith(str(path)) else f"{path}: {message}") from None


def _names(listed: str) -> list[str]:
    names = _listed(listed)
    for name in names:
        if name not in METHODS:
            raise unknown("method", name, METHODS)
    return names


def _listed(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]
