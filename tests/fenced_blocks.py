"""Read the fenced blocks of code in a Markdown page."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

SERVED = "app.md"  # its blocks need a running server: tests/app/test_app.py runs them


class Block(NamedTuple):
    """A block of code.

    Attributes:
        language: The word after the opening fence.
        text: The code.
        where: Page and line at which the code begins.
    """

    language: str
    text: str
    where: str


def blocks(page: Path) -> Iterator[Block]:
    """Yield the fenced blocks of a page."""
    text = page.read_text(encoding="utf-8")
    for match in re.finditer(r"^ *```(\S*)[^\n]*\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE):
        line = 1 + text.count("\n", 0, match.start(2))
        yield Block(match[1], match[2], f"{page.name} line {line}")
