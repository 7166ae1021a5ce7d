"""`--backbone.train last`: lessons change the last part of a backbone, and keep what the part before it returns."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers import DIGITS, changed_tensors, digits, require_exact_resume, snapshot, train_few_steps
from pah import ContinualLearner
from pah.core.config import InputError, RecoveryWarning
from pah.data.augment import AugmentOptions
from pah.data.stream import Stream
from pah.methods import METHODS
from pah.methods.base import Method, OptimizerOptions
from pah.methods.pah_options import PAHOptions
from pah.models.backbone import Backbone
from pah.models.backbones import ConvNetOptions
from pah.models.modes import BatchNormStatistics
from pah.training import features
from pah.training.config import RunConfig, build_method, load_stream
from pah.training.features import with_features_if_frozen
from pah.training.loop import train
from pah.training.options import TrainingOptions
from pah.training.state import TrainState

CONFIG = RunConfig(
    backbone_options=ConvNetOptions(width=4, train="last", views=2),
    augment=AugmentOptions(crop=1),
    training=TrainingOptions(epochs=1, batch_size=64),
)
SHARING_NO_FEATURES = ("independent", "pnn", "hat", "hn2")


def config_of(method: str, **changes: Any) -> RunConfig:
    config = dataclasses.replace(CONFIG, method=method, method_options=METHODS[method].options(), **changes)
    return dataclasses.replace(config, stream=dataclasses.replace(config.stream, first=2, validation=0.1))


def built(config: RunConfig) -> tuple[Method, Stream]:
    stream = load_stream(config)
    method = build_method(config, stream.image_shape)
    return method, with_features_if_frozen(stream, method, config)


def frozen_names(backbone: Backbone) -> set[str]:
    last = {id(t) for m in backbone.trained_modules() for t in (*m.parameters(), *m.buffers())}
    tensors = dict((*backbone.named_parameters(), *backbone.named_buffers()))
    return {name for name, tensor in tensors.items() if id(tensor) not in last}


@pytest.mark.parametrize("name", [name for name in METHODS if name not in SHARING_NO_FEATURES])
def test_a_method_changes_the_last_part_alone(name: str) -> None:
    config = config_of(name)
    method, stream = built(config)
    backbone = method.network.backbone
    assert {name.split(".")[1] for name in frozen_names(backbone)} == {"0", "1", "3", "4", "6", "7"}
    assert stream.tasks[0].train.features is not None
    before, state = snapshot(backbone), TrainState()
    for event in train(method, stream, config.training, config.augment, config.seed, state):
        del event
        trained = {
            id(p) for optimizer in method.optimizers for group in optimizer.param_groups for p in group["params"]
        }
        assert not any(id(p) in trained for p in backbone.parameters() if not p.requires_grad)
    changed = changed_tensors(backbone, before)
    assert not changed & frozen_names(backbone)
    assert {"body.9.weight", "body.10.weight"} <= changed
    assert len(state.matrix[-1]) == 2


@pytest.mark.parametrize("name", SHARING_NO_FEATURES)
def test_a_method_whose_tasks_share_no_features_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"expected all, or a method whose tasks share the features, got '?{name}"):
        build_method(config_of(name), (1, 8, 8))


def test_what_is_kept_gives_the_features_of_the_images() -> None:
    method, stream = built(config_of("finetune"))
    backbone, task = method.network.backbone.eval(), stream.tasks[0]
    rows = task.test.rows[:10]
    with torch.no_grad():
        features = backbone(task.normalization(task.test.pixels[rows]))
        torch.testing.assert_close(backbone(task.test.inputs(rows)[:, 0]), features, rtol=1e-4, atol=1e-5)


def test_outputs_that_are_too_large_are_not_kept_and_images_pass_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "MOST_BYTES", 1000)
    config = config_of("lwf")
    with pytest.warns(RecoveryWarning, match="backbone.train last: the output of its first part for all images takes"):
        method, stream = built(config)
    assert stream.tasks[0].train.features is None
    backbone = method.network.backbone
    before = snapshot(backbone)
    assert list(train(method, stream, config.training, config.augment, config.seed, TrainState()))
    assert "body.9.weight" in changed_tensors(backbone, before)
    assert not changed_tensors(backbone, before) & frozen_names(backbone)


@pytest.mark.parametrize("method", ["pah", "der++"])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, method: str) -> None:
    require_exact_resume(config_of(method), tmp_path)


@pytest.mark.parametrize("statistics", ["running", "batch"])
def test_the_teacher_shares_the_first_part_and_has_a_last_part_of_its_own(statistics: BatchNormStatistics) -> None:
    options = PAHOptions(teacher_batch_norm=statistics)
    method = build_method(dataclasses.replace(config_of("pah"), method_options=options), (1, 8, 8))
    train_few_steps(method, digits(), tasks=2)
    student, teacher = method.network.backbone, method.teacher.backbone  # type: ignore[union-attr]
    assert isinstance(student, Backbone)
    assert isinstance(teacher, Backbone)
    if statistics == "batch":  # otherwise the batch norms of this backbone are folded into its convolutions
        assert not [name for name in teacher.state_dict() if name.split(".")[1] in "0134678"]
        assert _tensor(teacher, "0.weight").data_ptr() == _tensor(student, "0.weight").data_ptr()
    assert _tensor(teacher, "9.weight").data_ptr() != _tensor(student, "9.weight").data_ptr()
    images = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        kept = student.eval().kept(images)
        torch.testing.assert_close(teacher.kept(images), kept, rtol=1e-4, atol=1e-5)


def _tensor(backbone: Backbone, name: str) -> torch.Tensor:
    module, _, tensor = name.rpartition(".")
    found: torch.Tensor = getattr(backbone.body.get_submodule(module), tensor)
    return found


def test_what_lessons_do_not_change_stays_in_inference_mode() -> None:
    backbone = build_method(CONFIG, (1, 8, 8)).train().network.backbone
    modes = {name: module.training for name, module in backbone.body.named_children()}
    assert [name for name, training in modes.items() if training] == ["9", "11", "12"]  # not its batch norm


def test_pretrained_weights_learn_at_a_tenth_of_the_rate(tmp_path: Path) -> None:
    torch.save(ConvNetOptions(width=4).build(1).body.state_dict(), tmp_path / "weights.pth")
    for weights, lr, expected in ((None, None, 1e-3), (str(tmp_path / "weights.pth"), None, 1e-4), (None, 0.5, 0.5)):
        options = dataclasses.replace(CONFIG.backbone_options, weights=weights)
        config = dataclasses.replace(CONFIG, backbone_options=options, optimizer=OptimizerOptions(backbone_lr=lr))
        method = build_method(config, (1, 8, 8))
        train_few_steps(method, digits(), tasks=1, steps=0)
        rates = {id(p): group["peak_lr"] for group in method.optimizers[0].param_groups for p in group["params"]}
        (rate,) = {rates[id(p)] for p in method.network.backbone.trained_parameters()}
        assert rate == pytest.approx(expected)


def test_a_learner_with_a_trained_last_part_is_saved_and_forgets(tmp_path: Path) -> None:
    def lesson(*classes: int) -> Any:
        pixels, labels = DIGITS.train.pixels[:, 0].numpy(), DIGITS.train.labels.numpy()
        rows = np.isin(labels, classes)
        return pixels[rows], np.searchsorted(classes, labels[rows]), [f"digit {y}" for y in classes]

    learner = ContinualLearner(config=dataclasses.replace(config_of("pah"), image_size=8, benchmark="split"))
    learner.learn("low", lesson(0, 1))
    done = learner.learn("high", lesson(2, 3), held_out={"low": lesson(0, 1)})
    assert 0 <= done.drift["low"] <= 1
    learner.save(tmp_path / "learner")
    loaded = ContinualLearner.load(tmp_path / "learner")
    pixels = lesson(0, 1)[0][:5]
    assert loaded.predict(pixels) == learner.predict(pixels)
    assert loaded.predictor.method.network.backbone.parts == learner.predictor.method.network.backbone.parts
    loaded.learn("more", lesson(4, 5))
    learner.learn("more", lesson(4, 5))
    assert loaded.predict(pixels) == learner.predict(pixels)
    learner.forget("high")
    assert [task.name for task in learner.tasks] == ["low", "more"]


def test_transfer_is_measured_from_what_is_kept() -> None:
    training = dataclasses.replace(CONFIG.training, measure_transfer=True)
    config = config_of("finetune", training=training)
    method, stream = built(config)
    state = TrainState()
    assert list(train(method, stream, training, config.augment, 0, state))
    assert [accuracy is not None and 0 <= accuracy <= 100 for accuracy in state.features_before] == [True, True]
