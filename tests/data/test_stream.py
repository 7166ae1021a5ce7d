"""Streams of tasks, their batches and their normalisation, on the handwritten digits."""

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch

from helpers import DIGITS, digits
from pah.core.config import InputError, generator
from pah.data.augment import AugmentOptions, augment
from pah.data.stream import evaluation_batches, make_stream, number_of_batches, training_batches
from pah.data.stream_options import StreamOptions
from pah.data.task import Examples

PLAIN = AugmentOptions()
SHIFTED = AugmentOptions(crop=2, flip=True)


def test_if_classes_do_not_divide_evenly_the_first_tasks_get_one_more() -> None:
    assert [len(task.class_names) for task in digits(tasks=3).tasks] == [4, 3, 3]


def test_every_image_is_in_one_task_with_its_label() -> None:
    stream = digits(tasks=3, seed=5)
    rows = torch.cat([task.train.rows for task in stream.tasks])
    assert sorted(rows.tolist()) == list(range(len(DIGITS.train)))
    for task in stream.tasks:
        assert torch.equal(DIGITS.train.labels[task.train.rows], torch.tensor(task.labels)[task.train.labels])
        assert torch.equal(DIGITS.test.labels[task.test.rows], torch.tensor(task.labels)[task.test.labels])


def test_classes_are_shuffled_by_the_seed_or_in_natural_order() -> None:
    assert digits(seed=1).class_order == digits(seed=1).class_order
    assert digits(seed=1).class_order != digits(seed=2).class_order
    assert sorted(digits(seed=1).class_order) == list(range(10))
    assert digits(class_order="natural").class_order == list(range(10))


def test_classes_in_the_order_of_a_list() -> None:
    order = (3, 1, 4, 0, 5, 9, 2, 6, 8, 7)
    for seed in (0, 1):
        assert digits(seed=seed, class_order=order).class_order == list(order)
    few = digits(tasks=2, class_order=(3, 1, 4, 0))  # the classes that are not among them are not used
    assert [task.labels for task in few.tasks] == [(3, 1), (4, 0)]
    assert (few.classes_left_out, digits().classes_left_out, digits(first=1).classes_left_out) == (6, 0, 0)
    assert digits(tasks=2, class_order=order, classes=5).class_order == [3, 1, 4, 0, 5]
    assert [task.labels for task in digits(class_order=(9, 8, 1, 0, 3), sizes=(2, 3)).tasks] == [(9, 8), (1, 0, 3)]
    assert digits(class_order=order, classes=4, sizes=(2, 2)).class_order == [3, 1, 4, 0]


def test_an_order_seed_gives_one_class_order_to_all_seeds() -> None:
    streams = [digits(seed=seed, order_seed=7, images=20) for seed in (0, 1)]
    assert streams[0].class_order == streams[1].class_order == digits(seed=7).class_order
    assert streams[0].class_order != digits(seed=0).class_order
    drawn = [set(stream.tasks[0].train.rows.tolist()) for stream in streams]
    assert drawn[0] != drawn[1]  # the seed still decides everything else


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"class_order": (3, 1, 3)}, "stream.class_order: expected each label once, and not again, got 3"),
        ({"class_order": (3,)}, r"stream.class_order: expected at least 2 labels, got \(3,\)"),
        ({"class_order": (3, 10, 11)}, "stream.class_order: expected labels of the data set, 0 to 9, got 10"),
        ({"class_order": (3, -1)}, "stream.class_order: expected labels of the data set, 0 to 9, got -1"),
        ({"class_order": (3, 1), "classes": 3}, "stream.classes: expected at most the 2 labels of stream.class_order"),
        (
            {"class_order": (3, 1, 4, 0, 5), "sizes": (2, 2)},
            "stream.sizes: expected sizes that add up to 5 classes, got 2, 2, which add up to 4",
        ),
        ({"sizes": (4, 7)}, "add up to at most the 10 classes of the data set, got 4, 7, which add up to 11"),
        ({"sizes": (9, 1)}, "stream.sizes: expected at least 2 classes a task"),
        ({"order_seed": -1}, "stream.order_seed: expected 0 to"),
        ({"order_seed": 1, "class_order": "natural"}, "stream.order_seed: expected none, as stream.class_order is"),
    ],
)
def test_class_orders_and_sizes_that_do_not_fit_are_refused(options: dict[str, Any], line: str) -> None:
    with pytest.raises(InputError, match=line) as caught:
        digits(tasks=1, **options)
    assert "\n" not in str(caught.value)


