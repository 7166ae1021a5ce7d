"""`ContinualLearner`: lessons, predictions, save and load, drift, and refused input."""

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers import DIGITS
from pah import ContinualLearner, DriftError, InputError, TaughtTask
from pah.data.augment import AugmentOptions
from pah.data.stream_options import StreamOptions
from pah.data.task import Examples
from pah.learner.defaults import FROM_SCRATCH
from pah.learner.drift import fit_feature_map
from pah.learner.task_inference import AMONG_ALL
from pah.methods import METHODS
from pah.methods.base import OptimizerOptions
from pah.methods.losses import relative_distance
from pah.models.backbones import ConvNetOptions
from pah.models.modes import evaluating
from pah.runs.run import start_run
from pah.training.config import RunConfig
from pah.training.options import TrainingOptions
from pah.training.state import StepDone

Lesson = tuple[np.ndarray, list[int], list[str]]

QUICK = dataclasses.replace(
    FROM_SCRATCH,
    image_size=8,
    backbone="convnet",
    backbone_options=ConvNetOptions(8),
    augment=AugmentOptions(),
    training=TrainingOptions(epochs=6, batch_size=32),
)


def lesson(*classes: int, part: str = "train") -> Lesson:
    """Return images of some digits, their labels within the lesson, and class names."""
    images = DIGITS.train if part == "train" else DIGITS.test
    rows = torch.isin(images.labels, torch.tensor(classes))
    pixels = images.pixels[rows, 0].numpy()
    return pixels, [classes.index(y) for y in images.labels[rows].tolist()], [f"digit {c}" for c in classes]


def weights(learner: ContinualLearner) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in learner.predictor.method.network.state_dict().items()}


