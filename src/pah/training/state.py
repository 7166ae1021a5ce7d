"""How far training has come, and the events that it yields on the way."""

from dataclasses import dataclass, field

from torch import Tensor

from pah.methods.base import Terms


@dataclass
class TrainState:
    """How far training has come: everything a resume needs beside the method's own tensors."""

    task: int = 0
    began: bool = False  # the method's begin_task was called for `task`
    epoch: int = 0
    step: int = 0  # batches done in this epoch
    term_sums: dict[str, float] = field(default_factory=dict)  # of the batches done in this epoch
    epoch_seconds: float = 0.0
    train_seconds: float = 0.0  # spent in steps
    seconds: float = 0.0  # spent in all, evaluation included
    images: int = 0
    matrix: list[list[float]] = field(default_factory=list)  # accuracy, percent
    class_incremental: list[float] = field(default_factory=list)  # percent, after each task
    scaler: dict[str, float] = field(default_factory=dict)  # of losses in fp16

    def __post_init__(self) -> None:
        self.unread: list[tuple[str, Terms]] = []  # which step, and its terms, which `term_sums` does not have yet


@dataclass(frozen=True)
class TaskBegun:
    """The method is ready for a task and has made no step on it; not told again of a task that is gone on with."""

    task: int


@dataclass(frozen=True)
class StepDone:
    """A batch was learned from. `terms` are empty on a GPU but for an epoch's last step: reading them waits for it."""

    terms: dict[str, float]
    images: int
    seconds: float
    steps_done: int  # in this task
    steps_left: int


@dataclass(frozen=True)
class EpochDone:
    """An epoch is over: mean terms, learning rate at its end, and its speed."""

    task: int
    epoch: int
    terms: dict[str, float]
    lr: float
    seconds: float
    images_per_second: float


@dataclass(frozen=True)
class Validated:
    """The accuracy on the current task's validation images after an epoch, in percent, for whoever asked for it."""

    task: int
    epoch: int
    accuracy: float


@dataclass(frozen=True)
class PrototypesStarted:
    """Where a lesson's prototypes start, (C, channels, s, s), before any step; told where they are learned from."""

    task: int
    prototypes: Tensor


@dataclass(frozen=True)
class TaskDone:
    """A task was learned; `accuracies` are those of every task seen so far, in percent."""

    task: int
    accuracies: list[float]


Event = TaskBegun | PrototypesStarted | StepDone | EpochDone | Validated | TaskDone
