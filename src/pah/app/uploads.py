"""The images of a new lesson, uploaded as a zip or named as a folder: checked, unpacked and summarized.

Messages name only what the visitor packed or typed, never a path of the server. A summary counts the images that
`pah learn --data` would use.
"""

import errno
import os
import shutil
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pah.app.messages import quoted
from pah.app.zip_upload import LIMITS, SYSTEM_FILES, Limits, extract
from pah.core.config import InputError
from pah.data.image import MAX_PIXELS, decode_image, read_image_size, without_pillow_warnings
from pah.data.links import find_outward_link
from pah.data.listing import FolderListing
from pah.data.located import list_images

__all__ = ["Limits", "UploadSummary", "allowed_folder", "summarize", "unpack"]

DECODING_LOCK = threading.Lock()  # Pillow's warnings are switched off for the whole process: one thread at a time
CHECKED_PIXELS = 2 * 10**9  # decode images completely up to this total; of further images, read only the headers
SAMPLES, SAMPLED_CLASSES = 3, 12
MAX_NAMES = 10  # of files or suffixes that are named
LEFT_OUT = ".left-out"  # file in an unpacked folder that lists the packed files that are no images of a class


@dataclass(frozen=True)
class UploadSummary:
    """What a folder of class folders holds, to be shown before a lesson starts.

    Args:
        folder: The folder, for `load_lesson`; use `skip_unreadable` if there are unreadable files.
        counts: Number of readable images of each class.
        sizes: Width and height of the images, "64x64" or "32x32 to 640x480".
        samples: Class and file of up to 3 images a class, for the first 12 classes.
        unreadable: Names of damaged images, relative to the folder.
        left_out: Names of files that are no images of a class, such as texts, and of images that no lesson uses.
    """

    folder: Path
    counts: Mapping[str, int]
    sizes: str
    samples: tuple[tuple[str, Path], ...]
    unreadable: tuple[str, ...]
    left_out: tuple[str, ...] = ()

    @property
    def notes(self) -> list[str]:
        """One sentence for each kind of files that a lesson leaves out."""
        notes = []
        if self.unreadable:
            more = f" and {len(self.unreadable) - MAX_NAMES} more" if len(self.unreadable) > MAX_NAMES else ""
            notes.append(f"Unreadable, will be left out: {', '.join(self.unreadable[:MAX_NAMES])}{more}.")
        if self.left_out:
            suffixes = Counter(Path(name).suffix.lower() or "without a suffix" for name in self.left_out)
            counts = [f"{count} {suffix}" for suffix, count in suffixes.most_common(MAX_NAMES)]
            more = f" and {suffixes.total() - sum(c for _, c in suffixes.most_common(MAX_NAMES))} more"
            rest = more if len(suffixes) > MAX_NAMES else ""
            notes.append(f"No images of a class, will be left out: {', '.join(counts)}{rest}.")
        return notes


def unpack(archive: Path, target: Path, limits: Limits = LIMITS) -> Path:
    """Extract a zip of class folders into the new folder `target`, which is deleted again if the zip is refused.

    Folders around all class folders are dropped. Only image files are written; `summarize` lists the others.

    Returns:
        The folder whose children are the classes, or the parts train and test with the classes.

    Raises:
        InputError: the file is no zip, is damaged, exceeds a limit, does not hold class folders, or has an entry that
            leads out of the folder; or the disk is full.
    """
    with _plain_file_errors("upload"):
        target.mkdir(parents=True)
        try:
            left_out = extract(archive, target, limits)
            (target / LEFT_OUT).write_text("".join(f"{name}\n" for name in left_out), encoding="utf-8")
            _list_classes(target, limits)
        except BaseException:  # also when the server is stopped
            shutil.rmtree(target, ignore_errors=True)
            raise
    return target


def allowed_folder(folder: str, roots: Sequence[Path]) -> Path:
    """Return the folder on the server's machine that a visitor named, absolute or relative to one of the `roots`.

    Raises:
        InputError: the folder does not exist, or lies outside the roots once links are resolved. The message does not
            tell which, so that visitors cannot find out what else exists on the machine.
    """
    for root in roots if folder.strip() else ():
        try:
            path = (root / folder).resolve()
            if any(path.is_relative_to(allowed.resolve()) for allowed in roots) and path.is_dir():
                return path
        except (OSError, ValueError, RuntimeError):  # a name that is too long or invalid, or links in a circle
            continue
    raise InputError(f"{quoted(folder)}: expected a folder inside those that this server's owner has opened")


