"""Diverging numbers stop a run, and the batch size of an evaluation changes no prediction."""

import dataclasses
import itertools
import math
from pathlib import Path

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from conftest import TINY, tiny
from pah.cli import main
from pah.data.augment import AugmentOptions
from pah.methods import METHODS
from pah.runs.run import start_run
from pah.training import checkpoint, evaluation
from pah.training.config import build_method, load_stream
from pah.training.evaluation import evaluate, predict_tasks
from pah.training.loop import train
from pah.training.state import TrainState


def test_a_gradient_whose_square_is_infinite_stops_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From then on Adam would make steps of zero: the loss stays finite, and nothing is learned."""
    steps = itertools.count(1)

    def explode(optimizer: torch.optim.Optimizer, *_: object) -> None:
        if next(steps) == 5:
            parameter = optimizer.param_groups[0]["params"][0]
            optimizer.state[parameter]["exp_avg_sq"].fill_(math.inf)

    hook = register_optimizer_step_post_hook(explode)
    status = main(["run", *TINY, "--method", "finetune", "--out", str(tmp_path / "run")])
    hook.remove()
    assert status == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "exp_avg_sq became NaN or infinite after 2 epochs and 0 steps of task 1: expected finite numbers" in err
    assert not checkpoint.exists(tmp_path / "run" / "checkpoint")


@pytest.mark.parametrize("method", ["finetune", "pah", "er"])
def test_an_extreme_learning_rate_stops_the_run_or_leaves_finite_numbers(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for lr in ("1e3", "1e15", "1e38"):
        words = ["--method", method, "--optimizer.lr", lr, "--optimizer.name", "sgd", "--out", str(tmp_path / lr)]
        status = main(["run", *TINY, *words])
        err = capsys.readouterr().err
        assert (status, err.count("\n")) in ((0, 0), (2, 1))
        assert status == 0 or "lower --optimizer.lr" in err
        if checkpoint.exists(tmp_path / lr / "checkpoint"):
            tensors, _ = checkpoint.load(tmp_path / lr / "checkpoint")
            assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values())


@pytest.mark.parametrize("method", ["pah", "finetune", "hat", "hn2"])
def test_the_batch_size_of_an_evaluation_changes_no_prediction(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = dataclasses.replace(tiny(), method=method, method_options=METHODS[method].options())
    stream = load_stream(config)
    trained = build_method(config, stream.image_shape)
    for _ in train(trained, stream, config.training, AugmentOptions(), 0, TrainState()):
        pass
    expected, accuracies = (
        predict_tasks(trained, stream.tasks, config.training),
        evaluate(trained, stream.tasks, config.training),
    )
    for size in (1, 64):
        monkeypatch.setattr(evaluation, "EVALUATION_BATCH", size)
        for one, other in zip(predict_tasks(trained, stream.tasks, config.training), expected, strict=True):
            assert torch.equal(one.task_given, other.task_given)
            assert torch.equal(one.task_not_given, other.task_not_given)
        assert evaluate(trained, stream.tasks, config.training) == accuracies


def test_metrics_contain_the_number_of_threads(tmp_path: Path) -> None:
    assert start_run(tiny(), tmp_path / "run")["versions"]["threads"] == str(torch.get_num_threads())
