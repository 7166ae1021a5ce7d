"""Tasks of a single class: their images are found by distances, by every rule, and they do not win every image."""

import dataclasses
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from test_learner import QUICK, lesson, refused, same

from helpers import DIGITS
from pah import ContinualLearner
from pah.cli import main
from pah.data.sources import Images, Source
from pah.learner.export import export
from pah.learner.task_inference import RULES, task_scores
from pah.methods import METHODS
from pah.training.options import TrainingOptions

CONFIG = dataclasses.replace(QUICK, training=TrainingOptions(epochs=6, batch_size=32))


@pytest.fixture(scope="module")
def learner() -> ContinualLearner:
    """Return a learner of a task of three classes and one of a single class. Do not change it."""
    learner = ContinualLearner(config=CONFIG)
    learner.learn("low", lesson(0, 1, 2))
    learner.learn("three", lesson(3))
    return learner


@pytest.mark.parametrize("rule", RULES)
def test_a_task_of_one_class_wins_its_own_images_and_not_the_others(learner: ContinualLearner, rule: str) -> None:
    options = {"task_given": False, "rule": rule}
    low = learner.evaluate(lesson(0, 1, 2, part="test"), "low", **options)  # type: ignore[arg-type]
    three = learner.evaluate(lesson(3, part="test"), "three", **options)  # type: ignore[arg-type]
    assert min(low.accuracy, three.accuracy) > 80
    assert three.of_class == {"digit 3": three.accuracy}


def test_an_evaluation_takes_one_image_of_one_class(learner: ContinualLearner) -> None:
    rows = (DIGITS.test.labels == 1).nonzero().squeeze(1)[:1]
    one = Images(DIGITS.test.pixels[rows], torch.zeros(1, dtype=torch.int64))
    result = learner.predictor.evaluate(Source("one", ("digit 1",), one, one), 0, None)
    assert (result.accuracy, result.images, dict(result.of_class)) == (100, 1, {"digit 1": 100})
    none = Images(one.pixels[:0], one.labels[:0])
    source = Source("none", ("digit 1",), one, none)
    refused(lambda: learner.predictor.evaluate(source, 0, None), "none: expected images to evaluate")


def test_a_single_class_may_come_first() -> None:
    learner = ContinualLearner(config=CONFIG)
    notes = learner.learn("three", lesson(3)).notes
    assert any("the network learned nothing yet" in note for note in notes)
    learner.learn("low", lesson(0, 1, 2))
    low = learner.evaluate(lesson(0, 1, 2, part="test"), "low", task_given=False)
    assert min(low.accuracy, learner.evaluate(lesson(3, part="test"), "three", task_given=False).accuracy) > 80


def test_with_the_task_given_the_answer_is_the_class_with_probability_1_and_a_note_says_so(
    learner: ContinualLearner,
) -> None:
    answers = learner.predict(lesson(0, 3, part="test")[0], task="three")
    assert {(answer.label, answer.probability) for answer in answers} == {("digit 3", 1.0)}
    assert "with probability 1.0" in learner.history[-1].notes[0]
    assert learner.evaluate(lesson(3, part="test"), "three").accuracy == 100
    assert learner.history[-1].drift.keys() == {"low"}


def test_images_of_other_classes_can_be_refused_although_the_task_is_given(learner: ContinualLearner) -> None:
    def refusals(digit: int) -> float:
        answers = learner.predict(lesson(digit, part="test")[0], task="three", unknown=0.2)
        return float(np.mean([answer.label is None for answer in answers]))

    assert refusals(3) < 0.4
    assert refusals(0) > refusals(3) + 0.3


def test_the_choice_among_other_tasks_does_not_depend_on_a_single_class() -> None:
    generator = torch.Generator().manual_seed(0)
    several = [torch.randn(6, 3, generator=generator), torch.randn(6, 2, generator=generator)]
    distances = torch.tensor([[1.0, 2.0, 5.0]] * 3 + [[2.0, 3.0, 1.0]] * 3)
    scores = task_scores("contrast", [*several, torch.zeros(6, 1)], None, [{}, {}, {}], distances)
    assert torch.equal(scores[:, :2], task_scores("contrast", several, None, [{}, {}]))
    assert scores.argmax(dim=1)[3:].tolist() == [2, 2, 2]
    assert 2 not in scores.argmax(dim=1)[:3].tolist()
    distances[:, 0] = torch.inf  # the means of a task are not stored
    assert 2 not in task_scores("contrast", [*several, torch.zeros(6, 1)], None, [{}, {}, {}], distances).argmax(dim=1)


def test_it_is_saved_exported_and_forgotten(
    learner: ContinualLearner, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    learner.save(tmp_path / "digits")
    loaded, pixels = ContinualLearner.load(tmp_path / "digits"), lesson(3, 0, part="test")[0]
    assert same(loaded, learner)
    loaded_answers, answers = ([a.label for a in each.predict(pixels)] for each in (loaded, learner))
    assert loaded_answers == answers
    export(loaded, tmp_path / "one.onnx", "three")
    session = onnxruntime.InferenceSession(tmp_path / "one.onnx")
    (probabilities,) = session.run(None, {"images": pixels[:5, None]})
    assert probabilities.tolist() == [[1.0]] * 5
    file = tmp_path / "3.png"
    Image.fromarray(pixels[0]).save(file)
    assert main(["predict", str(tmp_path / "digits"), str(file), "--task", "three"]) == 0
    assert "three: a single class, so its probability within the task is always 1" in capsys.readouterr().err
    loaded.learn("five", lesson(5))
    loaded.forget("low")
    assert {answer.task for answer in loaded.predict(lesson(3, 5, part="test")[0])} == {"three", "five"}
    loaded.forget("five")
    assert {answer.label for answer in loaded.predict(pixels)} == {"digit 3"}


def test_a_method_whose_features_differ_from_task_to_task_refuses_a_single_class() -> None:
    config = dataclasses.replace(CONFIG, method="independent", method_options=METHODS["independent"].options())
    refused(lambda: ContinualLearner(config=config).learn("three", lesson(3)), "at least 2 with independent", "digit 3")
