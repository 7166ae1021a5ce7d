"""Files of vectors in NumPy's .npz format. Reading them never runs code.

N: vectors, D: numbers in a vector.
"""

import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pah.core.config import InputError

SUFFIX = ".npz"
VECTOR_NAMES = ("vectors", "embeddings", "features", "X")
LABEL_NAMES = ("labels", "y")
CLASS_NAMES = ("class_names", "names")
TRAIN, TEST = ("", "_train"), ("_test",)  # what may follow the names of the arrays of each split


class SplitArrays(NamedTuple):
    """The arrays of one split: anything (N, D) and, if there are any, labels and class names, which are not checked."""

    vectors: NDArray[Any]
    labels: NDArray[Any] | None
    names: NDArray[Any] | None


def is_npz(data: object) -> bool:
    """Return whether data are the path of an .npz file, by its name."""
    return isinstance(data, str | Path) and Path(data).suffix.lower() == SUFFIX


def read_npz(path: Path) -> tuple[dict[str, SplitArrays], tuple[str, ...]]:
    """Return the arrays of an .npz file by split, "train" and perhaps "test", and the names of arrays not used.

    Args:
        path: The file. Its vectors have a name of `VECTOR_NAMES`, its labels one of `LABEL_NAMES`, both perhaps
            followed by `_train` or `_test`; the names of the classes have one of `CLASS_NAMES`.

    Raises:
        InputError: the file is missing, damaged or no .npz file, its arrays have other names, or hold Python objects.
    """
    with _opened(path) as file:
        found = list(file.files)
        vectors, labels = (_find(found, names, TRAIN, path) for names in (VECTOR_NAMES, LABEL_NAMES))
        if vectors is None:
            expected = " or ".join(VECTOR_NAMES)
            raise InputError(f"{path}: expected an array {expected}, got {', '.join(found) or 'no array'}")
        test, test_labels = (_find(found, names, TEST, path) for names in (VECTOR_NAMES, LABEL_NAMES))
        names = _find(found, CLASS_NAMES, ("",), path)
        splits = {"train": (vectors, labels)} | ({} if test is None else {"test": (test, test_labels)})
        used = {name for split in splits.values() for name in split if name is not None}
        arrays = {name: _array(file, name, path) for name in (*used, *([] if names is None else [names]))}
    return (
        {x: SplitArrays(arrays[v], arrays.get(y or ""), arrays.get(names or "")) for x, (v, y) in splits.items()},
        tuple(name for name in found if name not in arrays),
    )


def require_labels(splits: Mapping[str, SplitArrays], path: Path) -> None:
    """Raise InputError unless all splits have labels."""
    for split, arrays in splits.items():
        if arrays.labels is None:
            ending = "" if split == "train" else "_test"
            names = " or ".join(name + ending for name in LABEL_NAMES)
            raise InputError(f"{path}: expected an array {names} beside the vectors, got none")


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a file; turn errors of reading it into an InputError."""
    try:
        if not zipfile.is_zipfile(path) and path.is_file():
            raise InputError(f"{path}: expected an .npz file, as numpy.savez writes it, got a damaged or another file")
        with np.load(path, allow_pickle=False) as file:
            yield file
    except FileNotFoundError:
        raise InputError(f"{path}: expected an .npz file, found none") from None
    except (OSError, ValueError, EOFError, KeyError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"{path}: expected an .npz file that can be read, got: {reason}") from None


def _array(file: Any, name: str, path: Path) -> NDArray[Any]:
    """Return one array of an open file; a member that is no array has another type."""
    try:
        array = file[name]
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise
        raise InputError(
            f"{path}: expected arrays of numbers and text, got Python objects in {name}, which are never unpickled"
        ) from None
    if not isinstance(array, np.ndarray):
        raise InputError(f"{path}: expected arrays alone, got {name}, which is none")
    return array


def _find(arrays: Collection[str], names: Collection[str], endings: Collection[str], path: Path) -> str | None:
    """Return the one name with one of these endings that the file has; None if it has none."""
    found = [name + ending for name in names for ending in endings if name + ending in arrays]
    if len(found) > 1:
        raise InputError(f"{path}: expected one array of {', '.join(names)}, got {' and '.join(found)}")
    return found[0] if found else None
