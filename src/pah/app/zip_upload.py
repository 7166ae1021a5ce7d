"""The zip of class folders that a visitor packed, which may be damaged or hostile: checked entry by entry.

Only plain image files are written, so nothing that was packed can tell a lesson to read elsewhere.
"""

import io
import os
import re
import stat
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeAlias
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

from PIL import Image

from pah.app.messages import said
from pah.core.config import InputError
from pah.data.image import MAX_PIXELS, size_of
from pah.data.listing import SUFFIXES, TEST_SPLITS

PARTS = {"train", *TEST_SPLITS}
CHUNK = 2**16  # bytes unpacked at a time
NAME_BYTES = 255  # of a file or folder: what file systems take
CENTRAL_BYTES = 400  # of a zip's directory for each entry: a long name and every usual extra field
LITTER = {"__MACOSX", "Thumbs.db", "desktop.ini"}  # of operating systems; not worth a word

Parts: TypeAlias = tuple[str, ...]  # of a path


@dataclass(frozen=True)
class Limits:
    """What an upload may take."""

    upload_bytes: int = 200 * 2**20
    entries: int = 20_000
    unpacked_bytes: int = 2 * 2**30
    classes: int = 1000
    pixels: int = 5 * 10**9  # of all images: a lesson decodes each, and small files may hold large ones


LIMITS = Limits()


def extract(archive: Path, into: Path, limits: Limits) -> list[str]:
    """Write the images of a zip of class folders as CLASS/IMAGE or PART/CLASS/IMAGE.

    Returns:
        The names of other files, which are not written.

    Raises:
        InputError: it is no zip, damaged, too large in any way, not class folders, or has an entry that leads
            elsewhere; what was written until then is left.
        OSError: the disk is full.
    """
    if (size := archive.stat().st_size) > limits.upload_bytes:
        raise InputError(f"upload: expected at most {_mebibytes(limits.upload_bytes)}, got {_mebibytes(size)}")
    with _opened(archive, limits) as packed:
        images, folders, left_out = _plan(packed.infolist(), limits)
        for folder in sorted(folders):
            into.joinpath(*folder).mkdir(parents=True, exist_ok=True)
        _write(packed, images, into, limits)
    return left_out


@contextmanager
def _opened(archive: Path, limits: Limits) -> Iterator[ZipFile]:
    with _Sparing(archive, max(2**17, CENTRAL_BYTES * limits.entries)) as file:
        try:
            packed = ZipFile(file)
        except InputError:
            raise _too_many(limits) from None
        except Exception as error:  # a damaged one makes zipfile's parser raise almost anything
            raise InputError("upload: expected a zip of class folders, got no zip or a damaged one") from error
        with packed:
            yield packed


class _Sparing(io.BufferedReader):
    """A file that hands out at most `most` bytes at once: zipfile reads the directory, of any size, in one go."""

    def __init__(self, path: Path, most: int) -> None:
        super().__init__(io.FileIO(path))
        self.most = most

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > self.most:
            raise InputError(f"expected at most {self.most} bytes to be asked for, got {size}")
        return super().read(size)


def _too_many(limits: Limits) -> InputError:
    return InputError(f"upload: expected at most {limits.entries:,} files and folders, got more")


def _plan(entries: Sequence[ZipInfo], limits: Limits) -> tuple[list[tuple[ZipInfo, Parts]], set[Parts], list[str]]:
    """Image files and where they go, class folders, and names of what is left out, going by names alone."""
    if len(entries) > limits.entries:
        raise _too_many(limits)
    named = [(info, _parts(info)) for info in entries]
    shown = [(info, parts) for info, parts in named if parts and not any(map(_hidden, parts))]
    files = [(info, parts) for info, parts in shown if not info.is_dir()]
    images = [parts for _, parts in files if PurePosixPath(parts[-1]).suffix.lower() in SUFFIXES]
    around = _around(images)
    inner = [parts[len(around) :] for parts in images]
    depth = max((len(parts) for parts in inner), default=0)
    if depth < 2:
        raise InputError("upload: expected a zip of class folders with images in them, got none")
    if wrong := [parts for parts in inner if len(parts) > (3 if parts[0] in PARTS else 2)]:
        name = said("/".join((*around, *wrong[0])))
        raise InputError(f"{name}: expected CLASS/IMAGE, train/CLASS/IMAGE or test/CLASS/IMAGE, got folders in a class")
    taken = {(*around, *parts) for parts in inner if len(parts) == depth}
    inside = [(info, parts[len(around) :]) for info, parts in shown if parts[: len(around)] == around]
    folders = {parts[: depth - 1] for info, parts in inside if len(parts) - (not info.is_dir()) >= depth - 1}
    chosen = [(info, parts[len(around) :]) for info, parts in files if parts in taken]
    _require_once([parts for _, parts in chosen])
    return chosen, folders, ["/".join(parts) for _, parts in files if parts not in taken]


