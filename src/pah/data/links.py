"""Links and paths that lead out of a data set's folder: they are refused unless the user allows them.

A folder from a stranger could otherwise make a lesson or a run read any file of this machine.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from pah.core.config import InputError
from pah.data.image import IMAGE_SUFFIXES

# files that are read, or whose lines messages may quote
READ_SUFFIXES = IMAGE_SUFFIXES | {".parquet", ".csv", ".jsonl"}
READ_NAMES = ("val_annotations.txt",)


def refuse_outward_links(folder: Path, data: str) -> None:
    """Raise InputError, with the data set's name, if a link in a folder leads out of it."""
    if (link := find_outward_link(folder.resolve())) is not None:
        raise InputError(
            f"{link}: expected an image or a folder inside {data}, got a link to a place outside it; "
            "`--follow_links` reads what such links lead to"
        )


def find_outward_link(root: Path) -> Path | None:
    """Return a link in a resolved folder that leads to data outside it; None if there is none.

    The links of the Hugging Face hub's own cache, from `snapshots/<revision>/` to `blobs/`, are not among them.
    """
    places = _inner_places(root)
    for path in _links(root):
        target = path.resolve()
        if not any(target.is_relative_to(place) for place in places):
            return path
    return None


def resolve_inside(root: Path, text: str, base: Path, follow_links: bool, name: str) -> Path:
    """Return the file that a path in a table or a list of a data set means.

    Args:
        root: The data set's folder, resolved.
        text: The path as it is written.
        base: The folder to which a relative path refers; otherwise it refers to the working directory.
        follow_links: Whether the file may be outside the data set's folder.
        name: How messages call the place of the path.

    Raises:
        InputError: the file is outside the data set's folder.
    """
    # one in the working directory stays relative: from another one it leads elsewhere, which the cache must notice
    candidates = (base / text, Path(text))
    path = next((candidate for candidate in candidates if candidate.exists()), candidates[0])
    if not follow_links and not any(path.resolve().is_relative_to(place) for place in _inner_places(root)):
        raise InputError(
            f"{name}: expected an image inside the data set's folder, got the path {text!r:.200}, which leads out of "
            "it; `--follow_links` reads what such paths lead to"
        )
    return path


def _inner_places(root: Path) -> list[Path]:
    """Return the folders to which links of a data set's folder may lead: itself, and the blobs of a hub's snapshot."""
    blobs = [folder.parent / "blobs" for folder in root.parents if folder.name == "snapshots"]
    return [root, *(place for place in blobs if place.is_dir())]


def _links(folder: Path) -> Iterator[Path]:
    """Yield the links in a folder, and in the folders inside it, that could lead to data. Hidden ones are not read."""
    inner = []
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith("."):
                continue
            if entry.is_symlink():
                path = Path(entry.path)
                if path.suffix.lower() in READ_SUFFIXES or entry.name in READ_NAMES or entry.is_dir():
                    yield path
            elif entry.is_dir():
                inner.append(Path(entry.path))
    for child in inner:
        yield from _links(child)
