"""Loading of data sets: every layout, wrong columns and labels, damaged images, the cache, and the hub."""

import http.server
import io
import re
import resource
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from datasets.packaged_modules.parquet.parquet import Parquet
from PIL import Image

from pah.core import hub
from pah.core.config import InputError
from pah.data import decode, located, sources
from pah.data.read_options import ReadOptions
from pah.data.sources import Source, load_digits, load_source

SHARED = Path(__file__).parents[3] / "shared" / "data"
NAMES = ["bird", "cat", "dog"]
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="no shared data beside the repository")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Use a separate cache for each test, and a hub that refuses connections."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("HF_DATASETS_CACHE", str(folder))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    return folder / "pah"


@pytest.fixture
def undecodable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make it an error to read labels or to decode an image: a data set that still loads comes from the cache."""

    def fail(*_: object) -> None:
        raise AssertionError("the data set was read")

    monkeypatch.setattr(decode, "decode_image", fail)
    monkeypatch.setattr(sources, "read_labelled_splits", fail)


@contextmanager
def refused(match: str) -> Iterator[None]:
    with pytest.raises(InputError, match=match) as caught:
        yield
    assert "\n" not in str(caught.value)


def picture(seed: int, mode: str = "RGB", size: tuple[int, int] = (6, 6)) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise).convert(mode)


def encode(image: Image.Image, format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format)
    return buffer.getvalue()


def chw(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.atleast_3d(np.asarray(image)).transpose(2, 0, 1).copy())


def save(image: Image.Image, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file)


def class_folders(root: Path, count: int = 2, splits: Sequence[str] = ("train", "test"), mode: str = "RGB") -> Path:
    for s, split in enumerate(splits):
        for c, name in enumerate(NAMES):
            for i in range(count):
                save(picture(100 * s + 10 * c + i, mode), root / split / name / f"{i}.png")
    return root


def shard(folder: Path, split: str, columns: dict[str, list[Any]], features: datasets.Features | None = None) -> Path:
    """Write a Parquet file; without `features` it lacks the metadata of `datasets`."""
    folder.mkdir(parents=True, exist_ok=True)
    table = pyarrow.table(columns, schema=features and features.arrow_schema)
    pyarrow.parquet.write_table(table, folder / f"{split}-00000-of-00001.parquet")
    return folder


def images(*pictures: Image.Image) -> list[dict[str, Any]]:
    return [{"bytes": encode(p), "path": None} for p in pictures]


def features(**columns: Any) -> datasets.Features:
    return datasets.Features({"image": datasets.Image(), **columns})


def parquet(folder: Path, train: Sequence[int | None] = (0, 1, 2), test: Sequence[int | None] = (0, 1, 2)) -> Path:
    """Write Parquet files in the hub's layout, with one image a label, of the three classes NAMES."""
    kinds = features(label=datasets.ClassLabel(names=NAMES))
    for split, labels in (("train", train), ("test", test)):
        pictures = images(*(picture(i) for i in range(len(labels))))
        shard(folder, split, {"image": pictures, "label": list(labels)}, kinds)
    return folder


def parquet_with_columns(folder: Path, columns: dict[str, list[Any]], kinds: datasets.Features | None = None) -> Path:
    """Write both splits, each with three images and the other `columns`."""
    for split in ("train", "test"):
        shard(folder, split, {"image": images(*map(picture, range(3))), **columns}, kinds)
    return folder


def equal_sources(a: Source, b: Source) -> bool:
    pairs = ((a.train, b.train), (a.test, b.test))
    equal = all(torch.equal(x.pixels, y.pixels) and torch.equal(x.labels, y.labels) for x, y in pairs)
    return equal and a.class_names == b.class_names


# Digits


