"""A frozen pretrained backbone with few images of each class: ten lessons of ten classes of CIFAR-100.

    python benchmarks/few_images.py --data ../shared/data/cifar100 --json results/pretrained/few-images.json

The options are those of a recipe. The features of all images are computed once and kept on disk; each run takes those
of its images, which `stream.images` chooses by the seed. `finetune` is a linear head for each task: with a frozen
backbone a later task cannot change it. Accuracy on the test images, task given, after the last lesson.
"""

import argparse
import dataclasses
import json
import statistics
import time
from pathlib import Path
from typing import Any

from pah.cli.parser import config_of, parse
from pah.data.sources import Source, load_source
from pah.data.stream import Stream
from pah.data.task import Task
from pah.training.config import RunConfig, build_method, stream_of
from pah.training.features import with_features_if_frozen
from pah.training.loop import train
from pah.training.metrics import average_accuracy, forgetting
from pah.training.state import TrainState


def with_features_of(tasks: Stream, known: Stream) -> Stream:
    """Return tasks with the features that another stream of the same source has for all its images."""
    train_features, test_features = known.tasks[0].train.features, known.tasks[0].test.features

    def task_with_features(task: Task) -> Task:
        train, test = (
            dataclasses.replace(part, features=features)
            for part, features in ((task.train, train_features), (task.test, test_features))
        )
        return dataclasses.replace(task, train=train, test=test)

    return dataclasses.replace(tasks, tasks=tuple(map(task_with_features, tasks.tasks)))


def one_run(config: RunConfig, source: Source, known: Stream) -> dict[str, Any]:
    """Train on a stream, whose features are known, and return the measurements in percent."""
    stream = with_features_of(stream_of(config, source), known)
    method, state, start = build_method(config, stream.image_shape), TrainState(), time.perf_counter()
    for _ in train(method, stream, config.training, config.augment, config.seed, state):
        pass
    return {
        "method": config.method,
        "images": config.stream.images,
        "seed": config.seed,
        "average_accuracy": average_accuracy(state.matrix),
        "forgetting": forgetting(state.matrix),
        "class_incremental_accuracy": state.class_incremental[-1],
        "seconds": round(time.perf_counter() - start, 1),
    }


def main() -> None:
    """Run the benchmark and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="CIFAR-100")
    parser.add_argument("--recipe", default="recipes/pretrained.yaml")
    parser.add_argument("--images", default="5,20,60", help="images of each class")
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--methods", default="pah,finetune")
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    source = load_source(arguments.data)
    recipe = [f"--config={arguments.recipe}"]
    config = config_of(parse(recipe, "run"))
    stream = stream_of(config, source)
    known = with_features_if_frozen(stream, build_method(config, stream.image_shape), config, keep=True)
    runs = []
    for images in map(int, arguments.images.split(",")):
        for method in arguments.methods.split(","):
            for seed in map(int, arguments.seeds.split(",")):
                words = [*recipe, f"--method.name={method}", f"--stream.images={images}", f"--seed={seed}"]
                runs.append(one_run(config_of(parse(words, "run")), source, known))
                print(json.dumps(runs[-1]), flush=True)
    summary = []
    for images, method in dict.fromkeys((run["images"], run["method"]) for run in runs):
        accuracies = [run["average_accuracy"] for run in runs if (run["images"], run["method"]) == (images, method)]
        spread = statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0
        summary.append(
            {
                "method": method,
                "images": images,
                "n": len(accuracies),
                "mean": round(statistics.mean(accuracies), 2),
                "std": round(spread, 2),
            }
        )
        print(summary[-1])
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps({"summary": summary, "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
