"""Diagnosis of forgetting: the split into heads and features, in cases with a known result."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import TINY
from pah.cli import main, options
from pah.core.config import InputError
from pah.models.network import apply_heads
from pah.runs.diagnosis import TaskDiagnosis, diagnose, features, fresh_head_accuracy, linear_cka, load_snapshot
from pah.runs.run import start_run
from pah.training.config import RunConfig, load_stream

RNG = np.random.default_rng(0)


def config(*words: str) -> RunConfig:
    return options.run_request([*TINY, "--snapshots", "true", *words]).config


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a PAH run with snapshots. Do not change it."""
    folder = tmp_path_factory.mktemp("diagnosis") / "run"
    start_run(config(), folder)
    return folder


def test_cka_equals_that_of_gram_matrices_and_ignores_rotation_and_scale() -> None:
    a, b = RNG.normal(size=(40, 6)), RNG.normal(size=(40, 9))
    centre = np.eye(40) - 1 / 40
    k, m = (centre @ x @ x.T @ centre for x in (a, b))
    assert linear_cka(a, b) == pytest.approx(np.sum(k * m) / (np.linalg.norm(k) * np.linalg.norm(m)))
    rotation, _ = np.linalg.qr(RNG.normal(size=(6, 6)))
    assert linear_cka(a, 3 * a @ rotation + 5) == pytest.approx(1)
    assert linear_cka(a, b) < 0.5


def test_a_fresh_head_is_accurate_on_informative_features_only() -> None:
    labels = torch.arange(200) % 4
    centres = RNG.normal(size=(4, 8))
    informative = centres[labels] + 0.05 * RNG.normal(size=(200, 8))
    noise = RNG.normal(size=(200, 8))
    assert fresh_head_accuracy(informative[:100], labels[:100], informative[100:], labels[100:]) == 100
    assert fresh_head_accuracy(noise[:100], labels[:100], noise[100:], labels[100:]) < 50


def test_accuracies_equal_those_of_the_run_and_parts_add_up(run: Path) -> None:
    matrix = json.loads((run / "metrics.json").read_text())["accuracy_matrix"]
    diagnoses = diagnose(config(), run)
    assert [diagnosis.task for diagnosis in diagnoses] == [0, 1]
    for diagnosis in diagnoses:
        task = diagnosis.task
        assert (diagnosis.then, diagnosis.now) == (matrix[task][task], matrix[-1][task])
        assert diagnosis.lost == diagnosis.then - diagnosis.now
        assert diagnosis.feature_drift + diagnosis.head_drift == pytest.approx(diagnosis.lost)
        assert len(diagnosis.similarity) == 3 - task
        assert diagnosis.similarity[0] == pytest.approx(1)
        assert 0 <= diagnosis.similarity[-1] < 1
    before, after = (load_file(run / "snapshots" / f"{k}.safetensors")["heads.prototypes.tasks.0"] for k in (0, 2))
    assert diagnoses[0].prototype_drift == pytest.approx(((after - before).norm() / before.norm()).item())


def diagnose_method(name: str, tmp_path: Path) -> list[TaskDiagnosis]:
    """Train a method and return the diagnosis of its run."""
    start_run(config("--method", name), tmp_path / name)
    return diagnose(config("--method", name), tmp_path / name)


def test_with_a_frozen_backbone_only_heads_drift(tmp_path: Path) -> None:
    diagnosis = diagnose_method("hnet", tmp_path)[0]
    assert diagnosis.feature_drift == 0
    assert diagnosis.head_drift == diagnosis.lost
    assert diagnosis.similarity == pytest.approx([1, 1, 1])
    assert diagnosis.prototype_drift is None


def test_independent_networks_lose_nothing(tmp_path: Path) -> None:
    for diagnosis in diagnose_method("independent", tmp_path):
        assert (diagnosis.lost, diagnosis.feature_drift, diagnosis.head_drift) == (0, 0, 0)
        assert diagnosis.similarity == pytest.approx([1] * len(diagnosis.similarity))


def test_features_of_a_run_with_mirror_images_give_its_accuracy(tmp_path: Path) -> None:
    flipped = config("--method", "finetune", "--training.flip_test", "true")
    start_run(flipped, tmp_path / "run")
    matrix = json.loads((tmp_path / "run" / "metrics.json").read_text())["accuracy_matrix"]
    stream = load_stream(flipped)
    task, method = stream.tasks[0], load_snapshot(flipped, stream, tmp_path / "run", 0)
    for flip in (True, False):
        task_features = torch.from_numpy(features(method, task, task.test, flip)).float()
        logits = apply_heads(task_features, method.network.heads.rows([0]))
        accuracy = 100 * (logits.argmax(1) == task.test.labels).double().mean().item()
        assert (accuracy == pytest.approx(matrix[0][0])) == flip


def test_a_damaged_head_and_damaged_features_are_distinguished(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    start_run(config("--method", "finetune", "--epochs", "6"), folder)
    path = folder / "snapshots" / "2.safetensors"
    last = load_file(path)
    metrics = json.loads((folder / "metrics.json").read_text())
    first = load_file(folder / "snapshots" / "0.safetensors")
    shared = {name: first.get(name, tensor) for name, tensor in last.items()}  # as if nothing had changed
    metrics["accuracy_matrix"][-1][0] = 0.0  # as if the head were damaged
    (folder / "metrics.json").write_text(json.dumps(metrics))
    save_file(shared, path)
    lost_head = diagnose(config("--method", "finetune", "--epochs", "6"), folder)[0]
    assert lost_head.feature_drift == 0
    assert lost_head.head_drift == lost_head.lost > 50
    one_channel = torch.zeros_like(shared["backbone.body.10.weight"])  # of the last norm's output
    one_channel[0] = 1
    save_file(shared | {"backbone.body.10.weight": one_channel, "backbone.body.10.bias": 0 * one_channel}, path)
    lost_features = diagnose(config("--method", "finetune", "--epochs", "6"), folder)[0]
    assert lost_features.feature_drift > 15
    assert lost_features.similarity[-1] < 0.9


def test_the_command_prints_and_writes_the_diagnosis(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diagnose", str(run)]) == 0
    content = json.loads((run / "diagnosis.json").read_text())
    assert [task["task"] for task in content["tasks"]] == [0, 1]
    lost = [task["lost"] for task in content["tasks"]]
    assert content["mean"]["lost"] == pytest.approx(sum(lost) / 2)
    assert "mean" in capsys.readouterr().out


def test_a_run_without_snapshots_or_metrics_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    plain = options.run_request([*TINY]).config
    start_run(plain, folder)
    with pytest.raises(InputError, match="--snapshots true"):
        diagnose(plain, folder)
    (folder / "metrics.json").unlink()
    with pytest.raises(InputError, match=r"metrics.json"):
        diagnose(plain, folder)
