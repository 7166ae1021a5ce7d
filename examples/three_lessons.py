"""Three lessons of different sizes from two data sets, with a reload between them: what is left of the first?

    python examples/three_lessons.py --tiny PATH --cifar PATH [--out FOLDER] [--epochs N]

PATH: TinyImageNet and CIFAR-100 as they lie on the Hugging Face hub (folders of Parquet files). Everything that is
printed also goes to FOLDER/results.json; the learner to FOLDER/learner.
"""

import argparse
import dataclasses
import json
import math
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pah import ContinualLearner
from pah.data.sources import load_source
from pah.learner.defaults import FROM_SCRATCH
from pah.models.backbones import SlimResNet18Options
from pah.models.modes import evaluating
from pah.training.options import TrainingOptions

ANIMALS = {
    "n01855672": "goose",
    "n02058221": "albatross",
    "n01774750": "tarantula",
    "n02165456": "ladybug",
    "n02206856": "bee",
    "n01944390": "snail",
    "n01882714": "koala",
}
SEA = {"n01950731": "sea slug", "n01983481": "lobster", "n02074367": "dugong", "n02321529": "sea cucumber"}
THINGS = ["bicycle", "bus", "motorcycle", "pickup_truck", "train", "tractor"]
THINGS += ["rocket", "clock", "lamp", "telephone", "chair", "cup"]


def images(path: str, names: dict[str, str], part: str) -> tuple[np.ndarray, list[int], list[str]]:
    """Some classes of a data set: images (N, H, W, 3), labels, names."""
    source = load_source(path)
    split = source.train if part == "train" else source.test
    classes = [source.class_names.index(name) for name in names]
    rows = torch.isin(split.labels, torch.tensor(classes))
    pixels = split.pixels[rows].permute(0, 2, 3, 1).contiguous().numpy()
    return pixels, [classes.index(y) for y in split.labels[rows].tolist()], list(names.values())


def measure(learner: ContinualLearner, tests: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Accuracy on every task taught, in percent, with the task given and with the task inferred."""
    return {
        task.name: {
            "task given": learner.evaluate(tests[task.name], task.name).accuracy,
            "task inferred": learner.evaluate(tests[task.name], task.name, task_given=False).accuracy,
        }
        for task in learner.tasks
    }


def speed(learner: ContinualLearner, pixels: np.ndarray) -> dict[str, float]:
    """Images a second that are answered, task given, and that the bare backbone takes; the best of ten each.

    The backbone is given normalised images, in batches of the size that it is fastest with.
    """
    predictor, name = learner.predictor, learner.tasks[0].name
    ready = predictor.record.normalization(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    ready = ready.contiguous(memory_format=torch.channels_last)

    def bare(size: int) -> None:
        with torch.inference_mode(), evaluating(predictor.method.network):
            for batch in ready.split(size):
                predictor.method.network.backbone(batch)

    def asked() -> None:
        learner.predict(pixels, task=name)

    best: dict[str, float] = {}
    for _ in range(11):  # taking turns
        for what, run in (("predict", asked), *((f"backbone {n}", partial(bare, n)) for n in (50, 100, 200, 500))):
            started = time.perf_counter()
            run()
            best[what] = min(best.get(what, math.inf), time.perf_counter() - started)
    backbone = min(took for what, took in best.items() if what != "predict")
    return {"predict": len(pixels) / best["predict"], "backbone": len(pixels) / backbone}


def main() -> None:
    """Teach, reload, measure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tiny", required=True)
    parser.add_argument("--cifar", required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/three-lessons"))
    parser.add_argument("--epochs", type=int, default=24)
    options = parser.parse_args()
    lessons = {
        "animals": (options.tiny, ANIMALS),
        "sea": (options.tiny, SEA),
        "things": (options.cifar, {name: name for name in THINGS}),
    }
    tests = {name: images(path, names, "test") for name, (path, names) in lessons.items()}
    config = dataclasses.replace(
        FROM_SCRATCH,
        backbone_options=SlimResNet18Options(width=16),
        training=TrainingOptions(epochs=options.epochs, batch_size=64),
    )
    learner, found = ContinualLearner(config=config), {}
    for name, (path, names) in lessons.items():
        learner.learn(name, images(path, names, "train"))
        learner.save(options.out / "learner")
        learner = ContinualLearner.load(options.out / "learner")
        found[f"after {name}"] = measure(learner, tests)
        print(f"after {name}: {json.dumps(found[f'after {name}'])}", flush=True)
    found |= {"epochs": options.epochs, "classes": {task.name: len(task.classes) for task in learner.tasks}}
    network = learner.predictor.method.network
    found["bytes of prototypes a task"] = {
        task.name: 4 * n for task, n in zip(learner.tasks, network.count_parameters()["per_task"], strict=True)
    }
    found["bytes of a stored head"] = {
        task.name: 4 * len(task.classes) * (network.backbone.features + 1) for task in learner.tasks
    }
    found["bytes of the saved learner"] = (options.out / "learner" / "model.safetensors").stat().st_size
    found["images a second"] = speed(learner, tests["animals"][0])
    (options.out / "results.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
