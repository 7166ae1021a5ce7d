"""The state of training, and the events that training yields."""

from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from pah.methods.base import Terms
from pah.training.metrics import Accuracy


@dataclass
class TrainState:
    """How far training is: everything that a resumed run needs besides the method's and optimizers' tensors."""

    task: int = 0
    began: bool = False  # whether the method's begin_task was called for `task`
    epoch: int = 0
    step: int = 0  # batches done in this epoch
    term_sums: dict[str, float] = field(default_factory=dict)  # summed over the batches done in this epoch
    term_steps: dict[str, int] = field(default_factory=dict)  # how many of them, for terms that some batches lack
    epoch_seconds: float = 0.0
    train_seconds: float = 0.0  # in steps alone
    seconds: float = 0.0  # in all, evaluation included
    images: int = 0
    matrix: list[list[Accuracy]] = field(default_factory=list)  # accuracy, percent
    class_incremental: list[Accuracy] = field(default_factory=list)  # percent, after each task
    head_before: list[Accuracy] = field(default_factory=list)  # on each task before its first step, if measured
    features_before: list[Accuracy] = field(default_factory=list)  # the same with the nearest class mean
    scaler: dict[str, float] = field(default_factory=dict)  # state of the fp16 loss scaler
    best_epoch: int | None = None  # of this task, by its validation images; None if they are not used
    best_accuracy: float = 0.0  # after that epoch, on the validation images, percent
    epochs_trained: list[int] = field(default_factory=list)  # of each task, if validation images are used
    best_epochs: list[int] = field(default_factory=list)  # of each task, from 0, if validation images are used

    def __post_init__(self) -> None:
        if not self.term_steps:  # of a checkpoint of an older version, where every step had all terms
            self.term_steps = dict.fromkeys(self.term_sums, self.step)
        self.unread: list[tuple[str, Terms]] = []  # name and terms of each step that `term_sums` does not include yet
        self.best_tensors: dict[str, Tensor] = {}  # the method's state after `best_epoch`, if it may be restored


@dataclass(frozen=True)
class ImagesRead:
    """A frozen backbone has computed the features of `done` of all `total` images, before the first step."""

    done: int
    total: int


@dataclass(frozen=True)
class TaskBegun:
    """The method is ready for a task and has made no step on it. A resumed task does not repeat this event."""

    task: int


@dataclass(frozen=True)
class StepDone:
    """The method learned from a batch.

    On a GPU `terms` is empty except at the last step of an epoch, because reading them waits for the GPU.
    """

    terms: dict[str, float]
    images: int
    seconds: float
    steps_done: int  # in this task
    steps_left: int


@dataclass(frozen=True)
class EpochDone:
    """An epoch ended: its mean loss terms, its last learning rate, and its speed.

    With `training.patience` or `training.keep_best` also the accuracy on the task's validation images, in percent, and
    the epoch with the best one so far.
    """

    task: int
    epoch: int
    terms: dict[str, float]
    lr: float
    seconds: float
    images_per_second: float
    validation_accuracy: float | None = None
    best_epoch: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the fields by name, without those that were not measured."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Validated:
    """The accuracy on the current task's validation images after an epoch, in percent, if it was asked for."""

    task: int
    epoch: int
    accuracy: float


@dataclass(frozen=True)
class PrototypesInitialized:
    """The initial prototypes of a lesson, (C, channels, s, s), before its first step."""

    task: int
    prototypes: Tensor


@dataclass(frozen=True)
class TaskDone:
    """A task was learned; `accuracies` are those on every task seen, in percent; None without test images."""

    task: int
    accuracies: list[Accuracy]


Event = ImagesRead | TaskBegun | PrototypesInitialized | StepDone | EpochDone | Validated | TaskDone
