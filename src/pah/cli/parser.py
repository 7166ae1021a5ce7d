"""The parser: words and YAML -> checked options. jsonargparse does the parsing, the dataclasses the checking."""

import dataclasses
import re
from argparse import SUPPRESS
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_type_hints

import docstring_parser
from jsonargparse import ArgumentError, ArgumentParser, Namespace

from pah.cli.arguments import SHORT, as_words, by_dotted_name, typed, without_others
from pah.core.config import InputError, require, unknown
from pah.core.devices import DeviceName
from pah.core.files import read_yaml
from pah.data.benchmarks import BENCHMARKS, benchmark
from pah.learner.learner import IMAGE_SIZE, defaults
from pah.methods import METHODS
from pah.models.backbones import BACKBONES, backbone_options
from pah.study.ablation import flat
from pah.study.ray_driver import Place
from pah.tracking.tools import TOOLS
from pah.training.config import GROUPS, RunConfig

NO_OPTIONS = {"help", "print_config", "print_shtab"}  # what the parser takes but a YAML file does not hold
Command = Literal["run", "compare", "ablate", "learn", "data"]
DESCRIPTIONS: dict[Command, str] = {
    "run": "Learn a stream of tasks, one after another, and measure what is kept.",
    "compare": "Learn the same stream with several methods and seeds. The same command goes on where it was stopped; "
    "started twice, it shares the work. --<method>.<option> sets an option of one method (pah run --method NAME --help "
    "lists them), --buffer N the stored samples of each method that stores any.",
    "ablate": "Learn the same stream with one method, its options changed one at a time (--vary) or in every "
    "combination (--grid); with neither, PAH's prototypes and weights as in figure 3 of its paper. The other options "
    "describe the base from which the cells differ. The same command goes on where it was stopped; started twice, it "
    "shares the work; with another --vary, it adds to it.",
    "data": "List the benchmarks; or the tasks and classes of one, and where its images come from, for the options "
    "of a run that would learn it (what concerns training changes nothing); or what a learner knows.",
    "learn": "Teach a learner a task, and make the learner if there is none in the folder. Its method, backbone, image "
    "size and seed are those of the first lesson; other options stay as they are until a lesson says otherwise.",
}
USAGES: dict[Command, str] = {
    "run": "pah run [BENCHMARK] [--method NAME] [--data PATH_OR_HUB_ID] [--OPTION VALUE] ...",
    "compare": "pah compare [BENCHMARK] [--methods NAME,...] [--seeds N,...] [--out DIR] [--OPTION VALUE] ...",
    "ablate": "pah ablate [BENCHMARK] [--vary NAME=V1,V2,...] ... [--seeds N,...] [--out DIR] [--OPTION VALUE] ...",
    "data": "pah data [BENCHMARK | LEARNER] [--data PATH_OR_HUB_ID] [--tasks N] [--OPTION VALUE] ...",
    "learn": "pah learn LEARNER --name NAME --data PATH_OR_HUB_ID [--only CLASS,...] [--OPTION VALUE] ...",
}
OF_A_STREAM = (  # options that mean nothing to a lesson
    "stream.tasks",
    "stream.first",
    "stream.classes",
    "stream.class_order",
    "training.evaluate_on",
    "training.test_batch_norm",
)
CONFIG_HELP = (
    "YAML file of options; the others override it, and if they name another method or backbone, the file's options of "
    "its own one do not count"
)
VALUES = "; with ; between values where these contain commas themselves, as lists do: 'method.hidden=[64,64];[256]'"


def parse(words: list[str], command: Command, usual: Mapping[str, object] | None = None) -> Namespace:
    """The parsed options, for the benchmark, method and backbone that the words (or their YAML) name.

    `usual` are the defaults by dotted name; those of the benchmark, or of a new learner, unless given.
    """
    words = without_others(words)
    choice = _chosen(words, command, usual)
    if not hasattr(METHODS[choice.method].options, "buffer") and any(w.startswith("--method.buffer") for w in words):
        having = ", ".join(name for name, entry in METHODS.items() if hasattr(entry.options, "buffer"))
        raise InputError(f"method.buffer: expected a method with a buffer ({having}), got {choice.method}")
    parser = _parser(choice, command)
    try:
        options = parser.parse_args(words)
    except ArgumentError as error:
        raise readable(str(error), parser) from None
    for name, default in parser.get_defaults().items():
        require(options[name] is not None or default is None, name, "a value", None)  # null in YAML is not checked
    return options


def changed(config: RunConfig, changes: Mapping[str, str], command: Command) -> RunConfig:
    """A configuration with other values, as they are typed, for some options by dotted name.

    Of another method or backbone: the options that it has as well carry over, those that it lacks are left out.

    Raises:
        InputError: a value that an option does not take, or an option that there is not.
    """
    said = typed(flat(config)) | {**changes}
    known = {action.dest for action in _parser(_chosen(as_words(said), command), command)._actions}
    return config_of(parse(as_words({n: v for n, v in said.items() if n in known or n in changes}), command))


