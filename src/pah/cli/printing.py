"""Printing of text that was not written by this program, such as file names, and of lines of JSON."""

import json
import re
import sys
from typing import Any

from rich.console import Console
from rich.text import Text

# control characters, which can move the cursor or change the title of a terminal; line and paragraph separators; marks
# that reverse the order of the characters; bytes of a file name that are no text
UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def escape_control(text: str) -> str:
    r"""Return the text with escapes such as \x1b for control characters except tab and line feed."""
    return UNSAFE.sub(lambda match: match[0].encode("unicode_escape", "surrogatepass").decode(), text)


def one_line(text: str) -> str:
    r"""Return the text as one line without control characters, with \n for a line feed and \t for a tab."""
    return escape_control(text).replace("\n", "\\n").replace("\t", "\\t")


def say(line: str) -> None:
    """Print a line on stderr."""
    print(f"pah: {one_line(line)}", file=sys.stderr, flush=True)


def json_line(content: Any) -> str:
    """Return the content as a line of JSON that stdout can write; characters that it lacks are escaped."""
    line = json.dumps(content, ensure_ascii=False)
    try:
        line.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(content)
    return line


class PlainConsole(Console):
    """A console that prints text as it is: no markup, no emoji codes, and control characters are escaped."""

    def __init__(self, *, quiet: bool = False, stderr: bool = False) -> None:
        super().__init__(quiet=quiet, stderr=stderr, markup=False, emoji=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """Return printable text; rich calls it for every line and every cell of a table."""
        return super().render_str(escape_control(text), **options)
