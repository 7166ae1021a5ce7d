"""Decodes the images of a data set once and keeps them as .npy files beside the Hugging Face cache.

Shapes: N images of C channels, H x W pixels; C is 1 when every image is grey, otherwise 3.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import huggingface_hub.constants
import numpy as np
import pyarrow
from filelock import FileLock
from numpy.typing import NDArray

from pah.core.config import InputError
from pah.data.image import ColourError, Mode, Pixels, decode_image, first_line, without_warnings

if TYPE_CHECKING:
    import pyarrow.dataset

VERSION = 1  # of the cache's layout; a change makes every older folder unused
ARRAYS = ("train_pixels", "train_labels", "test_pixels", "test_labels")  # the cache's files, Decoded's fields
ROWS = 512  # images decoded at a time, the most that are in memory

Labels: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True)
class Encoded:
    """One split before decoding: `images`, a column of `table`, is a struct of bytes and path; labels (N,)."""

    where: str  # the data set and its split, for messages
    table: pyarrow.dataset.Dataset
    images: str
    labels: Labels


@dataclass(frozen=True)
class Decoded:
    """Memory-mapped arrays, copied where written to: pixels uint8 (N, C, H, W), labels int64 (N,)."""

    class_names: tuple[str, ...]
    train_pixels: Pixels
    train_labels: Labels
    test_pixels: Pixels
    test_labels: Labels


@contextmanager
def reading(where: str) -> Iterator[None]:
    """Turn a failure to list or read `where` into an InputError."""
    try:
        yield
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise InputError(f"{where}: expected readable data, got: {first_line(error)}") from error


def cache_key(files: Iterable[Path], *options: str | int | None) -> str:
    """A name for `files` read with `options`: another one as soon as a file's name, size or time differs."""
    stamps = [(str(file), (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files]
    text = json.dumps([VERSION, stamps, options])
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def decode_once(
    key: str, read: Callable[[], tuple[tuple[str, ...], Encoded, Encoded]], image_size: int | None
) -> Decoded:
    """The decoded set `key` of the cache; where it is missing or damaged, what `read` gives is decoded into it.

    read: class names, training split, test split; not called when the set is in the cache
    image_size: every image is resized and cropped to this height and width; None leaves all as they are

    Raises InputError where an image is unreadable, sizes differ, or the cache cannot be written.
    """
    folder = _cache() / key
    if (found := _load(folder)) is not None:
        return found
    class_names, train, test = read()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):  # another process may be decoding the same set: wait for it, then use it
            if _load(folder) is None:
                _build(folder, class_names, train, test, image_size)
            found = _load(folder)
    except OSError as error:
        raise InputError(
            f"{folder.parent}: expected room to keep the decoded images, got: {first_line(error)}; "
            "HF_DATASETS_CACHE=FOLDER names another place"
        ) from error
    if found is None:
        raise InputError(f"{folder}: expected the set as it was written, got other data; is the disk sound?")
    return found


def _cache() -> Path:
    """Where decoded sets are kept: in the cache of Hugging Face `datasets`, whose import takes a second."""
    home = Path(huggingface_hub.constants.HF_HOME)
    return Path(os.environ.get("HF_DATASETS_CACHE", home / "datasets")) / "pah"


def _load(folder: Path) -> Decoded | None:
    """The set in `folder`, or None where it is missing or damaged: then it is decoded again, not trusted."""
    try:
        described = json.loads((folder / "set.json").read_text(encoding="utf-8"))
        files = {name: folder / f"{name}.npy" for name in ARRAYS}
        if described["checksums"] != {name: _checksum(file) for name, file in files.items()}:
            return None
        return Decoded(tuple(described["class_names"]), **{name: _mapped(file) for name, file in files.items()})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _mapped(file: Path) -> NDArray[Any]:
    """The array in a file, of which pages are read that are asked for: batches are drawn at random, and reading ahead,
    megabytes a fault, would push out of a small memory what it holds."""
    array = np.load(file, mmap_mode="c", allow_pickle=False)
    if isinstance(array.base, mmap.mmap) and hasattr(mmap, "MADV_RANDOM"):  # not on every system
        array.base.madvise(mmap.MADV_RANDOM)
    return array  # type: ignore[no-any-return]


def _checksum(file: Path) -> int:
    return zlib.crc32(np.memmap(file, mode="r").data)  # some 3 GB/s, less than the first epoch takes to read the file


def _build(folder: Path, class_names: tuple[str, ...], train: Encoded, test: Encoded, image_size: int | None) -> None:
    """Decode both splits into a temporary folder, then put it in the place of `folder`, whole or not at all."""
    for dead in folder.parent.glob(f"{folder.name}.*/"):  # under the lock: what a killed process left behind
        shutil.rmtree(dead, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f"{folder.name}.", dir=folder.parent) as temporary:
        fresh = Path(temporary) / "set"  # a folder of its own, readable by others as the temporary one is not
        fresh.mkdir()
        try:
            _write_pixels(fresh, train, test, "L", image_size)
        except ColourError:  # as a rule the first image tells, so next to nothing is decoded twice
            _write_pixels(fresh, train, test, "RGB", image_size)
        np.save(fresh / "train_labels.npy", train.labels)
        np.save(fresh / "test_labels.npy", test.labels)
        checksums = {name: _checksum(fresh / f"{name}.npy") for name in ARRAYS}
        described = {"class_names": class_names, "checksums": checksums}
        (fresh / "set.json").write_text(json.dumps(described), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)  # a damaged one
        fresh.rename(folder)


def _write_pixels(folder: Path, train: Encoded, test: Encoded, mode: Mode, image_size: int | None) -> None:
    with ThreadPoolExecutor(os.cpu_count()) as pool, without_warnings():
        decoder = _Decoder(mode, image_size, pool)
        _write(folder / "train_pixels.npy", len(train.labels), decoder.batches(train))
        _write(folder / "test_pixels.npy", len(test.labels), decoder.batches(test))


def _write(file: Path, count: int, batches: Iterator[Pixels]) -> None:
    """Write batches (B, C, H, W) of `count` images as one array.

    Written, not mapped: on a full disk a write is an error, a store to a mapped page kills the process.
    """
    first = next(batches)
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, *first.shape[1:])}
    with file.open("wb") as out:
        np.lib.format.write_array_header_1_0(out, header)
        for batch in chain([first], batches):
            out.write(batch.tobytes())


