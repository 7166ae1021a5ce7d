"""The words of a command line, spelled out: options by their dotted names, and what a YAML file says as if typed."""

import json
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pah.core.config import InputError
from pah.core.files import read_yaml
from pah.training.config import GROUPS

SHORT = {  # what users say, and which option it is
    "--method": "--method.name",
    "--backbone": "--backbone.name",
    "--tasks": "--stream.tasks",
    "--classes": "--stream.classes",
    "--epochs": "--training.epochs",
    "--buffer": "--method.buffer",
    "--precision": "--training.precision",
    "--sync_batchnorm": "--training.sync_batch_norm",
}
FLAGS = {  # options that take no value
    "--overwrite",
    "--skip_unreadable",
    "--json",
    "--all",
    "--help",
    "-h",
    "--print_config",
}
SWITCHES = {"--training.sync_batch_norm"}  # options that mean true where no value is said
CHOICES = {"method": "pah", "backbone": None}  # groups whose options depend on a name, and the name if none is said


def full_names(words: Iterable[str]) -> list[str]:
    """Words with every option by its dotted name, and the benchmark, the one word of no option, as `--benchmark`."""
    bare, named = bare_and_named(words)
    if len(bare) > 1:
        raise InputError(f"expected one benchmark, got {len(bare)}: {' '.join(bare)}")
    files = sum(word.startswith("--config") for word in named)
    return [*named[:files], *(f"--benchmark={name}" for name in bare), *named[files:]]


def bare_and_named(words: Iterable[str]) -> tuple[list[str], list[str]]:
    """The words that belong to no option, and every option by its dotted name with its value, `--config` first: what
    else is said overrides it."""
    first: list[str] = []
    rest: list[str] = []
    bare: list[str] = []
    left = deque(words)
    while left:
        word = left.popleft()
        if not word.startswith("-"):
            bare.append(word)
            continue
        name, equals, value = word.partition("=")
        name = "--" + name[2:].replace("-", "_") if name.startswith("--") else name
        name = SHORT.get(name, name)
        if name in FLAGS or (name in SWITCHES and not equals):
            rest.append(name + equals + value if name in FLAGS else f"{name}=true")
            continue
        if not equals and left and not left[0].startswith("--"):
            value = left.popleft()
        whole = f"{name}={value}" if value else name  # in one word, for -1e-3 alone would be taken for an option
        (first if name == "--config" else rest).append(whole)
    return bare, [*first, *rest]


def joined(words: Sequence[str], option: str) -> list[str]:
    """The words with all values of an option that may be given again in one list, as the parser takes it."""
    start = f"{option}="
    found = [word.removeprefix(start) for word in words if word.startswith(start)]
    rest = [word for word in words if not word.startswith(start)]
    return [*rest, start + json.dumps(found)] if found else rest


def without_others(words: Iterable[str]) -> list[str]:
    """Words whose YAML says nothing of a method or backbone where the words name another one."""
    kept: list[str] = []
    words = list(words)
    said = dict(word.removeprefix("--").split("=", 1) for word in words if "=" in word)
    for word in words:
        if not word.startswith("--config="):
            kept.append(word)
            continue
        path = Path(word.partition("=")[2])
        flat = by_dotted_name(path, read_yaml(path))
        others = [
            group
            for group, default in CHOICES.items()
            if (name := said.get(f"{group}.name")) and flat.get(f"{group}.name", default or name) != name
        ]
        rest = {name: value for name, value in flat.items() if name.partition(".")[0] not in others}
        kept += [word] if rest == flat else as_words(typed(rest))
    return kept


def typed(options: Mapping[str, Any]) -> dict[str, str]:
    """Options as they would be typed; those that are null keep their default."""
    given = {name: value for name, value in options.items() if value is not None}
    return {name: value if isinstance(value, str) else _typed(value) for name, value in given.items()}


def _typed(value: object) -> str:
    """A value of YAML as a word; what no option takes, such as a date or a set, as Python writes it."""
    try:
        return json.dumps(value)
    except TypeError:
        return str(value)


def as_words(options: Mapping[str, str]) -> list[str]:
    """Options by dotted name as words: {"method.name": "pah"} -> ["--method.name=pah"]."""
    return [f"--{name}={value}" for name, value in options.items()]


def by_dotted_name(path: Path, content: dict[Any, Any]) -> dict[str, Any]:
    """Nested options of a YAML file, one level flat: {"method": {"name": "pah"}} -> {"method.name": "pah"}."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if key in ("method", "backbone", *GROUPS):
            if not isinstance(value, dict):
                raise InputError(f"{path}: {key}: expected options by name, got {value!r}")
            flat |= {f"{key}.{name}": inner for name, inner in value.items()}
        else:
            flat[str(key)] = value
    return flat
