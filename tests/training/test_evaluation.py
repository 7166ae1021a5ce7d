"""Numbers that run away stop a run, and the batches in which images are asked about change no answer."""

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
from pah.training.evaluation import answers, evaluate
from pah.training.loop import train
from pah.training.state import TrainState


def test_a_gradient_whose_square_is_infinite_stops_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Adam would make steps of zero from there on: a loss that stays finite, and learns nothing."""
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
    assert not checkpoint.there(tmp_path / "run" / "checkpoint")


@pytest.mark.parametrize("method", ["finetune", "pah", "er"])
def test_a_learning_rate_that_is_far_too_high_stops_the_run_or_leaves_finite_numbers(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for lr in ("1e3", "1e15", "1e38"):
        wild = ["--method", method, "--optimizer.lr", lr, "--optimizer.name", "sgd", "--out", str(tmp_path / lr)]
        status = main(["run", *TINY, *wild])
        err = capsys.readouterr().err
        assert (status, err.count("\n")) in ((0, 0), (2, 1))
        assert status == 0 or "lower --optimizer.lr" in err
        if checkpoint.there(tmp_path / lr / "checkpoint"):
            tensors, _ = checkpoint.load(tmp_path / lr / "checkpoint")
            assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values())


@pytest.mark.parametrize("method", ["pah", "finetune", "hat", "hn2"])
def test_the_batch_of_an_evaluation_changes_no_answer(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = dataclasses.replace(tiny(), method=method, method_options=METHODS[method].options())
    stream = load_stream(config)
    learner = build_method(config, stream.image_shape)
    for _ in train(learner, stream, config.training, AugmentOptions(), 0, TrainState()):
        pass
    expected, accuracies = (
        answers(learner, stream.tasks, config.training),
        evaluate(learner, stream.tasks, config.training),
    )
    for size in (1, 64):
        monkeypatch.setattr(evaluation, "EVALUATION_BATCH", size)
        for one, other in zip(answers(learner, stream.tasks, config.training), expected, strict=True):
            assert torch.equal(one.given, other.given)
            assert torch.equal(one.not_given, other.not_given)
        assert evaluate(learner, stream.tasks, config.training) == accuracies


def test_metrics_name_the_threads(tmp_path: Path) -> None:
    assert start_run(tiny(), tmp_path / "run")["versions"]["threads"] == str(torch.get_num_threads())
