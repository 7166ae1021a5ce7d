"""Class folders: nested folders, splits, what is left out, and the choice of the test split."""

from pathlib import Path

import numpy as np
import pytest
import torch

from data_sets import NAMES, class_folders, counts, picture, refused, save
from pah.data.lesson import load_lesson
from pah.data.listing import find_images, select_test_fifth
from pah.data.read_options import ReadOptions
from pah.data.sources import load_source


def test_images_in_folders_inside_a_class_folder_are_used(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "set")
    for place in ("2024/b.png", "2024/03/a.png", "a.png"):
        save(picture(len(place)), root / "cat" / place)
    found = [file.relative_to(root / "cat").as_posix() for file in find_images(root / "cat")]
    assert found == ["00.png", "01.png", "02.png", "03.png", "2024/03/a.png", "2024/b.png", "a.png"]
    source = load_source(str(root))
    train, test = counts(source)
    assert {name: train[name] + test[name] for name in NAMES} == {"bird": 4, "cat": 7, "dog": 4}
    assert "folders inside a class folder belong to its class: cat has 2024" in source.conversions


def test_a_loop_of_links_ends(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "set")
    (root / "cat" / "again").symlink_to(root / "cat")
    assert len(find_images(root / "cat")) == 4


def test_the_test_fifth_of_flat_folders_is_that_of_the_names(tmp_path: Path) -> None:
    source = load_source(str(class_folders(tmp_path / "set", {"cat": 10, "dog": 5})))
    test = sorted(select_test_fifth(10, "cat"))
    expected = torch.stack([torch.from_numpy(np.array(picture(i))) for i in test])
    assert torch.equal(source.test.pixels[:2], expected.permute(0, 3, 1, 2))
    assert source.conversions == ()


def test_what_is_left_out_is_counted_by_suffix(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "set")
    for place in ("cat/notes.txt", "cat/raw.CR2", "dog/raw.cr2", "README", ".DS_Store", "dog/.thumbs/1.png"):
        (root / place).parent.mkdir(exist_ok=True)
        (root / place).write_text("x")
    save(picture(0), root / "loose.png")
    note = "left out: 2 .cr2, 1 .png outside the class folders, 1 .txt, 2 hidden, 1 without suffix"
    assert note in load_lesson(root, 6).notes


def test_train_folders_without_a_test_folder_are_divided(tmp_path: Path) -> None:
    root = tmp_path / "set"
    class_folders(root / "train", {"cat": 10, "dog": 5})
    source = load_source(str(root))
    assert source.test_from_train
    assert counts(source) == ({"cat": 8, "dog": 4}, {"cat": 2, "dog": 1})
    assert source.conversions == (
        "a fixed fifth of the images of each class is for testing, as there is no test split",
    )
    plain = load_source(str(root / "train"))
    assert torch.equal(plain.test.pixels, source.test.pixels)


def test_a_test_folder_without_classes_gives_way_to_the_next_split(tmp_path: Path) -> None:
    root = tmp_path / "set"
    class_folders(root / "train")
    save(picture(0), root / "test" / "0.png")
    divided = load_source(str(root))
    assert divided.test_from_train
    reason = "as test has no images with labels"
    assert f"a fixed fifth of the images of each class is for testing, {reason}" in divided.conversions
    class_folders(root / "val", start=1000)
    source = load_source(str(root))
    assert not source.test_from_train
    assert len(source.test) == 12
    assert f"the split val is for testing, {reason}" in source.conversions


def test_the_test_split_can_be_named(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for k, split in enumerate(("train", "test", "val", "holdout")):
        class_folders(root / split, dict.fromkeys(NAMES, k + 1))
    assert load_source(str(root)).conversions[0] == "not used: the split val"
    assert len(load_source(str(root), options=ReadOptions(test_split="val")).test) == 9
    assert len(load_source(str(root), options=ReadOptions(test_split="holdout")).test) == 12
    with refused("unknown test_split", "'vals'", "did you mean 'val'?"):
        load_source(str(root), options=ReadOptions(test_split="vals"))
    with refused("test_split: expected none", "got 'val'"):
        load_source(str(class_folders(tmp_path / "plain")), options=ReadOptions(test_split="val"))


@pytest.mark.parametrize("kind", ["file", "link"])
def test_tiny_imagenet_leaves_out_images_that_cannot_be_read(tmp_path: Path, kind: str) -> None:
    lines = []
    for c, wnid in enumerate(("n01", "n02")):
        for i in range(3):
            save(picture(10 * c + i), tmp_path / "train" / wnid / "images" / f"{wnid}_{i}.JPEG")
            save(picture(50 + 10 * c + i), tmp_path / "val" / "images" / f"val_{wnid}{i}.JPEG")
            lines.append(f"val_{wnid}{i}.JPEG\t{wnid}\t0\t0\t62\t62\n")
    (tmp_path / "val" / "val_annotations.txt").write_text("".join(lines))
    (tmp_path / "train" / "n01" / "images" / "n01_1.JPEG").write_bytes(b"text")
    lost = tmp_path / "val" / "images" / "val_n020.JPEG"
    lost.unlink()
    if kind == "link":
        lost.symlink_to(tmp_path / "nowhere")
    source = load_source(str(tmp_path), options=ReadOptions(skip_unreadable=True))
    assert set(source.skipped) == {"train/n01/images/n01_1.JPEG", "val/images/val_n020.JPEG"}
    assert counts(source) == ({"n01": 2, "n02": 3}, {"n01": 3, "n02": 2})
    with refused("val_n020.JPEG"):
        load_source(str(tmp_path))
