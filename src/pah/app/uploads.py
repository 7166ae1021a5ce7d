"""Images that come from outside: a zip is unpacked within limits, a folder must lie where the owner allowed it."""

import re
import shutil
import stat
import threading
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from PIL import Image

from pah.config import InputError
from pah.data.image import decode_image, size_of
from pah.data.sources import SUFFIXES, TEST_SPLITS

DECODING = threading.Lock()  # Pillow's warnings are silenced for the whole process, by one thread at a time
SAMPLES = 4  # pictures of each class that are shown
SAMPLE_SIDE = 64
NAMED = 10  # unreadable files that are named
DEEPEST = 8  # folders in folders


@dataclass(frozen=True)
class Limits:
    """What an upload may hold.

    Args:
        upload: Bytes of the zip.
        entries: Files and folders in it.
        unpacked: Bytes of all files unpacked.
        entry: Bytes of one file unpacked.
        ratio: Unpacked bytes for each packed one, from `free` bytes on: images hardly shrink, bombs do.
        free: Bytes of a file below which its ratio is not looked at: a small flat picture packs well.
    """

    upload: int = 500 * 2**20
    entries: int = 50_000
    unpacked: int = 2 * 2**30
    entry: int = 64 * 2**20
    ratio: int = 100
    free: int = 2**20


LIMITS = Limits()


@dataclass(frozen=True)
class ClassFound:
    """The images of a class: how many, the least and the largest (width, height), and a few to look at."""

    name: str
    images: int
    smallest: tuple[int, int]
    largest: tuple[int, int]
    samples: tuple[Image.Image, ...]


@dataclass(frozen=True)
class Understood:
    """What a folder of class folders holds; `unreadable` names images that cannot be read, `ignored` counts others."""

    classes: tuple[ClassFound, ...]
    unreadable: tuple[str, ...]
    ignored: int


def unpack(archive: Path, folder: Path, limits: Limits = LIMITS) -> None:
    """Unpack the images of a zip into a new folder, whole or not at all; what is no image is left out.

    Raises:
        InputError: it is no zip, larger than the limits, or has an entry that no honest zip of images has.
    """
    try:
        if archive.stat().st_size > limits.upload:
            raise InputError(f"zip: expected at most {_mb(limits.upload)}, got {_mb(archive.stat().st_size)}")
        with zipfile.ZipFile(archive) as opened:
            _unpack(opened, folder, limits)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError, OSError)):
            raise _refused(error) from None
        raise


def _refused(error: Exception) -> InputError:
    if isinstance(error, InputError):
        return error
    if isinstance(error, OSError) and error.strerror:
        return InputError(f"zip: expected one that can be unpacked here, got: {error.strerror}")
    return InputError("zip: expected a whole zip file without a password, got something else or a damaged one")


def _unpack(opened: zipfile.ZipFile, folder: Path, limits: Limits) -> None:
    entries = opened.infolist()
    if len(entries) > limits.entries:
        raise InputError(f"zip: expected at most {limits.entries} entries, got {len(entries)}")
    for entry in entries:
        require_safe(entry)
    folder.mkdir(parents=True)
    left = limits.unpacked
    for entry in entries:
        if not _is_image(entry):
            continue
        target = folder.joinpath(*PurePosixPath(entry.filename).parts)
        target.parent.mkdir(parents=True, exist_ok=True)
        with opened.open(entry) as packed, target.open("xb") as file:
            left -= _copied(packed, file, entry, min(left, limits.entry), limits)  # type: ignore[arg-type]


def require_safe(entry: zipfile.ZipInfo) -> None:
    """Raise InputError for an entry that would lie outside of the folder, or is no plain file or folder."""
    name, kind = entry.filename, stat.S_IFMT(entry.external_attr >> 16)
    parts = PurePosixPath(name).parts
    if ".." in parts or name.startswith("/") or "\\" in name or re.match(r"[A-Za-z]:", name):
        raise InputError(f"zip: expected entries inside the zip's own folder, got {name[:80]!r}")
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise InputError(f"zip: expected plain files and folders, got a link or a device: {name[:80]!r}")
    if not name.isprintable() or len(parts) > DEEPEST or any(len(part.encode()) > 200 for part in parts):
        raise InputError(f"zip: expected printable names of up to 200 bytes, {DEEPEST} deep, got {name[:80]!r}")
    if entry.flag_bits & 1:
        raise InputError(f"zip: expected entries without a password, got {name[:80]!r}")


