"""The modes of images: transparency, 16 and 32 bits, other colour spaces, and the orientation of photos."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms, features

from pah.core.config import InputError
from pah.data.image import ColourError, decode_image, to_pixel_array, without_pillow_warnings

needs_avif = pytest.mark.skipif("avif" not in features.get_supported_modules(), reason="this Pillow reads no AVIF")
ROTATED = Image.Transpose.ROTATE_270  # turns a photo with the orientation 6 upright


def encode(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def decode(content: bytes, mode: Any = "RGB", **options: Any) -> NDArray[np.uint8]:
    """Return the pixels of an encoded image, (H, W, C)."""
    with without_pillow_warnings():
        return decode_image({"bytes": content, "path": None}, "photo", mode, None, **options)


def refusal(content: bytes) -> str:
    with pytest.raises(InputError) as caught:
        decode(content)
    return str(caught.value)


def noise(*shape: int, dtype: Any = np.uint8, high: int = 256) -> NDArray[Any]:
    return np.random.default_rng(0).integers(0, high, shape).astype(dtype)


def png(depth: int, colour: int, width: int, row: bytes, transparent: bytes) -> bytes:
    """Return a PNG of one row with a tRNS chunk; Pillow itself cannot write all depths."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, 1, depth, colour, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"tRNS", transparent), (b"IDAT", zlib.compress(b"\0" + row)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*pair) for pair in chunks)


# Transparency

ALPHA = np.array([[0, 64, 128, 255]] * 3, np.uint8)


