"""Single images and batches: what counts as one image, formats that need a package, and the limit of the size."""

import io
import os
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, features

from pah import ContinualLearner
from pah.core.config import InputError
from pah.data.image import (
    FORMATS,
    IMAGE_SUFFIXES,
    decode_image,
    read_image_size,
    to_pixel_array,
    without_pillow_warnings,
)
from pah.models.backbones import ConvNetOptions
from pah.training.config import RunConfig
from pah.training.options import TrainingOptions

PHOTO = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
SHAPE = (3, 8, 8)
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40)
AVIF = b"\0\0\0\x18ftypavif\0\0\0\0mif1miaf" + bytes(40)


def refusal(images: Any, shape: tuple[int, int, int] = SHAPE, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        to_pixel_array(images, shape, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def row(content: bytes | Path) -> dict[str, Any]:
    return {"bytes": content, "path": None} if isinstance(content, bytes) else {"bytes": None, "path": str(content)}


# One image or several


def test_one_image_in_any_form_is_a_batch_of_one(tmp_path: Path) -> None:
    file = tmp_path / "photo.png"
    Image.fromarray(PHOTO).save(file)
    expected = to_pixel_array([file], SHAPE)
    assert expected.shape == (1, *SHAPE)
    opaque = np.dstack([PHOTO, np.full((20, 30), 255, np.uint8)])
    for one in (file, str(file), Image.open(file), PHOTO, PHOTO[None], [PHOTO], opaque, opaque[None], (opaque,)):
        assert np.array_equal(to_pixel_array(one, SHAPE), expected)
    grey = PHOTO[..., 0]
    expected = to_pixel_array([Image.fromarray(grey)], SHAPE)
    for one in (grey, grey[..., None], grey[None], grey[None, ..., None], [grey], [grey[..., None]]):
        assert np.array_equal(to_pixel_array(one, SHAPE), expected)


def test_several_images_are_as_many(tmp_path: Path) -> None:
    file = tmp_path / "photo.png"
    Image.fromarray(PHOTO).save(file)
    mixed = to_pixel_array([file, str(file), Image.fromarray(PHOTO), PHOTO, PHOTO[..., 0]], SHAPE)
    assert mixed.shape == (5, *SHAPE)
    assert all(np.array_equal(mixed[0], mixed[i]) for i in range(1, 4))
    assert to_pixel_array(np.zeros((5, 8, 8), np.uint8), (1, 8, 8)).shape == (5, 1, 8, 8)
    assert to_pixel_array(np.zeros((5, 9, 7), np.uint8), (1, 8, 8)).shape == (5, 1, 8, 8)
    nothing: Any
    for nothing in ([], np.zeros((0, 8, 8, 3), np.uint8), np.zeros((0, 8, 3), np.uint8)):
        assert to_pixel_array(nothing, SHAPE).shape == (0, *SHAPE)


@pytest.mark.parametrize(("array", "shape"), [((5, 8, 3), (1, 8, 3)), ((5, 4, 4), (1, 8, 8)), ((9, 3, 1), (3, 8, 8))])
def test_an_array_of_one_image_or_several_is_refused(array: tuple[int, ...], shape: tuple[int, int, int]) -> None:
    images = np.zeros(array, np.uint8)
    message = refusal(images, shape)
    assert str(array) in message
    assert "pass images[None] for one image, images[..., None] for several grey images" in message
    assert len(to_pixel_array(images[None], shape)) == 1
    assert len(to_pixel_array(images[..., None], shape)) == array[0]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((20, 30)), "got float64 (20, 30); `(255 * images).round().astype('uint8')` converts 0 to 1"),
        (np.zeros((20, 30, 3), np.int64), "expected uint8 pixels"),
        (np.zeros((2, 20, 30, 2), np.uint8), "expected uint8 pixels"),
        (np.zeros(20, np.uint8), "expected uint8 pixels"),
        ([np.zeros((20, 30), np.float32)], "image 1: expected uint8 pixels (H, W), (H, W, 1)"),
        ([PHOTO, np.zeros((0, 3), np.uint8)], "image 2: expected an image"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "a tensor torch.uint8 (2, 3, 8, 8); `images.permute("),
        (None, "expected an array or a list of images, got NoneType"),
        (b"text", "expected an array or a list of images, got bytes"),
        ([7], "image 1: expected a PIL image, an array or a file, got int"),
    ],
)
def test_what_is_no_image_is_refused(images: Any, message: str) -> None:
    assert message in refusal(images)


