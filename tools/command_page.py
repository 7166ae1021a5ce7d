"""Print the documentation page of the commands, which is made from the parsers of their `--help`.

Usage: python tools/command_page.py
"""

import argparse
import contextlib
import json
import re
import types
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin
from unittest.mock import patch

from pah.cli.arguments import SHORT_NAMES
from pah.cli.main import COMMANDS, USAGE, main
from pah.data.benchmarks import BENCHMARKS
from pah.methods import METHODS
from pah.models.backbones import BACKBONES

OPTIONS = "options"  # argparse's name of the group of options without a group
TIMM = "timm:resnet18"  # example for all timm models, which have the same options
NOT_SHOWN = {"help", "print_shtab"}
TYPES = {"config": "a file", "print_config": "flag"}  # types of options for which the parser has none

INTRO = """# Commands

This page is made from the parsers of the commands; `pah COMMAND --help` prints the same.

```text
{usage}```

You can give an option by its full name on the command line (`--method.stability 1`) or in the YAML file of `--config`.
You can write a hyphen instead of an underscore. For an unknown option, the error names the most similar one. Some
options have a short name:

| short | stands for |
|---|---|
{short}

Exit status: 0 done; 1 some runs of a study failed, or a lesson was rolled back; 2 bad input, with one line on stderr
that says what was expected and what came; 130 after Ctrl-C, with the state saved.
"""
SHARED = """## Options by group

The available options depend on the method and the backbone. The defaults shown are those of the benchmark
`split-digits`. Each benchmark has its own defaults:

"""


class NoParserError(Exception):
    """No parser answers the `--help` of a command."""


class Group(NamedTuple):
    """A group of options: the parser's title and description, and a line for each option."""

    title: str
    description: str
    lines: tuple[str, ...]

    @property
    def heading(self) -> str:
        """The heading of the title: "method pah" gives "Method `pah`"."""
        kind, _, name = self.title.partition(" ")
        return f"{kind.capitalize()} `{name}`" if name else kind.capitalize()

    @property
    def anchor(self) -> str:
        """The anchor for links, in which p replaces +."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.replace("+", "p"))


def page() -> str:
    """Return the page in Markdown."""
    parsers = {command: parser_of(command) for command in COMMANDS}
    shared = {group.title: group for group in sorted(_shared_groups(), key=_kind)}
    parts = [
        INTRO.format(usage=USAGE, short="\n".join(f"| `{name}` | `{full}` |" for name, full in SHORT_NAMES.items()))
    ]
    parts += [_section(command, parser, shared) for command, parser in parsers.items()]
    parts += [SHARED, *_benchmark_defaults()]
    parts += [_group(group, f"### {group.heading} {{ #{group.anchor} }}") for group in shared.values()]
    return "\n".join(parts)


def parser_of(*words: str) -> argparse.ArgumentParser:
    """Return the parser that answers these arguments with `--help`.

    Raises:
        NoParserError: there is no such parser.
    """
    parsers: list[argparse.ArgumentParser] = []

    def record(parser: argparse.ArgumentParser, *_: object) -> None:
        parsers.append(parser)

    with patch.object(argparse.ArgumentParser, "print_help", record), contextlib.suppress(SystemExit):
        main([*words, "--help"])
    if len(parsers) != 1:
        raise NoParserError(f"pah {' '.join(words)} --help: expected one parser that answers, got {len(parsers)}")
    return parsers[0]


def groups(parser: argparse.ArgumentParser) -> Iterator[Group]:
    """Yield a parser's groups of options that its help shows."""
    for group in parser._action_groups:
        lines = tuple(_option(action) for action in group._group_actions if _is_shown(action))
        if lines:
            yield Group(group.title or OPTIONS, group.description or "", lines)