def same(a: ContinualLearner, b: ContinualLearner) -> bool:
    """Return whether two learners are equal bit for bit, except for times."""
    left, right = weights(a), weights(b)
    calibration = [[(t.name, t.temperature, t.quantiles) for t in learner.tasks] for learner in (a, b)]
    return (
        list(left) == list(right)
        and all(torch.equal(left[n], right[n]) for n in left)
        and calibration[0] == calibration[1]
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a learner after two lessons, of three and of two classes. Do not change it."""
    learner = ContinualLearner(config=QUICK)
    learner.learn("low", lesson(0, 1, 2))
    learner.learn("middle", lesson(3, 4))
    path = tmp_path_factory.mktemp("learner") / "digits"
    learner.save(path)
    return path


@pytest.fixture
def learner(folder: Path) -> ContinualLearner:
    return ContinualLearner.load(folder)


def test_it_knows_the_first_lesson_after_the_second(learner: ContinualLearner) -> None:
    for name, classes in (("low", (0, 1, 2)), ("middle", (3, 4))):
        pixels, labels, names = lesson(*classes, part="test")
        answers = learner.predict(pixels, task=name)
        right = [answer.label == names[label] for answer, label in zip(answers, labels, strict=True)]
        assert sum(right) / len(right) > 0.9
        assert all(answer.task == name and 1 / len(classes) <= answer.probability <= 1 for answer in answers)
        evaluation = learner.evaluate((pixels, labels, names), name)
        assert evaluation.images == len(labels)
        assert evaluation.accuracy == pytest.approx(100 * sum(right) / len(right))
        assert set(evaluation.of_class) == set(names)


@pytest.mark.parametrize("method", ["pah", "lwf", "finetune"])
def test_a_reload_between_lessons_changes_nothing(tmp_path: Path, method: str) -> None:
    config = dataclasses.replace(QUICK, method=method, method_options=METHODS[method].options())
    not_reloaded = ContinualLearner(config=config)
    not_reloaded.learn("low", lesson(0, 1, 2))
    not_reloaded.save(tmp_path / "digits")
    reloaded = ContinualLearner.load(tmp_path / "digits")
    assert same(not_reloaded, reloaded)
    for each in (not_reloaded, reloaded):
        each.learn("high", lesson(5, 6, 7, 8))
    assert same(not_reloaded, reloaded)
    assert [task.classes for task in reloaded.tasks] == [task.classes for task in not_reloaded.tasks]


def test_the_task_is_inferred_better_than_by_chance(tmp_path: Path) -> None:
    config = RunConfig(
        backbone_options=ConvNetOptions(8),
        stream=StreamOptions(tasks=2, validation=0.2),
        training=TrainingOptions(epochs=20, batch_size=32),
    )
    start_run(config, tmp_path)
    learner = ContinualLearner.load(tmp_path / "model")
    for rule in ("softmax", "energy", "contrast", "combined"):
        evaluations = [
            learner.evaluate(renamed(lesson(*task.labels, part="test"), task), task.name, task_given=False, rule=rule)
            for task in learner.tasks
        ]
        assert sum(evaluation.task_accuracy or 0 for evaluation in evaluations) / 2 > 65
        assert all(evaluation.accuracy <= (evaluation.task_accuracy or 0) for evaluation in evaluations)


def renamed(digits_lesson: Lesson, task: TaughtTask) -> Lesson:
    """Return a lesson of digits with the class names that a run uses."""
    return digits_lesson[0], digits_lesson[1], list(task.classes)


def test_probabilities_are_calibrated_on_validation_images(learner: ContinualLearner) -> None:
    for task in learner.tasks:
        assert task.temperature != 1
        assert set(task.quantiles) == {"softmax", "energy", "contrast", "prototypes", AMONG_ALL}
        assert all(list(values) == sorted(values) for values in task.quantiles.values())


def test_none_of_these_has_about_the_allowed_rate_and_a_higher_one_for_unknown_classes(
    learner: ContinualLearner,
) -> None:
    known = refusals(learner, 3, 4, task="middle")
    assert 0.05 < known < 0.35
    assert known + 0.2 < refusals(learner, 8, 9, task="middle")
    assert all(answer.label is not None for answer in learner.predict(lesson(8, 9)[0], task="middle"))


def test_none_of_these_keeps_its_rate_when_no_task_is_given() -> None:
    learner = ContinualLearner(config=QUICK)
    pairs = [(0, 1), (2, 3), (4, 5), (6, 7)]
    for pair in pairs:
        learner.learn(f"digits {pair}", lesson(*pair))
    known = [refusals(learner, *pair) for pair in pairs]
    assert 0.05 < sum(known) / 4 < 0.35
    assert max(known) < 0.4
    assert sum(known) / 4 < refusals(learner, 8, 9)


def refusals(learner: ContinualLearner, *digits: int, task: str | None = None) -> float:
    """Return the share of test images predicted as "none of these", with 20 % allowed for known classes."""
    answers = learner.predict(lesson(*digits, part="test")[0], task=task, unknown=0.2)
    return float(np.mean([answer.label is None for answer in answers]))


def test_images_of_another_size_and_in_colour_are_converted_with_a_note(learner: ContinualLearner) -> None:
    pixels, labels, names = lesson(5, 6)
    large = np.repeat(np.repeat(np.repeat(pixels[..., None], 3, axis=3), 2, axis=1), 2, axis=2)
    large[:, 0, 0, 0] = 255  # a red corner, so the image is not grey
    result = learner.learn("high", (large, labels, names))
    assert any("16x16" in note for note in result.notes)
    assert any("grey" in note for note in result.notes)
    assert result.accuracies["high"] > 80
    assert learner.predict(large[:3], task="high")


def test_the_history_has_the_effect_of_each_lesson_on_old_tasks(learner: ContinualLearner) -> None:
    result = learner.learn("high", lesson(5, 6), held_out={"low": lesson(0, 1, 2, part="test")})
    assert learner.history[-1] == result
    assert set(result.accuracies) == {"low", "high"}
    assert set(result.drift) == {"low", "middle"}
    assert all(0 <= loss <= 1 for loss in result.drift.values())
    assert result.accuracies["low"] == learner.evaluate(lesson(0, 1, 2, part="test"), "low").accuracy
    assert [past.name for past in learner.history] == ["low", "middle", "high"]


def forgetful(config: RunConfig) -> RunConfig:
    """Return the same options with a learning rate so high that the learner forgets."""
    return dataclasses.replace(config, optimizer=OptimizerOptions(lr=0.1, backbone_lr=1.0))


@pytest.mark.parametrize("held_out", [{}, {"low": lesson(0, 1, 2, part="test")}])
def test_too_much_drift_rolls_the_lesson_back(
    learner: ContinualLearner, folder: Path, held_out: dict[str, Lesson]
) -> None:
    original = learner.config
    learner.config = forgetful(original)
    with pytest.raises(DriftError, match="rolled back") as caught:
        learner.learn("high", lesson(5, 6), held_out=held_out, max_drift=0.1)
    assert max(caught.value.drift.values()) > 0.1
    learner.config = original
    assert same(learner, ContinualLearner.load(folder))
    assert learner.history == ContinualLearner.load(folder).history
    assert learner.learn("high", lesson(5, 6), max_drift=0.1).name == "high"


def test_the_estimated_drift_is_near_the_measured_loss(learner: ContinualLearner) -> None:
    learner.config = forgetful(learner.config)
    checks = {"low": lesson(0, 1, 2, part="test"), "middle": lesson(3, 4, part="test")}
    before = {name: learner.evaluate(data, name).accuracy for name, data in checks.items()}
    result = learner.learn("high", lesson(5, 6), held_out=checks)
    lost = {name: before[name] - result.accuracies[name] for name in checks}
    assert max(lost.values()) > 10
    assert max(result.drift.values()) > 0.1
    assert all(abs(100 * result.drift[name] - lost[name]) < 35 for name in checks)


def test_a_lesson_learns_by_the_options_that_are_set_for_it(learner: ContinualLearner) -> None:
    before = {name: weight for name, weight in weights(learner).items() if name.startswith("backbone")}
    learner.config = dataclasses.replace(learner.config, optimizer=OptimizerOptions(lr=1e-9, weight_decay=0.0))
    learner.learn("high", lesson(5, 6))
    assert max((weights(learner)[name] - old).abs().max().item() for name, old in before.items()) < 1e-6


def test_statistics_of_classes_are_kept_with_the_learner(learner: ContinualLearner, tmp_path: Path) -> None:
    statistics = learner.predictor.statistics
    assert statistics is not None
    assert [len(means) for means in statistics.means] == [3, 2]
    learner.forget("low")
    learner.save(tmp_path / "less")
    loaded = ContinualLearner.load(tmp_path / "less").predictor.statistics
    assert loaded is not None
    torch.testing.assert_close(loaded.means[0], statistics.means[1], atol=1e-6, rtol=1e-6)


def test_tasks_without_statistics_have_no_estimate_and_a_note_says_so(folder: Path) -> None:
    """Learners of older formats and models of runs have no statistics."""
    learner = ContinualLearner.load(folder)
    learner._predictor = dataclasses.replace(learner.predictor, statistics=None)
    result = learner.learn("high", lesson(5, 6))
    assert result.drift == {}
    assert any("low, middle" in note for note in result.notes)
    assert set(learner.learn("more", lesson(7, 8)).drift) == {"high"}


def test_a_lesson_that_is_stopped_leaves_the_learner_as_it_was(learner: ContinualLearner, folder: Path) -> None:
    def stop(event: object) -> None:
        if isinstance(event, StepDone) and event.steps_done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learner.learn("high", lesson(5, 6), watch=stop)
    assert same(learner, ContinualLearner.load(folder))


def test_a_forgotten_task_is_unknown_and_predictions_for_others_stay(learner: ContinualLearner, tmp_path: Path) -> None:
    learner.learn("high", lesson(5, 6))
    pixels = lesson(3, 4, part="test")[0]
    before = learner.predict(pixels, task="middle"), learner.predict(pixels, task="high")
    numbers = sum(tensor.numel() for tensor in weights(learner).values())
    learner.forget("low")
    learner.save(tmp_path / "rest")
    for each in (learner, ContinualLearner.load(tmp_path / "rest")):
        assert (each.predict(pixels, task="middle"), each.predict(pixels, task="high")) == before
        assert numbers - sum(tensor.numel() for tensor in weights(each).values()) == 3 * 25  # its prototypes
        with pytest.raises(InputError, match=r"unknown task 'low'.*high, middle"):
            each.predict(pixels, task="low")
        assert {answer.task for answer in each.predict(pixels)} <= {"middle", "high"}
    assert learner.learn("low", lesson(0, 1)).accuracies["low"] > 80


def refused(action: Callable[[], object], *parts: str) -> None:
    """Assert that the action is refused with one line that contains all parts."""
    with pytest.raises(InputError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    assert not [part for part in parts if part not in message], message


def test_bad_lessons_are_refused_and_change_nothing(learner: ContinualLearner, folder: Path) -> None:
    pixels, labels, names = lesson(5, 6)
    nan = np.full(pixels.shape, np.nan, dtype=np.float32)
    refused(lambda: learner.learn("low", (pixels, labels, names)), "'low'", "taught before", "forget('low')")
    refused(lambda: learner.learn(" ", (pixels, labels, names)), "task", "a name")
    refused(lambda: learner.learn("x", (pixels, labels, names[:1])), "labels", "0 to 0", "got 1")
    refused(lambda: learner.learn("x", (pixels, labels[:-1], names)), "labels", str(len(pixels)))
    refused(lambda: learner.learn("x", (pixels, labels, ["a", "a"])), "each once")
    refused(lambda: learner.learn("x", (nan, labels, names)), "uint8", "float32")
    refused(
        lambda: learner.learn("x", (pixels, labels, names), held_out={"y": (pixels, labels, names)}), "unknown task"
    )
    refused(lambda: learner.evaluate((pixels, labels, names), "low"), "classes of task 'low'", "digit 5")
    refused(lambda: learner.predict(pixels, task="birds"), "unknown task 'birds'", "low, middle")
    refused(lambda: learner.predict(pixels, unknown=0.9), "unknown", "0.5")
    refused(lambda: learner.learn("x", (pixels, labels, names), max_drift=2), "max_drift", "0 to 1", "2")
    assert same(learner, ContinualLearner.load(folder))


def test_a_learner_needs_a_method_that_is_its_network() -> None:
    config = dataclasses.replace(QUICK, method="er", method_options=METHODS["er"].options())
    refused(lambda: ContinualLearner(config=config).learn("low", lesson(0, 1)), "from its network alone", "got er")
    refused(lambda: ContinualLearner(config=QUICK).predict(lesson(0, 1)[0]), "taught a task")
    refused(lambda: ContinualLearner("resnet19"), "resnet18")
    refused(lambda: ContinualLearner(config=RunConfig()), "image_size")


def test_logits_equal_those_of_the_trained_network(learner: ContinualLearner) -> None:
    """The predictor uses a faster copy of the network, created by the first prediction."""
    images, _, _ = lesson(0, 1, 2, part="test")
    learner.predict(images, task="low")
    predictor, x = learner.predictor, torch.from_numpy(images)[:, None]
    logits = predictor.logits(x, [0])[0] * learner.tasks[0].temperature
    with torch.no_grad(), evaluating(predictor.method):
        expected = predictor.method(predictor.record.normalization(x), 0)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert all(module.training for module in predictor.method.modules()), "the network itself must not change"


def test_feature_changes_that_the_lessons_images_do_not_show_are_measured() -> None:
    learner = ContinualLearner(config=QUICK)
    pixels, labels, names = lesson(0, 1)
    rgb = np.stack([pixels, 255 - pixels, pixels // 2], axis=-1)
    learner.learn("coloured", (rgb, labels, names))
    before = learner.predictor
    after = dataclasses.replace(before, method=copy.deepcopy(before.method))
    first = next(layer for layer in after.method.network.modules() if isinstance(layer, torch.nn.Conv2d))
    with torch.no_grad():
        first.weight[:, 0] += 0.5  # the response to red
    images = torch.from_numpy(rgb).permute(0, 3, 1, 2).clone()
    images[:, 0] = round(255 * before.record.normalization.mean[0])  # the lesson is without red
    examples = Examples(images, torch.arange(len(images)), torch.tensor(labels))
    assert relative_distance(before.features(images), after.features(images)) < 1e-3
    feature_map = fit_feature_map(before, after, examples, AugmentOptions())
    assert feature_map.residual.trace() > 0.05 * before.features(images).double().square().sum(dim=1).mean()
    unchanged = fit_feature_map(before, before, examples, AugmentOptions())
    assert unchanged.residual.trace() == pytest.approx(0, abs=1e-9)
