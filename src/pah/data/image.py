"""One image, from a file or from bytes, as pixels.

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

MAX_PIXELS = 50_000_000  # of one image; more is taken for a decompression bomb
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # others may start programs: EPS, Ghostscript

Pixels: TypeAlias = NDArray[np.uint8]
Images: TypeAlias = Pixels | Sequence[Image.Image | str | Path]
Mode = Literal["L", "RGB"]


class ColourError(Exception):
    """A colour image came up while all of them were taken for grey."""


def first_line(error: BaseException) -> str:
    """The first line of what `error` says, for messages of one line."""
    return next(iter(str(error).splitlines()), type(error).__name__)


@contextmanager
def without_warnings() -> Iterator[None]:
    """Inside, Pillow keeps to itself what it thinks of odd metadata, palettes and sizes; not for use by threads."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def to_pixels(images: Images, shape: tuple[int, int, int]) -> Pixels:
    """Images as a network of `shape` (C, H, W) takes them: uint8 (N, C, H, W).

    Another size: the shorter side is resized and the centre cropped. Colour becomes grey or grey colour where C asks
    for it.

    Args:
        images: uint8 (N, H, W), (N, H, W, 1) or (N, H, W, 3), or a sequence of PIL images and image files.
        shape: what the network takes.

    Raises:
        InputError: pixels of another type (as NaN can only be), an unreadable or truncated file, or one too large.
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
    with without_warnings():
        found = [_one(image, i, mode, (height, width)) for i, image in enumerate(images)]
    return np.stack(found).transpose(0, 3, 1, 2) if found else np.empty((0, *shape), np.uint8)


def _one(image: Image.Image | str | Path, index: int, mode: Mode, size: tuple[int, int]) -> Pixels:
    """One of several images, (H, W, C)."""
    if isinstance(image, str | Path):
        return decode_image({"path": str(image), "bytes": None}, str(image), mode, size, grey=True)
    if not isinstance(image, Image.Image):
        raise InputError(f"image {index + 1}: expected a PIL image or a file, got {type(image).__name__}")
    with _understood(f"image {index + 1}"):
        return _pixels(image, mode, size)


def decode_image(
    row: Mapping[str, Any] | None, where: str, mode: Mode, size: tuple[int, int] | None, *, grey: bool = False
) -> Pixels:
    """One image, (H, W, C).

    Args:
        row: bytes, or the path of a file.
        where: what to call it in a message.
        mode: of the pixels.
        size: (H, W) of the pixels; None leaves the image's own.
        grey: whether a colour image may become a grey one.

    Raises:
        ColourError: it is in colour where it may not be.
        InputError: it cannot be read.
    """
    with _understood(where), _open(row) as image:
        if mode == "L" and not grey and Image.getmodebase(image.mode) != "L":
            raise ColourError
        return _pixels(image, mode, size)


def size_of(row: Mapping[str, Any] | None, where: str) -> tuple[int, int]:
    """Width and height of an image, from its header; InputError if it cannot be read."""
    with without_warnings(), _understood(where), _open(row) as image:
        return image.size


@contextmanager
def _understood(where: str) -> Iterator[None]:
    """Inside, whatever goes wrong with an image is said of `where` in one line."""
    try:
        yield
    except ColourError:
        raise
    except Exception as error:  # a damaged file makes Pillow's parsers raise almost anything
        raise InputError(f"{where}: expected an image, got: {first_line(error)}") from error


def _pixels(image: Image.Image, mode: Mode, size: tuple[int, int] | None) -> Pixels:
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{image.width}x{image.height} pixels, more than {MAX_PIXELS // 10**6} megapixels")
    converted = _convert(ImageOps.exif_transpose(image), mode)
    if size is not None:
        converted = ImageOps.fit(converted, (size[1], size[0]), Image.Resampling.BILINEAR)
    return np.atleast_3d(np.asarray(converted))


def _open(row: Mapping[str, Any] | None) -> Image.Image:
    if row is None or (row["bytes"] is None and not row["path"]):
        raise ValueError("nothing")
    try:
        return Image.open(row["path"] if row["bytes"] is None else BytesIO(row["bytes"]), formats=FORMATS)
    except UnidentifiedImageError:  # its own message is an object's address
        raise ValueError(f"data in none of the formats {', '.join(FORMATS)}") from None


def _convert(image: Image.Image, mode: Mode) -> Image.Image:
    """`image` in 8 bits a channel."""
    if image.mode == "F":
        raise ValueError("floating-point pixels, whose range is unknown")
    if image.mode.startswith("I"):  # 16 bits, which Pillow would clip at 255 and not scale
        image = Image.fromarray(np.clip(np.asarray(image) >> 8, 0, 255).astype(np.uint8))
    return image.convert(mode)