class _Choice(NamedTuple):
    """What decides which other options there are, and their defaults."""

    method: str
    backbone: str
    usual: Mapping[str, object]  # the defaults by dotted name


def _chosen(words: list[str], command: Command, usual: Mapping[str, object] | None = None) -> _Choice:
    """What the words, or their YAML, choose."""
    said: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.removeprefix("--").partition("=")
        if equals:
            said |= by_dotted_name(Path(value), read_yaml(Path(value))) if name == "config" else {name: value}

    def choice(name: str, default: str) -> str:
        value = said.get(name)
        return value if isinstance(value, str) else default  # what is no name is refused when it is parsed

    if usual is None:
        bench = choice("benchmark", "split-digits")
        usual = flat(defaults(_image_size(said))) if command == "learn" else benchmark(bench).defaults
    method = choice("method.name", str(usual.get("method.name", "pah")))
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    return _Choice(method, choice("backbone.name", str(usual["backbone.name"])), usual)


def _image_size(said: Mapping[str, Any]) -> int:
    """The size of a learner's images that is asked for; what is no size is refused when it is parsed."""
    size = str(said.get("image_size", IMAGE_SIZE))
    return int(size) if size.isdecimal() and 1 <= int(size) <= 1024 else IMAGE_SIZE


def _parser(choice: _Choice, command: Command) -> ArgumentParser:
    short = {s: full for s, full in SHORT.items() if command != "compare" or not full.startswith("--method.")}
    parser = ArgumentParser(
        prog=f"pah {command}",
        exit_on_error=False,
        allow_abbrev=False,  # a mistyped option is an error, never another option
        description=DESCRIPTIONS[command],
        epilog=f"Benchmarks: {', '.join(BENCHMARKS)}. Methods: {', '.join(METHODS)}. "
        f"Backbones: {', '.join(BACKBONES)}, timm:<name>. "
        f"Short: {', '.join(f'{s} for {full}' for s, full in short.items())}.",
        usage=USAGES[command],
    )
    parser.add_argument("--config", action="config", help=CONFIG_HELP)
    add = parser.add_argument
    add("--data", type=str | None, default=None, help="folder of Parquet files or class folders, or a hub id")
    add("--label_column", type=str | None, default=None, help="column of the class, where it is not plain")
    add("--image_size", type=int | None, default=None, help="resize every image to this many pixels a side")
    if command == "learn":
        add("--name", type=str, default="", help="of the task, by which it is asked")
        add("--only", type=str, default="", help="CLASS,…: only these classes of the data")
        add("--held_out", type=list[str], default=[], metavar="TASK=DATA", help="images of an old task, to check it by")
        add(
            "--max_drift",
            type=float | None,
            default=None,
            help="roll back if an old task is estimated to lose more of its accuracy, 0 to 1: 0.1 is 10 points",
        )
        add("--skip_unreadable", action="store_true", help="leave out image files that cannot be read")
        add("--seed", type=int, default=0, help="decides first weights, batches and augmentation")
    else:
        add("--benchmark", type=str, default="split-digits", help="which stream to learn; the first word may name it")
        add("--snapshots", type=bool, default=False, help="keep the network after each task, for pah diagnose")
    if command in ("run", "data"):
        add("--seed", type=int, default=0, help="decides class order, first weights, batches and augmentation")
    if command == "run":
        add("--out", type=str | None, default=None, help="run folder (default: runs/<benchmark>-<method>-<seed>)")
        add("--beside", type=str, default="", help="METHOD,…: the same stream with these methods too, for comparison")
        add("--overwrite", action="store_true", help="lose the run that the folder holds")
    elif command == "ablate":
        of = "NAME=V1,V2,…: run with each of these values of an option of the base (again for another option)"
        crossed = "NAME=V1,V2,…: run with all combinations of these values (again for another option)"
        add("--vary", type=list[str], default=[], metavar="NAME=V1,V2,...", help=of + VALUES)
        add("--grid", type=list[str], default=[], metavar="NAME=V1,V2,...", help=crossed + VALUES)
        add("--seeds", type=str, default="0", help="N,…: seeds for each cell")
        add("--out", type=str | None, default=None, help="folder of the study (default: runs/ablate-<benchmark>)")
    elif command == "compare":
        add("--methods", type=str, default=",".join(METHODS), help="METHOD,…: which to compare (default: all)")
        add("--seeds", type=str, default="0", help="N,…: seeds for each method; none: leave it at --tune")
        add("--tune", type=int, default=0, help="first choose each method's options by so many trials (0: do not)")
        add("--out", type=str | None, default=None, help="folder of the study (default: runs/compare-<benchmark>)")
    if command != "data":
        _add_running(parser, command)
    _add_cluster(parser, command)
    _add_options(parser, "method", choice.method, METHODS[choice.method].options, shown=command != "compare")
    _add_options(parser, "backbone", choice.backbone, type(backbone_options(choice.backbone, {})))
    for group, options in GROUPS.items():
        _add_options(parser, group, None, options, without=OF_A_STREAM if command == "learn" else ())
    known = {action.dest for action in parser._actions}
    chosen = {"method": choice.method, "backbone": choice.backbone}
    others = [group for group, name in chosen.items() if choice.usual.get(f"{group}.name", name) != name]
    usual = {key: value for key, value in choice.usual.items() if key.partition(".")[0] not in others}
    parser.set_defaults({key: value for key, value in usual.items() if key in known})
    return parser


