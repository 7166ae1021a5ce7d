"""What users read of names and of errors: short, in one line, and nothing of the machine."""

import re
from pathlib import Path


def said(name: str) -> str:
    """A visitor's own words, in one line that is not too long."""
    return repr(name if len(name) <= 80 else f"{name[:40]}...{name[-37:]}")


def without_paths(text: str, *folders: Path) -> str:
    """A message as users may read it: without those folders, and of any other path the last part alone."""
    for folder in folders:
        text = text.replace(f"{folder}/", "").replace(str(folder), "the images")
    return re.sub(r"(?<![\w.])/(?:[^\s:/'\"]+/)*([^\s:/'\"]*)", r"\1", text)
