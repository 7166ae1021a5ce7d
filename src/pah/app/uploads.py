"""What a visitor packs or names for a lesson: checked, unpacked, and described before the lesson begins.

No message names a path of the machine, only what the visitor packed or typed. What a folder holds is what
`pah learn --data` would take of it.
"""

import errno
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pah.app.messages import said
from pah.app.zip_upload import LIMITS, Limits, extract
from pah.core.config import InputError
from pah.data.image import MAX_PIXELS, decode_image, size_of, without_warnings
from pah.data.lesson import outward_link
from pah.data.listing import Listing, list_images

__all__ = ["Limits", "Understood", "allowed", "understand", "unpack"]

DECODING = threading.Lock()  # Pillow's warnings are silenced for the whole process, by one thread at a time
CHECKED_PIXELS = 2 * 10**9  # decoded to see whether they are whole; of images beyond, only the headers are read
SAMPLES, SAMPLED_CLASSES = 3, 12
LEFT_OUT = ".left-out"  # in an unpacked folder: what was packed and is no image of a class, a name a line


@dataclass(frozen=True)
class Understood:
    """What a folder of class folders holds: for showing before a lesson begins.

    Args:
        folder: For `load_lesson`, with `skip_unreadable` where some are.
        counts: Readable images of each class.
        sizes: Width and height of the images, "64x64" or "32x32 to 640x480".
        samples: Class and file of up to 3 images a class, for the first 12 classes.
        unreadable: Names of files that are no image or a damaged one, relative to the folder.
    """

    folder: Path
    counts: Mapping[str, int]
    sizes: str
    samples: tuple[tuple[str, Path], ...]
    unreadable: tuple[str, ...]


def unpack(archive: Path, into: Path, limits: Limits = LIMITS) -> Path:
    """Extract a zip of class folders into the new folder `into`, which is gone after a refusal.

    Folders around all class folders are stepped into. Only image files are written; `understand` lists the others.

    Returns:
        The folder whose children are the classes, or the parts train and test with the classes.

    Raises:
        InputError: it is no zip, damaged, too large in any way, not class folders, or has an entry that leads
            elsewhere; or the disk is full.
    """
    with _server("upload"):
        into.mkdir(parents=True)
        try:
            left_out = extract(archive, into, limits)
            (into / LEFT_OUT).write_text("".join(f"{name}\n" for name in left_out), encoding="utf-8")
            _listed(into, limits)
        except BaseException:  # also what stops the server
            shutil.rmtree(into, ignore_errors=True)
            raise
    return into


def allowed(folder: str, roots: Sequence[Path]) -> Path:
    """The folder on the server's machine that a visitor named, absolute or relative to one of the `roots`.

    Raises:
        InputError: after all links are resolved it lies in none of them, or there is none; which one is not said.
    """
    for root in roots if folder.strip() else ():
        try:
            found = (root / folder).resolve()
            if any(found.is_relative_to(one.resolve()) for one in roots) and found.is_dir():
                return found
        except (OSError, ValueError, RuntimeError):  # a name too long, no name at all, links in a circle
            continue
    raise InputError(f"{said(folder)}: expected a folder inside those that this server's owner has opened")


def understand(folder: Path, limits: Limits = LIMITS) -> Understood:
    """What `load_lesson` would take of a folder, and what of that cannot be read.

    Raises:
        InputError: it holds one class or too many, a class lacks readable images, or a link leads out of it.
    """
    with _server("folder"):
        folder = folder.resolve()
        listing = _listed(folder, limits)
        counts = {(split, name): 0 for split in listing.rows for name in listing.class_names}
        samples: dict[str, list[Path]] = {name: [] for name in listing.class_names}
        sizes, unreadable, pixels = set(), _left_out(folder), 0
        for split, file, name in ((split, *row) for split, rows in listing.rows.items() for row in rows):
            if (size := _size(file, whole=pixels < CHECKED_PIXELS)) is None:
                unreadable.append(file.relative_to(folder).as_posix())
                continue
            pixels += size[0] * size[1]
            sizes.add(size)
            counts[split, name] += 1
            if len(samples[name]) < SAMPLES:
                samples[name].append(file)
    sampled = tuple((name, file) for name in listing.class_names[:SAMPLED_CLASSES] for file in samples[name])
    return Understood(folder, _totals(counts, listing), _range(sizes), sampled, tuple(sorted(unreadable)))


def _listed(folder: Path, limits: Limits) -> Listing:
    """The image files of a folder of at least two classes, and not too many."""
    root = folder.resolve()
    if (link := outward_link(root)) is not None:
        name = link.relative_to(root).as_posix()
        raise InputError(f"{said(name)}: expected an image or a folder inside the one named, got a link out of it")
    listing = list_images(folder, "folder")
    if len(names := listing.class_names) < 2:
        raise InputError(f"folder: expected at least 2 classes, got only {', '.join(map(said, names))}")
    if len(names) > limits.classes:
        raise InputError(f"folder: expected at most {limits.classes:,} classes, got {len(names):,}")
    return listing


def _left_out(folder: Path) -> list[str]:
    """What was packed beside the images; nothing if nobody packed this folder."""
    names = folder / LEFT_OUT
    if names.is_symlink() or not names.is_file():  # a link could lead to other texts of the server
        return []
    return names.read_text(encoding="utf-8").splitlines()


def _size(file: Path, *, whole: bool) -> tuple[int, int] | None:
    """Width and height of an image; None if it cannot be read, or, if that is asked, not to its end."""
    if not file.is_file():  # a pipe would have the server wait
        return None
    row = {"path": str(file), "bytes": None}
    try:
        with DECODING, without_warnings():
            width, height = size_of(row, file.name)
            if whole:
                decode_image(row, file.name, "RGB", None)
    except InputError:
        return None
    return None if width * height > MAX_PIXELS else (width, height)


def _range(sizes: set[tuple[int, int]]) -> str:
    """The smallest and the largest size, in words."""
    ordered = sorted(sizes, key=lambda size: (size[0] * size[1], size))
    return " to ".join(f"{width}x{height}" for width, height in dict.fromkeys((ordered[0], ordered[-1])))


def _totals(counts: Mapping[tuple[str, str], int], listing: Listing) -> dict[str, int]:
    """Images of each class in all splits, where each has enough for a training and a test part."""
    totals = {name: sum(counts[split, name] for split in listing.rows) for name in listing.class_names}
    for (split, name), count in counts.items():
        if listing.divided and totals[name] < 2:
            raise InputError(f"class {said(name)}: expected at least 2 readable images, got {totals[name]}")
        if not listing.divided and not count:
            raise InputError(f"class {said(name)}: expected readable images in {split}, got none")
    return totals


@contextmanager
def _server(what: str) -> Iterator[None]:
    """Inside, what goes wrong with the server's files is said in one line that names none of them."""
    try:
        yield
    except UnicodeError as error:
        raise InputError(f"{what}: expected text in UTF-8, got another encoding") from error
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        came = "a full disk" if full else error.strerror or type(error).__name__  # all of its words may name a path
        raise InputError(f"{what}: expected files that the server can write and read, got {came}") from error