def test_fewer_classes_are_the_first_ones_of_the_order() -> None:
    assert digits(tasks=2, classes=5, seed=3).class_order == digits(seed=3).class_order[:5]


def test_tasks_of_given_sizes() -> None:
    stream = digits(class_order="natural", sizes=(2, 4, 3))
    assert [task.labels for task in stream.tasks] == [(0, 1), (2, 3, 4, 5), (6, 7, 8)]


def test_fewer_images_are_drawn_by_the_seed_and_not_from_validation_images() -> None:
    seeds_and_images = ((0, None), (0, 20), (1, 20))
    streams = [digits(seed=seed, images=n, class_order="natural", validation=0.2) for seed, n in seeds_and_images]
    for all_images, few, other_seed in zip(*(stream.tasks for stream in streams), strict=True):
        assert few.train.labels.bincount().tolist() == [20, 20]
        assert set(few.train.rows.tolist()) < set(all_images.train.rows.tolist())
        assert torch.equal(few.validation.rows, all_images.validation.rows)
        assert set(few.train.rows.tolist()) != set(other_seed.train.rows.tolist())


def test_validation_is_the_same_share_of_every_class_and_never_trained_on() -> None:
    plain, stream = digits(seed=4), digits(seed=4, validation=0.25)
    for whole, task in zip(plain.tasks, stream.tasks, strict=True):
        training, held_out = set(task.train.rows.tolist()), set(task.validation.rows.tolist())
        assert not training & held_out
        assert training | held_out == set(whole.train.rows.tolist())
        for label in range(2):
            count = int((whole.train.labels == label).sum())
            assert int((task.validation.labels == label).sum()) == round(count / 4)
        assert torch.equal(task.test.rows, whole.test.rows)


def test_normalisation_uses_only_the_first_task() -> None:
    stream = digits(tasks=5, seed=0)
    first = stream.tasks[0].train
    values = first.pixels[first.rows].double() / 255
    assert stream.normalization.mean[0] == pytest.approx(values.mean().item())
    assert stream.normalization.std[0] == pytest.approx(values.std(correction=0).item())
    normalised = stream.normalization(first.pixels[first.rows])
    assert normalised.mean().item() == pytest.approx(0, abs=1e-5)
    assert normalised.std().item() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("batch_size", [2, 32, 50, 1000])
def test_an_epoch_has_every_image_once_in_batches_of_nearly_equal_size(batch_size: int) -> None:
    task = digits().tasks[1]
    batches = list(training_batches([task], batch_size, PLAIN, seed=0, epoch=0))
    sizes = [len(batch.y) for batch in batches]
    assert len(batches) == number_of_batches(len(task.train), batch_size)
    assert sum(sizes) == len(task.train)
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1
    batch_sums = torch.cat([batch.x for batch in batches]).flatten(1).sum(dim=1).sort().values
    task_sums = task.normalization(task.train.pixels[task.train.rows]).flatten(1).sum(dim=1).sort().values
    torch.testing.assert_close(batch_sums, task_sums)


def test_an_epoch_continued_at_a_batch_is_the_same_epoch() -> None:
    task = digits().tasks[0]
    whole = list(training_batches([task], 16, SHIFTED, seed=7, epoch=3))
    rest = list(training_batches([task], 16, SHIFTED, seed=7, epoch=3, first=5))
    assert len(rest) == len(whole) - 5
    for batch, resumed in zip(whole[5:], rest, strict=True):
        assert torch.equal(batch.x, resumed.x)
        assert torch.equal(batch.y, resumed.y)


