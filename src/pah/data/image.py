"""Decoding of single images, from files or bytes, to arrays of pixels.

Shapes: C channels, 1 for grey and 3 for colour, H x W pixels.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from pah.core.config import InputError

MAX_PIXELS = 50_000_000  # of one image; a larger one is treated as a decompression bomb
MAX_MEGAPIXELS = 50
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # other formats may start programs: EPS, Ghostscript

Pixels: TypeAlias = NDArray[np.uint8]
ImageInput: TypeAlias = Pixels | Sequence[Image.Image | str | Path]
Mode = Literal["L", "RGB"]


class ColourError(Exception):
    """A colour image was found while all images were assumed to be grey."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, for messages of one line."""
    return next(iter(str(error).splitlines()), type(error).__name__)


@contextmanager
def without_pillow_warnings() -> Iterator[None]:
    """Silence Pillow's warnings of odd metadata, palettes and sizes; do not enter it in several threads at once."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def to_pixel_array(images: ImageInput, shape: tuple[int, int, int], max_megapixels: int = MAX_MEGAPIXELS) -> Pixels:
    """Return images as one uint8 array (N, C, H, W), with C, H and W of `shape`.

    An image of another size is resized by its shorter side and its centre is cropped. Colour is converted to grey if C
    is 1, and grey is repeated if C is 3.

    Args:
        images: uint8 (N, H, W), (N, H, W, 1) or (N, H, W, 3), or a sequence of PIL images and image files.
        shape: Channels, height and width of the network's input.

    Raises:
        InputError: the array is not uint8 (NaN exists only in other types), or a file is unreadable, truncated or too
            large.
    """
    channels, height, width = shape
    if isinstance(images, np.ndarray):
        if images.dtype != np.uint8 or images.ndim not in (3, 4) or images.shape[3:] not in ((), (1,), (3,)):
            raise InputError(
                "images: expected uint8 pixels (N, H, W), (N, H, W, 1) or (N, H, W, 3), got "
                f"{images.dtype} {images.shape}"
            )
        stacked = images if images.ndim == 4 else images[..., None]
        if stacked.shape[1:] == (height, width, channels):
            return np.array(stacked).transpose(0, 3, 1, 2)
        images = [Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image) for image in stacked]
    mode: Mode = "L" if channels == 1 else "RGB"
    with without_pillow_warnings():
        arrays = [_decode_input(image, i, mode, (height, width)) for i, image in enumerate(images)]
    return np.stack(arrays).transpose(0, 3, 1, 2) if arrays else np.empty((0, *shape), np.uint8)


def _decode_input(image: Image.Image | str | Path, index: int, mode: Mode, size: tuple[int, int]) -> Pixels:
    """Return one of several images as an array (H, W, C)."""
    if isinstance(image, str | Path):
        return decode_image({"path": str(image), "bytes": None}, str(image), mode, size, grey=True)
    if not isinstance(image, Image.Image):
        raise InputError(f"image {index + 1}: expected a PIL image or a file, got {type(image).__name__}")
    with _image_errors(f"image {index + 1}"):
        return _to_array(image, mode, size)


def decode_image(
    row: Mapping[str, Any] | None, name: str, mode: Mode, size: tuple[int, int] | None, *, grey: bool = False
) -> Pixels:
    """Return an image as an array (H, W, C).

    Args:
        row: The image's "bytes", or the "path" of its file if these are None.
        name: How messages call the image.
        mode: "L" for one channel, "RGB" for three.
        size: (H, W) of the array; None keeps the image's own size.
        grey: Whether a colour image may be converted to grey.

    Raises:
        ColourError: the mode is "L", the image is in colour, and `grey` is false.
        InputError: the image cannot be read.
    """
    with _image_errors(name), _open(row) as image:
        if mode == "L" and not grey and Image.getmodebase(image.mode) != "L":
            raise ColourError
        return _to_array(image, mode, size)


def read_image_size(row: Mapping[str, Any] | None, name: str) -> tuple[int, int]:
    """Return width and height of an image, from its header; InputError if it cannot be read."""
    with without_pillow_warnings(), _image_errors(name), _open(row) as image:
        return image.size


@contextmanager
def _image_errors(name: str) -> Iterator[None]:
    """Turn any error about the image of that name into an InputError of one line."""
    try:
        yield
    except ColourError:
        raise
    except Exception as error:  # for a damaged file, Pillow's parsers raise almost any kind of error
        raise InputError(f"{name}: expected an image, got: {first_line(error)}") from error


def _to_array(image: Image.Image, mode: Mode, size: tuple[int, int] | None) -> Pixels:
    """Return an open image, upright, as an array (H, W, C)."""
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{image.width}x{image.height} pixels, more than {MAX_PIXELS // 10**6} megapixels")
    converted = _convert_mode(ImageOps.exif_transpose(image), mode)
    if size is not None:
        converted = ImageOps.fit(converted, (size[1], size[0]), Image.Resampling.BILINEAR)
    return np.atleast_3d(np.asarray(converted))


def _open(row: Mapping[str, Any] | None) -> Image.Image:
    """Open an image from its bytes or its file, without decoding it."""
    if row is None or (row["bytes"] is None and not row["path"]):
        raise ValueError("nothing")
    try:
        return Image.open(row["path"] if row["bytes"] is None else BytesIO(row["bytes"]), formats=FORMATS)
    except UnidentifiedImageError:  # its own message is the address of an object
        raise ValueError(f"data in none of the formats {', '.join(FORMATS)}") from None


def _convert_mode(image: Image.Image, mode: Mode) -> Image.Image:
    """Return the image in the mode, with 8 bits a channel."""
    if image.mode == "F":
        raise ValueError("floating-point pixels, whose range is unknown")
    if image.mode.startswith("I"):  # 16 bits: Pillow would clip them at 255 instead of scaling
        image = Image.fromarray(np.clip(np.asarray(image) >> 8, 0, 255).astype(np.uint8))
    return image.convert(mode)
