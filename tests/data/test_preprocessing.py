"""Images are resized with the filter and the crop of a backbone, and in the usual way without one."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from data_sets import class_folders
from pah.core.config import InputError
from pah.data.image import to_pixel_array
from pah.data.preprocessing import DEFAULT_RESIZING, Resizing
from pah.data.read_options import DEFAULT_READING
from pah.data.sources import _key_options, load_source

PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8))
MODEL = Resizing("bicubic", 0.8)


def same(first: Any, second: Any) -> bool:
    """Return whether two images, or an image and an array, have the same pixels."""
    return np.array_equal(np.asarray(first), np.asarray(second))


def test_by_default_images_are_resized_as_ever() -> None:
    for size in ((24, 24), (70, 70), (90, 60)):
        expected = ImageOps.fit(PHOTO, (size[1], size[0]), Image.Resampling.BILINEAR)
        assert same(DEFAULT_RESIZING.apply(PHOTO, size), expected)
        assert same(to_pixel_array(PHOTO, (3, *size))[0].transpose(1, 2, 0), expected)


def test_the_crop_share_is_that_of_the_shorter_side_in_the_middle() -> None:
    middle = PHOTO.resize((24, 24), Image.Resampling.BICUBIC, box=(21, 6, 69, 54))  # 48 of 60 pixels
    assert same(MODEL.apply(PHOTO, (24, 24)), middle)
    assert same(Resizing("bicubic").apply(PHOTO, (60, 60)), PHOTO.crop((15, 0, 75, 60)))


def test_an_image_of_the_requested_size_stays_as_it_is() -> None:
    assert same(MODEL.apply(PHOTO, (60, 90)), PHOTO)
    pixels = np.asarray(PHOTO)
    for images in (pixels[None], [pixels], PHOTO):
        assert same(to_pixel_array(images, (3, 60, 90), resizing=MODEL)[0].transpose(1, 2, 0), pixels)


def test_values_out_of_range_are_refused() -> None:
    with pytest.raises(InputError, match="interpolation: expected bilinear or bicubic, got 'nearest'"):
        Resizing("nearest")  # type: ignore[arg-type]
    for share in (0.0, 1.1, float("nan")):
        with pytest.raises(InputError, match="crop_share: expected above 0 and up to 1"):
            Resizing("bicubic", share)


def test_each_way_of_resizing_has_its_own_place_in_the_cache(tmp_path: Path) -> None:
    assert _key_options(DEFAULT_READING, 8, None, DEFAULT_RESIZING) == [None, 8]  # as before there were others
    assert _key_options(DEFAULT_READING, None, None, MODEL) == [None, None]  # images keep their size
    root = class_folders(tmp_path / "set", {"bird": 4, "cat": 4})
    for way in (DEFAULT_RESIZING, MODEL, DEFAULT_RESIZING):
        source = load_source(str(root), 4, resizing=way)
        pixels = {images.tobytes() for part in (source.train, source.test) for images in part.pixels.numpy()}
        with_default, with_model = (
            {to_pixel_array(file, (3, 4, 4), resizing=each).tobytes() for file in root.rglob("*.png")}
            for each in (DEFAULT_RESIZING, MODEL)
        )
        assert (
            pixels == (with_model if way == MODEL else with_default) != (with_default if way == MODEL else with_model)
        )
        assert ("(bicubic, the middle 80 % of the shorter side)" in source.notes[-1]) == (way == MODEL)
