"""Vectors in place of images, such as embeddings of text or audio: their checks, and their form in a data set.

N: vectors, D: numbers in a vector. A data set stores vectors as float32 images of one pixel, (N, D, 1, 1).
"""

from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from pah.core.config import InputError

Vectors: TypeAlias = NDArray[np.float32]
AnyVectors: TypeAlias = NDArray[Any] | torch.Tensor | Sequence[Any]  # one vector or several
MAX_NUMBERS = 8192  # in a vector: a learner stores a covariance of D x D numbers
SHOWN_ROWS = 5  # in a message
VECTORS_EXPECTED = "vectors, as backbone features takes them (an .npz file, an array (N, D) or --column NAME)"
REAL = "iufb"  # kinds of numbers that become floats


def are_vectors(data: Any) -> bool:
    """Return whether data are several vectors and not images: an array (N, D), or a list of arrays or lists of numbers.

    Args:
        data: Anything.
    """
    if isinstance(data, np.ndarray | torch.Tensor):
        return data.ndim == 2
    if is_sparse(data):
        return True
    if not isinstance(data, list | tuple) or not data:
        return False
    first = data[0]
    if isinstance(first, np.ndarray | torch.Tensor):
        return first.ndim == 1
    return isinstance(first, list | tuple) and all(isinstance(number, Real) for number in first)


def is_sparse(data: object) -> bool:
    """Return whether data are a sparse matrix of SciPy, as text vectorizers return it."""
    return type(data).__module__.startswith("scipy.sparse")


def to_vectors(data: Any, numbers: int | None = None) -> Vectors:
    """Return vectors as float32 (N, D). Whole numbers become floats. NaN and infinite numbers stay.

    Args:
        data: An array or tensor (N, D), or a list of vectors.
        numbers: D, if it is known.

    Raises:
        InputError: the data are something else, or D is another or out of range.
    """
    if is_sparse(data):
        raise InputError(
            f"vectors: expected an array, got a sparse matrix {type(data).__name__} {data.shape}; .toarray() converts "
            "it, and TruncatedSVD of scikit-learn makes short vectors of it"
        )
    if not isinstance(data, np.ndarray | torch.Tensor):
        data = _stacked(data)
    array = _to_array(data) if isinstance(data, torch.Tensor) else data
    if array.ndim != 2 or array.dtype.kind not in REAL:
        raise InputError(f"vectors: expected real numbers (N, D), got {array.dtype} {array.shape}")
    if numbers is not None and array.shape[1] != numbers:
        raise InputError(f"vectors: expected {numbers} numbers each, got {array.shape[1]}")
    if not 1 <= array.shape[1] <= MAX_NUMBERS:
        raise InputError(f"vectors: expected 1 to {MAX_NUMBERS} numbers each, got {array.shape[1]}")
    with np.errstate(over="ignore"):  # too large for float32: infinite, which is refused
        return np.ascontiguousarray(array, dtype=np.float32)


def _to_array(tensor: torch.Tensor) -> NDArray[Any]:
    """Return a tensor as an array; NumPy has no bfloat16."""
    values = tensor.detach().cpu()
    result: NDArray[Any] = (values.float() if values.is_floating_point() else values).numpy()
    return result


def _stacked(data: Any) -> NDArray[Any]:
    """Return a list of vectors as an array; InputError if they have several lengths."""
    if isinstance(data, str | bytes) or not isinstance(data, Iterable):
        raise InputError(f"vectors: expected real numbers (N, D), got {type(data).__name__}")
    rows = [_to_array(row) if isinstance(row, torch.Tensor) else row for row in data]
    lengths = {len(row): k for k, row in reversed(list(enumerate(rows))) if hasattr(row, "__len__")}
    if len(lengths) > 1:
        (first, row), (other, other_row) = sorted(lengths.items(), key=lambda pair: pair[1])[:2]
        raise InputError(
            f"vectors: expected one length, got {first} numbers in row {row} and {other} in row {other_row}"
        )
    try:
        return np.array(rows)
    except (TypeError, ValueError):
        raise InputError("vectors: expected real numbers (N, D), got a list of something else") from None


def bad_rows(vectors: Vectors) -> NDArray[np.int64]:
    """Return the numbers of the rows that have a NaN or an infinite number, from 0."""
    return np.flatnonzero(~np.isfinite(vectors).all(axis=1)).astype(np.int64)


def require_finite(vectors: Vectors, name: str = "vectors") -> Vectors:
    """Return the vectors; raise InputError, naming the rows, if a number is NaN, infinite or too large for float32."""
    bad = bad_rows(vectors)
    if len(bad):
        raise InputError(f"{name}: expected finite numbers, got NaN or infinite ones in {name_rows(bad)}")
    return vectors


def name_rows(rows: Sequence[int] | NDArray[np.int64]) -> str:
    """Return rows in words, such as "row 3" or "rows 3, 5 and 9 more"."""
    shown = ", ".join(str(row) for row in rows[:SHOWN_ROWS])
    more = f" and {len(rows) - SHOWN_ROWS} more" if len(rows) > SHOWN_ROWS else ""
    return f"row{'s' * (len(rows) > 1)} {shown}{more}"


def refuse_image_size(image_size: int | None, numbers: int | None) -> None:
    """Raise InputError if vectors of `numbers` numbers, where that is known, are to be resized."""
    if image_size is not None:
        got = "vectors" if numbers is None else f"vectors of {numbers} numbers"
        raise InputError(
            f"data: expected images, to be resized to {image_size}x{image_size}, got {got}; "
            "backbone features takes them"
        )


def as_pixels(vectors: Vectors) -> Vectors:
    """Return vectors (N, D) as a data set stores them: (N, D, 1, 1)."""
    return vectors[:, :, None, None]


def asked_vectors(data: Any, numbers: int) -> Vectors:
    """Return the vectors of a question, one (D,) or several (N, D), as float32 (N, D) that may have NaN.

    Args:
        data: An array or tensor, or a list of numbers or of vectors.
        numbers: D of the learner.

    Raises:
        InputError: the data are no vectors of D numbers.
    """
    is_one = isinstance(data, np.ndarray | torch.Tensor) and data.ndim == 1
    is_one = is_one or (isinstance(data, list | tuple) and bool(data) and all(isinstance(x, Real) for x in data))
    if is_one:
        data = data[None] if isinstance(data, np.ndarray | torch.Tensor) else [data]
    if isinstance(data, list | tuple) and not data:
        return np.empty((0, numbers), np.float32)
    try:
        return to_vectors(data, numbers)
    except InputError as error:
        raise InputError(f"{error}; this learner takes vectors of {numbers} numbers") from None
