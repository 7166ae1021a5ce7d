"""Images that a Python program passes, as arrays of pixels, with a training and a test part."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from PIL import Image

from pah.core.config import InputError
from pah.data.decode import MixedSizesError
from pah.data.decode_cache import DecodedDataSet, Labels, ReadingRecord
from pah.data.given_images import GivenImages
from pah.data.image import ImageInput, Pixels, read_image_size, to_pixel_array
from pah.data.labelled_splits import describe_resize, describe_unused_names
from pah.data.listing import choose_test_split, missing_train_error, select_test_fifth, sort_names, unknown_split_error
from pah.data.preprocessing import DEFAULT_RESIZING, Resizing
from pah.data.read_options import ReadOptions
from pah.data.vectors import VECTORS_EXPECTED, Vectors, as_pixels, bad_rows, refuse_image_size, require_finite

if TYPE_CHECKING:
    from numpy.typing import NDArray


def decode_given(
    splits: Mapping[str, GivenImages],
    image_size: int | None,
    options: ReadOptions,
    resizing: Resizing = DEFAULT_RESIZING,
) -> DecodedDataSet:
    """Return given images as arrays; without a test split, a fixed fifth of each class becomes the test part.

    Args:
        splits: The images by split; the training split is "train".
        image_size: Height and width to which they are resized; None requires one size, and keeps it.
        options: How they are read.
        resizing: How they are resized.

    Raises:
        InputError: labels and images do not fit together, or an image cannot be read.
    """
    if "train" not in splits:
        raise missing_train_error("data", splits)
    asked = options.test_split
    if asked is not None and (asked not in splits or asked == "train"):
        raise unknown_split_error("data", asked, splits)
    test_split, notes = choose_test_split(splits, asked) if len(splits) > 1 else (None, ())
    used = ["train"] if test_split is None else ["train", test_split]
    parts = [splits[split] for split in used]
    names, labels = _encode(parts)
    names, labels, dropped = _drop_unused(names, labels)
    decoded: Sequence[tuple[Pixels | Vectors, NDArray[np.int64], list[str]]] | None = _vectors(
        parts, image_size, options
    )
    are_images = decoded is None
    if decoded is None:
        size = (image_size, image_size) if image_size is not None else _common_size(parts)
        decoded = [_decode(cast("ImageInput", part.images), size, options, resizing) for part in parts]
    pixels: list[NDArray[Any]] = [images for images, _, _ in decoded]
    labels = [y[kept] for y, (_, kept, _) in zip(labels, decoded, strict=True)]
    if are_images and all(bool((images[:, 1:] == images[:, :1]).all()) for images in pixels):
        pixels = [np.ascontiguousarray(images[:, :1]) for images in pixels]
    if test_split is None:
        is_test = _test_fifth(labels[0], names)
        pixels, labels = [pixels[0][~is_test], pixels[0][is_test]], [labels[0][~is_test], labels[0][is_test]]
    skipped = tuple(name for _, _, names_of_split in decoded for name in names_of_split)
    resized: tuple[str, ...] = ()
    if image_size is not None:
        first = cast("ImageInput", splits["train"].images)[int(decoded[0][1][0])]  # that is used
        resized = describe_resize(_image_size(first), image_size, resizing)
    record = ReadingRecord((*splits["train"].notes, *notes, *dropped, *resized), skipped, test_split)
    return DecodedDataSet(names, pixels[0], labels[0], pixels[1], labels[1], record)


def require_kind(splits: Mapping[str, GivenImages], file: str | None, only_vectors: bool) -> str:
    """Return the name of given images or vectors: that of their file, if there is one.

    Args:
        splits: The images by split.
        file: Name of the .npz file from which they are.
        only_vectors: Whether images are refused.

    Raises:
        InputError: they are images, and these are refused.
    """
    kind = "images" if all(part.vectors is None for part in splits.values()) else "vectors"
    if only_vectors and kind == "images":
        raise InputError(f"data: expected {VECTORS_EXPECTED}, got images")
    return file or kind


def _vectors(
    parts: Sequence[GivenImages], image_size: int | None, options: ReadOptions
) -> list[tuple[Vectors, NDArray[np.int64], list[str]]] | None:
    """Return the vectors of all parts as (N, D, 1, 1), with what `_decode` returns beside them; None for images."""
    vectors = [part.vectors for part in parts]
    lengths = {None if array is None else array.shape[1] for array in vectors}
    if lengths == {None}:
        return None
    if len(lengths) > 1:
        kinds = " and ".join(sorted("images" if n is None else f"vectors of {n} numbers" for n in lengths))
        raise InputError(f"data: expected splits of one kind, got {kinds}")
    refuse_image_size(image_size, lengths.pop())
    result = []
    for array in vectors:
        assert array is not None, "checked above"
        bad = bad_rows(array) if options.skip_unreadable else np.zeros(0, np.int64)
        kept = np.setdiff1d(np.arange(len(array)), bad)
        finite = require_finite(array[kept] if len(bad) else array)
        result.append((as_pixels(finite), kept, [f"row {row}" for row in bad.tolist()]))
    return result


def _encode(parts: Sequence[GivenImages]) -> tuple[tuple[str, ...], list[Labels]]:
    """Return the class names of all parts, and their labels as numbers."""
    if len({(part.names, part.labels.dtype.kind == "U") for part in parts}) > 1:
        raise InputError("data: expected the same class names in both splits, got different ones")
    names = parts[0].names
    if parts[0].labels.dtype.kind == "U":
        names = names or tuple(sort_names({str(y) for part in parts for y in part.labels}, numeric=True))
        number_of = {name: y for y, name in enumerate(names)}
        return names, [np.array([number_of[str(y)] for y in part.labels], np.int64) for part in parts]
    labels = [part.labels.astype(np.int64) for part in parts]
    return names or tuple(str(y) for y in range(max(int(y.max()) for y in labels) + 1)), labels


def _drop_unused(names: tuple[str, ...], labels: list[Labels]) -> tuple[tuple[str, ...], list[Labels], tuple[str, ...]]:
    """Return the names that have images, the labels of these, and a note on the others."""
    used = np.unique(np.concatenate(labels))
    unused = [name for y, name in enumerate(names) if y not in used]
    kept = tuple(names[y] for y in used)
    return kept, [np.searchsorted(used, y).astype(np.int64) for y in labels], describe_unused_names(unused)


def _common_size(parts: Sequence[GivenImages]) -> tuple[int, int]:
    """Return height and width of all images; MixedSizesError if they differ."""
    sizes: dict[tuple[int, int], None] = {}
    for part in parts:
        if isinstance(part.images, np.ndarray):
            sizes[(part.images.shape[2], part.images.shape[1])] = None
        else:
            sizes |= dict.fromkeys(_image_size(image) for image in part.images)
    if len(sizes) > 1:
        (w, h), (other_w, other_h) = list(sizes)[:2]
        raise MixedSizesError(f"images: expected images of one size, got {w}x{h} and {other_w}x{other_h}; image_size=N")
    width, height = next(iter(sizes))
    return height, width


def _image_size(image: Any) -> tuple[int, int]:
    """Return width and height of an image."""
    if isinstance(image, str | Path):
        return read_image_size({"path": str(image), "bytes": None}, str(image))
    if isinstance(image, np.ndarray) and image.ndim >= 2:
        return image.shape[1], image.shape[0]
    if isinstance(image, Image.Image):
        return image.size
    raise InputError(f"images: expected PIL images, arrays or files, got {type(image).__name__}")


def _decode(
    images: ImageInput, size: tuple[int, int], options: ReadOptions, resizing: Resizing
) -> tuple[Pixels, NDArray[np.int64], list[str]]:
    """Return colour pixels (N, 3, H, W), the numbers of the images that are used, and the names of the others."""
    shape = (3, *size)
    if isinstance(images, np.ndarray) or not options.skip_unreadable:
        return to_pixel_array(images, shape, options.max_megapixels, resizing), np.arange(len(images)), []
    pixels, kept, skipped = [], [], []
    for number, image in enumerate(images):
        try:
            pixels.append(to_pixel_array([image], shape, options.max_megapixels, resizing))
            kept.append(number)
        except InputError:
            skipped.append(_short_name(image, number, images))
    if not kept:
        raise InputError("images: expected images that can be read, got none")
    return np.concatenate(pixels), np.array(kept, np.int64), skipped


def _short_name(image: Any, number: int, images: Sequence[Any]) -> str:
    """Return the name of an image: that of its file, below the folder that all files share, or its number."""
    if not isinstance(image, str | Path):
        return f"image {number + 1}"
    folders = {os.path.dirname(os.path.abspath(each)) for each in images if isinstance(each, str | Path)}
    return os.path.relpath(image, os.path.commonpath(folders))


def _test_fifth(labels: Labels, names: Sequence[str]) -> NDArray[np.bool_]:
    """Return which images are test images: a fixed fifth of each class."""
    is_test = np.zeros(len(labels), dtype=bool)
    for y, name in enumerate(names):
        rows = np.flatnonzero(labels == y)
        is_test[rows[list(select_test_fifth(len(rows), name))]] = True
    return is_test
