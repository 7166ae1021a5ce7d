from .config import InputError
from .data.augment import AugmentOptions
from .data.stream import Stream, StreamOptions, Task
from .learner import ContinualLearner, DriftError
from .learnerfolder import Lesson, TaughtTask
from .methods.base import Method, OptimizerOptions
from .methods.pah import PAH, PAHOptions
from .models.backbones import ConvNetOptions, SlimResNet18Options
from .runconfig import RunConfig, build_method, load_stream
from .taught import Evaluation, Prediction
from .trainer import train
from .training import EpochDone, StepDone, TaskBegun, TaskDone, TrainingOptions, TrainState

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