def test_a_learner_gives_one_answer_for_one_photo(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    quick = TrainingOptions(epochs=1, batch_size=8)
    config = RunConfig(image_size=8, backbone="convnet", backbone_options=ConvNetOptions(2), training=quick)
    learner = ContinualLearner(config=config)
    learner.learn("noise", (images, [i % 2 for i in range(12)], ["a", "b"]))
    file = tmp_path / "photo.png"
    Image.fromarray(PHOTO).save(file)
    answers = [learner.predict(one) for one in (PHOTO, Image.fromarray(PHOTO), file, str(file), [PHOTO])]
    assert all(len(answer) == 1 and answer == answers[0] for answer in answers)
    with pytest.raises(InputError, match="expected a list of images, with a label for each, got one image"):
        learner.learn("one", (file, [0], ["a", "b"]))


# Formats


@pytest.mark.parametrize("suffix", sorted(IMAGE_SUFFIXES - {".heic", ".heif", ".hif"}))
def test_every_suffix_names_a_format_that_is_read(tmp_path: Path, suffix: str) -> None:
    Image.init()
    format = {".jfif": "JPEG", ".pbm": "PPM", ".pnm": "PPM"}.get(suffix, Image.EXTENSION.get(suffix, "JPEG"))
    if format == "AVIF" and "avif" not in features.get_supported_modules():
        pytest.skip("this Pillow cannot read AVIF")
    file = tmp_path / f"photo{suffix}"
    image = Image.new("1" if suffix == ".pbm" else "RGB", (16, 16), "white")
    image.save(file, format, **({"save_all": True, "append_images": [image]} if format == "MPO" else {}))
    assert decode_image(row(file), "photo", "RGB", None).min() >= 250
    assert decode_image(row(file.read_bytes()), "photo", "RGB", None).min() >= 250


def test_other_formats_are_refused(tmp_path: Path) -> None:
    assert not {"EPS", "PDF", "WMF"} & set(FORMATS)  # they start programs
    for content in (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        b"text",
        b"",
        b"\0\0\0\x18ftypisom" + bytes(40),
    ):
        file = tmp_path / "photo.jpg"
        file.write_bytes(content)
        assert refusal(file).startswith(f"{file}: expected an image, got: data in none of the formats BMP, GIF, JPEG")


def test_heic_names_the_package_that_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    with pytest.raises(InputError) as caught:
        decode_image(row(HEIC), "photo.heic", "RGB", None)
    message = str(caught.value)
    assert message.startswith("photo.heic: expected an image, got: a HEIC image, which needs the extra: in a clone of")
    assert "pip install -e '.[heic]'" in message
    assert "\n" not in message


def test_avif_names_the_version_that_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "get_supported_modules", list)
    with pytest.raises(InputError, match=r"an AVIF image, which this version of pillow cannot read: pip install --up"):
        decode_image(row(AVIF), "photo", "RGB", None)


def test_a_damaged_avif_is_refused() -> None:
    if "avif" in features.get_supported_modules():
        with pytest.raises(InputError, match="photo: expected an image, got: a damaged AVIF image"):
            decode_image(row(AVIF), "photo", "RGB", None)


def test_heic_is_read_with_its_package(tmp_path: Path) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    file = tmp_path / "photo.HEIC"
    pillow_heif.from_pillow(Image.new("RGB", (32, 24), (200, 100, 50))).save(file, quality=100)
    pixels = decode_image(row(file), "photo", "RGB", None)
    assert pixels.shape == (24, 32, 3)
    assert np.abs(pixels.astype(int) - (200, 100, 50)).max() < 5
    with pytest.raises(InputError, match="a damaged HEIF image"):
        decode_image(row(file.read_bytes()[:200]), "photo", "RGB", None)


# Size

HUGE = b"P5 60000 60000 255\n"  # the header of an image beyond Pillow's own limit


def test_the_limit_can_be_raised_and_lowered() -> None:
    content = b"P4 8000 7000\n" + bytes(7_000_000)
    with pytest.raises(InputError, match=r"photo: expected an image, got: 8000x7000 pixels, more than 50 megapixels"):
        decode_image(row(content), "photo", "L", (4, 4))
    assert decode_image(row(content), "photo", "L", (4, 4), max_megapixels=56).min() == 255
    message = refusal(PHOTO[:, :, 0].repeat(300, 0).repeat(300, 1)[:1001, :1000], max_megapixels=1)
    assert "image 1: expected an image, got: 1000x1001 pixels, more than 1 megapixels; `--max_megapixels N`" in message


def test_pillows_own_limit_holds_until_the_limit_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    content = io.BytesIO()
    Image.new("1", (40, 30), 1).save(content, "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with pytest.raises(
        InputError, match="photo: expected an image, got: more than 50 megapixels; `--max_megapixels N`"
    ):
        decode_image(row(content.getvalue()), "photo", "L", None)
    assert decode_image(row(content.getvalue()), "photo", "L", None, max_megapixels=51).min() == 255
    assert Image.MAX_IMAGE_PIXELS == 500
    for most in (50, 100, 3000):
        match = f"more than {most} megapixels; `--max_megapixels N` allows more"
        with without_pillow_warnings(), pytest.raises(InputError, match=match):
            decode_image(row(HUGE), "photo", "L", None, max_megapixels=most)
    assert read_image_size(row(HUGE), "photo") == (60000, 60000)


def test_large_images_are_decoded_by_several_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    content = io.BytesIO()
    Image.new("1", (40, 30), 1).save(content, "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    decoded: list[int] = []

    def decode() -> None:
        pixels = decode_image(row(content.getvalue()), "photo", "L", None, max_megapixels=60)
        decoded.append(int(pixels.min()))

    threads = [threading.Thread(target=decode) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert decoded == [255] * 8
    assert Image.MAX_IMAGE_PIXELS == 500


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    assert "pipe.png: expected an image, got: no regular file" in refusal(tmp_path / "pipe.png")
    with pytest.raises(InputError, match="no regular file"):
        read_image_size(row(tmp_path / "pipe.png"), "pipe.png")
