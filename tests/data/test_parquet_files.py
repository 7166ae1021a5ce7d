"""Parquet files in the hub's layout: missing shards, splits without labels, and labels that are text."""

from pathlib import Path

import pytest

from data_sets import NAMES, counts, encoded, features, picture, refused, save, write_parquet
from pah.data.lesson import load_lesson
from pah.data.read_options import ReadOptions
from pah.data.sources import load_source

LABELS = [0, 1, 2] * 5


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train-00000-of-00003", "train-00002-of-00003"], "train-00001-of-00003*.parquet missing"),
        (["train-00000-of-00002-aa", "train-00000-of-00002-bb"], "train-00000-of-00002-aa.parquet and"),
        (["train-00000-of-00001", "train-00001-of-00002"], "expected shards of one total in a split"),
        (["train-00000-of-00009"], "train-00001-of-00009*.parquet and 7 more missing"),
    ],
)
def test_incomplete_shards_are_refused(tmp_path: Path, names: list[str], message: str) -> None:
    for name in (*names, "test-00000-of-00001"):
        write_parquet(tmp_path / f"{name}.parquet", [0, 1, 2])
    with refused(message):
        load_source(str(tmp_path))


def test_complete_shards_are_read(tmp_path: Path) -> None:
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-1-of-1"):  # some programs count from 1
        write_parquet(tmp_path / f"{name}.parquet", [0, 1, 2])
    assert len(load_source(str(tmp_path)).train) == 6


def test_a_single_split_is_divided(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-0.parquet", LABELS)
    for source in (load_source(str(tmp_path)), load_lesson(tmp_path, 6)):
        assert source.test_from_train
        assert counts(source) == ({"0": 4, "1": 4, "2": 4}, {"0": 1, "1": 1, "2": 1})
        assert source.notes == ("a fixed fifth of the images of each class is for testing, as there is no test split",)
    again = load_source(str(tmp_path))  # from the cache
    assert again.test_from_train
    assert again.notes == source.notes


@pytest.mark.parametrize("test", [[-1, -1], [None, None], "no column"])
def test_a_test_split_without_labels_gives_way(tmp_path: Path, test: object) -> None:
    import pyarrow
    import pyarrow.parquet

    kinds = features(NAMES)
    write_parquet(tmp_path / "train-0.parquet", LABELS, kinds)
    if isinstance(test, list):
        write_parquet(tmp_path / "test-0.parquet", test, kinds)
    else:
        pyarrow.parquet.write_table(pyarrow.table({"image": [encoded(0)]}), tmp_path / "test-0.parquet")
    assert load_source(str(tmp_path)).test_from_train
    write_parquet(tmp_path / "validation-0.parquet", [0, 1, 2], kinds)
    source = load_source(str(tmp_path))
    assert not source.test_from_train
    assert source.notes == ("the split validation is for testing, as test has no images with labels",)
    with refused("test_split: expected a split with labelled images, got 'test'"):
        load_source(str(tmp_path), options=ReadOptions(test_split="test"))


def test_the_test_split_can_be_named(tmp_path: Path) -> None:
    for split, labels in (("train", LABELS), ("test", [0, 1, 2]), ("extra", [0, 1, 2] * 2)):
        write_parquet(tmp_path / f"{split}-0.parquet", labels)
    save(picture(0), tmp_path / "pictures" / "0.png")
    left_out = "left out: 1 image files, as the Parquet files are used"
    assert load_source(str(tmp_path)).notes == ("not used: the Parquet files of extra", left_out)
    assert len(load_source(str(tmp_path), options=ReadOptions(test_split="extra")).test) == 6
    with refused("unknown test_split", "'extras'", "did you mean 'extra'"):
        load_source(str(tmp_path), options=ReadOptions(test_split="extras"))


def test_labels_that_are_text_become_classes(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-0.parquet", ["dog", "cat", "dog", "cat"])
    write_parquet(tmp_path / "test-0.parquet", ["cat", "dog", "dog"])
    source = load_source(str(tmp_path))
    assert source.class_names == ("cat", "dog")
    assert source.train.labels.tolist() == [1, 0, 1, 0]
    assert source.test.labels.tolist() == [0, 1, 1]


def test_unreadable_images_of_parquet_files_are_left_out(tmp_path: Path) -> None:
    images = [encoded(i) for i in range(15)]
    write_parquet(tmp_path / "good" / "train-0.parquet", LABELS, features(NAMES), images)
    images[4:4] = [{"bytes": b"text", "path": "x.png"}]
    labels = [*LABELS[:4], 1, *LABELS[4:]]
    write_parquet(tmp_path / "bad" / "train-0.parquet", labels, features(NAMES), images)
    with refused("split train, row 4: expected an image"):
        load_source(str(tmp_path / "bad"))
    source = load_source(str(tmp_path / "bad"), options=ReadOptions(skip_unreadable=True))
    good = load_source(str(tmp_path / "good"))
    assert source.skipped == ("split train, row 4",)
    assert source.test.pixels.equal(good.test.pixels)  # the same images are for testing
    assert source.train.pixels.equal(good.train.pixels)
