"""Parse arguments and YAML files into checked options: jsonargparse parses them, the dataclasses check them."""

import dataclasses
from argparse import SUPPRESS
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import docstring_parser
from jsonargparse import ArgumentError, ArgumentParser, Namespace

from pah.cli.arguments import (
    SHORT_NAMES,
    as_arguments,
    as_text,
    flatten_groups,
    with_number_lists,
    without_unused_options,
)
from pah.cli.errors import readable_error
from pah.cli.first_lesson import are_vectors, learner_defaults
from pah.cli.help_texts import CONFIG_HELP, DESCRIPTIONS, USAGES, VALUE_SEPARATOR, Command
from pah.core.config import InputError, require, unknown_name_error
from pah.core.devices import DeviceName
from pah.core.files import read_yaml
from pah.data.benchmarks import BENCHMARKS, VECTOR_DEFAULTS, find_benchmark
from pah.data.read_options import ReadOptions
from pah.methods import METHODS
from pah.models.backbones import BACKBONES, backbone_options
from pah.study.ablation import flat_options
from pah.study.ray_driver import ClusterOptions
from pah.tracking.trackers import TRACKERS
from pah.training.config import OPTION_GROUPS, RunConfig

STREAM_OPTIONS = (  # options that have no meaning for a lesson
    "stream.tasks",
    "stream.first",
    "stream.classes",
    "stream.class_order",
    "stream.order_seed",
    "stream.sizes",
    "stream.images",
    "training.evaluate_on",
    "training.test_batch_norm",
    "training.measure_transfer",
)


def parse(arguments: list[str], command: Command, base_defaults: Mapping[str, object] | None = None) -> Namespace:
    """Return the parsed options for the benchmark, method and backbone that the arguments or their YAML name.

    Args:
        arguments: Options as `--full_name=value`.
        command: The command.
        base_defaults: Defaults by full name; unless given, those of the benchmark or of a new learner.

    Raises:
        InputError: an option is unknown or has a value of another type.
    """
    arguments = with_number_lists(without_unused_options(arguments))
    choices = _choices(arguments, command, base_defaults)
    sets_buffer = any(argument.startswith("--method.buffer") for argument in arguments)
    if sets_buffer and not hasattr(METHODS[choices.method].options, "buffer"):
        with_buffer = ", ".join(name for name, entry in METHODS.items() if hasattr(entry.options, "buffer"))
        raise InputError(f"method.buffer: expected a method with a buffer ({with_buffer}), got {choices.method}")
    parser = _make_parser(choices, command)
    try:
        options = parser.parse_args(arguments)
    except ArgumentError as error:
        raise readable_error(str(error), parser) from None
    for name, default in parser.get_defaults().items():
        # the parser does not check a null in YAML
        require(options[name] is not None or default is None, name, "a value", None)
    return options


def with_changes(config: RunConfig, changes: Mapping[str, str], command: Command) -> RunConfig:
    """Return a configuration with other values for some options.

    If a change names another method or backbone, options that it also has keep their values; others are left out.

    Args:
        config: The configuration.
        changes: Values as a user would type them, by full name.
        command: The command whose options are allowed.

    Raises:
        InputError: a value is not allowed, or an option does not exist.
    """
    values = as_text(flat_options(config)) | {**changes}
    choices = _choices(as_arguments(values), command)
    known = {action.dest for action in _make_parser(choices, command)._actions}
    kept = {name: value for name, value in values.items() if name in known or name in changes}
    return config_of(parse(as_arguments(kept), command))


class _Choices(NamedTuple):
    """The choices on which the available options and their defaults depend."""

    method: str
    backbone: str
    defaults: Mapping[str, object]  # by full name


def _choices(arguments: list[str], command: Command, base_defaults: Mapping[str, object] | None = None) -> _Choices:
    """Return the choices of the arguments or their YAML."""
    values: dict[str, Any] = {}
    for argument in arguments:
        name, equals, value = argument.removeprefix("--").partition("=")
        if equals:
            values |= flatten_groups(Path(value), read_yaml(Path(value))) if name == "config" else {name: value}

    def choice(name: str, default: str) -> str:
        value = values.get(name)
        return value if isinstance(value, str) else default  # the parser refuses other types later

    if base_defaults is None:
        learn = command == "learn"
        benchmark = find_benchmark("split" if learn else choice("benchmark", "split-digits"))
        vectors = are_vectors(values)
        base_defaults = flat_options(learner_defaults(values, vectors)) if learn else benchmark.defaults
        if vectors and not learn:
            base_defaults = {**base_defaults, **VECTOR_DEFAULTS}
    method = choice("method.name", str(base_defaults.get("method.name", "pah")))
    if method not in METHODS:
        raise unknown_name_error("method", method, METHODS)
    return _Choices(method, choice("backbone.name", str(base_defaults["backbone.name"])), base_defaults)