def test_digits_are_scaled_and_split_by_class() -> None:
    digits = load_digits()
    assert digits.class_names == tuple("0123456789")
    assert digits.train.pixels.shape[1:] == digits.test.pixels.shape[1:] == (1, 8, 8)
    assert digits.train.pixels.dtype == torch.uint8
    assert digits.train.labels.dtype == torch.int64
    assert len(digits.train) + len(digits.test) == 1797
    assert digits.train.pixels.unique().tolist() == [round(v * 255 / 16) for v in range(17)]
    share = digits.test.labels.bincount() / (digits.test.labels.bincount() + digits.train.labels.bincount())
    torch.testing.assert_close(share, torch.full((10,), 0.2), atol=0.005, rtol=0)


def test_digits_are_the_same_in_every_run() -> None:
    torch.manual_seed(1)
    first = load_digits()
    torch.manual_seed(2)
    assert equal_sources(first, load_digits())


# Layouts


def test_class_folders_give_the_images_of_the_files(tmp_path: Path) -> None:
    source = load_source(str(class_folders(tmp_path / "set")))
    assert source.origin == str(tmp_path / "set")
    assert source.class_names == tuple(NAMES)
    assert source.train.labels.tolist() == source.test.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert torch.equal(source.train.pixels, torch.stack([chw(picture(10 * c + i)) for c in range(3) for i in range(2)]))
    assert torch.equal(source.test.pixels[3], chw(picture(111)))


def test_a_tilde_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class_folders(tmp_path / "set")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(load_source("~/set").train) == 6


@pytest.mark.parametrize("split", ["test", "val", "valid", "validation"])
def test_the_test_split_has_its_usual_names(tmp_path: Path, split: str) -> None:
    folders = load_source(str(class_folders(tmp_path / "folders", splits=("train", split))))
    assert len(folders.test) == 6
    parquet(tmp_path / "parquet" / "data")
    (shard_file,) = (tmp_path / "parquet" / "data").glob("test-*")
    shard_file.rename(shard_file.with_name(f"{split}-00000-of-00001.parquet"))
    assert len(load_source(str(tmp_path / "parquet")).test) == 3


def test_test_is_preferred_to_validation(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "set", splits=("train", "val", "test"))
    assert torch.equal(load_source(str(root)).test.pixels[0], chw(picture(200)))


def test_of_plain_class_folders_a_fixed_fifth_of_each_class_is_for_testing(tmp_path: Path) -> None:
    for name, count in (("train", 10), ("cat", 15), ("dog", 2)):  # "train" has no subfolders, so it is a class here
        for i in range(count):
            save(picture(len(name) * 100 + i), tmp_path / "set" / name / f"{i:02}.png")
    (tmp_path / "set" / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "set" / ".hidden").mkdir()
    source = load_source(str(tmp_path / "set"))
    assert source.class_names == ("cat", "dog", "train")
    assert source.train.labels.bincount().tolist() == [12, 1, 8]
    assert source.test.labels.bincount().tolist() == [3, 1, 2]
    shutil.move(tmp_path / "set", tmp_path / "moved")
    assert equal_sources(source, load_source(str(tmp_path / "moved")))


