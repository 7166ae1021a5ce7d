"""Continual learning without stored samples: Prototype Augmented Hypernetworks."""

from pah.config import InputError
from pah.data.augment import AugmentOptions
from pah.data.stream import Stream, StreamOptions, Task
from pah.methods.base import Method, OptimizerOptions
from pah.methods.pah import PAH, PAHOptions
from pah.models.backbones import ConvNetOptions, SlimResNet18Options
from pah.runconfig import RunConfig, build_method, load_stream
from pah.trainer import EpochDone, StepDone, TaskDone, TrainingOptions, TrainState, train

__all__ = [
    "PAH",
    "AugmentOptions",
    "ConvNetOptions",
    "EpochDone",
    "InputError",
    "Method",
    "OptimizerOptions",
    "PAHOptions",
    "RunConfig",
    "SlimResNet18Options",
    "StepDone",
    "Stream",
    "StreamOptions",
    "Task",
    "TaskDone",
    "TrainState",
    "TrainingOptions",
    "build_method",
    "load_stream",
    "train",
]
