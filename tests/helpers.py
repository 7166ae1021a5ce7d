"""What several tests build: real images in small streams, and methods on tiny networks."""

import torch
from torch import Tensor

from pah.core.config import generator
from pah.data.augment import AugmentOptions
from pah.data.sources import Source, load_digits
from pah.data.stream import Stream, StreamOptions, make_stream
from pah.data.task import Batch, Step, Task
from pah.methods.base import Method, OptimizerOptions
from pah.methods.pah import PAH, PAHOptions
from pah.models.backbones import ConvNetOptions
from pah.models.network import Network
from pah.training.loop import begin

DIGITS: Source = load_digits()


def digits(tasks: int = 5, seed: int = 0, **options: object) -> Stream:
    """The handwritten digits as a stream."""
    return make_stream(DIGITS, StreamOptions(**options), tasks, seed)  # type: ignore[arg-type]


def small_pah(seed: int = 0, channels: int = 1, **options: object) -> PAH:
    """PAH on a convnet of a few channels, for 8x8 images, grey ones unless told otherwise."""
    torch.manual_seed(seed)
    backbone = ConvNetOptions(width=4).build(channels)
    chosen = PAHOptions(**{"prototype_size": 6, "hidden": (16,), **options})  # type: ignore[arg-type]
    network = Network(backbone, chosen.build_heads(backbone.features, channels), (channels, 8, 8))
    return PAH(network, OptimizerOptions(), chosen).to(memory_format=torch.channels_last)


def some_batch(task: Task, size: int = 16, seed: int = 0) -> Batch:
    """Training images of one task."""
    pick = torch.randint(len(task.train), (size,), generator=generator(seed, "batch"))
    pixels = task.train.pixels[task.train.rows[pick]]
    step = Step(seed, task.index, 0, seed, AugmentOptions(), task.normalization)
    return Batch(step.prepare(pixels), task.train.labels[pick], torch.full((size,), task.index), pixels, step)


def learned(method: Method, stream: Stream, tasks: int, steps: int = 3) -> Method:
    """The method after a few steps on each of the first tasks, the last of which is still open."""
    for task in stream.tasks[:tasks]:
        method.release()
        begin(method, task, seed=0)
        method.train()
        for step in range(steps):
            method.observe(some_batch(task, seed=step))
    return method


def snapshot(module: torch.nn.Module) -> dict[str, Tensor]:
    """A copy of all its parameters and buffers."""
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def changed(module: torch.nn.Module, before: dict[str, Tensor]) -> set[str]:
    """The names of what is no longer bit for bit what it was."""
    return {name for name, tensor in module.state_dict().items() if not torch.equal(tensor, before[name])}