def tiny_imagenet(root: Path) -> Path:
    """Write TinyImageNet as unpacked, with two classes of three training and two validation images."""
    lines = []
    for c, wnid in enumerate(("n02", "n01")):
        for i in range(3):
            save(picture(10 * c + i), root / "train" / wnid / "images" / f"{wnid}_{i}.JPEG")
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text("n02_0.JPEG\t0\t0\t62\t62\n")
        for i in range(2):
            save(picture(50 + 10 * c + i), root / "val" / "images" / f"val_{2 * i + c}.JPEG")
            lines.append(f"val_{2 * i + c}.JPEG\t{wnid}\t0\t0\t62\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    save(picture(99), root / "test" / "images" / "test_0.JPEG")  # not used, as it has no labels
    (root / "wnids.txt").write_text("n02\nn01\n")
    (root / "words.txt").write_text("n01\tgoldfish, Carassius auratus\nn02\tnewt\n")
    return root


def test_tiny_imagenet_as_unpacked_equals_its_parquet_form(tmp_path: Path) -> None:
    root = tiny_imagenet(tmp_path / "tiny")
    folder = load_source(str(root))
    assert folder.class_names == ("n01", "n02")
    kinds = features(label=datasets.ClassLabel(names=["n01", "n02"]))
    train = sorted((root / "train").glob("*/images/*.JPEG"))
    val = [root / "val" / "images" / f"val_{i}.JPEG" for i in (0, 2, 1, 3)]
    for split, files, labels in (("train", train, [0, 0, 0, 1, 1, 1]), ("valid", val, [1, 1, 0, 0])):
        rows = [{"bytes": file.read_bytes(), "path": file.name} for file in files]
        shard(tmp_path / "hub", split, {"image": rows, "label": labels}, kinds)
    assert equal_sources(folder, load_source(str(tmp_path / "hub")))


def test_broken_annotations_of_tiny_imagenet_are_named(tmp_path: Path) -> None:
    annotations = tiny_imagenet(tmp_path / "tiny") / "val" / "val_annotations.txt"
    annotations.write_text(annotations.read_text() + "val_9.JPEG n01\n")
    with refused(r"val_annotations.txt line 5: expected file, wnid and box between tabs, got 'val_9.JPEG n01'"):
        load_source(str(tmp_path / "tiny"))
    annotations.write_text("val_9.JPEG\tn01\t0\t0\t62\t62\n")
    with refused("No such file or directory: .*val_9.JPEG"):
        load_source(str(tmp_path / "tiny"))


@needs_shared
def test_a_real_data_set_with_some_grey_images(tmp_path: Path) -> None:
    for split in ("train", "valid"):  # the small split twice, as it loads faster
        name = f"{split}-00000-of-00001.parquet"
        (tmp_path / name).symlink_to(SHARED / "tiny-imagenet-50" / "valid-00000-of-00001.parquet")
    source = load_source(str(tmp_path), options=ReadOptions(follow_links=True))
    assert source.test.pixels.shape == (2500, 3, 64, 64)
    assert source.test.labels.bincount().tolist() == [50] * 50
    assert source.class_names == tuple(sorted(source.class_names))
    grey = (source.test.pixels == source.test.pixels[:, :1]).flatten(1).all(1)
    assert grey.sum() == 49  # 46 of mode L, 3 of mode RGB


@pytest.mark.slow
@needs_shared
def test_cifar100_is_decoded_within_a_minute_and_opened_within_two_seconds() -> None:
    start = time.perf_counter()
    first = load_source(str(SHARED / "cifar100"))
    assert time.perf_counter() - start < 60
    start = time.perf_counter()
    second = load_source(str(SHARED / "cifar100"))
    assert time.perf_counter() - start < 2
    assert equal_sources(first, second)
    assert second.train.pixels.shape == (50_000, 3, 32, 32)
    assert second.class_names[:2] == ("apple", "aquarium_fish")
    assert second.test.labels.bincount().tolist() == [100] * 100


# Paths without a data set


@pytest.mark.parametrize("data", ["/no/such", "./no", "../no", "~/no-such", "~nobody/x", "a/b/c", "a b", "", "owner/"])
def test_a_missing_path_is_refused(data: str) -> None:
    with refused("expected a folder of images or Parquet files or a hub id, got a path that does not exist"):
        load_source(data)


def test_folders_without_a_data_set_are_refused(tmp_path: Path) -> None:
    with refused("found no images"):
        load_source(str(tmp_path))
    save(picture(0), tmp_path / "train" / "loose.png")
    save(picture(0), tmp_path / "test" / "loose.png")
    with refused("found no images"):
        load_source(str(tmp_path))
    with refused("got a file"):
        load_source(str(tmp_path / "train" / "loose.png"))
    class_folders(tmp_path / "alone", splits=["test", "val"])
    with refused("expected a split train and one of test, valid, validation, val, got test, val"):
        load_source(str(tmp_path / "alone"))


def test_unreadable_parquet_is_refused(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / f"{split}-0.parquet").write_bytes(b"PAR1 but no more")
    with refused("expected readable data, got: .*train-0.parquet"):
        load_source(str(tmp_path))
    with refused("image_size: expected a positive number of pixels, got 0"):
        load_source(str(tmp_path), image_size=0)


# Columns and labels


@pytest.mark.parametrize(
    ("columns", "asked", "expected"),
    [
        ({"fine_label": "class", "label": "class"}, None, "label"),
        ({"coarse_label": "class", "fine_label": "class"}, None, "fine_label"),
        ({"id": "int", "kind": "class"}, None, "kind"),
        ({"kind": "int", "text": "string"}, None, "kind"),
        ({"label": "class", "other": "int"}, "other", "other"),
    ],
)
def test_the_label_column(tmp_path: Path, columns: dict[str, str], asked: str | None, expected: str) -> None:
    kinds = {
        "class": datasets.ClassLabel(names=NAMES),
        "int": datasets.Value("int16"),
        "string": datasets.Value("string"),
    }
    values: dict[str, list[Any]] = {name: [2, 1, 0] if name == expected else [0, 1, 2] for name in columns}
    values |= {name: ["x"] * 3 for name, kind in columns.items() if kind == "string"}
    parquet_with_columns(tmp_path / "set", values, features(**{name: kinds[kind] for name, kind in columns.items()}))
    source = load_source(str(tmp_path / "set"), options=ReadOptions(label_column=asked))
    assert source.train.labels.tolist() == [2, 1, 0]
    assert source.class_names == (tuple(NAMES) if columns[expected] == "class" else ("0", "1", "2"))


@pytest.mark.parametrize(
    ("columns", "asked", "match"),
    [
        ({}, None, "one column of labels, ClassLabel, integers or text, got the columns 'image'; `--label_column"),
        ({"a": [0, 1, 2], "b": [0, 1, 2]}, None, "one column of labels, .*, got the columns 'image', 'a', 'b'"),
        ({"a": [0, 1, 2]}, "b", "a column 'b' of labels, .*, got the columns 'image', 'a'"),
        ({"caption": ["x", "y", "z"]}, None, "one column of labels"),
        ({"mask": images(*map(picture, range(3))), "label": [0, 1, 2]}, None, "one column of images"),
    ],
)
def test_missing_or_ambiguous_columns_are_refused(
    tmp_path: Path, columns: dict[str, list[Any]], asked: str | None, match: str
) -> None:
    parquet_with_columns(tmp_path / "set", columns)
    with refused(match):
        load_source(str(tmp_path / "set"), options=ReadOptions(label_column=asked))


def test_a_data_set_without_an_image_column_is_refused(tmp_path: Path) -> None:
    for split in ("train", "test"):
        shard(tmp_path / "set", split, {"text": ["x"], "label": [0]})
    with refused("expected one column of images, got the columns 'text', 'label'"):
        load_source(str(tmp_path / "set"))


@pytest.mark.parametrize(("label", "shown"), [(3, "3"), (-1, "-1"), (None, "-1")])
def test_a_label_without_a_class_is_refused(tmp_path: Path, label: int | None, shown: str) -> None:
    with refused(f"split test, row 3: expected a label from 0 to 2, got {shown}"):
        load_source(str(parquet(tmp_path / "set", test=[0, 1, 2, label])))


@pytest.mark.parametrize("label", [-1, 10**12])
def test_an_integer_that_is_not_a_label_is_refused(tmp_path: Path, label: int) -> None:
    parquet_with_columns(tmp_path / "set", {"label": [0, 1, label]})
    with refused(f"split train, row 2: expected a label from 0 to [12], got {label}"):
        load_source(str(tmp_path / "set"))


def test_a_class_without_images_in_a_split_is_refused(tmp_path: Path) -> None:
    with refused("split test: expected images of every class, got none of 'dog'"):
        load_source(str(parquet(tmp_path / "a", test=[0, 1])))
    with refused("split train: expected images of every class, got none of 'cat'"):
        load_source(str(parquet(tmp_path / "b", train=[0, 2, 2])))


def test_an_empty_class_folder_is_refused(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "set")
    load_source(str(root))  # fills the cache, which must not hide the new folder
    (root / "train" / "zebra").mkdir()
    with refused("split train: expected images of every class, got none of 'zebra'"):
        load_source(str(root))


def test_splits_with_different_class_names_are_refused(tmp_path: Path) -> None:
    for split, names in (("train", NAMES), ("test", NAMES[::-1])):
        kinds = features(label=datasets.ClassLabel(names=names))
        shard(tmp_path / "set", split, {"image": images(*map(picture, range(3))), "label": [0, 1, 2]}, kinds)
    with refused("expected 'label' to have the same class names in both splits"):
        load_source(str(tmp_path / "set"))


# Images


@pytest.mark.parametrize("mode", ["1", "L", "I;16", "LA"])
def test_grey_images_have_one_channel(tmp_path: Path, mode: str) -> None:
    root = class_folders(tmp_path / "set", mode="L")
    grey = picture(7, "L")
    if mode == "I;16":
        save(Image.fromarray(np.asarray(grey).astype(np.uint16) << 8), root / "train" / "bird" / "0.png")
    else:
        grey = grey.convert(mode)
        save(grey, root / "train" / "bird" / "0.png")
    source = load_source(str(root))
    assert source.train.pixels.shape == source.test.pixels.shape == (6, 1, 6, 6)
    assert torch.equal(source.train.pixels[0], chw(grey.convert("L")))


def test_one_colour_image_makes_all_of_them_colour(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "set", mode="L")
    picture(3, "P").save(root / "test" / "dog" / "1.png")
    source = load_source(str(root))
    assert source.train.pixels.shape == source.test.pixels.shape == (6, 3, 6, 6)
    assert torch.equal(source.train.pixels[0], chw(picture(0, "L")).expand(3, 6, 6))
    assert torch.equal(source.test.pixels[5], chw(picture(3, "P").convert("RGB")))


def test_rotated_photos_are_turned_upright(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "set")
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    picture(5).save(root / "train" / "bird" / "0.png", exif=exif)
    upright = picture(5).transpose(Image.Transpose.ROTATE_270)
    assert torch.equal(load_source(str(root)).train.pixels[0], chw(upright))


def test_images_of_two_sizes_are_refused_or_resized(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "set")
    stripes = Image.new("RGB", (30, 10))
    stripes.paste((255, 0, 0), (10, 0, 20, 10))  # the middle third is red
    save(stripes, root / "test" / "cat" / "0.png")
    with refused(r"one size, got 6x6 \(.*train/bird/0.png\) and 30x10 \(.*test/cat/0.png\); `--image_size N` resizes"):
        load_source(str(root))
    source = load_source(str(root), image_size=4)
    assert source.train.pixels.shape == source.test.pixels.shape == (6, 3, 4, 4)
    assert torch.equal(source.test.pixels[2, :, :, 1:3], torch.tensor([255, 0, 0]).byte().view(3, 1, 1).expand(3, 4, 2))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(b"P4\n8000 7000\n", "8000x7000 pixels, more than 50 megapixels", id="too large"),
        pytest.param(b"P4\n60000 60000\n", "more than 50 megapixels; `--max_megapixels N`", id="a bomb"),
        pytest.param(b"text", "data in none of the formats BMP, GIF, JPEG, PNG", id="text"),
        pytest.param(encode(picture(0), "EPS"), "data in none of the formats", id="a program"),
        pytest.param(encode(picture(0))[:60], "image file is truncated|broken PNG", id="cut"),
        pytest.param(encode(picture(0, "F"), "TIFF"), "floating-point pixels", id="floats"),
    ],
)
def test_an_unreadable_image_is_named(tmp_path: Path, content: bytes, reason: str) -> None:
    root = class_folders(tmp_path / "folders")
    (root / "train" / "cat" / "1.png").write_bytes(content)
    with refused(f"train/cat/1.png: expected an image, got: ({reason})"):
        load_source(str(root))
    rows = [*images(picture(0), picture(1)), {"bytes": content, "path": "2.png"}]
    kinds = features(label=datasets.ClassLabel(names=NAMES))
    parquet(tmp_path / "parquet")
    shard(tmp_path / "parquet", "test", {"image": rows, "label": [0, 1, 2]}, kinds)
    with refused(f"parquet, split test, row 2: expected an image, got: ({reason})"):
        load_source(str(tmp_path / "parquet"))


