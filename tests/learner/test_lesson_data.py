"""A learner of vectors: it learns, answers, saves, loads, exports, and refuses images."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from sklearn.datasets import load_digits, load_wine
from sklearn.linear_model import LogisticRegression

from data_sets import class_folders, refused
from helpers import QUICK_LEARNER
from pah import ContinualLearner
from pah.learner.defaults import defaults
from pah.learner.export import export
from pah.training.config import RunConfig

X, Y = load_digits(return_X_y=True)
TEST = np.arange(len(Y)) % 4 == 0
LESSONS = {"low": range(5), "high": range(5, 10)}


def part(digits: range, selected: Any) -> tuple[Any, Any, list[str]]:
    """The vectors of some digits, with labels from 0."""
    rows = np.isin(Y, digits) & selected
    return X[rows], Y[rows] - digits[0], [str(y) for y in digits]


@pytest.fixture(scope="module")
def learner() -> ContinualLearner:
    """A learner of two lessons, which tests must not change."""
    learner = ContinualLearner(backbone="features")
    for name, digits in LESSONS.items():
        learner.learn(name, part(digits, ~TEST))
    return learner


def test_it_is_nearly_as_accurate_as_a_classifier_of_each_lesson(learner: ContinualLearner) -> None:
    for name, digits in LESSONS.items():
        (vectors, labels, _), (tests, test_labels, _) = part(digits, ~TEST), part(digits, TEST)
        best = 100 * LogisticRegression(max_iter=2000).fit(vectors, labels).score(tests, test_labels)
        assert learner.evaluate(part(digits, TEST), name).accuracy > best - 2
        assert learner.evaluate(part(digits, TEST), name, task_given=False).accuracy > 75
    assert learner.history[1].drift["low"] < 0.01
    assert learner.predictor.record.inputs == "vectors of 64 numbers"


def test_one_vector_and_several_get_the_same_answers(learner: ContinualLearner) -> None:
    several = learner.predict(X[:4])
    assert [answer.label for answer in several[:2]] == ["0", "1"]
    assert learner.predict(torch.from_numpy(X[:4])) == several
    assert learner.predict(X[2].tolist())[0].probability == pytest.approx(several[2].probability, abs=1e-5)
    assert learner.predict(X[:4], unknown=True, top=2)[0].top[0].label == "0"


def test_it_is_the_same_after_saving_and_loading(learner: ContinualLearner, tmp_path: Path) -> None:
    learner.save(tmp_path / "a")
    loaded = ContinualLearner.load(tmp_path / "a")
    assert loaded.predict(X[:50]) == learner.predict(X[:50])
    assert loaded.config.image_size is None
    card = (tmp_path / "a" / "README.md").read_text()
    assert "for vectors of 64 numbers" in card
    assert "tabular-classification" in card
    assert "image" not in card
    loaded.learn("again", part(range(3), TEST), held_out={"low": part(LESSONS["low"], TEST)}, max_loss=1)
    loaded.forget("high")
    assert [task.name for task in loaded.tasks] == ["low", "again"]


def test_an_exported_graph_takes_vectors(learner: ContinualLearner, tmp_path: Path) -> None:
    export(learner, tmp_path / "a.onnx", "low")
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx")
    (probabilities,) = session.run(None, {"vectors": X[:20].astype(np.float32)})
    expected = [answer.probability for answer in learner.predict(X[:20], task="low")]
    assert np.abs(probabilities.max(axis=1) - expected).max() < 1e-4
    assert json.loads(session.get_modelmeta().custom_metadata_map["numbers"]) == 64


def test_other_input_is_refused_and_nothing_is_lost(learner: ContinualLearner, tmp_path: Path) -> None:
    bad = X[:6].copy()
    bad[4, 2] = np.nan
    for vectors, message in (
        (bad, "vectors: expected finite numbers, got NaN or infinite ones in row 4"),
        (X[:6, :32], "vectors: expected 64 numbers each, got 32"),
        (X[:6].reshape(6, 8, 8), "vectors: expected real numbers (N, D), got float64 (6, 8, 8)"),
        ("photo.jpg", "this learner takes vectors of 64 numbers"),
    ):
        with refused(message):
            learner.predict(vectors)
    assert [answer is None for answer in learner.predict(bad, skip_unreadable=True)] == [False] * 4 + [True, False]
    before = learner.history
    for data, message in (
        ((X[:, :32], Y), "vectors: expected vectors of 64 numbers, as in the first lesson, got 32"),
        ((np.zeros((4, 8, 8), np.uint8), [0, 1, 0, 1]), "data: expected vectors, as backbone features takes them"),
        (class_folders(tmp_path), "expected vectors, as backbone features takes them"),
    ):
        with refused(message):
            learner.learn("more", data)
    assert learner.history == before
    with refused("data: expected images, to be resized to 8x8, got vectors of 64 numbers"):
        ContinualLearner(config=QUICK_LEARNER).learn("low", (X, Y))
    with refused("image_size: expected none with backbone features, got 32"):
        ContinualLearner(backbone="features", image_size=32)


def test_numbers_in_units_of_their_own_are_learned() -> None:
    vectors, labels = load_wine(return_X_y=True)
    learner = ContinualLearner(backbone="features")
    learner.learn("wine", (vectors[::2], labels[::2]))
    assert learner.evaluate((vectors[1::2], labels[1::2], ["0", "1", "2"]), "wine").accuracy > 94


def test_other_methods_learn_vectors() -> None:
    config = defaults(backbone="features").as_dict() | {"method": {"name": "lwf"}, "optimizer": {"lr": 0.02}}
    learner = ContinualLearner(config=RunConfig.from_dict(config))
    for name, digits in LESSONS.items():
        learner.learn(name, part(digits, ~TEST))
    assert learner.evaluate(part(LESSONS["low"], TEST), "low").accuracy > 80
