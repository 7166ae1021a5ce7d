"""Time an epoch of finetuning and of LwF here and in Avalanche, with equal data, backbone, batches and optimizer.

    pip install -e '.[peers]'
    python benchmarks/against_avalanche.py --data PATH_TO_CIFAR100 --json results/against-avalanche.json

Both learn Split-CIFAR100 and take turns task by task. The first task is a warm-up and does not count. Avalanche gets
its fastest settings: a network that computes the features once for all heads, no metrics, no loggers, and each of the
given numbers of loader workers. The target is at least 1.5 times faster.
"""

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from pah.data.augment import AugmentOptions
from pah.data.stream import Stream
from pah.data.stream_options import StreamOptions
from pah.data.task import Task
from pah.methods import METHODS
from pah.methods.base import Method, OptimizerOptions
from pah.methods.regularization import LwFOptions
from pah.models.backbones import SlimResNet18Options
from pah.training.config import RunConfig, build_method, load_stream
from pah.training.loop import learn_task
from pah.training.options import TrainingOptions
from pah.training.state import TrainState

LR = 1e-3
TEMPERATURE = 2.0
STABILITY = 3.0


def config_of(method: str, options: argparse.Namespace) -> RunConfig:
    """Return the configuration that both sides train."""
    chosen = METHODS[method].options
    return RunConfig(
        benchmark="split-cifar100",
        data=options.data,
        method=method,
        method_options=LwFOptions(STABILITY, TEMPERATURE, "sum") if method == "lwf" else chosen(),
        backbone="resnet18-slim",
        backbone_options=SlimResNet18Options(width=options.width, stem_stride=2),
        stream=StreamOptions(tasks=10),
        augment=AugmentOptions(crop=4, flip=True),
        optimizer=OptimizerOptions(lr=LR),
        training=TrainingOptions(epochs=1, batch_size=options.batch, schedule="constant"),
    )


def our_epoch(method: Method, stream: Stream, config: RunConfig, task: int) -> float:
    """Train an epoch on a task; return the seconds."""
    started = time.perf_counter()
    for _ in learn_task(method, stream.tasks[: task + 1], config.training, config.augment, 0, TrainState(task=task)):
        pass
    return time.perf_counter() - started


class Images(torch.utils.data.Dataset[tuple[Any, int]]):
    """A task's training images in the form of torchvision's CIFAR-100: PIL images and labels."""

    def __init__(self, task: Task) -> None:
        self.pixels = task.train.pixels[task.train.rows].permute(0, 2, 3, 1).contiguous().numpy()
        self.targets = task.train.labels.tolist()

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        from PIL import Image

        return Image.fromarray(self.pixels[index]), self.targets[index]


def avalanche_tasks(stream: Stream, tasks: int) -> list[Any]:
    """Return the first tasks as Avalanche experiences, with its usual transforms."""
    from avalanche.benchmarks import nc_benchmark
    from torchvision import transforms

    normalization = stream.normalization
    transform = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(normalization.mean, normalization.std),
        ]
    )
    parts = [Images(task) for task in stream.tasks[:tasks]]
    benchmark = nc_benchmark(
        parts,
        parts,  # in place of test images: nothing is evaluated
        n_experiences=tasks,
        task_labels=True,
        shuffle=False,
        one_dataset_per_exp=True,
        class_ids_from_zero_in_each_exp=True,
        train_transform=transform,
    )
    return list(benchmark.train_stream)


def avalanche_strategy(name: str, backbone: nn.Module, features: int, batch: int) -> Any:
    """Return Avalanche's implementation of a method on this backbone."""
    from avalanche.models import MultiHeadClassifier, MultiTaskModule
    from avalanche.training.plugins import EvaluationPlugin
    from avalanche.training.supervised import LwF, Naive

    class MultiHead(MultiTaskModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.backbone = backbone
            self.classifier = MultiHeadClassifier(features, initial_out_features=10)

        def forward(self, x: Tensor, task_labels: Tensor | None) -> Any:
            return self.classifier(self.backbone(x), task_labels)  # one pass for all heads

    network = MultiHead()
    common: dict[str, Any] = {
        "model": network,
        "optimizer": torch.optim.AdamW(network.parameters(), lr=LR, fused=True),
        "criterion": nn.CrossEntropyLoss(),
        "train_mb_size": batch,
        "train_epochs": 1,
        "evaluator": EvaluationPlugin(loggers=[]),
    }
    if name == "lwf":  # Avalanche does not multiply by T²
        return LwF(**common, alpha=STABILITY * TEMPERATURE**2, temperature=TEMPERATURE)
    return Naive(**common)


def their_epoch(strategy: Any, experience: Any, workers: int) -> float:
    """Train an epoch on an experience; return the seconds."""
    started = time.perf_counter()
    strategy.train(experience, num_workers=workers, persistent_workers=False)
    return time.perf_counter() - started


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return the mean seconds of a method's epoch in each library, over the tasks after the first."""
    config = config_of(name, options)
    stream = load_stream(config)
    method = build_method(config, stream.image_shape)
    experiences = avalanche_tasks(stream, options.tasks)
    theirs = {}
    for workers in options.workers:
        backbone = build_method(config, stream.image_shape).network.backbone
        theirs[workers] = avalanche_strategy(name, backbone, backbone.features, options.batch)
    seconds: dict[str, list[float]] = {"pah": [], **{f"avalanche, {n} workers": [] for n in theirs}}
    for task in range(options.tasks):
        turns = {"pah": partial(our_epoch, method, stream, config, task)}
        turns |= {
            f"avalanche, {n} workers": partial(their_epoch, strategy, experiences[task], n)
            for n, strategy in theirs.items()
        }
        for library, epoch in turns.items():
            seconds[library].append(epoch())
    return {library: statistics.fmean(times[1:]) for library, times in seconds.items()}


def main(words: Sequence[str] | None = None) -> int:
    """Measure, print and write; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", help="path of CIFAR-100; the hub by default")
    parser.add_argument("--tasks", type=int, default=4, help="tasks learned, the first of which does not count")
    parser.add_argument("--batch", type=int, default=64, help="images in a step")
    parser.add_argument("--width", type=int, default=32, help="of the slim ResNet-18")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2], help="of Avalanche's data loader")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    options = parser.parse_args(words)
    warnings.simplefilter("ignore")  # Avalanche issues many warnings
    results = {name: measure(name, options) for name in ("finetune", "lwf")}
    table = Table("method", *next(iter(results.values())), "times faster", title="seconds an epoch")
    for name, seconds in results.items():
        best = min(time for library, time in seconds.items() if library != "pah")
        table.add_row(name, *(f"{time:.2f}" for time in seconds.values()), f"{best / seconds['pah']:.2f}")
    Console().print(table)
    if options.json:
        setting = {key: getattr(options, key) for key in ("tasks", "batch", "width")}
        facts = {"seconds_an_epoch": results, **setting, "threads": torch.get_num_threads(), "torch": torch.__version__}
        options.json.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
