"""Accuracies are compared only if they were measured on the same images."""

import torch

from helpers import DIGITS
from pah.data.sources import Images
from pah.learner.measurements import Comparison, compare, fingerprint
from pah.learner.store import Lesson

NAMES = ("zero", "one", "two")


def images(count: int = 12) -> Images:
    rows = torch.isin(DIGITS.test.labels, torch.tensor([0, 1, 2])).nonzero().squeeze(1)[:count]
    return Images(DIGITS.test.pixels[rows], DIGITS.test.labels[rows])


def test_a_fingerprint_depends_on_pixels_and_classes_but_not_on_their_order() -> None:
    some = images()
    order = torch.randperm(len(some), generator=torch.Generator().manual_seed(0))
    assert fingerprint(some, NAMES) == fingerprint(Images(some.pixels[order], some.labels[order]), NAMES)
    assert fingerprint(some, NAMES) == fingerprint(Images(some.pixels, 2 - some.labels), NAMES[::-1])
    others = [images(11), Images(some.pixels ^ 1, some.labels), Images(some.pixels, some.labels.roll(1))]
    assert fingerprint(some, NAMES) not in [fingerprint(other, NAMES) for other in others]


def lesson(name: str, accuracies: dict[str, float], before: dict[str, float], **on: str) -> Lesson:
    """Return a lesson whose accuracies were measured on the images that `on` names by task."""
    return Lesson(name, None, accuracies, before=before, images=dict.fromkeys(on, 9), fingerprints=on)


def test_the_last_accuracy_is_compared_with_the_first_one_on_the_same_images() -> None:
    taught = lesson("birds", {"birds": 75.0}, {}, birds="own fifth")
    second = lesson("fish", {"fish": 90.0, "birds": 63.3}, {"birds": 64.7}, birds="checks", fish="x")
    third = lesson("cars", {"cars": 80.0, "birds": 60.0}, {"birds": 63.3}, birds="checks", cars="y")
    assert compare([taught], "birds") == Comparison(75.0, 75.0, 9)
    assert compare([taught, second], "birds") == Comparison(64.7, 63.3, 9)
    assert compare([taught, second, third], "birds") == Comparison(64.7, 60.0, 9)
    assert compare([taught, second], "cats") is None


def test_accuracies_of_older_formats_are_not_compared() -> None:
    history = [Lesson("birds", None, {"birds": 75.0}), Lesson("fish", None, {"fish": 90.0, "birds": 63.3})]
    assert compare(history, "birds") == Comparison(None, 63.3, None)
    assert compare(history[:1], "birds") == Comparison(75.0, 75.0, None)


def test_a_task_that_was_forgotten_and_taught_again_has_new_accuracies() -> None:
    history = [lesson("birds", {"birds": 75.0}, {}, birds="x"), lesson("birds", {"birds": 50.0}, {}, birds="x")]
    assert compare(history, "birds") == Comparison(50.0, 50.0, 9)
