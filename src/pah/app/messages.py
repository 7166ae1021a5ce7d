"""Names and error messages as visitors of the page see them: short, in one line, without paths of the server."""

import re
import unicodedata
from pathlib import Path

DIRECTIONS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")  # they reorder the text after them
LINE_BREAKS_AND_CONTROLS = ("Cc", "Cs", "Zl", "Zp")  # Unicode categories


def shortened(name: str) -> str:
    """Return a name of at most about 80 characters: of a longer one, its beginning and its end."""
    return name if len(name) <= 80 else f"{name[:40]}...{name[-37:]}"


def quoted(name: str) -> str:
    """Return a name that a visitor typed in quotes, shortened to about 80 characters."""
    return repr(shortened(name))


def plain(text: str) -> str:
    """Return a text with its line breaks, control characters and changes of direction as escapes such as \\x07."""
    return "".join(
        c.encode("unicode_escape").decode()
        if c in DIRECTIONS or unicodedata.category(c) in LINE_BREAKS_AND_CONTROLS
        else c
        for c in text
    )


def without_paths(text: str, *folders: Path, instead: str = "the images") -> str:
    """Return a message without the paths of these folders, and with only the last part of any other path.

    Args:
        text: The message.
        folders: Folders whose paths may contain spaces, where other paths would be cut.
        instead: What stands for the path of one of the folders itself.
    """
    for folder in sorted(folders, key=lambda folder: len(str(folder)), reverse=True):
        text = text.replace(f"{folder}/", "").replace(str(folder), instead)
    return re.sub(r"(?<![\w.])/(?:[^\s:/'\"]+/)*([^\s:/'\"]*)", r"\1", text)
