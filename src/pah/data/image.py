"""Decoding of single images, from files or bytes, to arrays of pixels.

Shapes: N images of C channels, 1 for grey and 3 for colour, H x W pixels.
"""

import os
import stat
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError, features

from pah.core.config import InputError
from pah.data.image_modes import Mode, convert_image, is_grey
from pah.data.preprocessing import DEFAULT_RESIZING, Resizing

MAX_MEGAPIXELS = 50  # of one image, unless the user allows more; a larger one is treated as a decompression bomb
MAX_PIXELS = MAX_MEGAPIXELS * 10**6
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP", "DIB")  # others may start programs: EPS, Ghostscript
IMAGE_SUFFIXES = frozenset(
    {".apng", ".avif", ".bmp", ".dib", ".gif", ".heic", ".heif", ".hif", ".jfif", ".jpe", ".jpeg", ".jpg", ".mpo"}
    | {".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}
)
AVIF_BRANDS = {b"avif", b"avis"}  # what the first bytes of such a file name
HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}

Pixels: TypeAlias = NDArray[np.uint8]
ImageInput: TypeAlias = Pixels | Sequence[Image.Image | str | Path | Pixels]
AnyImages: TypeAlias = ImageInput | Image.Image | str | Path  # one image or several

_raised_limit = threading.Lock()  # held while Pillow's own limit, which is global, is raised


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


def to_pixel_array(
    images: AnyImages,
    shape: tuple[int, int, int],
    max_megapixels: int = MAX_MEGAPIXELS,
    resizing: Resizing = DEFAULT_RESIZING,
) -> Pixels:
    """Return images as one uint8 array (N, C, H, W), with C, H and W of `shape`.

    An image of another size is resized by its shorter side and its centre is cropped. One that has the size already
    stays as it is. Colour is converted to grey if C is 1, and grey is repeated if C is 3.

    Args:
        images: One image or several. One: an image file, a PIL image, or a uint8 array (H, W) or (H, W, C). Several:
            a list of these, or a uint8 array (N, H, W) or (N, H, W, C). C is 1, 3 or 4, with alpha as the fourth.
        shape: Channels, height and width of the network's input.
        max_megapixels: A larger image is refused.
        resizing: With which filter images are resized, and how much of them is kept.

    Raises:
        InputError: an array is not uint8 (NaN exists only in other types), it may be one image or several, or a file
            is unreadable, truncated or too large.
    """
    channels, height, width = shape
    batch = _as_batch(images, (height, width))
    if isinstance(batch, np.ndarray) and batch.shape[1:] == (height, width, channels):
        return np.array(batch).transpose(0, 3, 1, 2)
    mode: Mode = "L" if channels == 1 else "RGB"
    with without_pillow_warnings():
        arrays = [
            _decode_input(image, i, mode, (height, width), max_megapixels, resizing) for i, image in enumerate(batch)
        ]
    return np.stack(arrays).transpose(0, 3, 1, 2) if arrays else np.empty((0, *shape), np.uint8)


def _as_batch(images: Any, size: tuple[int, int]) -> Pixels | Iterable[Any]:
    """Return one image or several as an array (N, H, W, C) or as a list; `size` is that of the network's input."""
    if isinstance(images, str | Path | Image.Image):
        return [images]
    if isinstance(images, np.ndarray):
        return _as_array_batch(images, size)
    if isinstance(images, torch.Tensor):
        raise InputError(
            f"images: expected a NumPy array or a list, got a tensor {images.dtype} {tuple(images.shape)}; "
            "`images.permute(0, 2, 3, 1).numpy()` converts one of uint8 (N, C, H, W)"
        )
    if isinstance(images, bytes) or not isinstance(images, Iterable):
        raise InputError(f"images: expected an array or a list of images, got {type(images).__name__}")
    return images


def _as_array_batch(array: NDArray[Any], size: tuple[int, int]) -> Pixels:
    """Return an array of one image or several as a batch (N, H, W, C)."""
    if array.dtype != np.uint8 or array.ndim not in (2, 3, 4) or array.shape[3:] not in ((), (1,), (3,), (4,)):
        remedy = "; `(255 * images).round().astype('uint8')` converts 0 to 1" if array.dtype.kind == "f" else ""
        raise InputError(
            "images: expected uint8 pixels (N, H, W), (N, H, W, 1), (N, H, W, 3) or (N, H, W, 4), or one image of "
            f"them, got {array.dtype} {array.shape}{remedy}"
        )
    if array.ndim == 4:
        return array
    if array.ndim == 2:
        return array[None, ..., None]
    if array.shape[2] not in (1, 3, 4) or not len(array):
        return array[..., None]
    if array.shape[1:] == size or array.shape[1] <= 4:
        raise InputError(
            f"images: expected an array that is either one image or several, got {array.shape}; pass images[None] for "
            "one image, images[..., None] for several grey images"
        )
    return array[None]


def _decode_input(
    image: Any, index: int, mode: Mode, size: tuple[int, int], max_megapixels: int, resizing: Resizing
) -> Pixels:
    """Return one of several images as an array (H, W, C)."""
    if isinstance(image, str | Path):
        row = {"path": str(image), "bytes": None}
        return decode_image(row, str(image), mode, size, grey=True, max_megapixels=max_megapixels, resizing=resizing)
    name = f"image {index + 1}"
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.shape[2:] not in ((), (1,), (3,), (4,)):
            raise InputError(
                f"{name}: expected uint8 pixels (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), got {image.dtype} "
                f"{image.shape}"
            )
        with _image_errors(name):
            image = Image.fromarray(image.squeeze(2) if image.shape[2:] == (1,) else image)
    if not isinstance(image, Image.Image):
        raise InputError(f"{name}: expected a PIL image, an array or a file, got {type(image).__name__}")
    with _image_errors(name):
        return _to_array(image, mode, size, max_megapixels, resizing)


