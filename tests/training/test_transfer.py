"""Forward transfer: the accuracy on a task before it is learned, against an untrained network."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import assert_same_run, results, run_until_death, tiny
from helpers import changed_tensors, digits, snapshot
from pah.methods import METHODS
from pah.runs.run import resume_run, start_run
from pah.training.config import build_method, load_stream
from pah.training.evaluation import evaluate
from pah.training.loop import begin, train
from pah.training.options import TrainingOptions
from pah.training.state import StepDone, TaskBegun, TrainState
from pah.training.transfer import measure_readiness

MEASURED = {
    "forward_transfer",
    "feature_forward_transfer",
    "accuracy_before_learning",
    "accuracy_untrained",
    "feature_accuracy_before_learning",
    "feature_accuracy_untrained",
}


def test_the_option_needs_no_value() -> None:
    words: tuple[list[str], ...] = ([], ["--training.measure_transfer"], ["--training.measure_transfer", "true"])
    assert [tiny(*given).training.measure_transfer for given in words] == [False, True, True]


def read(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return found


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tiny run of PAH that measures forward transfer; tests must not change it."""
    folder = tmp_path_factory.mktemp("transfer") / "run"
    start_run(tiny("--training.measure_transfer", "true"), folder)
    return folder


def test_measuring_changes_nothing_else(measured: Path, tmp_path: Path) -> None:
    start_run(tiny(), tmp_path / "plain")
    found, plain = results(measured), results(tmp_path / "plain")
    assert found.keys() - plain.keys() == MEASURED
    assert {key: value for key, value in found.items() if key not in MEASURED} == plain
    weights = ("model/model.safetensors", "predictions.safetensors")
    assert all((measured / name).read_bytes() == (tmp_path / "plain" / name).read_bytes() for name in weights)


def test_forward_transfer_is_that_of_its_definition(measured: Path) -> None:
    found = read(measured)
    for prefix, key in (("", "forward_transfer"), ("feature_", "feature_forward_transfer")):
        before, untrained = found[f"{prefix}accuracy_before_learning"], found[f"{prefix}accuracy_untrained"]
        assert len(before) == len(untrained) == 3
        assert before[0] == untrained[0]  # before the first task, the network is the untrained one
        gains = [one - other for one, other in zip(before[1:], untrained[1:], strict=True)]
        assert found[key] == pytest.approx(sum(gains) / 2)


@pytest.mark.parametrize("events", [1, 2, 16])  # after the TaskBegun of task 1, after a step, and in task 2
def test_a_resumed_run_measures_the_same(measured: Path, events: int, tmp_path: Path) -> None:
    config = tiny("--training.measure_transfer", "true")
    run_until_death(config, tmp_path / "cut", events, checkpoint_seconds=0)
    resume_run(config, tmp_path / "cut")
    assert_same_run(tmp_path / "cut", measured)


@pytest.mark.parametrize("method", [*METHODS])
def test_every_method_is_measured_before_its_first_step_and_stays_as_it_is(method: str) -> None:
    config = dataclasses.replace(tiny(), method=method, method_options=METHODS[method].options())
    stream = load_stream(config)
    learner = build_method(config, stream.image_shape)
    begin(learner, stream.tasks[0], seed=0)
    before, random_state = snapshot(learner), torch.get_rng_state()
    readiness = measure_readiness(learner, stream.tasks[0], config.training)
    assert not changed_tensors(learner, before)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert readiness.head == evaluate(learner, stream.tasks[:1], config.training)[0][0]
    assert readiness.features is not None
    assert 0 <= readiness.features <= 100


def test_the_state_has_the_measurement_when_the_task_has_begun() -> None:
    config = tiny("--method", "finetune", "--training.measure_transfer", "true")
    stream, state = load_stream(config), TrainState()
    learner = build_method(config, stream.image_shape)
    events: Iterator[object] = train(learner, stream, config.training, config.augment, 0, state)
    begun = 0
    for event in events:
        begun += isinstance(event, TaskBegun)
        if isinstance(event, TaskBegun | StepDone):
            assert len(state.head_before) == len(state.features_before) == begun
    assert begun == 3


def test_features_that_separate_the_classes_are_ready_whatever_the_new_head_is() -> None:
    """Digits are nearly separable by the features of a random network, and a random head answers by chance."""
    config, stream = tiny("--method", "finetune"), digits(tasks=5)
    learner = build_method(config, stream.image_shape)
    for task in stream.tasks:
        learner.release()
        begin(learner, task, seed=0)
        assert (measure_readiness(learner, task, TrainingOptions()).features or 0) > 60


def test_a_task_without_test_images_has_no_readiness() -> None:
    config, stream = tiny("--method", "finetune"), digits()
    task = dataclasses.replace(stream.tasks[0], test=stream.tasks[0].validation)  # which are none
    learner = build_method(config, stream.image_shape)
    begin(learner, task, seed=0)
    assert measure_readiness(learner, task, TrainingOptions()) == (None, None)
