"""Labelled images that a Python program passes: names, labels, and data sets of other libraries."""

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import pytest
import torch
from torch.utils.data import Subset, TensorDataset

from data_sets import NAMES, counts, data_set, features, picture, refused, save
from pah.data.lesson import load_lesson, with_all_images_in_test
from pah.data.read_options import ReadOptions
from pah.data.sources import Source, load_source

LABELS = [0, 1, 2] * 5
IMAGES = [picture(i) for i in range(15)]
PIXELS = np.stack([np.asarray(image) for image in IMAGES])
CHW = torch.from_numpy(PIXELS).permute(0, 3, 1, 2)


class Photos(torch.utils.data.Dataset[tuple[Any, int]]):
    """A data set as those of torchvision."""

    classes = NAMES

    def __init__(self, images: Any = IMAGES) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        if index >= len(self):
            raise IndexError
        return self.images[index], LABELS[index]


def lesson(data: Any) -> Source:
    return load_lesson(data, 6)


def expected() -> Source:
    return load_lesson((IMAGES, LABELS, NAMES), 6)


def same_images(a: Source, b: Source) -> bool:
    return a.train.pixels.equal(b.train.pixels) and a.test.pixels.equal(b.test.pixels)


def test_names_by_label_are_taken_in_the_order_of_the_labels() -> None:
    named = load_lesson((IMAGES, LABELS, {2: "dog", 0: "bird", 1: "cat"}), 6)
    assert named.class_names == tuple(NAMES)
    assert same_images(named, expected())
    with refused("class names: expected a name for each label 0 to 2, got those of 1, 2, 3"):
        load_lesson((IMAGES, LABELS, {1: "bird", 2: "cat", 3: "dog"}), 6)
    with refused("class names: expected a list in the order of the labels, or a dict by label, got set"):
        load_lesson((IMAGES, LABELS, set(NAMES)), 6)


def test_labels_may_be_names_or_have_none() -> None:
    words = [NAMES[y] for y in LABELS]
    for labels in (words, np.array(words), np.array(words, dtype=object), pd.Series(words)):
        source = load_lesson((IMAGES, labels), 6)
        assert source.class_names == tuple(NAMES)
        assert same_images(source, expected())
    assert load_lesson((IMAGES, LABELS), 6).class_names == ("0", "1", "2")
    assert load_lesson((IMAGES, LABELS, None), 6).class_names == ("0", "1", "2")
    assert load_lesson((IMAGES, words, NAMES[::-1]), 6).class_names == tuple(NAMES[::-1])
    with refused("labels: expected the class names bird, cat, got 'dog'"):
        load_lesson((IMAGES, words, NAMES[:2]), 6)