def _around(images: Sequence[Parts]) -> Parts:
    """The folders that are around all class folders: each is the only one, and has more than images."""
    around: Parts = ()
    while len({parts[0] for parts in images}) == 1 and any(len(parts) > 2 for parts in images):
        around += images[0][:1]
        images = [parts[1:] for parts in images if len(parts) > 1]
    return around


def _hidden(name: str) -> bool:
    return name.startswith(".") or name in LITTER


def _require_once(paths: Sequence[Parts]) -> None:
    seen: set[Parts] = set()
    for parts in paths:
        if parts in seen:
            raise InputError(f"{said('/'.join(parts))}: expected each file once, got it twice")
        seen.add(parts)


def _parts(info: ZipInfo) -> Parts:
    """The folders and the name of an entry; InputError if it is anything but a plain file or folder inside."""
    name = unicodedata.normalize("NFC", info.orig_filename)  # macOS packs letters and accents apart
    parts = PurePosixPath(name).parts
    kind = stat.S_IFMT(info.external_attr >> 16)  # 0 where the zip was made by a system without such kinds
    refusals = {
        "no backslash": "\\" in name,
        "a path inside the zip": name.startswith("/") or ".." in parts or re.match("[A-Za-z]:", name) is not None,
        f"names of at most {NAME_BYTES} bytes": any(len(os.fsencode(part)) > NAME_BYTES for part in parts),
        "no control characters": any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in name),
        "a file or a folder, and no link or device": kind not in (0, stat.S_IFREG, stat.S_IFDIR),
        "no password": bool(info.flag_bits & 1),
        "compression by Deflate or none": info.compress_type not in (ZIP_STORED, ZIP_DEFLATED),
    }
    for expected, wrong in refusals.items():
        if wrong:
            raise InputError(f"{said(name)}: expected {expected} in an upload")
    return parts


def _write(packed: ZipFile, images: Sequence[tuple[ZipInfo, Parts]], into: Path, limits: Limits) -> None:
    room, pixels = limits.unpacked_bytes, limits.pixels
    for info, parts in images:
        file = into.joinpath(*parts)
        with file.open("xb") as out:
            for chunk in _chunks(packed, info):
                room -= len(chunk)
                if room < 0:
                    most = _mebibytes(limits.unpacked_bytes)
                    raise InputError(f"upload: expected at most {most} of images once unpacked, got more")
                out.write(chunk)
        pixels -= _pixels(file, info)
        if pixels < 0:
            raise InputError(f"upload: expected images of at most {limits.pixels / 10**6:,.0f} megapixels, got more")


def _chunks(packed: ZipFile, info: ZipInfo) -> Iterator[bytes]:
    try:
        with packed.open(info) as content:
            while chunk := content.read(CHUNK):
                yield chunk
    except Exception as error:  # as for the directory
        raise InputError(f"{said(info.filename)}: expected a whole file in the zip, got a damaged one") from error


def _pixels(file: Path, info: ZipInfo) -> int:
    """Of an image, by its header; 0 where there is none, which is listed as unreadable later."""
    try:
        width, height = size_of({"path": str(file), "bytes": None}, "upload")
    except InputError as error:
        if not isinstance(error.__cause__, Image.DecompressionBombError):
            return 0
        width = height = MAX_PIXELS
    if width * height > MAX_PIXELS:
        most = MAX_PIXELS // 10**6
        raise InputError(f"{said(info.filename)}: expected an image of at most {most} megapixels, got a larger one")
    return width * height


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:,.4g} MiB"
