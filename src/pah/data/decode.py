"""Decoding of a data set's images, done once; the arrays are kept as .npy files beside the Hugging Face cache.

Shapes: N images of C channels, H x W pixels; C is 1 when every image is grey, otherwise 3.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow

from pah.core.config import InputError
from pah.data.decode_cache import (
    ARRAYS,
    DecodedDataSet,
    Labels,
    ReadingRecord,
    Stamp,
    cache_folder,
    checksum_of,
    load_cached,
    lock_data_set,
    make_private,
    stamp_of,
)
from pah.data.image import MAX_MEGAPIXELS, ColourError, Pixels, decode_image, first_line, without_pillow_warnings
from pah.data.image_modes import Mode
from pah.data.preprocessing import DEFAULT_RESIZING, Resizing

if TYPE_CHECKING:
    import pyarrow.dataset

BATCH_ROWS = 512  # images that are decoded at a time; no more are in memory


class MixedSizesError(InputError):
    """Images differ in size, and no size is given to which they could be resized."""


class BatchTable(Protocol):
    """A table whose rows are read in order, some at a time, as from a `pyarrow.dataset.Dataset`."""

    def to_batches(self, *, columns: Sequence[str], **options: Any) -> Iterator[pyarrow.RecordBatch]:
        """Yield the rows."""
        ...


@dataclass(frozen=True)
class EncodedSplit:
    """One split before decoding."""

    name: str  # the data set and its split, for messages
    table: BatchTable
    image_column: str  # of the table; its values are structs of bytes and path
    labels: Labels  # (N,)
    rows: Labels | None = None  # (N,): the rows' numbers in the data set, if only some of its rows are in the table

    def place(self, row: int) -> str:
        """Return how messages call a row."""
        return f"{self.name}, row {row if self.rows is None else self.rows[row]}"


@dataclass(frozen=True)
class EncodedDataSet:
    """A data set before decoding."""

    class_names: tuple[str, ...]
    train: EncodedSplit
    test: EncodedSplit
    record: ReadingRecord


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Turn a failure to list or read the data set of that name into an InputError."""
    try:
        yield
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise InputError(f"{name}: expected readable data, got: {first_line(error)}") from error


def decode_once(
    key: str,
    read: Callable[[], EncodedDataSet],
    image_size: int | None,
    *,
    known_files: Collection[Path] = (),
    max_megapixels: int = MAX_MEGAPIXELS,
    resizing: Resizing = DEFAULT_RESIZING,
) -> DecodedDataSet:
    """Return the decoded data set from the cache; if it is missing or damaged, decode it into the cache first.

    It is decoded again as well if a file that a row names has changed, or if a relative path now leads to another file.

    Args:
        key: The data set's name in the cache, from `cache_key`.
        read: Returns the data set before decoding; not called if it is in the cache.
        image_size: Every image is resized and cropped to this height and width; None keeps the images' own size.
        known_files: The files from which `key` was made; rows that name them need no other check.
        max_megapixels: A larger image is refused.
        resizing: How images are resized; without an `image_size` it has no effect.

    Raises:
        InputError: an image is unreadable, images differ in size, or the cache cannot be written.
    """
    folder = cache_folder() / key
    make_private(folder.parent)
    if (cached := load_cached(folder)) is not None:
        return cached
    encoded = read()
    try:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with lock_data_set(folder):  # another process may be decoding the same data set: wait, then use its result
            if load_cached(folder) is None:
                with ThreadPoolExecutor(os.cpu_count()) as pool:
                    decoder = _Decoder(image_size, max_megapixels, resizing, frozenset(map(str, known_files)), pool)
                    _decode_to_folder(folder, encoded, decoder)
            cached = load_cached(folder)
    except OSError as error:
        raise InputError(
            f"{folder.parent}: expected space for the decoded images, got: {first_line(error)}; "
            "HF_DATASETS_CACHE=FOLDER chooses another folder"
        ) from error
    if cached is None:
        raise InputError(f"{folder}: expected the data as they were written, got other data; check the disk")
    return cached


def _decode_to_folder(folder: Path, encoded: EncodedDataSet, decoder: _Decoder) -> None:
    """Decode both splits into a temporary folder, then rename it to `folder`, so that it is complete or missing."""
    for leftover in folder.parent.glob(f"{folder.name}.*/"):  # of killed processes; safe under the lock
        shutil.rmtree(leftover, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f"{folder.name}.", dir=folder.parent) as temporary:
        new_folder = Path(temporary) / "set"
        new_folder.mkdir(mode=0o700)
        try:
            _write_pixels(new_folder, encoded, "L", decoder)
        except ColourError:  # usually the first image already is in colour, so that little is decoded twice
            _write_pixels(new_folder, encoded, "RGB", decoder)
        np.save(new_folder / "train_labels.npy", encoded.train.labels)
        np.save(new_folder / "test_labels.npy", encoded.test.labels)
        checksums = {name: checksum_of(new_folder / f"{name}.npy") for name in ARRAYS}
        described = {
            "class_names": encoded.class_names,
            "checksums": checksums,
            "record": asdict(encoded.record),
            "row_files": decoder.row_files,
        }
        (new_folder / "set.json").write_text(json.dumps(described), encoding="utf-8")
        for file in new_folder.iterdir():
            file.chmod(0o600)
        shutil.rmtree(folder, ignore_errors=True)  # it exists only if it is damaged
        new_folder.rename(folder)


