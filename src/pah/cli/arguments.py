"""Normalize the arguments of a command line: full option names, and the options of a YAML file as arguments."""

import json
import re
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pah.core.config import InputError
from pah.core.files import read_yaml
from pah.training.config import OPTION_GROUPS

SHORT_NAMES = {  # short name -> full name of an option
    "--method": "--method.name",
    "--backbone": "--backbone.name",
    "--tasks": "--stream.tasks",
    "--classes": "--stream.classes",
    "--epochs": "--training.epochs",
    "--buffer": "--method.buffer",
    "--precision": "--training.precision",
    "--sync_batchnorm": "--training.sync_batch_norm",
}
FLAGS = {  # options without a value
    "--overwrite",
    "--resume_if_there",
    "--json",
    "--all",
    "--help",
    "-h",
    "--print_config",
}
# options that mean true without a value
SWITCHES = {"--training.sync_batch_norm", "--training.measure_transfer", "--skip_unreadable", "--follow_links"}
NUMBER_LISTS = {  # options that take numbers with commas between them -> a number of the list, and an example
    "--stream.class_order": (r"(-?\d{1,9})()", "seed, natural or labels with commas between them, such as 3,1,4,0"),
    "--stream.sizes": (
        r"(\d{1,9})(?: *[xX*] *(\d{1,4}))?",
        "numbers of classes with commas between them, such as 50,10x5",
    ),
}
WORDS = ("seed", "natural", "null")  # values of these options that are no lists
CHOICES = {"method": "pah", "backbone": None}  # groups whose options depend on a name, and the default name


def with_full_names(arguments: Iterable[str]) -> list[str]:
    """Return the arguments with full option names, and with the positional benchmark as `--benchmark`."""
    positional, options = split_arguments(arguments)
    if len(positional) > 1:
        raise InputError(f"expected one benchmark, got {len(positional)}: {' '.join(positional)}")
    files = sum(option.startswith("--config") for option in options)
    return [*options[:files], *(f"--benchmark={name}" for name in positional), *options[files:]]


def split_arguments(arguments: Iterable[str]) -> tuple[list[str], list[str]]:
    """Return the positional arguments, and every option as `--full_name=value`.

    Configuration files come first among the options, so that the other options override them.
    """
    files: list[str] = []
    options: list[str] = []
    positional: list[str] = []
    remaining = deque(arguments)
    while remaining:
        argument = remaining.popleft()
        if argument == "--":  # all that follows is positional, for names that begin with a dash
            positional += remaining
            break
        if not argument.startswith("-") or argument == "-":
            positional.append(argument)
            continue
        name, equals, value = argument.partition("=")
        name = "--" + name[2:].replace("-", "_") if name.startswith("--") else name
        name = SHORT_NAMES.get(name, name)
        has_value = bool(equals) or (bool(remaining) and remaining[0] in ("true", "false"))
        if name in FLAGS or (name in SWITCHES and not has_value):
            options.append(name + equals + value if name in FLAGS else f"{name}=true")
            continue
        if not equals and remaining and not remaining[0].startswith("--"):
            value = remaining.popleft()
        option = f"{name}={value}" if value else name  # one argument: a separate -1e-3 would look like an option
        (files if name == "--config" else options).append(option)
    return positional, [*files, *options]


def merge_repeated(arguments: Sequence[str], option: str) -> list[str]:
    """Return the arguments with all values of a repeatable option in one list, which is what the parser expects."""
    start = f"{option}="
    values = [argument.removeprefix(start) for argument in arguments if argument.startswith(start)]
    rest = [argument for argument in arguments if not argument.startswith(start)]
    return [*rest, start + json.dumps(values)] if values else rest


def with_number_lists(arguments: Iterable[str]) -> list[str]:
    """Return the arguments with lists of numbers as JSON: "--stream.sizes=50,10x2" -> "--stream.sizes=[50, 10, 10]".

    Raises:
        InputError: an option of `NUMBER_LISTS` has another value than such a list.
    """
    result = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name in NUMBER_LISTS and equals and value not in WORDS:
            pattern, expected = NUMBER_LISTS[name]
            words = value.strip().removeprefix("[").removesuffix("]").split(",")
            matches = [re.fullmatch(pattern, word.strip()) for word in words]
            found = [match for match in matches if match]
            if len(found) < len(matches):
                raise InputError(f"{name.removeprefix('--')}: expected {expected}, got {value!r}")
            numbers = [int(match[1]) for match in found for _ in range(int(match[2] or 1))]
            argument = f"{name}={json.dumps(numbers)}"
        result.append(argument)
    return result


def without_unused_options(arguments: Iterable[str]) -> list[str]:
    """Return the arguments without the YAML options of a method or backbone that other arguments replace.

    The options of a YAML file that has a list of numbers as text, such as 50,10x5, become arguments.
    """
    result: list[str] = []
    arguments = list(arguments)
    values = dict(argument.removeprefix("--").split("=", 1) for argument in arguments if "=" in argument)
    for argument in arguments:
        if not argument.startswith("--config="):
            result.append(argument)
            continue
        path = Path(argument.partition("=")[2])
        options = flatten_groups(path, read_yaml(path))
        replaced = [
            group
            for group, default in CHOICES.items()
            if (name := values.get(f"{group}.name")) and options.get(f"{group}.name", default or name) != name
        ]
        used = {name: value for name, value in options.items() if name.partition(".")[0] not in replaced}
        lists = [options.get(name.removeprefix("--")) for name in NUMBER_LISTS]
        has_texts = any(isinstance(value, str) and value not in WORDS for value in lists)
        result += [argument] if used == options and not has_texts else as_arguments(as_text(used))
    return result


def as_text(options: Mapping[str, Any]) -> dict[str, str]:
    """Return options as a user would type them. Options that are null are left out, so they keep their default."""
    given = {name: value for name, value in options.items() if value is not None}
    return {name: value if isinstance(value, str) else _value_text(value) for name, value in given.items()}


def _value_text(value: object) -> str:
    """Return a YAML value as JSON; a date or a set, which no option accepts, as Python prints it."""
    try:
        return json.dumps(value)
    except TypeError:
        return str(value)


def as_arguments(options: Mapping[str, str]) -> list[str]:
    """Return options by full name as arguments: {"method.name": "pah"} -> ["--method.name=pah"]."""
    return [f"--{name}={value}" for name, value in options.items()]


def flatten_groups(path: Path, content: dict[Any, Any]) -> dict[str, Any]:
    """Return the nested options of a YAML file by full name: {"method": {"name": "pah"}} -> {"method.name": "pah"}."""
    options: dict[str, Any] = {}
    for key, value in content.items():
        if key in ("method", "backbone", *OPTION_GROUPS):
            if not isinstance(value, dict):
                raise InputError(f"{path}: {key}: expected options by name, got {value!r}")
            named = {f"{key}.{name}": inner for name, inner in value.items()}
        else:
            named = {str(key): value}
        if repeated := options.keys() & named.keys():
            raise InputError(f"{path}: {min(repeated)}: expected once, got it twice")
        options |= named
    return options
