"""The vectors that a command line names: the rows of .npz files, and of Parquet files with a column of vectors.

D: numbers in a vector.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

from pah.core.config import InputError
from pah.data.vector_files import SUFFIX, is_npz, read_npz
from pah.data.vector_tables import read_column
from pah.data.vectors import Vectors, to_vectors
from pah.learner.answering import check_each

PARQUET = ".parquet"


def vector_suffixes(column: str | None) -> frozenset[str]:
    """Return how the names of files of vectors end; Parquet files need a column."""
    return frozenset({SUFFIX} if column is None else {SUFFIX, PARQUET})


def read_rows(files: Iterable[str], numbers: int, column: str | None) -> Iterator[tuple[str, Vectors | InputError]]:
    """Yield the name of each row, such as "x.npz[3]", with its vector (D, 1, 1), or the reason why it is refused.

    Args:
        files: The files. One that cannot be read has its own name, and yields one reason.
        numbers: D of the learner.
        column: The column of Parquet files.
    """
    for file in files:
        try:
            vectors = _read(Path(file), numbers, column)
        except InputError as error:
            yield file, error
            continue
        for row, checked in enumerate(check_each(vectors, file)):
            yield f"{file}[{row}]", checked


def _read(path: Path, numbers: int, column: str | None) -> Vectors:
    """Return the vectors of a file, (N, D)."""
    if path.suffix.lower() == PARQUET and column is not None:
        return read_column(path, column, numbers)
    if not is_npz(path):
        raise InputError(
            f"{path}: expected an .npz file, or a .parquet file and --column NAME, as this learner takes vectors of "
            f"{numbers} numbers, got another file"
        )
    splits, _ = read_npz(path)
    if len(splits) > 1:
        raise InputError(f"{path}: expected one array of vectors to answer, got those of training and test")
    try:
        return to_vectors(splits["train"].vectors, numbers)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
