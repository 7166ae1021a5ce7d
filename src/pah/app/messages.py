"""Names and error messages as visitors of the page see them: short, in one line, without paths of the server."""

import re
from pathlib import Path


def quoted(name: str) -> str:
    """Return a name that a visitor typed in quotes, shortened to about 80 characters."""
    return repr(name if len(name) <= 80 else f"{name[:40]}...{name[-37:]}")


def without_paths(text: str, *folders: Path) -> str:
    """Return a message without the paths of these folders, and with only the last part of any other path."""
    for folder in folders:
        text = text.replace(f"{folder}/", "").replace(str(folder), "the images")
    return re.sub(r"(?<![\w.])/(?:[^\s:/'\"]+/)*([^\s:/'\"]*)", r"\1", text)