def _shared_groups() -> Iterator[Group]:
    """Yield the groups of `pah run` for every method and backbone."""
    seen: set[Group] = set()
    choices = [("--method", name) for name in METHODS] + [("--backbone", name) for name in (*BACKBONES, TIMM)]
    for words in choices:
        for group in groups(parser_of("run", *words)):
            if group.title != OPTIONS and group not in seen:
                seen.add(group)
                yield group


def _kind(group: Group) -> int:
    """Return the order of a group on the page: groups of all runs, then methods, then backbones."""
    return {"method": 1, "backbone": 2}.get(group.title.partition(" ")[0], 0)


def _section(command: str, parser: argparse.ArgumentParser, shared: dict[str, Group]) -> str:
    """Return a command's section: usage, description and options, with links to the groups that are shown below."""
    usage = (parser.usage or parser.format_usage().removeprefix("usage: ")).strip()
    parts = [f"## pah {command}\n", f"```text\n{usage}\n```\n", f"{_plain(parser.description or '')}\n"]
    links = []
    for group in groups(parser):
        if group == shared.get(group.title):
            links.append(f"[{group.heading}](#{group.anchor})")
        else:
            parts.append(_group(group, "" if group.title == OPTIONS else f"**{group.heading}.**"))
    if links:
        parts.append(
            f"And the options of {', '.join(links)}; another method or backbone has [its own](#options-by-group).\n"
        )
    return "\n".join(parts)


def _group(group: Group, heading: str) -> str:
    """Return a group under its heading; an empty line ends each part."""
    return "\n\n".join(part for part in (heading, _plain(group.description), *group.lines) if part) + "\n"


def _option(action: argparse.Action) -> str:
    """Return an option as an entry of a definition list."""
    names = ", ".join(f"`{name}`" for name in action.option_strings if not name.endswith("+")) or f"`{action.dest}`"
    facts = [_type(action), _default(action), "required" if action.required else ""]
    details = " · ".join(fact for fact in facts if fact)
    return f"{names} <small>{details}</small>\n:   {_plain(action.help or '')}"


def _is_shown(action: argparse.Action) -> bool:
    return action.help is not argparse.SUPPRESS and action.dest not in NOT_SHOWN


def _type(action: argparse.Action) -> str:
    """Return the type of an option's value as text."""
    if action.nargs == 0:
        return "flag"
    return TYPES.get(action.dest) or _type_words(getattr(action, "_typehint", action.type or str))


def _type_words(hint: Any) -> str:
    """Return a type as text: Literal["mean", "sum"] gives `mean` or `sum`."""
    if get_origin(hint) is Literal:
        return " or ".join(f"`{value}`" for value in get_args(hint))
    if get_origin(hint) in (types.UnionType, Union):
        return " or ".join(_type_words(part) for part in get_args(hint))
    simple = {bool: "`true` or `false`", str: "text", int: "whole number", float: "number", types.NoneType: "`null`"}
    if hint in simple:
        return simple[hint]
    if get_origin(hint) in (list, tuple):
        return f"list: {_type_words(get_args(hint)[0])}"
    return f"`{getattr(hint, '__name__', hint)}`"


def _default(action: argparse.Action) -> str:
    if action.default in (None, "", argparse.SUPPRESS) or action.nargs == 0 or action.default == []:
        return ""
    value = action.default
    return f"default `{value if isinstance(value, str) else json.dumps(value)}`"


def _benchmark_defaults() -> Iterator[str]:
    """Yield a line for each benchmark with its description and its defaults."""
    for name, bench in BENCHMARKS.items():
        own = ", ".join(f"`{key}` {json.dumps(value).strip(chr(34))}" for key, value in bench.defaults.items())
        yield f"- `{name}`: {_plain(bench.summary)}. {own}"
    yield ""


def _plain(text: str) -> str:
    """Return a help text as one line of Markdown, in which <name> is not read as HTML."""
    return re.sub(r"<(?=\w)", "&lt;", " ".join(text.split()))


if __name__ == "__main__":
    print(page())