def _write_pixels(folder: Path, encoded: EncodedDataSet, mode: Mode, decoder: _Decoder) -> None:
    """Decode the images of both splits and write them to the folder."""
    decoder.start(mode)
    with without_pillow_warnings():
        for name, split in (("train", encoded.train), ("test", encoded.test)):
            _write_batches(folder / f"{name}_pixels.npy", len(split.labels), decoder.batches(split))


def _write_batches(path: Path, count: int, batches: Iterator[Pixels]) -> None:
    """Write batches (B, C, H, W) of `count` images in all as one array.

    The file is not memory-mapped: on a full disk a failed write is an error, but a store to a mapped page kills the
    process.
    """
    first = next(batches)  # (0, C, H, W) if there are no images
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, *first.shape[1:])}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for batch in chain([first], batches):
            file.write(batch.tobytes())


class _Decoder:
    """Decodes splits to one mode, "L" or "RGB", and requires that all images of all splits have one size."""

    def __init__(
        self,
        image_size: int | None,
        max_megapixels: int,
        resizing: Resizing,
        known_files: frozenset[str],
        pool: ThreadPoolExecutor,
    ) -> None:
        self.size = None if image_size is None else (image_size, image_size)
        self.max_megapixels = max_megapixels
        self.resizing = resizing
        self.known_files = known_files
        self.pool = pool
        self.row_files: dict[str, Stamp] = {}  # by path: the files that rows name, without the known ones
        self.start("L")

    def start(self, mode: Mode) -> None:
        """Decode to another mode from now on, and start again with the first image."""
        self.mode = mode
        self.first: tuple[tuple[int, ...], str] | None = None  # shape (H, W, C) and name of the first image

    def batches(self, split: EncodedSplit) -> Iterator[Pixels]:
        """Yield the images of a split, in order, as batches (B, C, H, W); of an empty split, one batch of none."""
        import datasets  # the import takes a second; data sets in the cache do not need it

        start = 0
        with reading(split.name):
            # No read-ahead: it would leave a thread running if the scan is abandoned half-way.
            for batch in split.table.to_batches(
                columns=[split.image_column], batch_size=BATCH_ROWS, batch_readahead=0, fragment_readahead=0
            ):
                rows = datasets.Image().cast_storage(batch.column(0)).to_pylist()
                named_rows = [(row, image_name(row, split.place(start + i))) for i, row in enumerate(rows)]
                if named_rows:
                    self._note_files(rows)  # before they are read: a change that comes later is noticed
                    yield self._decode(named_rows)
                start += len(rows)
        if not start:
            height, width, channels = self.first[0] if self.first else (1, 1, 1)
            yield np.empty((0, channels, height, width), np.uint8)

    def _note_files(self, rows: list[Any]) -> None:
        """Record the files that rows name; decoding reports those that cannot be read."""
        for row in rows:
            if row and row["bytes"] is None and row["path"] and row["path"] not in self.known_files:
                with suppress(OSError, ValueError):
                    self.row_files.setdefault(row["path"], stamp_of(row["path"]))

    def _decode(self, named_rows: list[tuple[Any, str]]) -> Pixels:
        """Return the decoded images (B, C, H, W); each row is given with its name."""
        # each thread takes many images: decoding a small image costs less than handing it to a thread
        share = -(-len(named_rows) // (os.cpu_count() or 1))
        parts = [named_rows[start : start + share] for start in range(0, len(named_rows), share)]
        images = list(chain.from_iterable(self.pool.map(self._decode_part, parts)))
        for image, (_, name) in zip(images, named_rows, strict=True):
            self._check_size(image, name)
        return np.stack(images).transpose(0, 3, 1, 2)

    def _decode_part(self, named_rows: list[tuple[Any, str]]) -> list[Pixels]:
        return [
            decode_image(row, name, self.mode, self.size, max_megapixels=self.max_megapixels, resizing=self.resizing)
            for row, name in named_rows
        ]

    def _check_size(self, image: Pixels, name: str) -> None:
        """Raise InputError unless the image has the size of the first one."""
        self.first = self.first or (image.shape, name)
        (height, width, _), first_name = self.first
        if image.shape[:2] != (height, width):
            raise MixedSizesError(
                f"expected images of one size, got {width}x{height} ({first_name}) and "
                f"{image.shape[1]}x{image.shape[0]} ({name}); `--image_size N` resizes all of them to N x N"
            )


def image_name(row: Mapping[str, Any] | None, place: str) -> str:
    """Return how messages call an image: by its file if it has one, otherwise by its place in the table."""
    return str(row["path"]) if row and row["bytes"] is None and row["path"] else place