def on_white(colours: NDArray[np.uint8], alpha: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return colours (H, W, C) with alpha (H, W) on a white page, in floating-point numbers."""
    share = alpha[..., None] / 255
    return np.rint(colours * share + 255 * (1 - share)).astype(np.uint8)


@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP", pytest.param("AVIF", marks=needs_avif)])
def test_hidden_colours_are_white(format: str) -> None:
    image = Image.new("RGBA", (16, 16), (200, 100, 50, 0))
    image.paste((200, 100, 50, 255), (8, 0, 16, 16))
    options = {"lossless": True, "exact": True} if format == "WEBP" else {"quality": 100} if format == "AVIF" else {}
    pixels = decode(encode(image, format, **options)).astype(int)
    assert (pixels[:, :8] == 255).all()
    assert np.abs(pixels[:, 8:] - (200, 100, 50)).max() <= (2 if format == "AVIF" else 0)


def test_part_of_the_background_shows_through() -> None:
    colours, grey = noise(3, 4, 3), noise(3, 4, 1)
    rgba, la = Image.fromarray(np.dstack([colours, ALPHA])), Image.fromarray(np.dstack([grey, ALPHA]))
    assert np.array_equal(decode(encode(rgba, "PNG")), on_white(colours, ALPHA))
    assert np.array_equal(decode(encode(la, "PNG"), "L"), on_white(grey, ALPHA))
    assert np.array_equal(to_pixel_array([rgba], (3, 3, 4))[0].transpose(1, 2, 0), on_white(colours, ALPHA))
    for image in (rgba.convert("RGBa"), la.convert("La")):  # colours multiplied by alpha
        pixels = to_pixel_array([image], (3, 3, 4))[0].transpose(1, 2, 0)
        expected = on_white(colours if image.mode == "RGBa" else grey, ALPHA)
        assert np.abs(pixels.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("mode", ["LA", "PA", "RGBA"])
def test_an_opaque_alpha_changes_nothing(mode: str) -> None:
    image = Image.fromarray(noise(9, 7, 3)).convert(mode)
    for target in ("L", "RGB"):
        expected = np.asarray(image.convert(target)).reshape(9, 7, -1)
        pixels = to_pixel_array([image], (len(target), 9, 7))[0].transpose(1, 2, 0)
        assert np.array_equal(pixels, expected)


def test_transparent_colours_of_a_palette() -> None:
    image = Image.fromarray(noise(6, 6, 3)).quantize(8)
    indices, colours = np.asarray(image), np.asarray(image.convert("RGB"))
    some = bytes([255, 0, 128])  # the alpha of the first three colours
    alpha = np.array([255, 0, 128, 255, 255, 255, 255, 255], np.uint8)[indices]
    assert np.array_equal(decode(encode(image, "PNG", transparency=some)), on_white(colours, alpha))
    one = np.where(indices == 3, 0, 255).astype(np.uint8)
    for format in ("PNG", "GIF"):
        assert np.array_equal(decode(encode(image, format, transparency=3)), on_white(colours, one))
    with_alpha = Image.fromarray(np.dstack([noise(6, 6, 3), noise(6, 6)])).quantize(8)  # in the palette itself
    rgba = np.asarray(with_alpha.convert("RGBA"))
    assert (rgba[..., 3] < 255).any()
    pixels = to_pixel_array(with_alpha, (3, 6, 6))[0].transpose(1, 2, 0)
    assert np.array_equal(pixels, on_white(rgba[..., :3], rgba[..., 3]))


def test_a_transparent_colour_of_a_png() -> None:
    grey, colours = noise(5, 5), noise(5, 5, 3)
    key = int(grey[2, 2])
    expected = np.where(grey == key, 255, grey)[..., None]
    assert np.array_equal(decode(encode(Image.fromarray(grey), "PNG", transparency=key), "L"), expected)
    content = encode(Image.fromarray(colours), "PNG", transparency=tuple(map(int, colours[1, 1])))
    colours[1, 1] = 255
    assert np.array_equal(decode(content), colours)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param(png(1, 0, 8, b"\x5a", b"\0\0"), [255] * 8, id="1 bit"),
        pytest.param(png(2, 0, 4, b"\x1b", b"\0\2"), [0, 85, 255, 255], id="2 bits"),
        pytest.param(png(4, 0, 2, b"\x3a", b"\0\3"), [255, 170], id="4 bits"),
        pytest.param(png(16, 0, 2, b"\x12\x34\x56\x78", b"\x12\x34"), [255, 86], id="16 bits"),
        pytest.param(png(16, 4, 2, b"\x12\x34\0\0\x56\x78\xff\xff", b""), [255, 86], id="16 bits and alpha"),
    ],
)
def test_a_transparent_grey_of_any_depth(content: bytes, expected: list[int]) -> None:
    assert decode(content, "L", grey=True).ravel().tolist() == expected


def test_a_transparent_colour_of_16_bits() -> None:
    row = struct.pack(">6H", 0x1234, 0x5678, 0x9ABC, 0x2234, 0x5678, 0x9ABC)
    assert decode(png(16, 2, 2, row, row[:6])).tolist() == [[[255, 255, 255], [0x22, 0x56, 0x9A]]]


def test_an_unused_alpha_of_a_bmp_does_not_hide_the_image() -> None:
    image = Image.fromarray(np.dstack([noise(4, 4, 3), np.zeros((4, 4), np.uint8)]))
    image.format = "BMP"  # Pillow does not write this kind
    assert np.array_equal(to_pixel_array([image], (3, 4, 4))[0].transpose(1, 2, 0), noise(4, 4, 3))


def test_grey_and_colour_are_told_apart_by_the_mode() -> None:
    for mode in ("1", "L", "LA", "I;16"):
        decode(encode(Image.new(mode, (3, 3)), "PNG"), "L")
    for mode in ("P", "RGB", "RGBA"):  # all black, but in a mode of colour
        with pytest.raises(ColourError):
            decode(encode(Image.new(mode, (3, 3)), "PNG"), "L")


# 16 and 32 bits


@pytest.mark.parametrize(("dtype", "format"), [("<u2", "PNG"), ("<u2", "TIFF"), (">u2", "TIFF"), ("<i4", "TIFF")])
def test_16_bits_are_divided_by_256(dtype: str, format: str) -> None:
    values = noise(6, 5, dtype=dtype, high=65536)
    content = encode(Image.fromarray(values), format)
    assert np.array_equal(decode(content, "L")[..., 0], (values >> 8).astype(np.uint8))


def test_32_bits_that_hold_8_bits_are_kept() -> None:
    values = noise(6, 5, dtype=np.int32)
    assert np.array_equal(decode(encode(Image.fromarray(values), "TIFF"), "L")[..., 0], values)
    assert np.array_equal(to_pixel_array([Image.fromarray(values)], (1, 6, 5))[0, 0], values)


def test_a_pgm_has_the_range_that_it_states() -> None:
    values = struct.pack(">2H", 4095, 1000)
    assert decode(b"P5 2 1 4095\n" + values, "L").ravel().tolist() == [255, 1000 * 65535 // 4095 >> 8]
    assert decode(b"P5 2 1 65535\n" + values[::-1], "L").ravel().tolist() == [0xE8, 0xFF]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        pytest.param(np.array([[0, 3000]], "<u2"), "16-bit pixels of at most 3000, nearly black among", id="12 bits"),
        pytest.param(np.array([[0, 255]], ">u2"), "16-bit pixels of at most 255, nearly black among", id="8 bits"),
        pytest.param(np.array([[0, 3000]], "<i4"), "16-bit pixels of at most 3000", id="12 bits in 32"),
        pytest.param(np.array([[0, 70000]], "<i4"), "pixels from 0 to 70000, whose range is unknown", id="32 bits"),
        pytest.param(np.array([[-5, 5000]], "<i4"), "pixels from -5 to 5000, whose range is unknown", id="negative"),
    ],
)
def test_integers_of_an_unknown_range_are_refused(values: NDArray[Any], reason: str) -> None:
    message = refusal(encode(Image.fromarray(values), "TIFF"))
    assert message.startswith(f"photo: expected an image, got: {reason}")
    assert "save all images with 8 bits" in message
    assert "\n" not in message


def test_black_is_black_in_any_range() -> None:
    for dtype in ("<u2", ">u2", "<i4"):
        assert not decode(encode(Image.fromarray(np.zeros((3, 3), dtype)), "TIFF")).any()


# Other modes


def test_other_colour_spaces_become_grey_and_colour() -> None:
    red = Image.new("RGB", (4, 4), (250, 10, 20))
    lab = ImageCms.applyTransform(
        red, ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    )
    assert lab is not None
    for image in (red.convert("YCbCr"), red.convert("HSV"), red.convert("CMYK"), red.quantize(2), lab):
        colour, grey = (to_pixel_array(image, (c, 4, 4))[0, :, 0, 0].astype(int) for c in (3, 1))
        assert np.abs(colour - (250, 10, 20)).max() <= 5, image.mode
        assert abs(int(grey[0]) - 83) <= 5, image.mode


def test_a_cmyk_photo_is_not_inverted() -> None:
    content = encode(Image.new("RGB", (8, 8), (250, 10, 20)).convert("CMYK"), "JPEG", quality=95)
    assert np.abs(decode(content)[0, 0].astype(int) - (250, 10, 20)).max() < 8


@pytest.mark.parametrize("format", ["GIF", "PNG", "TIFF", "WEBP", "MPO", pytest.param("AVIF", marks=needs_avif)])
def test_of_several_frames_the_first_is_used(format: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue", "lime")]
    content = encode(frames[0], format, save_all=True, append_images=frames[1:])
    assert np.abs(decode(content).astype(int) - (255, 0, 0)).max() < 8


# Orientation


def exif_block(*entries: tuple[int, int, int, bytes]) -> bytes:
    """Return an EXIF block of entries: tag, type, count, and four bytes."""
    ifd = b"".join(struct.pack("<HHI", *entry[:3]) + entry[3] for entry in entries)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + ifd + bytes(4)


ORIENTATION_6 = (274, 3, 1, b"\6\0\0\0")
TEXT_AS_WIDTH = (256, 2, 4, b"abc\0")
NUMBER_AS_DATE = (306, 3, 1, b"\1\0\0\0")
TEXT_AS_RESOLUTION = (282, 2, 4, b"abc\0")


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_turned_upright(format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    content = encode(Image.fromarray(noise(12, 20, 3)), format, exif=exif)
    upright = [None, 0, 3, 1, 5, 4, 6, 2][orientation - 1]  # as Pillow's transpositions
    plain = Image.fromarray(decode(encode(Image.fromarray(noise(12, 20, 3)), format)))
    expected = plain if upright is None else plain.transpose(Image.Transpose(upright))
    assert np.array_equal(decode(content), np.asarray(expected))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("wrong", [TEXT_AS_WIDTH, NUMBER_AS_DATE, TEXT_AS_RESOLUTION])
def test_an_ill_typed_tag_does_not_refuse_a_photo(format: str, wrong: tuple[int, int, int, bytes]) -> None:
    image = Image.fromarray(noise(12, 20, 3))
    options = {"lossless": True} if format == "WEBP" else {}
    content = encode(image, format, exif=exif_block(*sorted([ORIENTATION_6, wrong])), **options)
    plain = Image.fromarray(decode(encode(image, format, **options)))
    assert np.array_equal(decode(content), np.asarray(plain.transpose(ROTATED)))


@pytest.mark.parametrize("exif", [b"Exif\0\0text", b"Exif\0\0", exif_block(ORIENTATION_6)[:20]])
def test_a_damaged_exif_block_does_not_refuse_a_photo(exif: bytes) -> None:
    image = Image.fromarray(noise(12, 20, 3))
    for format in ("JPEG", "PNG", "WEBP"):
        options = {"lossless": True} if format == "WEBP" else {}
        pixels = decode(encode(image, format, exif=exif, **options))
        assert np.array_equal(pixels, decode(encode(image, format, **options)))


def test_an_ill_typed_xmp_tag_of_a_tiff_does_not_refuse_it() -> None:
    content = encode(Image.fromarray(noise(12, 20, 3)), "TIFF", tiffinfo={700: b"abc"})
    entry = struct.pack("<HHI", 700, 1, 3)
    assert entry in content
    number = struct.pack("<HHI", 700, 4, 1)
    assert np.array_equal(decode(content.replace(entry, number)), noise(12, 20, 3))
