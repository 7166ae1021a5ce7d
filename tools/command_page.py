"""The site's page of commands, made from the parsers that answer `--help`: what is not there cannot be typed.

python tools/command_page.py     prints the page
"""

import argparse
import contextlib
import json
import re
import types
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin
from unittest.mock import patch

from pah.cli.arguments import SHORT
from pah.cli.main import COMMANDS, USAGE, main
from pah.data.benchmarks import BENCHMARKS
from pah.methods import METHODS
from pah.models.backbones import BACKBONES

OPTIONS = "options"  # argparse's own name of the group of those that belong to none
TIMM = "timm:resnet18"  # stands for any model of timm: their options are the same
NOT_SHOWN = {"help", "print_shtab"}
TYPES = {"config": "a file", "print_config": "flag"}  # of options whose parser has no type

INTRO = """# Commands

Made from the command's own parsers, as `pah COMMAND --help` prints them.

```text
{usage}```

Options go by their dotted names (`--method.stability 1`), in words or in the YAML file of `--config`; a hyphen serves
for an underscore. An unknown option is an error that names the nearest one. Some have a short name:

| short | stands for |
|---|---|
{short}

Exit status: 0 done; 1 some runs of a study failed, or a lesson was rolled back; 2 bad input, with one line on stderr
that says what was expected, what came and where; 130 after Ctrl-C, the state being saved.
"""
SHARED = """## Options by group

Which options there are depends on the method and the backbone. Defaults are those of the benchmark `split-digits`;
others have their own:

"""


class NoParserError(Exception):
    """A command whose `--help` no parser answers, so that nothing can be told of its options."""


class Group(NamedTuple):
    """Options that belong together: a title as the parser has it, what it says of them, and a line for each."""

    title: str
    about: str
    lines: tuple[str, ...]

    @property
    def heading(self) -> str:
        """ "method pah" -> "Method `pah`"."""
        kind, _, name = self.title.partition(" ")
        return f"{kind.capitalize()} `{name}`" if name else kind.capitalize()

    @property
    def anchor(self) -> str:
        """By which the page is linked; + is no letter of an anchor."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.replace("+", "p"))


def page() -> str:
    """The page, in Markdown."""
    found = {command: parser_of(command) for command in COMMANDS}
    shared = {group.title: group for group in sorted(_shared_groups(), key=_kind)}
    parts = [INTRO.format(usage=USAGE, short="\n".join(f"| `{name}` | `{full}` |" for name, full in SHORT.items()))]
    parts += [_section(command, parser, shared) for command, parser in found.items()]
    parts += [SHARED, *_benchmark_defaults()]
    parts += [_group(group, f"### {group.heading} {{ #{group.anchor} }}") for group in shared.values()]
    return "\n".join(parts)


def parser_of(*words: str) -> argparse.ArgumentParser:
    """The parser that answers these words and `--help`.

    Raises:
        NoParserError: none does.
    """
    asked: list[argparse.ArgumentParser] = []

    def note(parser: argparse.ArgumentParser, *_: object) -> None:
        asked.append(parser)

    with patch.object(argparse.ArgumentParser, "print_help", note), contextlib.suppress(SystemExit):
        main([*words, "--help"])
    if len(asked) != 1:
        raise NoParserError(f"pah {' '.join(words)} --help: expected one parser that answers, got {len(asked)}")
    return asked[0]


def groups(parser: argparse.ArgumentParser) -> Iterator[Group]:
    """A parser's groups of options, as far as its help shows them."""
    for group in parser._action_groups:
        lines = tuple(_option(action) for action in group._group_actions if _is_shown(action))
        if lines:
            yield Group(group.title or OPTIONS, group.description or "", lines)


def _shared_groups() -> Iterator[Group]:
    """The groups of `pah run`, for each method and each backbone."""
    seen: set[Group] = set()
    asked = [("--method", name) for name in METHODS] + [("--backbone", name) for name in (*BACKBONES, TIMM)]
    for words in asked:
        for group in groups(parser_of("run", *words)):
            if group.title != OPTIONS and group not in seen:
                seen.add(group)
                yield group


def _kind(group: Group) -> int:
    """Where a group stands on the page: after what all runs have, methods, then backbones."""
    return {"method": 1, "backbone": 2}.get(group.title.partition(" ")[0], 0)


def _section(command: str, parser: argparse.ArgumentParser, shared: dict[str, Group]) -> str:
    """A command: how it is called, what it does, its options; a link for groups that are shown below."""
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
    """A group under its heading; an empty line ends each part."""
    return "\n\n".join(part for part in (heading, _plain(group.about), *group.lines) if part) + "\n"


def _option(action: argparse.Action) -> str:
    """An option as an entry of a definition list."""
    names = ", ".join(f"`{name}`" for name in action.option_strings if not name.endswith("+")) or f"`{action.dest}`"
    facts = [_type(action), _default(action), "required" if action.required else ""]
    said = " · ".join(fact for fact in facts if fact)
    return f"{names} <small>{said}</small>\n:   {_plain(action.help or '')}"


def _is_shown(action: argparse.Action) -> bool:
    return action.help is not argparse.SUPPRESS and action.dest not in NOT_SHOWN


def _type(action: argparse.Action) -> str:
    """What an option takes, in words."""
    if action.nargs == 0:
        return "flag"
    return TYPES.get(action.dest) or _type_words(getattr(action, "_typehint", action.type or str))


def _type_words(hint: Any) -> str:
    """A type as a user would say it: Literal["mean", "sum"] -> `mean` or `sum`."""
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
    """A line for each benchmark: what it is, and the defaults that suit it."""
    for name, bench in BENCHMARKS.items():
        own = ", ".join(f"`{key}` {json.dumps(value).strip(chr(34))}" for key, value in bench.defaults.items())
        yield f"- `{name}`: {_plain(bench.summary)}. {own}"
    yield ""


def _plain(text: str) -> str:
    """Help text as Markdown, in one line: what stands between angle brackets is no HTML."""
    return re.sub(r"<(?=\w)", "&lt;", " ".join(text.split()))


if __name__ == "__main__":
    print(page())