def _is_image(entry: zipfile.ZipInfo) -> bool:
    path = PurePosixPath(entry.filename)
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
    return not entry.is_dir() and not hidden and path.suffix.lower() in SUFFIXES


def _copied(packed: BinaryIO, file: BinaryIO, entry: zipfile.ZipInfo, most: int, limits: Limits) -> int:
    """The bytes that were unpacked: counted, as what the zip says of itself may be a lie."""
    done = 0
    while chunk := packed.read(2**16):
        done += len(chunk)
        if done > most:
            raise InputError(f"zip: expected less to unpack, got more than the limit at {entry.filename[:80]!r}")
        if done > max(limits.free, limits.ratio * entry.compress_size):
            raise InputError(
                f"zip: expected images, got an entry that shrinks more than {limits.ratio} times: "
                f"{entry.filename[:80]!r}"
            )
        file.write(chunk)
    return done


def class_root(folder: Path) -> Path:
    """Where the class folders lie: in the folder, or in the only folder in it, as zips of a folder have it."""
    while len(children := _folders(folder)) == 1 and not any(p.is_file() for p in children[0].iterdir()):
        folder = children[0]
    return folder


def allowed(text: str, roots: Sequence[Path]) -> Path:
    """The folder on the server's machine that `text` names, absolute or below one of the roots.

    Raises:
        InputError: there is none within the roots; it is not told whether there is one outside.
    """
    refusal = InputError("folder: expected one inside the folders that the owner of this page allowed, got another")
    if not roots or "\0" in text or not text.strip():
        raise refusal
    for root in roots:
        try:
            path = (root / text.strip()).resolve()
            if path.is_relative_to(root.resolve()) and path.is_dir():
                return path
        except (OSError, RuntimeError):
            continue
    raise refusal


def understand(folder: Path) -> Understood:
    """What the class folders in `folder` hold, every image looked at.

    Raises:
        InputError: there are no class folders with images.
    """
    classes, unreadable, ignored = [], [], 0
    for name, folders in _classes(folder).items():
        files = [file for each in folders for file in sorted(each.iterdir()) if not file.name.startswith(".")]
        images = [file for file in files if file.suffix.lower() in SUFFIXES]
        ignored += len(files) - len(images)
        sizes: list[tuple[int, int]] = []
        samples: list[Image.Image] = []
        for file in images:
            try:
                size, sample = _looked_at(file)
            except InputError:
                unreadable.append(f"{name}/{file.name}")
                continue
            sizes.append(size)
            samples += [sample] if len(samples) < SAMPLES else []
        if images:
            smallest, largest = min(sizes, default=(0, 0)), max(sizes, default=(0, 0))
            classes.append(ClassFound(name, len(sizes), smallest, largest, tuple(samples)))
    if not classes:
        raise InputError("images: expected folders of images, one for each class, got none")
    return Understood(tuple(classes), tuple(unreadable), ignored)


def _classes(folder: Path) -> dict[str, list[Path]]:
    """The folders of each class; those of a training and a test part together."""
    children = _folders(folder)
    parts = [child for child in children if child.name in ("train", *TEST_SPLITS) and _folders(child)]
    found: dict[str, list[Path]] = {}
    for child in _grandchildren(parts) if parts else children:
        found.setdefault(child.name, []).append(child)
    return found


def _grandchildren(parts: Sequence[Path]) -> Iterator[Path]:
    return (child for part in parts for child in _folders(part))


def _looked_at(file: Path) -> tuple[tuple[int, int], Image.Image]:
    row = {"path": str(file), "bytes": None}
    with DECODING:
        size = size_of(row, file.name)
        return size, Image.fromarray(decode_image(row, file.name, "RGB", (SAMPLE_SIDE, SAMPLE_SIDE)))


def _folders(folder: Path) -> list[Path]:
    return sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))


def _mb(count: int) -> str:
    return f"{count / 2**20:.0f} MB"