def _make_parser(choices: _Choices, command: Command) -> ArgumentParser:
    """Return the parser of a command, with the options of the chosen method and backbone and with their defaults."""
    short = {s: full for s, full in SHORT_NAMES.items() if command != "compare" or not full.startswith("--method.")}
    parser = ArgumentParser(
        prog=f"pah {command}",
        exit_on_error=False,
        allow_abbrev=False,  # a mistyped option must be an error, not another option
        description=DESCRIPTIONS[command],
        epilog=f"Benchmarks: {', '.join(BENCHMARKS)}. Methods: {', '.join(METHODS)}. "
        f"Backbones: {', '.join(BACKBONES)}, timm:<name>. "
        f"Short: {', '.join(f'{s} for {full}' for s, full in short.items())}.",
        usage=USAGES[command],
    )
    parser.add_argument("--config", action="config", help=CONFIG_HELP)
    _add_data(parser, command)
    _add_command_options(parser, command)
    if command != "data":
        _add_running(parser, command)
    if command in ("compare", "ablate"):
        _add_cluster(parser)
    _add_group(parser, "method", choices.method, METHODS[choices.method].options, shown=command != "compare")
    _add_group(parser, "backbone", choices.backbone, type(backbone_options(choices.backbone, {})))
    for group, options in OPTION_GROUPS.items():
        _add_group(parser, group, None, options, without=STREAM_OPTIONS if command == "learn" else ())
    parser.set_defaults(_fitting_defaults(choices, {action.dest for action in parser._actions}))
    return parser


def _fitting_defaults(choices: _Choices, known: Collection[str]) -> dict[str, object]:
    """Return the defaults of known options, without those of another method or backbone."""
    chosen = {"method": choices.method, "backbone": choices.backbone}
    others = [group for group, name in chosen.items() if choices.defaults.get(f"{group}.name", name) != name]
    return {
        name: value
        for name, value in choices.defaults.items()
        if name in known and name.partition(".")[0] not in others
    }


def _add_data(parser: ArgumentParser, command: Command) -> None:
    """Add the options of the images, and of what is learned from them."""
    add = parser.add_argument
    data_help = "folder of Parquet files or class folders, a hub id, or a .npz or .parquet file"
    add("--data", type=str | None, default=None, help=data_help)
    column_help = "column with vectors (lists of numbers) of Parquet files, in place of images"
    add("--column", type=str | None, default=None, help=column_help)
    add("--label_column", type=str | None, default=None, help="column with the class, if it cannot be inferred")
    add("--test_split", type=str | None, default=None, help="split with the test images, if it is not the usual one")
    add("--skip_unreadable", type=bool, default=False, help="leave out images that cannot be read")
    add("--follow_links", type=bool, default=False, help="read images to which links lead out of the folder")
    add("--max_megapixels", type=int, default=ReadOptions.max_megapixels, help="largest image, in million pixels")
    add("--image_size", type=int | None, default=None, help="resize every image to this many pixels a side")
    if command == "learn":
        add("--name", type=str, default="", help="name of the task")
        only_help = "CLASS,…: learn only these classes of the data (may be repeated, for names that contain a comma)"
        add("--only", type=list[str] | str, default=[], metavar="CLASS,...", help=only_help)
        add(
            "--held_out",
            type=list[str],
            default=[],
            metavar="TASK=DATA",
            help="images of an old task on which its accuracy is measured after the lesson (may be repeated)",
        )
        max_loss_help = (
            "undo the lesson if an old task loses more points of accuracy than this on its --held_out images"
        )
        add("--max_loss", type=float | None, default=None, metavar="POINTS", help=max_loss_help)
        add(
            "--max_drift",
            type=float | None,
            default=None,
            help="the same as a share, 0 to 1, also for tasks without held-out images, whose loss is estimated",
        )
        add("--seed", type=int, default=0, help="decides first weights, batches and augmentation")
    else:
        add("--benchmark", type=str, default="split-digits", help="stream to learn; same as BENCHMARK")
        add("--snapshots", type=bool, default=False, help="save the network after each task, for pah diagnose")
    if command in ("run", "data"):
        add("--seed", type=int, default=0, help="decides class order, first weights, batches and augmentation")


