"""Helpers of several tests: small streams of real images, and methods on small networks."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pah.core.config import generator
from pah.data.augment import AugmentOptions
from pah.data.sources import Source, load_digits
from pah.data.stream import Stream, make_stream
from pah.data.stream_options import StreamOptions
from pah.data.task import Batch, Step, Task
from pah.learner.defaults import FROM_SCRATCH
from pah.methods.base import Method, OptimizerOptions
from pah.methods.pah import PAH
from pah.methods.pah_options import PAHOptions
from pah.models.backbones import ConvNetOptions
from pah.models.network import Network
from pah.runs.progress import Progress, StoppedError
from pah.runs.run import resume_run, start_run
from pah.training.config import RunConfig
from pah.training.loop import begin
from pah.training.options import TrainingOptions
from pah.training.state import StepDone

DIGITS: Source = load_digits()
QUICK_LEARNER = dataclasses.replace(  # the options of a learner of 8x8 images whose lessons take a moment
    FROM_SCRATCH,
    image_size=8,
    backbone="convnet",
    backbone_options=ConvNetOptions(4),
    training=TrainingOptions(epochs=1, batch_size=32),
)


def digits(tasks: int = 5, seed: int = 0, **options: object) -> Stream:
    """Return the handwritten digits as a stream."""
    return make_stream(DIGITS, StreamOptions(**options), tasks, seed)  # type: ignore[arg-type]


def small_pah(seed: int = 0, channels: int = 1, **options: object) -> PAH:
    """Return PAH on a small convnet, for 8x8 images of `channels` channels."""
    torch.manual_seed(seed)
    backbone = ConvNetOptions(width=4).build(channels)
    pah_options = PAHOptions(**{"prototype_size": 6, "hidden": (16,), **options})  # type: ignore[arg-type]
    network = Network(backbone, pah_options.build_heads(backbone.features, channels), (channels, 8, 8))
    return PAH(network, OptimizerOptions(), pah_options).to(memory_format=torch.channels_last)


def sample_batch(task: Task, size: int = 16, seed: int = 0) -> Batch:
    """Return a batch of training images of one task, drawn with `seed`."""
    indices = torch.randint(len(task.train), (size,), generator=generator(seed, "batch"))
    pixels = task.train.pixels[task.train.rows[indices]]
    step = Step(seed, task.index, 0, seed, AugmentOptions(), task.normalization)
    return Batch(step.prepare(pixels), task.train.labels[indices], torch.full((size,), task.index), pixels, step)


def train_few_steps(method: Method, stream: Stream, tasks: int, steps: int = 3) -> Method:
    """Train the method for a few steps on each of the first `tasks` tasks, and return it within the last of them."""
    for task in stream.tasks[:tasks]:
        method.release()
        begin(method, task, seed=0)
        method.train()
        for step in range(steps):
            method.observe(sample_batch(task, seed=step))
    return method


def snapshot(module: torch.nn.Module) -> dict[str, Tensor]:
    """Return a copy of all parameters and buffers by name."""
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def changed_tensors(module: torch.nn.Module, before: dict[str, Tensor]) -> set[str]:
    """Return the names of the parameters and buffers that are not bit for bit equal to `before`."""
    return {name for name, tensor in module.state_dict().items() if not torch.equal(tensor, before[name])}


def require_exact_resume(config: RunConfig, folder: Path) -> None:
    """Check that a run that is stopped in its second task and resumed equals an uninterrupted one, bit for bit."""
    whole = start_run(config, folder / "whole")
    in_second_task: list[bool] = []

    def watch(progress: Progress) -> None:
        in_second_task.append(isinstance(progress.event, StepDone) and progress.state.task == 1)

    with pytest.raises(StoppedError):  # not while images pass through a frozen backbone
        start_run(config, folder / "parts", watch=watch, stop=lambda: sum(in_second_task) >= 2)
    parts = resume_run(config, folder / "parts")
    assert parts["accuracy_matrix"] == whole["accuracy_matrix"]
    models = [(folder / name / "model" / "model.safetensors").read_bytes() for name in ("whole", "parts")]
    assert models[0] == models[1]
