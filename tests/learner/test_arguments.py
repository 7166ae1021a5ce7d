"""Bad names, numbers and options are refused with one line before a lesson."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from test_learner import QUICK, lesson, refused, same

from pah import ContinualLearner
from pah.learner.arguments import unknown_rate
from pah.methods import METHODS
from pah.methods.pah_options import PAHOptions
from pah.training.options import TrainingOptions

new_learner: Any = ContinualLearner  # to give it arguments of other types
QUICKEST = dataclasses.replace(QUICK, training=TrainingOptions(epochs=1, batch_size=64))


@pytest.fixture(scope="module")
def learner() -> ContinualLearner:
    """Return a learner of one task. Do not change it."""
    learner = ContinualLearner(config=QUICKEST)
    learner.learn("low", lesson(0, 1))
    return learner


def never(_: object) -> None:
    """Fail if training begins."""
    raise AssertionError("training began")


@pytest.mark.parametrize(
    "name", [5, b"fish", None, "", " ", "fi\nsh", "fi\tsh", "fi\x00sh", "fish\ud800", "fi\u2028sh"]
)
def test_names_that_cannot_be_saved_are_refused_before_training(learner: ContinualLearner, name: Any) -> None:
    refused(lambda: learner.learn(name, lesson(2, 3), watch=never), "task: expected a name")
    if isinstance(name, str | bytes):
        pixels, labels, _ = lesson(2, 3)
        names: Any = ["cod", name]
        refused(lambda: learner.learn("fish", (pixels, labels, names), watch=never), "class: expected a name")


def test_names_in_any_language_are_allowed(learner: ContinualLearner) -> None:
    with pytest.raises(AssertionError, match="training began"):
        learner.learn("Vögel 🐦‍⬛ \u200f", lesson(2, 3), watch=never)


@pytest.mark.parametrize(
    ("action", "parts"),
    [
        (lambda learner: learner.predict(lesson(0)[0], rule="x"), ("rule: expected one of softmax, energy", "'x'")),
        (lambda learner: learner.predict(lesson(0)[0], task="low", rule=3), ("rule: expected one of", "3")),
        (lambda learner: learner.evaluate(lesson(0, 1), "low", task_given=False, rule="x"), ("rule: expected",)),
        (lambda learner: learner.predict(lesson(0)[0], task=5), ("task: expected the name of a task", "5")),
        (lambda learner: learner.predict(lesson(0)[0], unknown="a"), ("unknown: expected", "'a'")),
        (lambda learner: learner.forget(5), ("task: expected the name of a task", "5")),
        (lambda learner: learner.learn("x", lesson(2, 3), max_drift="a", watch=never), ("max_drift", "0 to 1", "'a'")),
        (lambda learner: learner.learn("x", lesson(2, 3), max_drift=True, watch=never), ("max_drift", "True")),
        (lambda learner: learner.learn("x", lesson(2, 3), max_loss=-1, watch=never), ("max_loss", "0 to 100")),
        (lambda learner: learner.learn("x", lesson(2, 3), held_out=["low"], watch=never), ("held_out", "by task name")),
        (lambda learner: setattr(learner, "config", "fast"), ("config: expected a RunConfig",)),
        (lambda _: new_learner(backbone=5), ("backbone: expected the name",)),
        (lambda _: new_learner(image_size="a"), ("image_size: expected a number of pixels", "'a'")),
        (lambda _: new_learner(config="fast"), ("config: expected a RunConfig",)),
    ],
)
def test_bad_options_are_refused_in_one_line(
    learner: ContinualLearner, action: Callable[[Any], object], parts: tuple[str, ...]
) -> None:
    refused(lambda: action(learner), *parts)


def test_the_share_of_unknown_images_may_be_a_truth_value() -> None:
    assert [unknown_rate(value) for value in (False, True, np.True_, 0.2, np.float32(0.5))] == [
        None,
        0.05,
        0.05,
        0.2,
        0.5,
    ]


def test_an_option_that_the_first_lesson_fixed_is_named_with_both_values(learner: ContinualLearner) -> None:
    def change(**options: Any) -> Callable[[], None]:
        return lambda: setattr(learner, "config", dataclasses.replace(learner.config, **options))

    options = learner.config.method_options
    assert isinstance(options, PAHOptions)
    other = dataclasses.replace(options, stability=2.5)
    refused(change(method_options=other), "method.stability: expected that of the first lesson, 1.0, got 2.5")
    refused(change(seed=7), "seed: expected that of the first lesson, 0, got 7")
    lwf = METHODS["lwf"].options()
    refused(change(method="lwf", method_options=lwf), "method: expected that of the first lesson, 'pah', got 'lwf'")


def test_the_last_task_cannot_be_forgotten_and_the_message_says_what_to_do(learner: ContinualLearner) -> None:
    refused(lambda: learner.forget("low"), "forget", "beside others", "delete its folder", "'low'")


@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_method_goes_on_from_its_saved_network_or_is_refused_before_training(method: str, tmp_path: Any) -> None:
    config = dataclasses.replace(QUICKEST, method=method, method_options=METHODS[method].options())
    kept = ContinualLearner(config=config)
    if method not in ("pah", "finetune", "independent", "lwf", "pnn", "hnet", "hn2"):
        refused(lambda: kept.learn("low", lesson(0, 1), watch=never), "from its network alone", f"got {method}")
        return
    kept.learn("low", lesson(0, 1))
    kept.save(tmp_path / "digits")
    loaded = ContinualLearner.load(tmp_path / "digits")
    for each in (kept, loaded):
        each.learn("high", lesson(2, 3))
    assert same(kept, loaded)
