"""Every kind of input of a lesson, and the inputs that are refused with a message of one line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from pah import InputError
from pah.data import image
from pah.data.lesson import convert_channels, load_lesson, with_all_images_in_test
from pah.data.read_options import ReadOptions

SIDE = 12  # height of the photos in pixels; they are twice as wide
CLASSES = ("ant", "bee", "cat")


def photo(y: int, number: int) -> Image.Image:
    """Return a photo of class y, which its colour identifies; the parts that cropping removes are black."""
    pixels = np.zeros((SIDE, 2 * SIDE, 3), np.uint8)
    pixels[:, SIDE // 2 : -SIDE // 2, y] = 100 + number
    return Image.fromarray(pixels)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return a folder with ten PNG files of each class."""
    for y, name in enumerate(CLASSES):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(10):
            photo(y, number).save(tmp_path / "photos" / name / f"{number}.png")
    return tmp_path / "photos"


def pil_images() -> tuple[list[Image.Image], list[int], list[str]]:
    return [photo(y, n) for y in range(3) for n in range(10)], [y for y in range(3) for _ in range(10)], list(CLASSES)


def dataset_in_memory() -> datasets.Dataset:
    images, labels, names = pil_images()
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    return datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)


def image_files(photos: Path) -> tuple[list[Path], list[int], list[str]]:
    return [photos / name / f"{n}.png" for name in CLASSES for n in range(10)], pil_images()[1], list(CLASSES)


KINDS: dict[str, Callable[[Path], Any]] = {
    "folder": lambda photos: photos,
    "folder as text": str,
    "images": lambda _: pil_images(),
    "arrays": lambda _: (np.stack([np.asarray(one) for one in pil_images()[0]]), *pil_images()[1:]),
    "files": image_files,
    "data set": lambda _: dataset_in_memory(),
    "splits": lambda _: dataset_in_memory().train_test_split(0.2, stratify_by_column="label", seed=0),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_data_gives_the_same_images(photos: Path, kind: str) -> None:
    source = load_lesson(KINDS[kind](photos), 8, 3)
    assert source.class_names == CLASSES
    for part, count in ((source.train, 8), (source.test, 2)):
        assert part.pixels.shape == (3 * count, 3, 8, 8)
        assert torch.bincount(part.labels).tolist() == [count] * 3
        colour = part.pixels.float().mean(dim=(2, 3)).argmax(dim=1)  # no black: the centre was cropped
        assert torch.equal(colour, part.labels)
        assert int(part.pixels.amax(dim=1).min()) > 80
    assert source.conversions == ("images of 24x12 (the first one) become 8x8",)
    # all images, unless the data have a test part of their own
    assert len(with_all_images_in_test(source).test) == (6 if kind == "splits" else 30)


def test_classes_can_be_chosen_and_ordered(photos: Path) -> None:
    source = load_lesson(photos, 8, 3, classes=["cat", "ant"])
    assert source.class_names == ("cat", "ant")
    assert torch.equal(source.train.pixels.float().mean(dim=(2, 3)).argmax(dim=1), 2 - 2 * source.train.labels)


def test_colour_and_grey_are_converted_and_reported(photos: Path) -> None:
    grey = load_lesson(photos, SIDE, 1)
    assert grey.train.pixels.shape == (24, 1, SIDE, SIDE)
    assert grey.conversions[-1] == "colour images become grey images"
    pixels = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]], dtype=torch.uint8)[..., None, None]
    assert convert_channels(pixels, 1).flatten().tolist() == [76, 150, 29, 255]  # ITU-R BT.601
    assert torch.equal(convert_channels(pixels[:, :1], 3), pixels[:, :1].repeat(1, 3, 1, 1))


def write_bomb(path: Path) -> None:
    """Write a small file of 100 megapixels."""
    Image.new("L", (10_000, 10_000)).save(path)


def write_empty(path: Path) -> None:
    path.write_bytes(b"")


def write_truncated(path: Path) -> None:
    complete = path.with_suffix(".complete")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(complete, "PNG")
    path.write_bytes(complete.read_bytes()[:-1000])
    complete.unlink()


