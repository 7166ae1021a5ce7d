"""Names of data that may be stored with a learner: no absolute path, which could name a person or a machine."""

import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath, PureWindowsPath

UNREADABLE = "left out, unreadable: "  # how a note on a skipped file began in older formats


def public_origin(origin: str) -> str:
    """Return where data come from, without the folders above them if it is an absolute path.

    Args:
        origin: A path as it was given, a hub id, or other words. A relative path is returned as it is.

    Returns:
        The text itself; for an absolute path, or one that begins with `~`, its last part.
    """
    for kind in (PurePosixPath, PureWindowsPath):
        path = kind(origin)
        if path.is_absolute() or origin.startswith("~"):
            return path.name or "data"
    return origin


def public_note(note: str, data: Iterable[object] = ()) -> str:
    """Return a note in which paths below a lesson's folders are relative to them.

    Args:
        note: The note.
        data: The data of the lesson in any form; only paths matter.
    """
    for given in data:
        if isinstance(given, str | Path):
            expanded = os.path.abspath(os.path.expanduser(given))
            for folder in {os.path.realpath(expanded), expanded}:
                name = os.path.basename(folder)
                if name:
                    note = note.replace(folder + os.sep, "").replace(folder, name)
    return note


def public_old_note(note: str) -> str:
    """Return a stored note; the absolute path of a skipped file, in older formats, becomes its last two parts."""
    path = note.removeprefix(UNREADABLE)
    if path == note or not os.path.isabs(path):
        return note
    return UNREADABLE + "/".join(Path(path).parts[-2:])