def _add_running(parser: ArgumentParser, command: Command) -> None:
    """What is no part of a result: who watches, where is computed, and how often is saved."""
    add_watchers(parser, track=command != "learn")
    add_device(parser)
    if command != "learn":
        often = "time between checkpoints; 0: after every step"
        parser.add_argument("--checkpoint_seconds", type=float, default=180.0, help=often)


def add_watchers(parser: ArgumentParser, track: bool = True) -> None:
    """Add the options that say who watches: a person or a program, and trackers unless there is no run to `track`."""
    kinds = "text for people; json: a line an epoch and nothing else on stdout, for programs"
    parser.add_argument("--progress", type=str, default="text", help=kinds)
    if track:
        parser.add_argument("--track", type=str, default="", help=f"TOOL,…: send it to {', '.join(TOOLS)}")


def _add_cluster(parser: ArgumentParser, command: Command) -> None:
    """Where a study's runs are made; docs/cluster.md."""
    if command not in ("compare", "ablate"):
        return
    add = parser.add_argument_group("cluster", "Runs side by side, on other machines or here.").add_argument
    where = "HOST:PORT of a Ray cluster that this machine belongs to; auto: find it; local: start one of its cores"
    add("--ray", type=str | None, default=None, metavar="ADDRESS", help=where)
    add("--ray_cpus", type=int, default=Place.cpus, help="cores of each run, and torch's threads")
    add("--ray_gpus", type=float, default=Place.gpus, help="share of a GPU that each run reserves")
    add("--ray_memory", type=int, default=Place.memory, help="MB of memory that each run reserves")


def add_device(parser: ArgumentParser) -> None:
    """Add the option that says where to compute."""
    where = "where to compute; auto: a GPU where there is one (docs/performance.md)"
    parser.add_argument("--device", type=DeviceName, default="cpu", help=where)


def _add_options(
    parser: ArgumentParser,
    group: str,
    name: str | None,
    options: type,
    *,
    shown: bool = True,
    without: Collection[str] = (),
) -> None:
    """An option `--<group>.<field>` for each field, with the help that the class's docstring gives it, if `shown`."""
    docs = [docstring_parser.parse(kind.__doc__ or "") for kind in reversed(options.__mro__) if kind is not object]
    section = parser.add_argument_group(f"{group} {name or ''}".strip(), docs[-1].short_description if shown else None)
    if name is not None:
        section.add_argument(f"--{group}.name", type=str, default=name, help=f"which {group}" if shown else SUPPRESS)
    help_of = {param.arg_name: param.description for doc in docs for param in doc.params}
    hints = get_type_hints(options)
    for option in dataclasses.fields(options):
        if option.name in help_of and f"{group}.{option.name}" not in without:
            words = help_of[option.name] if shown else SUPPRESS
            section.add_argument(
                f"--{group}.{option.name}", type=hints[option.name], default=option.default, help=words
            )


def config_of(options: Namespace) -> RunConfig:
    """The checked configuration; whatever is out of range is refused by the dataclass that owns it."""
    said = options.as_dict()
    return RunConfig.from_dict({key: said[key] for key in RunConfig().as_dict() if key in said})


def readable(message: str, parser: ArgumentParser) -> InputError:
    """jsonargparse's message in one line; for an unknown option, with the nearest known one."""
    line = " ".join(message.split())
    found = re.search(r"unrecognized arguments: --([\w.]+)", line, re.I) or re.search(
        r"Option '([\w.]+)' is not accepted", line
    )
    if found:
        return unknown("option", found[1], [action.dest for action in parser._actions if action.dest not in NO_OPTIONS])
    line = re.sub(
        r"argument (--[\w.]+)(?:/--[\w.]+\+)?: expected one argument", r"option \1: expected a value, got none", line
    )
    line = re.sub(r'Parser key "([\w.]+)": ', r"\1: ", line)
    line = re.sub(r"<class '(\w+)'>|typing\.(?=Literal)", r"\1", line)
    line = re.sub(r"Expected a Literal\[(.*?)\]\. Got value: ", r"expected one of \1, got ", line)
    return InputError(re.sub(r"Expected an? (.*?)\. Got value: ", r"expected \1, got ", line))