def write_no_pixels(path: Path) -> None:
    """Write a BMP file whose header says 0 x 0."""
    photo(0, 0).save(path, "BMP")
    data = bytearray(path.read_bytes())
    data[18:26] = bytes(8)
    path.write_bytes(data)


def write_floats(path: Path) -> None:
    """Write NaN pixels, which only a TIFF of floating-point numbers can have."""
    Image.fromarray(np.full((SIDE, SIDE), np.nan, dtype=np.float32)).save(path, "TIFF")


DAMAGES = {
    "bomb": (write_bomb, "10000x10000 pixels, more than 50 megapixels"),
    "empty": (write_empty, "expected an image"),
    "truncated": (write_truncated, "truncated"),
    "no pixels": (write_no_pixels, "expected an image"),
    "NaN": (write_floats, "floating-point pixels"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_an_unreadable_image_is_named_or_left_out(photos: Path, kind: str) -> None:
    write, reason = DAMAGES[kind]
    bad = photos / "bee" / "bad.png"
    write(bad)
    assert_refused(lambda: load_lesson(photos, 8, 3), str(bad), reason)
    assert_refused(lambda: image.to_pixel_array([bad], (3, 8, 8)), str(bad), reason)
    source = load_lesson(photos, 8, 3, options=ReadOptions(skip_unreadable=True))
    assert source.skipped == ("bee/bad.png",)
    assert len(source.train) + len(source.test) == 30


def assert_refused(call: Callable[[], object], *parts: str) -> None:
    """Assert that the call raises an InputError of one line that contains these parts."""
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert not [part for part in parts if part not in message], message


def test_unsuitable_folders_and_classes_are_refused(photos: Path, tmp_path: Path) -> None:
    assert_refused(lambda: load_lesson(tmp_path / "nowhere", 8), "nowhere")
    assert_refused(lambda: load_lesson(photos / "ant", 8), str(photos / "ant"))  # images, but no class folders
    (photos / "dog").mkdir()
    assert_refused(lambda: load_lesson(photos, 8), "dog")  # an empty class
    (photos / "dog").rmdir()
    assert_refused(
        lambda: load_lesson(photos, 8, classes=["ant", "eel"]), "unknown class", "'eel'", "did you mean 'bee'?"
    )
    assert_refused(lambda: load_lesson(photos, 8, classes=["ant", "ant"]), "each once")


@pytest.mark.parametrize("link", ["a file", "a class"])
def test_a_link_out_of_the_folder_is_refused(photos: Path, tmp_path: Path, link: str) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    photo(0, 0).save(secret / "private.png")
    if link == "a file":
        bad = photos / "ant" / "shown.png"
        bad.symlink_to(secret / "private.png")
    else:
        bad = photos / "dog"
        bad.symlink_to(secret)
    assert_refused(lambda: load_lesson(photos, 8), str(bad), "a link to a place outside it")
    bad.unlink()
    (photos / "ant" / "again.png").symlink_to(photos / "ant" / "0.png")  # links inside the folder are allowed
    assert len(with_all_images_in_test(load_lesson(photos, 8)).test) == 31


def test_wrong_labels_and_pixels_are_refused(photos: Path) -> None:
    images, labels, names = pil_images()
    assert_refused(lambda: load_lesson((images, labels[:-1], names), 8), "labels", "30 images", "(29,)")
    assert_refused(lambda: load_lesson((images, [*labels[:-1], 3], names), 8), "labels", "0 to 2", "got 3")
    assert_refused(lambda: load_lesson((images, [*labels[:-1], -1], names), 8), "labels", "0 to 2", "got -1")
    halves: Any = [y / 2 for y in labels]
    assert_refused(lambda: load_lesson((images, halves, names), 8), "whole number", "float64")
    assert_refused(lambda: load_lesson((images, labels, ["ant", "bee", "ant"]), 8), "each once")
    seven: Any = 7
    assert_refused(lambda: load_lesson(([*images[:-1], seven], labels, names), 8), "image 30", "int")
    nan: Any = np.full((30, SIDE, SIDE, 3), np.nan)
    assert_refused(lambda: load_lesson((nan, labels, names), 8), "uint8", "float64")
    assert_refused(lambda: load_lesson(([], [], names), 8), "at least one of a class, got none")
