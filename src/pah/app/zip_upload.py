"""Extract the images of an uploaded zip of class folders. The zip may be damaged or hostile, so every entry is checked.

Only plain image files are written: no link, no Parquet file and no annotation list can make a lesson read other files.
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

from pah.app.messages import quoted
from pah.core.config import InputError
from pah.data.image import IMAGE_SUFFIXES, MAX_PIXELS, read_image_size
from pah.data.listing import TEST_SPLITS

SPLITS = {"train", *TEST_SPLITS}
CHUNK = 2**16  # bytes unpacked at a time
NAME_BYTES = 255  # longest name of a file or folder on common file systems
CENTRAL_BYTES = 400  # in a zip's directory for each entry: enough for a long name and the usual extra fields
SYSTEM_FILES = {"__MACOSX", "Thumbs.db", "desktop.ini"}  # added by operating systems; they are not even listed

Parts: TypeAlias = tuple[str, ...]  # the folders and the name of a path


@dataclass(frozen=True)
class Limits:
    """The limits of an upload.

    Args:
        upload_bytes: Size of the zip.
        entries: Number of files and folders.
        unpacked_bytes: Size of all unpacked images.
        classes: Number of classes.
        pixels: Number of pixels of all images together: a lesson decodes each, and small files may hold large images.
    """

    upload_bytes: int = 200 * 2**20
    entries: int = 20_000
    unpacked_bytes: int = 2 * 2**30
    classes: int = 1000
    pixels: int = 5 * 10**9


LIMITS = Limits()


def extract(archive: Path, target: Path, limits: Limits) -> list[str]:
    """Write the images of a zip of class folders as CLASS/IMAGE or SPLIT/CLASS/IMAGE.

    Images in folders below a class folder belong to that class and keep these folders.

    Returns:
        The names of all other files, which are not written, without those that operating systems add.

    Raises:
        InputError: the file is no zip, is damaged, exceeds a limit, does not hold class folders, or has an entry that
            leads out of the folder. Files that were written until then stay.
        OSError: the disk is full.
    """
    if (size := archive.stat().st_size) > limits.upload_bytes:
        raise InputError(f"upload: expected at most {_mebibytes(limits.upload_bytes)}, got {_mebibytes(size)}")
    with _open_zip(archive, limits) as opened:
        images, folders, left_out = _plan(opened.infolist(), limits)
        for folder in sorted(folders):
            target.joinpath(*folder).mkdir(parents=True, exist_ok=True)
        _write_images(opened, images, target, limits)
    return left_out


@contextmanager
def _open_zip(archive: Path, limits: Limits) -> Iterator[ZipFile]:
    with _LimitedReader(archive, max(2**17, CENTRAL_BYTES * limits.entries)) as file:
        try:
            opened = ZipFile(file)
        except InputError:
            raise _too_many_entries(limits) from None
        except Exception as error:  # zipfile raises almost any exception for a damaged file
            raise InputError("upload: expected a zip of class folders, got no zip or a damaged one") from error
        with opened:
            yield opened


class _LimitedReader(io.BufferedReader):
    """A file that refuses to read more than `limit` bytes at once: zipfile reads a directory of any size in one go."""

    def __init__(self, path: Path, limit: int) -> None:
        super().__init__(io.FileIO(path))
        self.limit = limit

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > self.limit:
            raise InputError(f"expected to read at most {self.limit} bytes at once, got {size}")
        return super().read(size)


def _too_many_entries(limits: Limits) -> InputError:
    return InputError(f"upload: expected at most {limits.entries:,} files and folders, got more")


def _plan(entries: Sequence[ZipInfo], limits: Limits) -> tuple[list[tuple[ZipInfo, Parts]], set[Parts], list[str]]:
    """Return the image files with their target paths, the class folders, and the names of all other files.

    It decides by names alone and reads no file.
    """
    if len(entries) > limits.entries:
        raise _too_many_entries(limits)
    named = [(info, _checked_parts(info)) for info in entries]
    visible = [(info, parts) for info, parts in named if parts and not any(map(_is_hidden, parts))]
    files = [(info, parts) for info, parts in visible if not info.is_dir()]
    images = [parts for _, parts in files if _is_image(parts)]
    outer = _outer_folders(images)
    inner = [parts[len(outer) :] for parts in images]
    depth = 2 if _has_splits(inner) else 1  # of the class folders; the images may lie in folders below them
    used = {(*outer, *parts) for parts in inner if len(parts) > depth and (depth == 1 or parts[0] in SPLITS)}
    if not used:
        raise InputError("upload: expected a zip of class folders with images in them, got none")
    inside = [(info, parts[len(outer) :]) for info, parts in visible if parts[: len(outer)] == outer]
    folders = {parts[:depth] for info, parts in inside if len(parts) - (not info.is_dir()) >= depth}
    chosen = [(info, parts[len(outer) :]) for info, parts in files if parts in used]
    _require_unique([parts for _, parts in chosen])
    folders |= {parts[:-1] for _, parts in chosen}
    hidden = [parts for info, parts in named if parts and _is_hidden_image(parts) and not info.is_dir()]
    return chosen, folders, ["/".join(p) for p in (*(parts for _, parts in files if parts not in used), *hidden)]


def _has_splits(images: Sequence[Parts]) -> bool:
    """Return whether the images are in folders train, test and so on of class folders, as `pah.data.listing` sees it.

    A single folder "train" without folders in it is a class of that name.
    """
    splits = {parts[0] for parts in images if len(parts) > 1 and parts[0] in SPLITS}
    return len(splits) > 1 or any(len(parts) > 2 and parts[0] in splits for parts in images)


def _is_image(parts: Parts) -> bool:
    return PurePosixPath(parts[-1]).suffix.lower() in IMAGE_SUFFIXES


def _is_hidden_image(parts: Parts) -> bool:
    """Return whether a path is a hidden image, and not one of the files that operating systems add."""
    added = not SYSTEM_FILES.isdisjoint(parts) or parts[-1].startswith("._")
    return _is_image(parts) and any(map(_is_hidden, parts)) and not added


def _outer_folders(images: Sequence[Parts]) -> Parts:
    """Return the folders around all class folders: each is the only one at its level and holds folders."""
    outer: Parts = ()
    while len({parts[0] for parts in images}) == 1 and any(len(parts) > 2 for parts in images):
        outer += images[0][:1]
        images = [parts[1:] for parts in images if len(parts) > 1]
    return outer


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in SYSTEM_FILES


def _require_unique(paths: Sequence[Parts]) -> None:
    seen: set[Parts] = set()
    for parts in paths:
        if parts in seen:
            raise InputError(f"{quoted('/'.join(parts))}: expected each file once, got it twice")
        seen.add(parts)


def _checked_parts(info: ZipInfo) -> Parts:
    """Return the folders and name of an entry; InputError unless it is a plain file or folder inside the zip."""
    name = unicodedata.normalize("NFC", info.orig_filename)  # macOS stores a letter and its accent separately
    parts = PurePosixPath(name).parts
    kind = stat.S_IFMT(info.external_attr >> 16)  # 0 in a zip of a system without file types
    refusals = {
        "no backslash": "\\" in name,
        "a path inside the zip": name.startswith("/") or ".." in parts or re.match("[A-Za-z]:", name) is not None,
        f"names of at most {NAME_BYTES} bytes": any(len(os.fsencode(part)) > NAME_BYTES for part in parts),
        "no control characters": any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in name),
        "a file or a folder, and no link or device": kind not in (0, stat.S_IFREG, stat.S_IFDIR),
        "no password": bool(info.flag_bits & 1),
        "compression by Deflate or none": info.compress_type not in (ZIP_STORED, ZIP_DEFLATED),
    }
    for expected, is_wrong in refusals.items():
        if is_wrong:
            raise InputError(f"{quoted(name)}: expected {expected} in an upload")
    return parts


def _write_images(opened: ZipFile, images: Sequence[tuple[ZipInfo, Parts]], target: Path, limits: Limits) -> None:
    """Write the images and stop at the limits; sizes are counted, because the zip's own sizes may be wrong."""
    bytes_left, pixels_left = limits.unpacked_bytes, limits.pixels
    for info, parts in images:
        path = target.joinpath(*parts)
        with path.open("xb") as file:
            for chunk in _chunks(opened, info):
                bytes_left -= len(chunk)
                if bytes_left < 0:
                    most = _mebibytes(limits.unpacked_bytes)
                    raise InputError(f"upload: expected at most {most} of images once unpacked, got more")
                file.write(chunk)
        pixels_left -= _pixels(path, info)
        if pixels_left < 0:
            raise InputError(f"upload: expected images of at most {limits.pixels / 10**6:,.0f} megapixels, got more")


def _chunks(opened: ZipFile, info: ZipInfo) -> Iterator[bytes]:
    try:
        with opened.open(info) as content:
            while chunk := content.read(CHUNK):
                yield chunk
    except Exception as error:  # zipfile raises almost any exception for a damaged file
        raise InputError(f"{quoted(info.filename)}: expected a whole file in the zip, got a damaged one") from error


def _pixels(path: Path, info: ZipInfo) -> int:
    """Return the number of pixels by the image's header; 0 for an unreadable image, which is listed later."""
    try:
        width, height = read_image_size({"path": str(path), "bytes": None}, "upload")
    except InputError as error:
        if not isinstance(error.__cause__, Image.DecompressionBombError):
            return 0
        width = height = MAX_PIXELS
    if width * height > MAX_PIXELS:
        most = MAX_PIXELS // 10**6
        raise InputError(f"{quoted(info.filename)}: expected an image of at most {most} megapixels, got a larger one")
    return width * height


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:,.4g} MiB"
