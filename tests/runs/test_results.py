"""The files of a finished run: model, metrics, log and prototypes; and the recipes."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from conftest import TINY
from pah import RunConfig, TrainingOptions, build_method, load_stream
from pah.cli import options
from pah.data.task import Normalization
from pah.models.prototypes import downscale
from pah.runs.results import read_prototypes
from pah.runs.run import start_run
from pah.training.evaluation import evaluate

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    start_run(RunConfig(training=TrainingOptions(epochs=1, batch_size=32)), folder)
    return folder


def test_the_model_folder_alone_restores_the_network_and_its_accuracy(run: Path) -> None:
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
    assert names == [str(label) for label in learner["class_order"]]  # the digits' class names are their labels
    normalization = {key: tuple(value) for key, value in learner["normalization"].items()}
    assert Normalization(**normalization) == stream.normalization
    metrics = json.loads((run / "metrics.json").read_text())
    accuracies, class_incremental = evaluate(method, stream.tasks, config.training)
    assert accuracies == metrics["accuracy_matrix"][-1]
    assert class_incremental == metrics["class_incremental_accuracy"]


def test_metrics_contain_parameter_counts_versions_and_memory(run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    weights = load_file(run / "model" / "model.safetensors")
    learned = sum(tensor.numel() for name, tensor in weights.items() if not name.endswith(BUFFERS))
    parameters = metrics["parameters"]
    assert parameters["per_task"] == [2 * 10 * 10] * 5  # two grey prototypes of 10x10 for each task
    assert parameters["backbone"] + parameters["hypernetwork"] + sum(parameters["per_task"]) == learned
    assert metrics["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert metrics["seconds"] > 0
    assert metrics["peak_memory_mb"] > 50


def test_a_run_stores_initial_images_and_prototypes_but_its_model_does_not(tmp_path: Path) -> None:
    config = options.run_request([*TINY, "--method.prototype_size", "6"]).config
    start_run(config, tmp_path)
    weights = load_file(tmp_path / "model" / "model.safetensors")
    stream = load_stream(config)
    for task in stream.tasks:
        prototypes = read_prototypes(tmp_path / "prototypes" / f"{task.index}.safetensors")
        assert prototypes.images is not None
        assert prototypes.start is not None
        assert prototypes.learned is not None
        assert prototypes.normalization.mean == pytest.approx(stream.normalization.mean)
        torch.testing.assert_close(prototypes.start, downscale(stream.normalization(prototypes.images), 6, 1))
        for label, image in enumerate(prototypes.images):  # a training image of this class
            of_class = task.train.pixels[task.train.rows[task.train.labels == label]]
            assert (of_class == image).flatten(1).all(dim=1).any()
        assert not torch.equal(prototypes.start, prototypes.learned)
        last = task.index == len(stream.tasks) - 1
        assert torch.equal(prototypes.learned, weights[f"heads.prototypes.tasks.{task.index}"]) == last
    shapes = {tuple(tensor.shape[1:]) for tensor in weights.values()}
    assert (1, 8, 8) not in shapes, "the learner must not contain images"


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (("--method", "finetune"), set()),
        (("--method.prototype_start", "random"), {"mean", "std", "start", "learned"}),
        (("--method.prototype_start", "mean"), {"mean", "std", "start", "learned"}),
    ],
)
def test_only_existing_prototypes_and_images_are_stored(
    words: tuple[str, ...], names: set[str], tmp_path: Path
) -> None:
    start_run(options.run_request([*TINY, "--epochs", "1", *words]).config, tmp_path)
    files = sorted((tmp_path / "prototypes").glob("*"))
    assert len(files) == (3 if names else 0)
    assert all(load_file(path).keys() == names for path in files)


def test_the_log_contains_peak_memory(run: Path) -> None:
    peaks = [json.loads(line)["peak_memory_mb"] for line in (run / "log.jsonl").read_text().splitlines()]
    assert peaks == sorted(peaks)
    assert 50 < peaks[-1] <= json.loads((run / "metrics.json").read_text())["peak_memory_mb"]


BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_is_valid_and_states_its_command(recipe: Path) -> None:
    config = options.read_config(recipe)
    assert f"benchmark: {config.benchmark}\n" in recipe.read_text()
    assert f"--config recipes/{recipe.name}" in recipe.read_text()


def test_the_default_recipe_equals_the_default_options() -> None:
    assert options.read_config(RECIPES / "split-cifar100.yaml") == options.run_request(["split-cifar100"]).config


def test_the_published_choices_can_be_set() -> None:
    config = options.read_config(RECIPES / "paper.yaml")
    assert config.method_options.over_tasks == "sum"  # type: ignore[attr-defined]
    assert config.backbone == "timm:resnet18"
    assert config.optimizer.backbone_lr == 1e-4
