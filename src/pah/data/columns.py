"""Images or vectors, labels and class names of a data set that is stored in Arrow tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pyarrow
from numpy.typing import NDArray

from pah.core.config import InputError
from pah.data.decode import reading
from pah.data.decode_cache import Labels
from pah.data.links import resolve_inside

if TYPE_CHECKING:
    import datasets  # imported inside functions: importing it takes a second, which a run from the cache saves
    import pyarrow.dataset

# by split, made when they are needed; the schema of a table contains the features
SplitTables: TypeAlias = "Mapping[str, Callable[[], pyarrow.dataset.Dataset]]"
TEXT = ("string", "large_string")  # types of a column of class names


@dataclass(frozen=True)
class FilePaths:
    """How paths of image files in a table are read: those outside the data set's folder are refused.

    Args:
        folder: The data set's folder, resolved.
        follow_links: Whether files outside the folder are allowed.
        checked: Whether all paths are known to be absolute and allowed.
    """

    folder: Path
    follow_links: bool
    checked: bool = False


class ImageRows:
    """The images of a table of which only some rows are used; it is read like a `pyarrow.dataset.Dataset`.

    Args:
        table: All rows.
        name: Name of the data set and its split, for messages.
        rows: Numbers of the rows that are used, ascending; None for all.
        paths: How paths of image files are read; None takes them as they are.
    """

    def __init__(
        self, table: pyarrow.dataset.Dataset, name: str, rows: Labels | None = None, paths: FilePaths | None = None
    ) -> None:
        self.table = table
        self.name = name
        self.paths = paths
        self.used: NDArray[np.bool_] | None = None  # by row
        if rows is not None:
            self.used = np.zeros(table.count_rows(), dtype=bool)
            self.used[rows] = True

    def to_batches(self, *, columns: Sequence[str], **options: Any) -> Iterator[pyarrow.RecordBatch]:
        """Yield the rows in order, as `pyarrow.dataset.Dataset.to_batches` does; of the columns, one of images."""
        start = 0
        for batch in self.table.to_batches(columns=list(columns), **options):
            numbers = np.arange(start, start + len(batch))
            start += len(batch)
            if self.used is not None:
                kept = self.used[numbers]
                batch, numbers = batch.filter(pyarrow.array(kept)), numbers[kept]
            unchecked = self.paths is not None and not self.paths.checked
            yield self._with_file_paths(batch, numbers) if len(batch) and unchecked else batch

    def _with_file_paths(self, batch: pyarrow.RecordBatch, numbers: NDArray[np.int64]) -> pyarrow.RecordBatch:
        """Return a batch whose paths of image files lead inside the data set's folder."""
        column = batch.column(0)
        if not pyarrow.types.is_struct(column.type) or column.field("bytes").null_count == 0 or self.paths is None:
            return batch
        paths, rows = self.paths, column.to_pylist()
        for row, number in zip(rows, numbers, strict=True):
            if row and row["bytes"] is None and row["path"]:
                place = f"{self.name}, row {number}"
                folder = paths.folder
                row["path"] = str(resolve_inside(folder, row["path"], folder, paths.follow_links, place))
        changed = pyarrow.array(rows, column.type)
        return pyarrow.RecordBatch.from_arrays([changed], schema=pyarrow.schema([batch.schema.field(0)]))


@dataclass(frozen=True)
class SplitLabels:
    """The labels of a split as they are stored.

    Args:
        values: Whole numbers, or text; -1 or an empty text where a label is missing.
        class_names: The names of the labels, if the table contains them.
    """

    values: NDArray[Any]
    class_names: tuple[str, ...] | None = None

    def __len__(self) -> int:
        """Return the number of images with a label."""
        return int(np.count_nonzero(self.values != ("" if self.is_text else -1)))

    @property
    def is_text(self) -> bool:
        """Whether the labels are text."""
        return self.values.dtype.kind in "UO"


def find_image_column(features: datasets.Features, data: str) -> str:
    """Return the only column of images; Parquet files of other programs store these as structs of bytes and path."""
    import datasets

    columns = [
        name
        for name, feature in features.items()
        if isinstance(feature, datasets.Image) or (isinstance(feature, dict) and feature.keys() == {"bytes", "path"})
    ]
    if len(columns) != 1:
        has_lists = any(holds_lists(field.type) for field in features.arrow_schema)
        hint = "; `--column NAME` reads one of vectors" if has_lists else ""
        raise InputError(
            f"{data}: expected one column of images, got the columns {', '.join(map(repr, features))}{hint}"
        )
    return str(columns[0])


def require_vector_column(schema: pyarrow.Schema, column: str, data: str) -> None:
    """Raise InputError, naming all columns, unless a column exists and holds lists of numbers."""
    if column not in schema.names or not holds_lists(schema.field(column).type):
        types = ", ".join(f"{field.name!r} ({field.type})" for field in schema)
        raise InputError(f"{data}: expected a column {column!r} of lists of numbers, got the columns {types:.300}")


def holds_lists(kind: pyarrow.DataType) -> bool:
    """Return whether the values of a type are lists of numbers."""
    types = pyarrow.types
    is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return bool(is_list and (types.is_floating(kind.value_type) or types.is_integer(kind.value_type)))


def find_label_column(features: datasets.Features, label_column: str | None, data: str) -> str:
    """Return the given column, or else "label", "fine_label", the only ClassLabel or the only integers.

    Text is accepted in a column that is given, and in "label" and "fine_label".

    Raises:
        InputError: there is no such column, or several; `data` names the data set in the message.
    """
    import datasets

    classes = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    values = {name: feature.dtype for name, feature in features.items() if isinstance(feature, datasets.Value)}
    integers = [name for name, dtype in values.items() if "int" in dtype]
    texts = [name for name, dtype in values.items() if dtype in TEXT]
    usual = [name for name in ("label", "fine_label") if name in features][:1]
    candidates = usual or classes or integers if label_column is None else [label_column]
    if len(candidates) != 1 or candidates[0] not in (*classes, *integers, *texts):
        expected = "one column" if label_column is None else f"a column {label_column!r}"
        columns = ", ".join(map(repr, features))
        raise InputError(
            f"{data}: expected {expected} of labels, ClassLabel, integers or text, got the columns {columns}; "
            "`--label_column NAME` chooses one"
        )
    return candidates[0]


def read_labels(table: pyarrow.dataset.Dataset, column: str, name: str) -> SplitLabels:
    """Return the labels of a split, of which none is known if it has no such column; `name` is for messages."""
    import datasets

    with reading(name):
        if column not in table.schema.names:
            return SplitLabels(np.full(table.count_rows(), -1))
        feature = datasets.Features.from_arrow_schema(table.schema)[column]
        values = table.to_table(columns=[column]).column(0)
        if getattr(feature, "dtype", None) in TEXT:
            return SplitLabels(np.array(values.fill_null("").to_pylist(), dtype=np.str_))
        numbers = values.cast(pyarrow.int64()).fill_null(-1).to_numpy()  # data sets write -1 for "unknown"
    names = getattr(feature, "names", None)
    return SplitLabels(np.asarray(numbers, dtype=np.int64), None if names is None else tuple(names))
