"""`ContinualLearner.predict` with a ranking of the classes, and with images that cannot be read."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import DIGITS, QUICK_LEARNER
from pah import ContinualLearner, InputError
from pah.learner.prediction import rank_classes


def digits(*classes: int) -> tuple[np.ndarray, list[int], list[str]]:
    rows = torch.isin(DIGITS.train.labels, torch.tensor(classes))
    labels = [classes.index(y) for y in DIGITS.train.labels[rows].tolist()]
    return DIGITS.train.pixels[rows, 0].numpy(), labels, [f"digit {c}" for c in classes]


@pytest.fixture(scope="module")
def learner() -> ContinualLearner:
    learner = ContinualLearner(config=QUICK_LEARNER)
    learner.learn("low", digits(0, 1, 2))
    learner.learn("high", digits(3, 4))
    return learner


def test_a_ranking_holds_the_classes_of_the_answers_task(learner: ContinualLearner) -> None:
    pixels = DIGITS.test.pixels[:120, 0].numpy()
    plain, ranked = learner.predict(pixels), learner.predict(pixels, top=3)
    assert ranked == plain
    assert not any(answer.top for answer in plain)
    assert {answer.task for answer in ranked} == {"low", "high"}
    for label, task, probability, _ in ranked:
        assert (label is not None, task in ("low", "high"), 0 < probability <= 1) == (True, True, True)
    for answer in ranked:
        assert len(answer.top) == (3 if answer.task == "low" else 2)
        assert answer.top[0] == (answer.label, answer.probability)
        assert sum(choice.probability for choice in answer.top) == pytest.approx(1, abs=1e-5)
    assert all(len(answer.top) == 1 for answer in learner.predict(pixels, top=1))
    with pytest.raises(InputError, match="top: expected a number of classes, at least 0, got -1"):
        learner.predict(pixels, top=-1)


def test_none_of_these_keeps_its_ranking(learner: ContinualLearner) -> None:
    answers = learner.predict(DIGITS.test.pixels[:200, 0].numpy(), task="high", unknown=0.5, top=2)
    refused = [answer for answer in answers if answer.label is None]
    assert refused
    assert all(answer.top[0].probability == answer.probability for answer in refused)


def test_none_stands_for_an_image_that_cannot_be_read(learner: ContinualLearner, tmp_path: Path) -> None:
    images: list[Image.Image | str | Path] = []
    for number in range(4):
        Image.fromarray(DIGITS.test.pixels[number, 0].numpy()).save(tmp_path / f"{number}.png")
        images.append(tmp_path / f"{number}.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    expected = learner.predict(images)
    with_bad = [*images[:2], tmp_path / "bad.png", *images[2:], str(tmp_path / "none.png")]
    with pytest.raises(InputError, match=r"bad\.png: expected an image"):
        learner.predict(with_bad)
    answers = learner.predict(with_bad, skip_unreadable=True)
    assert answers == [*expected[:2], None, *expected[2:], None]
    assert learner.predict([tmp_path / "bad.png"], skip_unreadable=True) == [None]
    assert learner.predict(str(tmp_path / "0.png"), skip_unreadable=True) == learner.predict(images[:1])
    pixels = DIGITS.test.pixels[:3, 0].numpy()
    assert learner.predict(pixels, skip_unreadable=True) == learner.predict(pixels)
    with pytest.raises(InputError, match="unknown task 'birds'"):
        learner.predict(with_bad, "birds", skip_unreadable=True)


def test_equal_probabilities_are_ranked_by_position_as_the_answer_is() -> None:
    probabilities = [torch.full((2, 4), 0.25), torch.tensor([[0.5, 0.5], [0.1, 0.9]])]
    classes, values = rank_classes(probabilities, torch.tensor([0, 1]), 3)
    assert classes.tolist() == [[0, 1, 2], [1, 0, -1]]
    assert values.tolist() == [[0.25, 0.25, 0.25], pytest.approx([0.9, 0.1, 0])]
    assert [tensor.shape for tensor in rank_classes(probabilities, torch.tensor([0, 1]), 0)] == [(2, 0), (2, 0)]