KINDS: dict[str, Any] = {
    "tensors": lambda: TensorDataset(CHW, torch.tensor(LABELS)),
    "tensors from 0 to 1": lambda: TensorDataset(CHW / 255, torch.tensor(LABELS)),
    "PyTorch": Photos,
    "PyTorch, tensors": lambda: Photos(CHW.float() / 255),
    "part of one": lambda: Subset(Photos(), range(15)),
    "pandas": lambda: pd.DataFrame({"image": IMAGES, "label": [NAMES[y] for y in LABELS]}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_data_of_other_libraries(kind: str) -> None:
    source = load_lesson(KINDS[kind](), 6)
    assert source.class_names == (("0", "1", "2") if kind.startswith("tensors") else tuple(NAMES))
    assert source.test_from_train
    assert len(source.test) == 3
    if source.class_names == tuple(NAMES):
        assert same_images(source, expected())
    assert len(load_source(KINDS[kind]()).train) == 12  # of one size: no size is needed


def test_an_iterable_data_set_is_read_to_its_end() -> None:
    whole = data_set(LABELS)
    source, plain = (load_lesson(data, 6) for data in (whole.to_iterable_dataset(), whole))
    assert source.class_names == tuple(NAMES)
    assert same_images(source, plain)
    parts = datasets.IterableDatasetDict({"train": whole.to_iterable_dataset(), "test": whole.to_iterable_dataset()})
    assert len(load_lesson(parts, 6).test) == 15


def test_a_dict_of_splits() -> None:
    tuples = {"train": (IMAGES, LABELS, NAMES), "test": (IMAGES[:6], LABELS[:6], NAMES)}
    sets = {"train": data_set(LABELS), "test": data_set(LABELS[:6])}
    for parts in (tuples, sets):
        source = load_lesson(parts, 6)
        assert not source.test_from_train
        assert counts(source) == (dict.fromkeys(NAMES, 5), dict.fromkeys(NAMES, 2))


@pytest.mark.parametrize("data", [None, 3, {"cat"}, (IMAGES,), [1, 2], {"cat": "photos"}, object()])
def test_other_data_are_refused_with_what_is_taken(data: Any) -> None:
    for load in (load_source, lesson):
        with refused("data: expected a folder, a hub id, ", "PyTorch"):
            load(data)


def test_tensors_of_an_unknown_range_are_refused() -> None:
    with refused("numbers from 0 to 1 that are not normalized, got torch.float32"):
        load_lesson(TensorDataset(CHW.float() - 100, torch.tensor(LABELS)), 6)
    with refused("labels: expected whole numbers, or class names, got a mixture"):
        load_lesson((IMAGES, ["cat", *LABELS[1:]]), 6)


def test_unreadable_files_of_a_list_are_left_out(tmp_path: Path) -> None:
    files: list[Any] = [save(image, tmp_path / NAMES[LABELS[i]] / f"{i}.png") for i, image in enumerate(IMAGES)]
    bad = tmp_path / "cat" / "bad.png"
    bad.write_bytes(b"text")
    data = ([*files[:4], bad, *files[4:]], [*LABELS[:4], 1, *LABELS[4:]], NAMES)
    with refused("bad.png"):
        load_lesson(data, 6)
    source = load_lesson(data, 6, options=ReadOptions(skip_unreadable=True))
    assert source.skipped == ("cat/bad.png",)
    assert source.notes == ("left out, unreadable: cat/bad.png",)
    assert same_images(source, expected())


def test_unreadable_images_of_a_data_set_are_left_out(tmp_path: Path) -> None:
    files = [str(save(image, tmp_path / f"{i}.png")) for i, image in enumerate(IMAGES)]
    Path(files[4]).write_bytes(b"text")
    data = datasets.Dataset.from_dict({"image": files, "label": LABELS}, features=features())
    for given in (data, datasets.DatasetDict({"train": data, "test": data})):
        source = load_lesson(given, 6, options=ReadOptions(skip_unreadable=True))
        assert source.skipped[0] == "split train, row 4"
        assert len(source.train) == (11 if given is data else 14)


def test_a_data_set_with_only_a_training_split_is_divided() -> None:
    whole = data_set(LABELS)
    source = load_lesson(datasets.DatasetDict({"train": whole}), 6)
    assert same_images(source, load_lesson(whole, 6))
    assert source.notes == ("a fixed fifth of the images of each class is for testing, as there is no test split",)
    unlabelled = data_set([-1, -1])
    source = load_lesson(datasets.DatasetDict({"train": whole, "test": unlabelled, "valid": data_set([0, 1, 2])}), 6)
    assert "the split valid is for testing, as test has no images with labels" in source.notes
    assert len(source.test) == 3
    named = datasets.DatasetDict({"train": whole, "odd": data_set([0, 1, 2])})
    assert len(load_lesson(named, 6, options=ReadOptions(test_split="odd")).test) == 3


@pytest.mark.parametrize("names", [NAMES, None])
def test_class_names_without_images_are_dropped(names: list[str] | None) -> None:
    some = data_set(LABELS, names).filter(lambda row: row["label"] != 1)
    both = datasets.DatasetDict({"train": some, "test": some})
    shown = "1" if names is None else "cat"
    for load in (load_source, lesson):
        for data in (some, both):
            source = load(data)
            assert source.class_names == (("0", "2") if names is None else ("bird", "dog"))
            assert source.train.labels.unique().tolist() == [0, 1]
            assert f"left out: 1 class name without images ({shown})" in source.notes
    assert load_lesson(some, 6, classes=source.class_names[1:]).class_names == source.class_names[1:]
    assert load_lesson((IMAGES[:1], [2], NAMES), 6).class_names == ("dog",)


def test_a_class_with_training_images_only_is_learned_and_said() -> None:
    parts = datasets.DatasetDict({"train": data_set(LABELS), "test": data_set([0, 1])})
    with refused("split test: expected images of every class, got none of 'dog'"):
        load_source(parts)
    source = load_lesson(parts, 6)
    assert "measured without dog: these classes have no test images" in source.notes[-1]


def test_a_lesson_may_have_one_class_and_one_image_of_a_class() -> None:
    assert load_lesson((IMAGES[:5], [0] * 5, ["dog"]), 6).class_names == ("dog",)
    source = load_lesson((IMAGES[:7], [0, 0, 0, 1, 1, 1, 2], NAMES), 6)
    assert counts(source) == ({"bird": 2, "cat": 2, "dog": 1}, {"bird": 1, "cat": 1, "dog": 0})
    assert "measured without dog: these classes have a single image" in source.notes[-1]
    every = with_all_images_in_test(source)
    assert len(every.test) == 7
    with refused("expected at least 2 images of class 'dog', as a fifth of each class is for testing, got 1"):
        load_source((IMAGES[:7], [0, 0, 0, 1, 1, 1, 2], NAMES))