def test_the_row_of_an_image_counts_from_the_start_of_its_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, "BATCH_ROWS", 2)
    parquet_with_columns(tmp_path / "set", {"label": [0, 1, 2]})
    shard(tmp_path / "set", "train", {"image": [*images(*map(picture, range(4))), None], "label": [0, 1, 2, 0, 0]})
    with refused("split train, row 4: expected an image, got: nothing"):
        load_source(str(tmp_path / "set"))


# The cache


def test_a_second_load_decodes_nothing_and_gives_the_same(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    root = parquet(tmp_path / "set")
    first = load_source(str(root))
    request.getfixturevalue("undecodable")
    second = load_source(str(root))
    assert equal_sources(first, second)
    second.train.pixels.zero_()  # a private copy: the file does not change
    assert equal_sources(first, load_source(str(root)))


def test_a_changed_file_column_or_size_is_decoded_again(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "set")
    load_source(str(root))
    save(picture(9), root / "train" / "cat" / "0.png")
    assert torch.equal(load_source(str(root)).train.pixels[2], chw(picture(9)))
    assert load_source(str(root), image_size=3).train.pixels.shape == (6, 3, 3, 3)
    save(picture(8), root / "train" / "cat" / "9.png")
    assert len(load_source(str(root)).train) == 7
    parquet_with_columns(tmp_path / "parquet", {"label": [0, 1, 2], "other": [2, 1, 0]})
    assert load_source(str(tmp_path / "parquet")).train.labels.tolist() == [0, 1, 2]
    other = load_source(str(tmp_path / "parquet"), options=ReadOptions(label_column="other"))
    assert other.train.labels.tolist() == [2, 1, 0]


@pytest.mark.parametrize("damage", ["cut", "flip", "missing", "names", "empty"])
def test_a_damaged_cache_is_rebuilt(tmp_path: Path, cache: Path, damage: str) -> None:
    root = str(class_folders(tmp_path / "set"))
    first = load_source(root)
    expected = [first.train.pixels.clone(), first.test.pixels.clone()]
    (file,) = cache.glob("*/train_pixels.npy")
    content = file.read_bytes()
    file.parent.with_suffix(".left").mkdir()  # as a killed process would leave it
    file.unlink()  # the open data set keeps its pages
    if damage in ("cut", "flip", "empty"):
        file.write_bytes({"cut": content[:-1], "flip": content[:-1] + bytes([content[-1] ^ 1]), "empty": b""}[damage])
    if damage == "names":
        file.write_bytes(content)
        (file.parent / "set.json").write_text('{"class_names": ["bi')
    again = load_source(root)
    assert torch.equal(again.train.pixels, expected[0])
    assert torch.equal(again.test.pixels, expected[1])
    assert again.class_names == tuple(NAMES)
    assert sorted(path.suffix for path in cache.iterdir()) == ["", ".lock"]


def test_failed_decoding_leaves_no_files(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = class_folders(tmp_path / "set")
    broken = root / "test" / "dog" / "1.png"
    broken.write_bytes(b"text")
    with refused("dog/1.png: expected an image"):
        load_source(str(root))
    assert [file.suffix for file in cache.iterdir()] == [".lock"]
    save(picture(0), broken)
    assert len(load_source(str(root)).test) == 6


def test_a_full_disk_is_an_input_error(tmp_path: Path, cache: Path) -> None:
    root = str(class_folders(tmp_path / "set"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400, limits[1]))  # a file takes 400 bytes, the images 648
    try:
        with refused("pah: expected space for the decoded images, got: .*; HF_DATASETS_CACHE=FOLDER chooses another"):
            load_source(root)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [file.suffix for file in cache.iterdir()] == [".lock"]
    assert len(load_source(root).train) == 6


def test_two_concurrent_loads_decode_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = str(class_folders(tmp_path / "set"))
    calls, loaded, decode_to_folder = [], [], decode._decode_to_folder

    def slow_decode(*args: Any) -> None:
        calls.append(args)
        time.sleep(0.2)
        decode_to_folder(*args)

    monkeypatch.setattr(decode, "_decode_to_folder", slow_decode)
    threads = [threading.Thread(target=lambda: loaded.append(load_source(root))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert equal_sources(*loaded)


# The hub


def test_an_unreachable_hub_is_reported_with_an_alternative(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(located, "hub_is_reachable", lambda: False)
    with refused(
        r"'owner/set': .* got no folder owner/set here, and no data set owner/set on the hub \(a hub that cannot be "
        r"reached, .*\); use --data PATH with a folder of Parquet files or"
    ):
        load_source("owner/set")


def test_a_hub_that_does_not_answer_is_not_reachable(monkeypatch: pytest.MonkeyPatch) -> None:
    session = type("Session", (), {"head": lambda *_, **__: time.sleep(1)})
    monkeypatch.setattr(huggingface_hub, "get_session", session)
    assert not hub.hub_is_reachable(seconds=0.05)


def test_a_hub_that_answers_is_reachable(monkeypatch: pytest.MonkeyPatch) -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.handle_request).start()
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        assert hub.hub_is_reachable()


def test_errors_of_the_hub_become_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: str) -> None:
        raise ValueError("Config name is missing.\nPlease pick one among ['a', 'b']")

    monkeypatch.setattr(located, "hub_is_reachable", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with refused(
        r"'photos': .* got no folder photos here, and no data set photos on the hub \(Config .*\); use --data"
    ):
        load_source("photos")


def test_a_data_set_in_the_cache_needs_no_hub(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    local = parquet(tmp_path / "set")
    shards = {split: [str(local / f"{split}-00000-of-00001.parquet")] for split in ("train", "test")}
    builder = Parquet(cache_dir=str(tmp_path), dataset_name="shapes", data_files=shards)
    builder.download_and_prepare(output_dir=str(cache.parent / "owner___shapes" / "default" / "0.0.0" / "hash"))
    source = load_source("owner/shapes")
    assert source.origin == "owner/shapes"
    assert source.notes == ("images of owner/shapes on the Hugging Face hub, as there is no folder of this name here",)
    assert equal_sources(source, load_source(str(local)))
    assert not datasets.config.HF_HUB_OFFLINE
    assert not datasets.are_progress_bars_disabled()


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="only Linux shows how a file is mapped")
def test_a_decoded_data_set_is_mapped_without_read_ahead(tmp_path: Path, cache: Path) -> None:
    """Read-ahead would displace useful pages from a small memory."""
    class_folders(tmp_path)
    source = load_source(str(tmp_path))
    mappings = re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text())
    flags = {
        Path(mapping.splitlines()[0].split(maxsplit=5)[5]).name: mapping.split("VmFlags:")[1].split()
        for mapping in mappings
        if str(cache) in mapping.splitlines()[0]
    }
    assert "rr" in flags["train_pixels.npy"]  # VM_RAND_READ
    assert len(source.train)
