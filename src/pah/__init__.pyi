from .core.config import InputError
from .data.augment import AugmentOptions
from .data.stream import Stream
from .data.stream_options import StreamOptions
from .data.task import Task
from .learner.held_out import DriftError
from .learner.learner import ContinualLearner
from .learner.prediction import ClassProbability, Prediction
from .learner.predictor import Evaluation
from .learner.store import Lesson, TaughtTask
from .methods.base import Method, OptimizerOptions
from .methods.pah import PAH
from .methods.pah_options import PAHOptions
from .models.backbones import ConvNetOptions, SlimResNet18Options
from .training.config import RunConfig, build_method, load_stream
from .training.loop import train
from .training.options import TrainingOptions
from .training.state import EpochDone, StepDone, TaskBegun, TaskDone, TrainState

__all__ = [
    "PAH",
    "AugmentOptions",
    "ClassProbability",
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