def summarize(folder: Path, limits: Limits = LIMITS) -> UploadSummary:
    """Return what `load_lesson` would use of a folder, and which files it could not read.

    Raises:
        InputError: the folder holds too many classes, a class lacks readable images, or a link leads out of it.
    """
    with _plain_file_errors("folder"):
        folder = folder.resolve()
        listing = _list_classes(folder, limits)
        counts = {(split, name): 0 for split in listing.files for name in listing.class_names}
        samples: dict[str, list[Path]] = {name: [] for name in listing.class_names}
        sizes, unreadable, pixels = set(), list[str](), 0
        for split, file, name in ((split, *row) for split, rows in listing.files.items() for row in rows):
            if (size := _image_size(file, decode=pixels < CHECKED_PIXELS)) is None:
                unreadable.append(file.relative_to(folder).as_posix())
                continue
            pixels += size[0] * size[1]
            sizes.add(size)
            counts[split, name] += 1
            if len(samples[name]) < SAMPLES:
                samples[name].append(file)
    sampled = tuple((name, file) for name in listing.class_names[:SAMPLED_CLASSES] for file in samples[name])
    return UploadSummary(
        folder,
        _class_totals(counts, listing),
        _size_range(sizes),
        sampled,
        tuple(sorted(unreadable)),
        tuple(sorted([*_left_out(folder), *_unlisted(folder, listing)])),
    )


def _list_classes(folder: Path, limits: Limits) -> FolderListing:
    """Return the image files of a folder, which must not have too many classes."""
    root = folder.resolve()
    if (link := find_outward_link(root)) is not None:
        name = link.relative_to(root).as_posix()
        raise InputError(f"{quoted(name)}: expected an image or a folder inside the one named, got a link out of it")
    listing = list_images(folder, "folder")
    if len(names := listing.class_names) > limits.classes:
        raise InputError(f"folder: expected at most {limits.classes:,} classes, got {len(names):,}")
    return listing


def _left_out(folder: Path) -> list[str]:
    """Return the names of the packed files that are no images; empty for a folder that was not unpacked here."""
    names = folder / LEFT_OUT
    if names.is_symlink() or not names.is_file():  # a link could show other text files of the server
        return []
    return names.read_text(encoding="utf-8").splitlines()


def _unlisted(folder: Path, listing: FolderListing) -> Iterator[str]:
    """Yield the names of the visible files in a resolved folder that are no images of a class."""
    listed = {file for rows in listing.files.values() for file, _ in rows} | set(listing.annotation_files)
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in SYSTEM_FILES]
        for name in files:
            path = Path(parent, name)
            if not name.startswith(".") and name not in SYSTEM_FILES and path not in listed:
                yield path.relative_to(folder).as_posix()


def _image_size(file: Path, *, decode: bool) -> tuple[int, int] | None:
    """Return width and height of an image; None if its header, or with `decode` any part of it, cannot be read."""
    if not file.is_file():  # opening a pipe would block the server
        return None
    row = {"path": str(file), "bytes": None}
    try:
        with DECODING_LOCK, without_pillow_warnings():
            width, height = read_image_size(row, file.name)
            if decode:
                decode_image(row, file.name, "RGB", None)
    except InputError:
        return None
    return None if width * height > MAX_PIXELS else (width, height)


def _size_range(sizes: set[tuple[int, int]]) -> str:
    """Return the smallest and the largest size as text."""
    ordered = sorted(sizes, key=lambda size: (size[0] * size[1], size))
    return " to ".join(f"{width}x{height}" for width, height in dict.fromkeys((ordered[0], ordered[-1])))


def _class_totals(counts: Mapping[tuple[str, str], int], listing: FolderListing) -> dict[str, int]:
    """Return the number of images of each class in all splits; each class needs images to learn from."""
    totals = {name: sum(counts[split, name] for split in listing.files) for name in listing.class_names}
    for name in listing.class_names:
        if not counts["train", name]:
            raise InputError(f"class {quoted(name)}: expected readable images to learn from, got none")
    return totals


@contextmanager
def _plain_file_errors(source: str) -> Iterator[None]:
    """Inside the context, errors of the server's files become one line that names none of them."""
    try:
        yield
    except UnicodeError as error:
        raise InputError(f"{source}: expected text in UTF-8, got another encoding") from error
    except OSError as error:
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = "a full disk" if is_full else error.strerror or type(error).__name__  # str(error) may name a path
        raise InputError(f"{source}: expected files that the server can write and read, got {reason}") from error
