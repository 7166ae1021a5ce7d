"""Conversion of an open image to upright grey or colour pixels of 8 bits, on white where it is transparent."""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

BACKGROUND = 255  # of transparent images, in each channel: white, as the page on which a browser shows them
DARK_16_BIT = 4096  # 16-bit pixels below it have at most 16 of the 256 levels of 8 bits: nearly black

Mode = Literal["L", "RGB"]

_UPRIGHT = {  # by the EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_PNG_DEPTHS = {"L;2": 85, "L;4": 17, "RGB;16B": 1 / 256}  # factor from a PNG's own values to Pillow's, by raw mode


def is_grey(image: Image.Image) -> bool:
    """Return whether an image has a grey mode; a palette counts as colour, whatever its colours are."""
    return Image.getmodebase(image.mode) == "L"


def convert_image(image: Image.Image, mode: Mode) -> Image.Image:
    """Return an image upright, in the mode, with 8 bits a channel, and without transparency.

    Raises:
        ValueError: the pixels are floating-point numbers, or integers whose range is unknown or leaves them black.
        Exception: Pillow cannot decode the image; for damaged files it raises almost any kind of exception.
    """
    scale = _png_scale(image)  # before it is loaded, which deletes the raw mode
    _load(image)
    if image.mode in ("RGBa", "La"):  # colours multiplied by alpha
        image = image.convert(image.mode.upper())
    alpha = _alpha(image, scale)
    converted = _to_8_bits(image).convert(mode)
    lowest, highest = (255, 255) if alpha is None else alpha.getextrema()
    is_unused = highest == 0 and image.format in ("BMP", "DIB")  # some programs leave this byte of a pixel at 0
    if alpha is not None and lowest != 255 and not is_unused:
        white = Image.new(mode, converted.size, BACKGROUND if mode == "L" else (BACKGROUND,) * 3)
        converted = Image.composite(converted, white, alpha)
    method = _UPRIGHT.get(_orientation(image))
    return converted if method is None else converted.transpose(method)


def _load(image: Image.Image) -> None:
    """Decode the pixels."""
    if not isinstance(image.info.get("xmp", b""), bytes):  # Pillow would refuse the whole image
        del image.info["xmp"]
    image.load()


def _orientation(image: Image.Image) -> Any:
    """Return the EXIF orientation of a loaded image; 1, upright, if it cannot be read."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        hash(orientation)
    except Exception:  # Pillow raises many kinds of exceptions for a damaged block; the pixels are whole
        return 1
    return orientation


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Return the image in a mode that Pillow converts to grey and to colour, with 8 bits a channel."""
    if image.mode == "F":
        raise ValueError("floating-point pixels, whose range is unknown")
    if image.mode == "LAB":  # Pillow converts it to RGB only
        return image.convert("RGB")
    if not image.mode.startswith("I"):
        return image
    pixels = np.asarray(image)
    low, high = int(pixels.min()), int(pixels.max())
    # Pillow reads 16 bits of a PGM, and in old versions of a PNG, to a mode of 32 bits; their range is known
    is_32_bit = image.mode == "I" and image.format not in ("PPM", "PNG")
    if is_32_bit and low >= 0 and high <= 255:
        return Image.fromarray(pixels.astype(np.uint8))
    if low < 0 or high > 65535:
        raise ValueError(
            f"pixels from {low} to {high}, whose range is unknown; save all images with 8 bits, or with values from 0 "
            "to 65535"
        )
    if 0 < high < DARK_16_BIT:
        raise ValueError(
            f"16-bit pixels of at most {high}, nearly black among 0 to 65535; save all images with 8 bits, or scaled "
            "to 0 to 65535"
        )
    return Image.fromarray((pixels >> 8).astype(np.uint8))  # Pillow would clip at 255 instead of scaling


def _alpha(image: Image.Image, scale: float) -> Image.Image | None:
    """Return how opaque each pixel is, 0 to 255, as an image in mode L; None if the image has no transparency.

    Args:
        image: A loaded image.
        scale: Factor from the transparent colour that it names to its pixels.
    """
    if "A" in image.getbands() and image.mode != "LAB":
        return image.getchannel("A")
    if image.mode == "P":
        return _palette_alpha(image)
    key = image.info.get("transparency")
    keys = key if isinstance(key, tuple) else (key,)
    if len(keys) != len(image.getbands()) or not all(isinstance(value, int) for value in keys):
        return None
    pixels = np.asarray(image).reshape(image.height, image.width, -1)
    if image.mode == "1":
        pixels = pixels * np.uint8(255)
    transparent = (pixels == [int(value * scale) for value in keys]).all(axis=2)
    return Image.fromarray(np.where(transparent, 0, 255).astype(np.uint8))


def _palette_alpha(image: Image.Image) -> Image.Image | None:
    """Return the alpha of an image with a palette; None if all of its colours are opaque."""
    if image.palette is not None and image.palette.mode == "RGBA":
        return image.convert("RGBA").getchannel("A")
    key = image.info.get("transparency")
    table: NDArray[np.uint8] = np.full(256, 255, np.uint8)
    if isinstance(key, bytes):  # the alpha of the first colours
        table[: len(key)] = np.frombuffer(key[:256], np.uint8)
    elif isinstance(key, int) and 0 <= key < 256:
        table[key] = 0
    else:
        return None
    return Image.fromarray(table[np.asarray(image)])


def _png_scale(image: Image.Image) -> float:
    """Return the factor from the transparent colour that an image names to its pixels."""
    tiles = getattr(image, "tile", None) or []
    return _PNG_DEPTHS.get(str(tiles[0][3]), 1) if tiles and image.format == "PNG" else 1
