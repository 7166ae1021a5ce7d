"""What a run tells while it trains."""

from dataclasses import dataclass

from pah.data.stream import Stream
from pah.methods import METHODS
from pah.training.config import RunConfig
from pah.training.state import Event, TrainState


@dataclass(frozen=True)
class Progress:
    """An event of training, and the state of the run at that moment."""

    event: Event
    state: TrainState
    stream: Stream
    config: RunConfig

    @property
    def all_tasks_seen(self) -> bool:
        """Whether the method learns from the images of all tasks seen."""
        return METHODS[self.config.method].method.learns_from == "all tasks seen"

    @property
    def seconds_left(self) -> float:
        """Estimated seconds to the end of the run, assuming that all images take the same time."""
        tasks, state, training = self.stream.tasks, self.state, self.config.training
        training_tasks = (tasks[: k + 1] if self.all_tasks_seen else [task] for k, task in enumerate(tasks))
        images_per_epoch = [sum(len(task.train) for task in group) for group in training_tasks]
        total = sum(training.epochs_of(k) * images for k, images in enumerate(images_per_epoch))
        return state.seconds / max(state.images, 1) * (total - state.images)


class StoppedError(Exception):
    """The run was asked to stop, and its state is saved."""