class _Decoder:
    """Decodes splits to one mode, "L" or "RGB", and insists that all images, of all splits, have one size."""

    def __init__(self, mode: Mode, image_size: int | None, pool: ThreadPoolExecutor) -> None:
        self.mode = mode
        self.size = None if image_size is None else (image_size, image_size)
        self.pool = pool
        self.first: tuple[tuple[int, ...], str] | None = None  # shape (H, W, C) of the first image, where it is

    def batches(self, split: Encoded) -> Iterator[Pixels]:
        """The images of `split`, in order, as batches (B, C, H, W)."""
        import datasets  # takes a second, and what was decoded before needs it not

        start = 0
        with reading(split.where):
            # No reading ahead: a scan that is given up half-way must leave no thread behind.
            for batch in split.table.to_batches(
                columns=[split.images], batch_size=ROWS, batch_readahead=0, fragment_readahead=0
            ):
                rows = datasets.Image().cast_storage(batch.column(0)).to_pylist()
                named = [(row, _name(row, f"{split.where}, row {start + i}")) for i, row in enumerate(rows)]
                if named:
                    yield self._decode(named)
                start += len(rows)

    def _decode(self, rows: list[tuple[Any, str]]) -> Pixels:
        share = -(-len(rows) // (os.cpu_count() or 1))  # a thread takes many: small images cost less than a hand-over
        parts = [rows[start : start + share] for start in range(0, len(rows), share)]
        images = list(chain.from_iterable(self.pool.map(self._decode_part, parts)))
        for image, (_, where) in zip(images, rows, strict=True):
            self._check_size(image, where)
        return np.stack(images).transpose(0, 3, 1, 2)

    def _decode_part(self, rows: list[tuple[Any, str]]) -> list[Pixels]:
        return [decode_image(row, where, self.mode, self.size) for row, where in rows]

    def _check_size(self, image: Pixels, where: str) -> None:
        self.first = self.first or (image.shape, where)
        (height, width, _), first_where = self.first
        if image.shape[:2] != (height, width):
            raise InputError(
                f"expected images of one size, got {width}x{height} ({first_where}) and "
                f"{image.shape[1]}x{image.shape[0]} ({where}); `--image_size N` resizes all of them to N x N"
            )


def _name(row: Mapping[str, Any] | None, where: str) -> str:
    """Where an image is, for messages: its file if it is one, otherwise its place in the table."""
    return str(row["path"]) if row and row["bytes"] is None and row["path"] else where
