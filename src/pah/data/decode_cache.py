"""The cache of decoded data sets: a private folder for each, beside the cache of the library `datasets`.

Shapes: N images of C channels, H x W pixels; C is 1 when every image is grey, otherwise 3.
"""

import hashlib
import json
import mmap
import os
import shutil
import zlib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import huggingface_hub.constants
import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from pah.data.image import Pixels
from pah.data.vectors import Vectors

VERSION = 2  # of the cache's layout and of the decoding; with another version, older folders are no longer used
ARRAYS = ("train_pixels", "train_labels", "test_pixels", "test_labels")  # files of the cache, fields of DecodedDataSet

Labels: TypeAlias = NDArray[np.int64]
Stamp: TypeAlias = tuple[str, int, int]  # of a file: absolute path, size and time of the last change


@dataclass(frozen=True)
class ReadingRecord:
    """What was decided while a data set was read; the cache keeps it beside the images.

    Args:
        notes: What was chosen and what was left out, in words.
        skipped: Images that were left out because they could not be read.
        test_split: Name of the split with the test images; None if they are a part of the training images.
    """

    notes: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    test_split: str | None = None


@dataclass(frozen=True)
class DecodedDataSet:
    """Pixels uint8 (N, C, H, W), or vectors float32 (N, D, 1, 1), and labels int64 (N,).

    Pixels of files are memory-mapped and copied where they are written to.
    """

    class_names: tuple[str, ...]
    train_pixels: Pixels | Vectors
    train_labels: Labels
    test_pixels: Pixels | Vectors
    test_labels: Labels
    record: ReadingRecord = ReadingRecord()


def cache_key(files: Iterable[Path], *options: str | int | None) -> str:
    """Return a name for `files` read with `options`; it changes when a file's name, size or time changes."""
    stamps = [(str(file), (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files]
    text = json.dumps([VERSION, stamps, options])
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def cache_folder() -> Path:
    """Return the folder of decoded data sets, in the cache of `datasets`; importing `datasets` would take a second."""
    home = Path(huggingface_hub.constants.HF_HOME)
    return Path(os.environ.get("HF_DATASETS_CACHE", home / "datasets")) / "pah"


def clear_cache() -> int:
    """Delete the decoded data sets and return how many bytes this freed.

    A data set that a process is decoding stays. A process that has one open can go on reading it.
    """
    folders = [path for path in cache_folder().glob("*/") if not path.is_symlink()]
    freed = 0
    for key in sorted({path.name.partition(".")[0] for path in folders}):
        with suppress(Timeout), lock_data_set(cache_folder() / key, timeout=0):
            for folder in folders:  # also those that a killed process left
                if folder.name.partition(".")[0] == key:
                    size = _size(folder)
                    shutil.rmtree(folder, ignore_errors=True)
                    freed += size - _size(folder)
    return freed


def _size(folder: Path) -> int:
    """Return the number of bytes of the files in a folder."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


def lock_data_set(folder: Path, timeout: float = -1) -> FileLock:
    """Return the lock of a data set of the cache; by default it waits for as long as it takes."""
    return FileLock(f"{folder}.lock", timeout=timeout, mode=0o600)


def make_private(cache: Path) -> None:
    """Let only the user read a cache that others could read so far; that of another user is left as it is."""
    with suppress(OSError):
        if cache.stat().st_mode & 0o077:
            cache.chmod(0o700)
            for path in cache.rglob("*"):
                if not path.is_symlink():
                    path.chmod(0o700 if path.is_dir() else 0o600)


def load_cached(folder: Path) -> DecodedDataSet | None:
    """Return the data set in `folder`, or None if it is missing or damaged, so that it is decoded again."""
    try:
        described = json.loads((folder / "set.json").read_text(encoding="utf-8"))
        if any(stamp_of(path) != tuple(stamp) for path, stamp in described["row_files"].items()):
            return None
        files = {name: folder / f"{name}.npy" for name in ARRAYS}
        if described["checksums"] != {name: checksum_of(file) for name, file in files.items()}:
            return None
        arrays = {name: _memory_map(file) for name, file in files.items()}
        record = described["record"]  # older caches have none: they are decoded again
        notes, skipped = tuple(record["notes"]), tuple(record["skipped"])
        return DecodedDataSet(
            tuple(described["class_names"]), **arrays, record=ReadingRecord(notes, skipped, record["test_split"])
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def stamp_of(path: str) -> Stamp:
    """Return what changes when the file at a path, absolute or relative, becomes another one."""
    stat = os.stat(path)
    return os.path.abspath(path), stat.st_size, stat.st_mtime_ns


def _memory_map(file: Path) -> NDArray[Any]:
    """Return the array in a file, memory-mapped without read-ahead.

    Batches are drawn at random. Read-ahead, megabytes at a time, would displace useful pages from a small memory.
    """
    array = np.load(file, mmap_mode="c", allow_pickle=False)
    if isinstance(array.base, mmap.mmap) and hasattr(mmap, "MADV_RANDOM"):  # not on every system
        array.base.madvise(mmap.MADV_RANDOM)
    return array  # type: ignore[no-any-return]


def checksum_of(file: Path) -> int:
    """Return the CRC-32 of a file."""
    return zlib.crc32(np.memmap(file, mode="r").data)  # about 3 GB/s, faster than the first epoch reads the file
