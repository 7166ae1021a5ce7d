"""A frozen backbone: each view of an image passes through it once, and every method learns from the features."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers import DIGITS, require_exact_resume
from pah import ContinualLearner
from pah.core.config import InputError
from pah.data.augment import AugmentOptions
from pah.data.decode_cache import clear_cache
from pah.methods import METHODS
from pah.models.backbone import Backbone
from pah.models.backbones import ConvNetOptions
from pah.runs.progress import StoppedError
from pah.runs.run import resume_run, start_run
from pah.training import features
from pah.training.config import RunConfig, build_method, load_stream
from pah.training.evaluation import task_logits
from pah.training.features import Views, with_features_if_frozen
from pah.training.loop import train
from pah.training.options import TrainingOptions
from pah.training.state import ImagesRead, TrainState

FROZEN = ConvNetOptions(width=4, train="none", views=3)
CONFIG = RunConfig(
    backbone_options=FROZEN,
    augment=AugmentOptions(crop=1),
    training=TrainingOptions(epochs=2, batch_size=64),
)


def config_of(method: str, **changes: Any) -> RunConfig:
    options = dataclasses.replace(CONFIG, method=method, method_options=METHODS[method].options(), **changes)
    return dataclasses.replace(options, stream=dataclasses.replace(options.stream, first=2, validation=0.1))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_learns_from_features_or_is_refused(name: str) -> None:
    config = config_of(name)
    stream = load_stream(config)
    if name in ("independent", "pnn", "hat", "hn2"):
        with pytest.raises(InputError, match=f"expected all, or a method whose tasks share the features, got '?{name}"):
            build_method(config, stream.image_shape)
        return
    method = build_method(config, stream.image_shape)
    learnt = with_features_if_frozen(stream, method, config)
    before = {name: tensor.clone() for name, tensor in method.network.backbone.state_dict().items()}
    state = TrainState()
    assert list(train(method, learnt, config.training, config.augment, config.seed, state))
    after = method.network.backbone.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert len(state.matrix[-1]) == 2


def test_the_first_views_are_the_image_and_its_mirror_image() -> None:
    images = torch.arange(2 * 1 * 4 * 4, dtype=torch.uint8).reshape(2, 1, 4, 4)
    both = AugmentOptions(crop=1, flip=True)
    views = Views.of(4, both, mirrored=True)
    assert views.names == ("image", "mirror image", "augmented 2", "augmented 3")
    assert torch.equal(views.view(images, "image", 0), images)
    assert torch.equal(views.view(images, "mirror image", 0), images.flip(3))
    augmented = [views.view(images, name, batch) for name in views.names[2:] for batch in (0, 1)]
    assert not any(torch.equal(a, b) for k, a in enumerate(augmented) for b in augmented[:k])
    assert Views.of(4, AugmentOptions(), mirrored=False).names == ("image",)


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_mirror_images_are_for_evaluation_alone_if_training_has_none(count: int, flip: bool) -> None:
    views = Views.of(count, AugmentOptions(crop=1, flip=flip), mirrored=True)
    assert views.train == count
    assert list(views.names[views.evaluated]) == ["image", "mirror image"]
    assert ("mirror image" in views.names[: views.train]) == (flip and count > 1)
    alone = Views.of(count, AugmentOptions(crop=1, flip=flip), mirrored=False)
    assert (alone.names[alone.evaluated], len(alone.names)) == (("image",), count)


def test_kept_features_are_read_and_a_damaged_file_is_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    config = config_of("finetune")
    passes: list[int] = []
    original = Backbone.forward

    def counted(backbone: Backbone, x: torch.Tensor) -> torch.Tensor:
        passes.append(len(x))
        return original(backbone, x)

    monkeypatch.setattr(Backbone, "forward", counted)

    def features_of(config: RunConfig) -> list[torch.Tensor]:
        stream = load_stream(config)
        kept = with_features_if_frozen(stream, build_method(config, stream.image_shape), config, keep=True)
        return [part.inputs(part.rows) for task in kept.tasks for part in (task.train, task.validation, task.test)]

    first = features_of(config)
    computed = sum(passes)
    files = sorted((tmp_path / "pah" / "features").iterdir())
    assert len(files) == 2 * sum(len(task.class_names) for task in load_stream(config).tasks)
    files[0].write_bytes(files[0].read_bytes()[:-1])
    passes.clear()
    again = features_of(config)
    assert 0 < sum(passes) < computed / 4
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    passes.clear()
    features_of(dataclasses.replace(config, seed=1, stream=dataclasses.replace(config.stream, class_order="natural")))
    assert sum(passes) > computed / 4  # another seed has other random weights
    assert clear_cache() > 0
    assert not list((tmp_path / "pah").glob("features/*"))


def test_a_run_that_is_stopped_among_the_images_goes_on_with_the_next_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    config = config_of("finetune")
    whole = start_run(config, tmp_path / "whole")
    clear_cache()
    asked = iter(range(1000))
    with pytest.raises(StoppedError):
        start_run(config, tmp_path / "parts", stop=lambda: next(asked) == 5)
    kept = len(list((tmp_path / "cache").glob("pah/features/*")))
    assert kept > 0
    read: list[int] = []
    parts = resume_run(
        config,
        tmp_path / "parts",
        watch=lambda progress: read.append(progress.event.done) if isinstance(progress.event, ImagesRead) else None,
    )
    assert read == sorted(read)
    assert read[-1] == sum(
        len(part) for task in load_stream(config).tasks for part in (task.train, task.validation, task.test)
    )
    assert parts["accuracy_matrix"] == whole["accuracy_matrix"]


def test_features_are_those_of_the_backbone_also_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of("finetune")
    stream = load_stream(config)
    method = build_method(config, stream.image_shape)
    in_memory = with_features_if_frozen(stream, method, config)
    monkeypatch.setattr(features, "LARGE_BYTES", 0)
    in_file = with_features_if_frozen(stream, method, config)
    for task, other in zip(in_memory.tasks, in_file.tasks, strict=True):
        for part in ("train", "validation", "test"):
            a, b = getattr(task, part), getattr(other, part)
            assert torch.equal(a.inputs(a.rows), b.inputs(b.rows))
        pixels = task.normalization(task.test.pixels[task.test.rows])
        with torch.no_grad():
            expected = method.network.backbone(pixels)
        torch.testing.assert_close(task.test.inputs(task.test.rows)[:, 0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["pah", "er"])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, method: str) -> None:
    require_exact_resume(config_of(method), tmp_path)


def test_a_lesson_with_a_frozen_backbone_costs_old_tasks_no_features(tmp_path: Path) -> None:
    config = dataclasses.replace(config_of("pah"), image_size=8, benchmark="split")
    learner = ContinualLearner(config=config)

    def lesson(*digits: int) -> Any:
        pixels, labels = DIGITS.train.pixels[:, 0].numpy(), DIGITS.train.labels.numpy()
        rows = np.isin(labels, digits)
        return pixels[rows], np.searchsorted(digits, labels[rows]), [f"digit {y}" for y in digits]

    learner.learn("low", lesson(0, 1))
    backbone = learner.predictor.method.network.backbone
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    done = learner.learn("high", lesson(2, 3), held_out={"low": lesson(0, 1)})
    after = learner.predictor.method.network.backbone.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert done.drift["low"] < 0.2
    learner.save(tmp_path / "learner")
    loaded = ContinualLearner.load(tmp_path / "learner")
    pixels = lesson(0, 1)[0][:5]
    assert loaded.predict(pixels, task="low") == learner.predict(pixels, task="low")
    assert loaded.predictor.method.network.backbone.trained == "none"


def test_batch_statistics_at_test_time_are_refused() -> None:
    with pytest.raises(InputError, match="test_batch_norm: expected running with a frozen backbone, got"):
        dataclasses.replace(CONFIG, training=TrainingOptions(test_batch_norm="batch"))


def test_a_refused_method_leaves_the_old_run_in_place(tmp_path: Path) -> None:
    start_run(config_of("finetune"), tmp_path / "run")
    with pytest.raises(InputError, match="share the features"):
        start_run(config_of("pnn"), tmp_path / "run", overwrite=True)
    assert (tmp_path / "run" / "metrics.json").is_file()


def test_the_accuracy_without_flip_is_that_of_the_images_alone() -> None:
    config = config_of("finetune", training=TrainingOptions(epochs=1, flip_test=True))
    stream = load_stream(config)
    method = build_method(config, stream.image_shape)
    method.begin_task(stream.tasks[0])
    features = with_features_if_frozen(stream, method, config).tasks[0].test
    x = features.inputs(features.rows)
    assert x.shape[1] == 2
    with torch.no_grad():
        alone = task_logits(method, x, [0], flip=False)[0]
        assert torch.equal(alone, task_logits(method, x[:, :1], [0], flip=True)[0])
        assert not torch.equal(alone, task_logits(method, x, [0], flip=True)[0])