def _add_command_options(parser: ArgumentParser, command: Command) -> None:
    """Add the options that only one of the commands run, ablate and compare has."""
    add = parser.add_argument
    if command == "run":
        add("--out", type=str | None, default=None, help="run folder (default: runs/<benchmark>-<method>-<seed>)")
        add("--beside", type=str, default="", help="METHOD,…: learn the same stream with these methods too")
        add("--overwrite", action="store_true", help="delete the run that the folder holds")
        add(
            "--resume_if_there",
            action="store_true",
            help="if the folder holds this run, continue it, or print its results if it is finished: one command for "
            "the first start and for every restart by torchrun or a cluster",
        )
    elif command == "ablate":
        vary = "NAME=V1,V2,…: run with each of these values of an option (repeat it for another option)"
        grid = "NAME=V1,V2,…: run with all combinations of these values (repeat it for another option)"
        add("--vary", type=list[str], default=[], metavar="NAME=V1,V2,...", help=vary + VALUE_SEPARATOR)
        add("--grid", type=list[str], default=[], metavar="NAME=V1,V2,...", help=grid + VALUE_SEPARATOR)
        add("--seeds", type=str, default="0", help="N,…: seeds of each run")
        add("--out", type=str | None, default=None, help="folder of the study (default: runs/ablate-<benchmark>)")
    elif command == "compare":
        add("--methods", type=str, default=",".join(METHODS), help="METHOD,…: methods to compare (default: all)")
        add("--seeds", type=str, default="0", help="N,…: seeds of each method; none: only tune (see --tune)")
        add("--tune", type=int, default=0, help="first choose each method's options by this many trials (0: do not)")
        add("--out", type=str | None, default=None, help="folder of the study (default: runs/compare-<benchmark>)")


def _add_running(parser: ArgumentParser, command: Command) -> None:
    """Add the options that do not change a result: progress, device and time between checkpoints."""
    add_progress(parser, track=command != "learn")
    add_device(parser)
    if command != "learn":
        seconds_help = "seconds between checkpoints; 0: after every step"
        parser.add_argument("--checkpoint_seconds", type=float, default=180.0, help=seconds_help)


def add_progress(parser: ArgumentParser, track: bool = True) -> None:
    """Add the option `--progress` and, if `track`, the option `--track`."""
    format_help = "text for people; json for programs: a line of JSON an epoch, and nothing else on stdout"
    parser.add_argument("--progress", type=str, default="text", help=format_help)
    if track:
        track_help = f"TOOL,…: send the results to these trackers: {', '.join(TRACKERS)}"
        parser.add_argument("--track", type=str, default="", help=track_help)


def add_resume(parser: ArgumentParser) -> None:
    """Add the options of a resumed run: the place of its data, and more tasks."""
    add = parser.add_argument
    add("--data", type=str | None, default=None, help="folder or hub id where the same data are now")
    first_help = "go on to the first N tasks, for a run that was made with --stream.first and fewer tasks"
    add("--first", type=int | None, default=None, metavar="N", help=first_help)


def _add_cluster(parser: ArgumentParser) -> None:
    """Add the options of a cluster (see docs/cluster.md)."""
    add = parser.add_argument_group(
        "cluster", "Make several runs at a time, on other machines or on this one."
    ).add_argument
    address_help = "HOST:PORT of a Ray cluster that this machine belongs to; auto: find it; local: start one here"
    add("--ray", type=str | None, default=None, metavar="ADDRESS", help=address_help)
    add("--ray_cpus", type=int, default=ClusterOptions.cpus, help="cores of each run, which is also torch's threads")
    add("--ray_gpus", type=float, default=ClusterOptions.gpus, help="share of a GPU that each run reserves")
    add("--ray_memory", type=int, default=ClusterOptions.memory, help="MB of memory that each run reserves")


def add_device(parser: ArgumentParser) -> None:
    """Add the option `--device`."""
    device_help = "where to compute; auto: on a GPU if there is one (docs/performance.md)"
    parser.add_argument("--device", type=DeviceName, default="cpu", help=device_help)


def _add_group(
    parser: ArgumentParser,
    group: str,
    name: str | None,
    options: type,
    *,
    shown: bool = True,
    without: Collection[str] = (),
) -> None:
    """Add an option `--<group>.<field>` for each documented field of a dataclass.

    Args:
        parser: The parser.
        group: Name of the group, such as "method".
        name: The chosen method or backbone; None for other groups.
        options: The dataclass; its docstring holds the help texts.
        shown: Whether the help shows the options.
        without: Full names of options to leave out.
    """
    docs = [docstring_parser.parse(kind.__doc__ or "") for kind in reversed(options.__mro__) if kind is not object]
    section = parser.add_argument_group(f"{group} {name or ''}".strip(), docs[-1].short_description if shown else None)
    if name is not None:
        section.add_argument(f"--{group}.name", type=str, default=name, help=f"which {group}" if shown else SUPPRESS)
    help_texts = {param.arg_name: param.description for doc in docs for param in doc.params}
    hints = get_type_hints(options)
    for option in dataclasses.fields(options):
        if option.name in help_texts and f"{group}.{option.name}" not in without:
            text = help_texts[option.name] if shown else SUPPRESS
            section.add_argument(f"--{group}.{option.name}", type=hints[option.name], default=option.default, help=text)


def config_of(options: Namespace) -> RunConfig:
    """Return the configuration; the dataclass that owns an option refuses a value that is out of range."""
    values = options.as_dict()
    return RunConfig.from_dict({key: values[key] for key in RunConfig().as_dict() if key in values})
