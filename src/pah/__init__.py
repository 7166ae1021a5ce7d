"""Continual learning without stored samples: Prototype Augmented Hypernetworks."""

from pah.config import InputError
from pah.data.augment import AugmentOptions
from pah.data.stream import Stream, StreamOptions, Task
from pah.learner import ContinualLearner, DriftError
from pah.learnerfolder import Lesson, TaughtTask
from pah.methods.base import Method, OptimizerOptions
from pah.methods.pah import PAH, PAHOptions
from pah.models.backbones import ConvNetOptions, SlimResNet18Options
from pah.runconfig import RunConfig, build_method, load_stream
from pah.taught import Evaluation, Prediction
from pah.trainer import train
from pah.training import EpochDone, StepDone, TaskBegun, TaskDone, TrainingOptions, TrainState

__all__ = [
    "PAH",
    "AugmentOptions",
    "ContinualLearner",
    "ConvNetOptions",
    "DriftError",
    "EpochDone",
    "Evaluation",
    "InputError",
    "Lesson",
    "Method",
    "OptimizerOptions",
    "PAHOptions",
    "Prediction",
    "RunConfig",
    "SlimResNet18Options",
    "StepDone",
    "Stream",
    "StreamOptions",
    "Task",
    "TaskBegun",
    "TaskDone",
    "TaughtTask",
    "TrainState",
    "TrainingOptions",
    "build_method",
    "load_stream",
    "train",
]
