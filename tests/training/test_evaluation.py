"""Diverging numbers stop a run, and the batch size of an evaluation changes no prediction."""

import dataclasses
import itertools
import json
import math
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from conftest import TINY, tiny
from helpers import DIGITS
from pah.cli import main
from pah.core.config import InputError
from pah.data.augment import AugmentOptions
from pah.data.benchmarks import Benchmark
from pah.data.sources import Images
from pah.data.stream import Stream
from pah.data.task import Examples
from pah.methods import METHODS
from pah.report.classes import class_results
from pah.report.run_data import read_run
from pah.runs.run import start_run
from pah.training import checkpoint, evaluation
from pah.training.config import RunConfig, build_method, load_stream
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


@pytest.fixture
def empty_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make runs on a stream whose first task has no test image, and whose last task lacks those of a class."""

    def load(config: RunConfig) -> Stream:
        first, *others, last = load_stream(config).tasks
        test = last.test
        some = Examples(test.pixels, test.rows[test.labels == 1], test.labels[test.labels == 1])
        tasks = dataclasses.replace(first, test=first.validation), *others, dataclasses.replace(last, test=some)
        return dataclasses.replace(load_stream(config), tasks=tasks)

    monkeypatch.setattr("pah.runs.run.load_stream", load)


@pytest.mark.usefixtures("empty_task")
def test_a_task_without_test_images_has_no_accuracy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "--training.measure_transfer",
        "--method",
        "finetune",
        "--stream.validation",
        "0",
        "--track",
        "tensorboard",
    ]
    words = words if find_spec("tensorboard") else words[:-2]
    assert main(["run", *TINY, *words, "--out", str(tmp_path / "run")]) == 0
    assert "accuracy on each task so far, %: – " in capsys.readouterr().out
    text = (tmp_path / "run" / "metrics.json").read_text()
    metrics = json.loads(text)
    assert "NaN" not in text
    assert [row[0] for row in metrics["accuracy_matrix"]] == [None] * 3
    last = metrics["accuracy_matrix"][-1]
    assert metrics["average_accuracy"] == pytest.approx((last[1] + last[2]) / 2)
    assert metrics["class_incremental_curve"][0] is None
    assert metrics["average_class_incremental_accuracy"] == pytest.approx(
        sum(metrics["class_incremental_curve"][1:]) / 2
    )
    assert metrics["accuracy_before_learning"][0] is metrics["feature_accuracy_untrained"][0] is None
    assert json.loads((tmp_path / "run" / "model" / "learner.json").read_text())["history"][0]["accuracies"] == {}


@pytest.mark.usefixtures("empty_task")
def test_reports_and_comparisons_leave_a_task_without_test_images_out(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    words = ["--methods", "finetune,pah", "--seeds", "0,1", "--epochs", "1", "--snapshots", "true"]
    assert main(["compare", *TINY, *words, "--out", str(tmp_path / "s")]) == 0
    entry = json.loads((tmp_path / "s" / "comparison.json").read_text())["methods"]["finetune"]
    pah = json.loads((tmp_path / "s" / "comparison.json").read_text())["methods"]["pah"]
    difference = entry["average_accuracy"]["mean"] - pah["average_accuracy"]["mean"]
    assert entry["minus_reference"]["difference"] == pytest.approx(difference)
    runs = [tmp_path / "s" / f"{name}-seed0" for name in ("pah", "finetune")]
    assert main(["report", *map(str, runs)]) == 0
    assert main(["report", str(runs[0])]) == 0
    for page in (tmp_path / "s" / "report.html", runs[0] / "report.html"):
        assert not re.search(r"\bnan\b[ <]", page.read_text())
    results = class_results(read_run(runs[0]).answers or [], [["a", "b"], ["c", "d"], ["e", "f"]])
    assert [result.accuracy is None for result in results] == [True, True, False, False, True, False]


def test_data_without_any_test_image_are_refused_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = Images(DIGITS.test.pixels[:0], DIGITS.test.labels[:0])
    monkeypatch.setattr(Benchmark, "load_source", lambda *_, **__: dataclasses.replace(DIGITS, test=nothing))
    with pytest.raises(InputError, match="expected test images, got none in any class"):
        load_stream(RunConfig())
    load_stream(tiny("--stream.validation", "0.2", "--training.evaluate_on", "validation"))


def test_metrics_contain_the_number_of_threads(tmp_path: Path) -> None:
    assert start_run(tiny(), tmp_path / "run")["versions"]["threads"] == str(torch.get_num_threads())
