"""Labelled images or vectors that a Python program passes: tuples, tables of pandas, data sets of PyTorch, and splits.

Files of vectors in NumPy's .npz format have the same form.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from PIL import Image

from pah.core.config import InputError, require
from pah.data.image import ImageInput, Pixels
from pah.data.read_options import ReadOptions
from pah.data.vector_files import is_npz, read_npz, require_labels
from pah.data.vectors import Vectors, are_vectors, require_finite, to_vectors

if TYPE_CHECKING:
    import datasets
    from numpy.typing import NDArray

Names: TypeAlias = "Iterable[str] | Mapping[int, str] | None"
# any of `KINDS`: those of other libraries have no type here, as these may be missing
GivenData: TypeAlias = (
    "str | Path | datasets.Dataset | datasets.DatasetDict | tuple[Any, ...] | Mapping[str, Any] | Any"
)
IMAGE_COLUMNS = ("image", "file_name", "path", "file")  # of a pandas table; the first one that exists
LABEL_COLUMNS = ("label", "class")
KINDS = (
    "a folder, a hub id, a Dataset or DatasetDict of the Hugging Face library, (images, labels, class names), "
    "(images, labels), a pandas DataFrame, a PyTorch data set, or a dict of splits of these"
)


@dataclass(frozen=True)
class GivenImages:
    """Images or vectors of one split with their labels.

    Args:
        images: As `pah.data.image.to_pixel_array` takes several; or vectors, float32 (N, D), that may have NaN.
        labels: Whole numbers or class names, (N,).
        names: The class names by label; None if the labels are names, or numbers without names.
        notes: What was left out, in words.
    """

    images: ImageInput | Vectors
    labels: NDArray[Any]
    names: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    @property
    def vectors(self) -> Vectors | None:
        """The vectors (N, D); None if these are images."""
        array: Any = self.images
        return array if isinstance(array, np.ndarray) and array.ndim == 2 else None


def as_data_set(
    data: Any, options: ReadOptions
) -> str | datasets.Dataset | datasets.DatasetDict | dict[str, GivenImages]:
    """Return any kind of data as a path or hub id, a data set of the Hugging Face library, or splits of given images.

    Args:
        data: The data; a single split has the name "train".
        options: How it is read.

    Raises:
        InputError: the data are of another kind.
    """
    if isinstance(data, str | Path):
        if not is_npz(data):
            return str(data)
        _refuse_column(str(data), options)
        return _from_npz(Path(data), options)
    if isinstance(data, dict) and not is_hugging_face(data):
        return _as_splits(data, options)
    if not is_hugging_face(data):
        return {"train": _as_given(data, options)}
    import datasets

    if isinstance(data, datasets.IterableDatasetDict):
        return datasets.DatasetDict({name: _as_dataset(part) for name, part in data.items()})
    if isinstance(data, datasets.IterableDataset):
        return _as_dataset(data)
    if isinstance(data, datasets.Dataset | datasets.DatasetDict):
        return data
    raise _unknown_kind(data)


def _from_npz(path: Path, options: ReadOptions) -> dict[str, GivenImages]:
    """Return the vectors of an .npz file by split."""
    splits, unused = read_npz(Path(path).expanduser())
    require_labels(splits, path)
    notes = (f"not used: the array{'s' * (len(unused) > 1)} {', '.join(unused)}",) if unused else ()
    given = {}
    for split, arrays in splits.items():
        try:
            vectors = to_vectors(arrays.vectors)
            if not options.skip_unreadable:
                require_finite(vectors)
            given[split] = _given(vectors, arrays.labels, None if arrays.names is None else list(arrays.names))
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
    return given | {"train": replace(given["train"], notes=notes)}


def is_hugging_face(data: object) -> bool:
    """Return whether an object is of the library `datasets`, without importing it, which takes a second."""
    return any(kind.__module__.split(".")[0] == "datasets" for kind in type(data).__mro__)


def _as_dataset(data: datasets.IterableDataset) -> datasets.Dataset:
    """Return a data set that is read from its beginning to its end, with all of it in memory."""
    import datasets

    resolved = data if data.features is not None else data._resolve_features()
    try:
        return datasets.Dataset.from_list(list(resolved), features=resolved.features)
    except Exception as error:  # the source of such a data set is any program
        raise InputError(f"data: expected an IterableDataset that can be read to its end, got: {error}") from error


def _as_splits(data: Mapping[Any, Any], options: ReadOptions) -> datasets.DatasetDict | dict[str, GivenImages]:
    """Return a dict of splits as a DatasetDict, if they are data sets of the Hugging Face library, or given images."""
    parts = {}
    for name, part in data.items():
        if not isinstance(name, str) or isinstance(part, str | Path | dict):
            raise InputError(f"data: expected {KINDS}, got a dict with {name!r:.40}: {type(part).__name__}")
        parts[name] = as_data_set(part, options)
    given = {
        name: part["train"] for name, part in parts.items() if isinstance(part, dict) and not is_hugging_face(part)
    }
    if len(given) == len(parts):
        return given
    if given:
        raise InputError("data: expected splits of one kind, got data sets of the Hugging Face library and others")
    import datasets

    return datasets.DatasetDict(parts)


def _as_given(data: Any, options: ReadOptions) -> GivenImages:
    """Return one split of labelled images; InputError for another kind of data."""
    if type(data).__module__.split(".")[0] == "pandas" and hasattr(data, "columns"):
        return _from_table(data, options)
    _refuse_column("data without columns", options)
    if isinstance(data, torch.utils.data.TensorDataset):
        data = data.tensors
    if isinstance(data, tuple) and len(data) in (2, 3):
        images, labels, names = (*data, None)[:3]
        return _given(images, labels, names)
    if isinstance(data, torch.utils.data.Dataset):
        return _from_items(data, _class_names(data))
    raise _unknown_kind(data)


def _refuse_column(data: str, options: ReadOptions) -> None:
    require(options.column is None, "column", f"none for {data}", options.column)


def has_columns(data: object) -> bool:
    """Return whether data are a table, files of tables or folders, for which the option `column` has a meaning."""
    if isinstance(data, str | Path):
        return not is_npz(data)
    return is_hugging_face(data) or type(data).__module__.split(".")[0] == "pandas"


def _unknown_kind(data: object) -> InputError:
    length = f" of {len(data)}" if isinstance(data, tuple) else ""
    return InputError(f"data: expected {KINDS}, got {type(data).__name__}{length}")


def _given(images: Any, labels: Any, names: Names) -> GivenImages:
    """Return images, their labels and class names in a common form; InputError if they do not fit together."""
    if isinstance(images, str | Path | Image.Image):
        raise InputError("images: expected a list of images, with a label for each, got one image")
    if are_vectors(images):
        images = to_vectors(images)
    if isinstance(images, torch.Tensor):
        images = _tensor_pixels(images)
    if isinstance(images, np.ndarray) and images.ndim == 3:  # grey, as there are labels for several images
        images = images[..., None]
    if (
        isinstance(images, bytes | set | Mapping)
        or not hasattr(images, "__getitem__")
        or not hasattr(images, "__len__")
    ):
        raise InputError(f"images: expected an array or a list of images, got {type(images).__name__}")
    if isinstance(labels, str | bytes | set | Mapping) or not isinstance(labels, Iterable):
        raise InputError(f"labels: expected a label for each of {len(images)} images, got {type(labels).__name__}")
    known = _names_by_label(names)
    given = GivenImages(images, _label_array(labels), known)
    _check_labels(given)
    return given


def _label_array(labels: Iterable[Any]) -> NDArray[Any]:
    """Return labels as an array; those that are text remain text."""
    if isinstance(labels, torch.Tensor):
        return labels.detach().cpu().numpy()
    listed = labels if isinstance(labels, np.ndarray) else list(labels)
    if not isinstance(listed, np.ndarray) and {isinstance(label, str) for label in listed} == {True, False}:
        raise InputError("labels: expected whole numbers, or class names, got a mixture")
    try:
        array = np.asarray(listed)
    except ValueError:  # lists of different lengths
        raise InputError("labels: expected one label for each image, got lists of them") from None
    is_text = array.dtype.kind == "O" and all(isinstance(label, str) for label in array.flat)
    return array.astype(np.str_) if is_text else array


def _names_by_label(names: Names) -> tuple[str, ...] | None:
    """Return class names in the order of their labels; a dict gives the name of each label."""
    if names is None:
        return None
    if isinstance(names, Mapping):
        if set(names) != set(range(len(names))) or any(isinstance(key, bool) for key in names):
            keys = ", ".join(map(repr, list(names)[:5]))
            raise InputError(f"class names: expected a name for each label 0 to {len(names) - 1}, got those of {keys}")
        return tuple(str(names[y]) for y in range(len(names)))
    if isinstance(names, str | bytes | set | frozenset) or not isinstance(names, Iterable):
        raise InputError(
            f"class names: expected a list in the order of the labels, or a dict by label, got {type(names).__name__}"
        )
    return tuple(str(name) for name in names)


def _check_labels(given: GivenImages) -> None:
    """Raise InputError unless there is a label for each image, and a class name of its own for each label."""
    labels, names, count = given.labels, given.names, len(given)
    kind = "images" if given.vectors is None else "vectors"
    if not count:
        raise InputError(f"{kind}: expected at least one of a class, got none")
    if labels.dtype.kind not in "iuU" or labels.shape != (count,):
        raise InputError(
            f"labels: expected a whole number for each of {count} {kind}, got {labels.dtype} {labels.shape}"
        )
    if names is not None and len(set(names)) < len(names):
        raise InputError(f"class names: expected each once, got {', '.join(names)}")
    if labels.dtype.kind == "U":
        if unknown := sorted({str(label) for label in labels} - set(names)) if names is not None else []:
            raise InputError(f"labels: expected the class names {', '.join(names or ())}, got {unknown[0]!r}")
        return
    limit = len(names) if names is not None else max(count, 1000)
    if outside := [int(label) for label in labels if not 0 <= label < limit]:
        reason = f", as there are {len(names)} names" if names is not None else ""
        raise InputError(f"labels: expected 0 to {limit - 1}{reason}, got {outside[0]}")


def _from_table(table: Any, options: ReadOptions) -> GivenImages:
    """Return the images and labels of a pandas table."""
    columns = [str(column) for column in table.columns]
    wanted, asked = IMAGE_COLUMNS if options.column is None else (options.column,), options.label_column
    images = [name for name in wanted if name in columns][:1]
    labels = [asked] if asked is not None else [name for name in LABEL_COLUMNS if name in columns][:1]
    if not images or not labels or labels[0] not in columns:
        raise InputError(
            f"data: expected a table with a column {' or '.join(wanted)} and a column "
            f"{asked or ' or '.join(LABEL_COLUMNS)}, got {', '.join(columns)}"
        )
    values = list(table[images[0]])
    return _given(values if options.column is None else to_vectors(values), list(table[labels[0]]), None)


def _class_names(data: Any) -> Names:
    """Return the class names of a PyTorch data set, or of that of which it is a part; None if it has none."""
    while data is not None:
        names = getattr(data, "classes", None)
        if isinstance(names, list | tuple) and names:
            return [str(name) for name in names]
        data = getattr(data, "dataset", None)
    return None


def _from_items(data: Any, names: Names) -> GivenImages:
    """Return the images and labels of a PyTorch data set, whose items are pairs."""
    try:
        items = [data[i] for i in range(len(data))] if hasattr(data, "__getitem__") else list(data)
    except (TypeError, NotImplementedError) as error:
        raise InputError(f"data: expected a PyTorch data set that can be read to its end, got: {error}") from error
    if not all(isinstance(item, tuple | list) and len(item) == 2 for item in items):
        raise InputError("data: expected a PyTorch data set whose items are pairs of an image and its label")
    images = [
        _tensor_pixels(image[None])[0] if isinstance(image, torch.Tensor) and image.ndim > 1 else image
        for image, _ in items
    ]
    labels = [label.item() if isinstance(label, torch.Tensor) and label.ndim == 0 else label for _, label in items]
    return _given(images, labels, names)


def _tensor_pixels(images: torch.Tensor) -> Pixels:
    """Return images of PyTorch, (N, H, W) or (N, C, H, W), as uint8 (N, H, W, C); numbers from 0 to 1 become 0 to 255.

    Raises:
        InputError: other numbers, whose range is unknown, or another shape.
    """
    values = images.detach().cpu()
    if values.ndim == 3:
        values = values[:, None]
    is_unit = values.is_floating_point() and bool(((values >= 0) & (values <= 1)).all())
    if values.ndim != 4 or values.shape[1] not in (1, 3, 4) or not (is_unit or values.dtype == torch.uint8):
        raise InputError(
            "images: expected tensors (N, C, H, W), uint8 or numbers from 0 to 1 that are not normalized, got "
            f"{images.dtype} {tuple(images.shape)}"
        )
    pixels = (values * 255).round().to(torch.uint8) if is_unit else values
    return pixels.permute(0, 2, 3, 1).contiguous().numpy()
