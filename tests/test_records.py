"""What a run leaves behind is enough to go on with: its model, its metrics, and the shipped recipes."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pah import RunConfig, TrainingOptions, build_method, load_stream
from pah.cli import options
from pah.data.stream import Normalization
from pah.runs import start
from pah.trainer import evaluate

RECIPES = Path(__file__).resolve().parent.parent / "recipes"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    start(RunConfig(training=TrainingOptions(epochs=1, batch_size=32)), folder)
    return folder


def test_the_model_folder_alone_rebuilds_the_network_and_its_answers(run: Path) -> None:
    learner = json.loads((run / "model" / "learner.json").read_text())
    weights = run / "model" / "model.safetensors"
    assert learner["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    config = RunConfig()  # method and backbone are the default ones
    assert learner["backbone"]["name"] == config.backbone
    method = build_method(config, tuple(learner["image_shape"]))
    for task in learner["tasks"]:
        method.network.grow(len(task["classes"]))
    method.network.load_state_dict(load_file(weights), strict=True)
    stream = load_stream(config)
    names = [name for task in learner["tasks"] for name in task["classes"]]
    assert names == [str(label) for label in learner["class_order"]]  # of digits, the name is the label
    statistics = {key: tuple(value) for key, value in learner["normalization"].items()}
    assert Normalization(**statistics) == stream.normalization
    found = json.loads((run / "metrics.json").read_text())
    accuracies, class_incremental = evaluate(method, stream.tasks, config.training)
    assert accuracies == found["accuracy_matrix"][-1]
    assert class_incremental == found["class_incremental_accuracy"]


def test_metrics_count_the_parameters_and_say_where_they_came_from(run: Path) -> None:
    found = json.loads((run / "metrics.json").read_text())
    weights = load_file(run / "model" / "model.safetensors")
    learned = sum(tensor.numel() for name, tensor in weights.items() if not name.endswith(BUFFERS))
    parameters = found["parameters"]
    assert parameters["per_task"] == [2 * 10 * 10] * 5  # two grey prototypes of 10x10 for each task
    assert parameters["backbone"] + parameters["hypernetwork"] + sum(parameters["per_task"]) == learned
    assert found["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert found["seconds"] > 0
    assert found["peak_memory_mb"] > 50


BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_is_understood_and_says_its_command(recipe: Path) -> None:
    config = options.read_config(recipe)
    assert f"benchmark: {config.benchmark}\n" in recipe.read_text()
    assert f"--config recipes/{recipe.name}" in recipe.read_text()


def test_the_default_recipe_is_the_default() -> None:
    assert options.read_config(RECIPES / "split-cifar100.yaml") == options.run_request(["split-cifar100"]).config


def test_the_published_choices_can_be_set() -> None:
    config = options.read_config(RECIPES / "paper.yaml")
    assert config.method_options.over_tasks == "sum"  # type: ignore[attr-defined]
    assert config.backbone == "timm:resnet18"
    assert config.optimizer.backbone_lr == 1e-4