def test_seed_and_epoch_change_order_and_augmentation() -> None:
    task = digits().tasks[0]

    def first(seed: int, epoch: int) -> torch.Tensor:
        return next(iter(training_batches([task], 16, SHIFTED, seed=seed, epoch=epoch))).x

    assert torch.equal(first(0, 0), first(0, 0))
    assert not torch.equal(first(0, 0), first(0, 1))
    assert not torch.equal(first(0, 0), first(1, 0))


def test_an_image_is_augmented_differently_in_each_epoch_and_step() -> None:
    task = digits().tasks[0]
    one = Examples(task.train.pixels, task.train.rows[:1].expand(64), torch.zeros(64, dtype=torch.int64))
    same = replace(task, train=one)  # one image only, so that the order of images makes no difference
    batches = {
        (epoch, step): batch.x
        for epoch in range(2)
        for step, batch in enumerate(training_batches([same], 32, SHIFTED, seed=0, epoch=epoch))
    }
    for first, second in itertools.combinations(batches.values(), 2):
        assert not torch.equal(first, second)


def test_joint_batches_mix_tasks_and_give_the_task_of_each_image() -> None:
    tasks = digits().tasks[:3]
    batches = list(training_batches(tasks, 64, PLAIN, seed=0, epoch=0))
    task_indices = torch.cat([batch.tasks for batch in batches])
    assert task_indices.bincount().tolist() == [len(task.train) for task in tasks]
    assert len(batches[0].tasks.unique()) == 3


def test_evaluation_yields_every_image_once_and_unchanged() -> None:
    task = digits().tasks[2]
    x, y = (torch.cat(parts) for parts in zip(*evaluation_batches(task, task.test, 7), strict=True))
    assert torch.equal(x, task.normalization(task.test.pixels[task.test.rows]))
    assert torch.equal(y, task.test.labels)


def test_a_shift_moves_the_image_and_mirrors_the_border() -> None:
    image = torch.arange(16, dtype=torch.uint8).reshape(1, 1, 4, 4)
    padded = torch.nn.functional.pad(image.float(), (1, 1, 1, 1), mode="reflect").to(torch.uint8)
    windows = [padded[0, 0, i : i + 4, j : j + 4].tolist() for i, j in itertools.product(range(3), range(3))]
    seen = {str(augment(image, AugmentOptions(crop=1), generator(s, "a"))[0, 0].tolist()) for s in range(200)}
    assert seen == {str(window) for window in windows}


def test_a_flip_mirrors_left_and_right_of_half_the_images() -> None:
    images = torch.arange(6, dtype=torch.uint8).reshape(1, 1, 2, 3).expand(400, -1, -1, -1)
    augmented = augment(images, AugmentOptions(flip=True), generator(0, "f"))
    flipped = (augmented == images.flip(-1)).flatten(1).all(dim=1)
    same = (augmented == images).flatten(1).all(dim=1)
    assert bool((flipped ^ same).all())
    assert 150 < int(flipped.sum()) < 250


def test_without_augmentation_images_are_unchanged() -> None:
    pixels = DIGITS.train.pixels[:20]
    assert torch.equal(augment(pixels, PLAIN, generator(0, "x")), pixels)


@pytest.mark.parametrize(
    ("options", "tasks", "message"),
    [
        (StreamOptions(), 6, "single class"),
        (StreamOptions(), 11, "11 tasks of 10 classes"),
        (StreamOptions(classes=11), 2, "at most the 10 classes"),
        (StreamOptions(validation=0.999), 2, "keeps no training image"),
        (StreamOptions(sizes=(2, 9)), 2, "at most the 10 classes"),
        (StreamOptions(sizes=(2, 3), classes=6), 2, "sizes that add up to 6 classes"),
        (StreamOptions(sizes=(2, 3), tasks=3), 3, "2, the number of stream.sizes"),
    ],
)
def test_impossible_splits_are_refused(options: StreamOptions, tasks: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_stream(DIGITS, options, tasks, seed=0)