def decode_image(
    row: Mapping[str, Any] | None,
    name: str,
    mode: Mode,
    size: tuple[int, int] | None,
    *,
    grey: bool = False,
    max_megapixels: int = MAX_MEGAPIXELS,
    resizing: Resizing = DEFAULT_RESIZING,
) -> Pixels:
    """Return an image as an array (H, W, C). Of an animation or several pages, it is the first picture.

    Args:
        row: The image's "bytes", or the "path" of its file if these are None.
        name: How messages call the image.
        mode: "L" for one channel, "RGB" for three.
        size: (H, W) of the array; None keeps the image's own size.
        grey: Whether a colour image may be converted to grey.
        max_megapixels: A larger image is refused.
        resizing: With which filter the image is resized, and how much of it is kept.

    Raises:
        ColourError: the mode is "L", the image is in colour, and `grey` is false.
        InputError: the image cannot be read.
    """

    def decode() -> Pixels:
        with _open(row) as image:
            if mode == "L" and not grey and not is_grey(image):
                raise ColourError
            return _to_array(image, mode, size, max_megapixels, resizing)

    with _image_errors(name):
        try:
            return decode()
        except Image.DecompressionBombError as error:  # Pillow's own limit, which is above `MAX_MEGAPIXELS`
            if max_megapixels > MAX_MEGAPIXELS:
                with suppress(Image.DecompressionBombError), _pillow_limit(max_megapixels * 10**6):
                    return decode()
            raise ValueError(_too_large(max_megapixels)) from error


def read_image_size(row: Mapping[str, Any] | None, name: str) -> tuple[int, int]:
    """Return width and height of an image of any size, from its header; InputError if it cannot be read."""
    with without_pillow_warnings(), _image_errors(name):
        try:
            with _open(row) as image:
                return image.size
        except Image.DecompressionBombError:
            with _pillow_limit(None), _open(row) as image:
                return image.size


@contextmanager
def _pillow_limit(pixels: int | None) -> Iterator[None]:
    """Set Pillow's own limit, which is global; images that need another one are decoded one at a time."""
    with _raised_limit:
        before = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = pixels
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


@contextmanager
def _image_errors(name: str) -> Iterator[None]:
    """Turn any error about the image of that name into an InputError of one line."""
    try:
        yield
    except ColourError:
        raise
    except Exception as error:  # for a damaged file, Pillow's parsers raise almost any kind of error
        raise InputError(f"{name}: expected an image, got: {first_line(error)}") from error


def _to_array(
    image: Image.Image, mode: Mode, size: tuple[int, int] | None, max_megapixels: int, resizing: Resizing
) -> Pixels:
    """Return an open image, upright, as an array (H, W, C)."""
    if image.width * image.height > max_megapixels * 10**6:
        raise ValueError(f"{image.width}x{image.height} pixels, {_too_large(max_megapixels)}")
    converted = convert_image(image, mode)
    if size is not None:
        converted = resizing.apply(converted, size)
    return np.atleast_3d(np.asarray(converted))


def _too_large(max_megapixels: int) -> str:
    return f"more than {max_megapixels} megapixels; `--max_megapixels N` allows more"


def _open(row: Mapping[str, Any] | None) -> Image.Image:
    """Open an image from its bytes or its file, without decoding it."""
    if row is None or (row["bytes"] is None and not row["path"]):
        raise ValueError("nothing")
    if row["bytes"] is None and not stat.S_ISREG(os.stat(row["path"]).st_mode):  # opening a pipe would wait for ever
        raise ValueError("no regular file")

    def open_as(formats: Sequence[str]) -> Image.Image:
        return Image.open(row["path"] if row["bytes"] is None else BytesIO(row["bytes"]), formats=list(formats))

    try:
        return open_as(FORMATS)
    except UnidentifiedImageError:  # its own message is the address of an object
        pass
    brands = _brands(row)
    if not brands & (AVIF_BRANDS | HEIC_BRANDS):
        raise ValueError(f"data in none of the formats {', '.join(FORMATS)}, AVIF, HEIC")
    kind = _require_avif() if brands & AVIF_BRANDS else _require_heic()
    try:
        return open_as([kind])
    except UnidentifiedImageError:
        raise ValueError(f"a damaged {kind} image") from None


def _brands(row: Mapping[str, Any]) -> set[bytes]:
    """Return the brands that the header of an AVIF or HEIC file lists; empty for other files."""
    if row["bytes"] is None:
        with open(row["path"], "rb") as file:
            header = file.read(64)
    else:
        header = row["bytes"][:64]
    if header[4:8] != b"ftyp":
        return set()
    end = min(int.from_bytes(header[:4]), len(header))
    return {header[8:12], *(header[i : i + 4] for i in range(16, end, 4))}


def _require_avif() -> str:
    """Return Pillow's name of the format AVIF; ValueError if this Pillow cannot read it."""
    Image.init()
    if "AVIF" not in Image.OPEN or "avif" not in features.get_supported_modules():
        raise ValueError("an AVIF image, which this version of pillow cannot read: pip install --upgrade pillow")
    return "AVIF"


def _require_heic() -> str:
    """Return Pillow's name of the format HEIC, once a plugin reads it; ValueError if none is installed."""
    if "HEIF" not in Image.OPEN:
        try:
            import pillow_heif
        except ImportError:
            raise ValueError(
                "a HEIC image, which needs the extra: in a clone of pah, run pip install -e '.[heic]'; elsewhere, pip "
                "install pillow-heif"
            ) from None
        pillow_heif.register_heif_opener()
    return "HEIF"
