"""The fenced blocks of code in a page of the docs."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

SERVED = "app.md"  # its blocks speak to a server: tests/app/test_app.py runs them


class Block(NamedTuple):
    """A block of code, and the page and line where it begins."""

    language: str
    text: str
    where: str


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page."""
    text = page.read_text(encoding="utf-8")
    for found in re.finditer(r"^ *```(\S*)[^\n]*\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE):
        yield Block(found[1], found[2], f"{page.name} line {1 + text.count(chr(10), 0, found.start(2))}")
