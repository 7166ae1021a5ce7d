"""What a learner can be taught from, and what it refuses, each in one line."""

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
from pah.data.lesson import convert_channels, load_lesson, whole

SIDE = 12  # of the photos, which are not square: SIDE x 2 SIDE
CLASSES = ("ant", "bee", "cat")


def photo(y: int, number: int) -> Image.Image:
    """Of a class, told by its colour; twice as wide as high, what is cut away is black."""
    pixels = np.zeros((SIDE, 2 * SIDE, 3), np.uint8)
    pixels[:, SIDE // 2 : -SIDE // 2, y] = 100 + number
    return Image.fromarray(pixels)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Ten PNG files of each class."""
    for y, name in enumerate(CLASSES):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(10):
            photo(y, number).save(tmp_path / "photos" / name / f"{number}.png")
    return tmp_path / "photos"


def in_hand() -> tuple[list[Image.Image], list[int], list[str]]:
    return [photo(y, n) for y in range(3) for n in range(10)], [y for y in range(3) for _ in range(10)], list(CLASSES)


def of_the_hub() -> datasets.Dataset:
    images, labels, names = in_hand()
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    return datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)


def files(photos: Path) -> tuple[list[Path], list[int], list[str]]:
    return [photos / name / f"{n}.png" for name in CLASSES for n in range(10)], in_hand()[1], list(CLASSES)


KINDS: dict[str, Callable[[Path], Any]] = {
    "folder": lambda photos: photos,
    "folder as text": str,
    "images": lambda _: in_hand(),
    "arrays": lambda _: (np.stack([np.asarray(one) for one in in_hand()[0]]), *in_hand()[1:]),
    "files": files,
    "data set": lambda _: of_the_hub(),
    "splits": lambda _: of_the_hub().train_test_split(0.2, stratify_by_column="label", seed=0),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_data_teaches_the_same_classes(photos: Path, kind: str) -> None:
    source = load_lesson(KINDS[kind](photos), 8, 3)
    assert source.class_names == CLASSES
    for part, count in ((source.train, 8), (source.test, 2)):
        assert part.pixels.shape == (3 * count, 3, 8, 8)
        assert torch.bincount(part.labels).tolist() == [count] * 3
        colour = part.pixels.float().mean(dim=(2, 3)).argmax(dim=1)  # none of it black: the centre was cut out
        assert torch.equal(colour, part.labels)
        assert int(part.pixels.amax(dim=1).min()) > 80
    assert source.changed == ("images of 24x12 (the first one) become 8x8",)
    assert len(whole(source).test) == (6 if kind == "splits" else 30)  # all, where the test part was only taken


def test_classes_can_be_chosen_and_ordered(photos: Path) -> None:
    source = load_lesson(photos, 8, 3, classes=["cat", "ant"])
    assert source.class_names == ("cat", "ant")
    assert torch.equal(source.train.pixels.float().mean(dim=(2, 3)).argmax(dim=1), 2 - 2 * source.train.labels)


def test_colour_and_grey_are_converted_and_said_so(photos: Path) -> None:
    grey = load_lesson(photos, SIDE, 1)
    assert grey.train.pixels.shape == (24, 1, SIDE, SIDE)
    assert grey.changed[-1] == "colour images become grey images"
    pixels = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]], dtype=torch.uint8)[..., None, None]
    assert convert_channels(pixels, 1).flatten().tolist() == [76, 150, 29, 255]  # ITU-R BT.601
    assert torch.equal(convert_channels(pixels[:, :1], 3), pixels[:, :1].repeat(1, 3, 1, 1))


def write_bomb(path: Path) -> None:
    """A small file of 100 megapixels."""
    Image.new("L", (10_000, 10_000)).save(path)


def write_empty(path: Path) -> None:
    path.write_bytes(b"")


def write_truncated(path: Path) -> None:
    whole = path.with_suffix(".whole")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(whole, "PNG")
    path.write_bytes(whole.read_bytes()[:-1000])
    whole.unlink()


def write_no_pixels(path: Path) -> None:
    """A BMP whose header says 0 x 0."""
    photo(0, 0).save(path, "BMP")
    data = bytearray(path.read_bytes())
    data[18:26] = bytes(8)
    path.write_bytes(data)


def write_floats(path: Path) -> None:
    """NaN pixels, which only a TIFF of floating-point numbers can have."""
    Image.fromarray(np.full((SIDE, SIDE), np.nan, dtype=np.float32)).save(path, "TIFF")


DAMAGES = {
    "bomb": (write_bomb, "10000x10000 pixels, more than 50 megapixels"),
    "empty": (write_empty, "expected an image"),
    "truncated": (write_truncated, "truncated"),
    "no pixels": (write_no_pixels, "expected an image"),
    "NaN": (write_floats, "floating-point pixels"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_an_image_that_is_none_is_named_or_left_out(photos: Path, kind: str) -> None:
    write, said = DAMAGES[kind]
    bad = photos / "bee" / "bad.png"
    write(bad)
    one_line(lambda: load_lesson(photos, 8, 3), str(bad), said)
    one_line(lambda: image.to_pixels([bad], (3, 8, 8)), str(bad), said)
    source = load_lesson(photos, 8, 3, skip_unreadable=True)
    assert source.skipped == (str(bad),)
    assert len(source.train) + len(source.test) == 30


def one_line(what: Callable[[], object], *parts: str) -> None:
    """It is refused, in one line that holds these parts."""
    with pytest.raises(InputError) as caught:
        what()
    message = str(caught.value)
    assert "\n" not in message
    assert not [part for part in parts if part not in message], message


def test_a_folder_that_is_no_lesson_is_refused(photos: Path, tmp_path: Path) -> None:
    one_line(lambda: load_lesson(tmp_path / "nowhere", 8), "nowhere")
    one_line(lambda: load_lesson(photos / "ant", 8), str(photos / "ant"))  # images, but no class folders
    (photos / "dog").mkdir()
    one_line(lambda: load_lesson(photos, 8), "dog")  # an empty class
    (photos / "dog").rmdir()
    one_line(lambda: load_lesson(photos, 8, classes=["ant"]), "at least 2 classes", "got ant")
    one_line(lambda: load_lesson(photos, 8, classes=["ant", "eel"]), "unknown class", "'eel'", "did you mean 'bee'?")
    one_line(lambda: load_lesson(photos, 8, classes=["ant", "ant"]), "each once")
    (tmp_path / "single").mkdir()
    (photos / "ant").rename(tmp_path / "single" / "ant")
    one_line(lambda: load_lesson(tmp_path / "single", 8), "classes")


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
    one_line(lambda: load_lesson(photos, 8), str(bad), "a link out of it")
    bad.unlink()
    (photos / "ant" / "again.png").symlink_to(photos / "ant" / "0.png")  # links that stay inside are welcome
    assert len(whole(load_lesson(photos, 8)).test) == 31


def test_labels_and_pixels_must_fit(photos: Path) -> None:
    images, labels, names = in_hand()
    one_line(lambda: load_lesson((images, labels[:-1], names), 8), "labels", "30 images", "(29,)")
    one_line(lambda: load_lesson((images, [*labels[:-1], 3], names), 8), "labels", "0 to 2", "got 3")
    one_line(lambda: load_lesson((images, [*labels[:-1], -1], names), 8), "labels", "0 to 2", "got -1")
    halves: Any = [y / 2 for y in labels]
    one_line(lambda: load_lesson((images, halves, names), 8), "whole number", "float64")
    one_line(lambda: load_lesson((images, labels, ["ant", "bee", "ant"]), 8), "each once")
    seven: Any = 7
    one_line(lambda: load_lesson(([*images[:-1], seven], labels, names), 8), "image 30", "int")
    nan: Any = np.full((30, SIDE, SIDE, 3), np.nan)
    one_line(lambda: load_lesson((nan, labels, names), 8), "uint8", "float64")
    one_line(lambda: load_lesson(([], [], names), 8), "at least 2 of each class, got none")
