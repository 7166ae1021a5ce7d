"""What a lesson cost old tasks, and the limits that undo it."""

import dataclasses
from pathlib import Path

import pytest
from test_learner import QUICK, forgetful, lesson, refused, same

from pah import ContinualLearner, DriftError
from pah.learner.held_out import TaskLoss, refuse_losses
from pah.training.options import TrainingOptions

CHECKS = lesson(0, 1, 2, part="test")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a learner of one task. Do not change it."""
    learner = ContinualLearner(
        config=dataclasses.replace(QUICK, training=TrainingOptions(epochs=3, batch_size=32)),
    )
    learner.learn("low", lesson(0, 1, 2))
    path = tmp_path_factory.mktemp("learner") / "digits"
    learner.save(path)
    return path


@pytest.fixture
def learner(folder: Path) -> ContinualLearner:
    return ContinualLearner.load(folder)


def test_a_measured_loss_decides_and_not_the_estimate(
    learner: ContinualLearner, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pah.learner.lesson.estimate_drift", lambda *_: {"low": 0.9})
    with pytest.raises(DriftError, match=r"90\.0 for 'low' by the estimate; .* held_out images of low measure"):
        learner.learn("high", lesson(5, 6), max_drift=0.5)
    assert same(learner, ContinualLearner.load(folder))
    result = learner.learn("high", lesson(5, 6), held_out={"low": CHECKS}, max_drift=0.5, max_loss=50)
    assert result.drift == {"low": 0.9}
    assert result.before["low"] - result.accuracies["low"] < 50
    assert result.images["low"] == len(CHECKS[1])
    assert set(result.fingerprints) == {"low", "high"}


def test_a_measured_loss_above_the_limit_undoes_the_lesson_and_says_on_how_many_images(
    learner: ContinualLearner, folder: Path
) -> None:
    learner.config = forgetful(learner.config)
    with pytest.raises(DriftError, match=r"lose more than 5 points of accuracy \(max_loss 5\)") as caught:
        learner.learn("high", lesson(5, 6), held_out={"low": CHECKS}, max_loss=5)
    message = str(caught.value)
    assert f"of {len(CHECKS[1])} held-out images" in message
    assert "one image is 0.9 points" in message
    assert "\n" not in message
    assert caught.value.drift["low"] > 0.05
    learner.config = ContinualLearner.load(folder).config
    assert same(learner, ContinualLearner.load(folder))


def test_a_limit_on_the_measured_loss_needs_images_of_an_old_task(learner: ContinualLearner) -> None:
    refused(lambda: learner.learn("high", lesson(5, 6), max_loss=5), "max_loss", "held_out images", "low")
    learner.learn("middle", lesson(3, 4))
    notes = learner.learn("high", lesson(5, 6), max_loss=100, held_out={"low": CHECKS}).notes
    assert "max_loss does not limit what middle lost: it has no held-out images" in notes


def test_a_loss_that_equals_the_limit_is_allowed() -> None:
    points = 100 * 23 / 30 - 100 * 20 / 30  # 10, but for rounding
    losses = [TaskLoss("low", points, 23, 20, 30)]
    refuse_losses(losses, 0.1, 10)
    with pytest.raises(DriftError, match=r"of 30 held-out images, 23 right before and 20 after"):
        refuse_losses(losses, None, 9)
