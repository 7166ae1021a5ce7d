"""The options of training, the same for every method."""

from dataclasses import dataclass
from typing import Literal

from pah.core.config import require
from pah.models.modes import BatchNormStatistics, Precision

Part = Literal["test", "validation"]

SMALLEST_BATCH = 8  # images, to which `min_steps` may make batches smaller


@dataclass(frozen=True)
class TrainingOptions:
    """How long and in what steps every method learns, and on what it is measured.

    Args:
        epochs: Passes over the training images of each task.
        first_epochs: Passes over those of the first task, on whose features all others build; `epochs` unless given.
        batch_size: Images in a step, at most.
        min_steps: Steps in which a task is to be learned, at least: where its images are too few, batches become
            smaller, down to 8 images; 0 leaves them as they are.
        schedule: The learning rate rises over the first fifth of a task and falls along a cosine to zero, or it
            is constant.
        evaluate_on: The test images, or the held-out validation part: what choices are made on.
        precision: In what the backbone computes while it learns: bf16 is faster where the processor has it, fp16 on
            a GPU that lacks bf16; weights, heads and evaluation stay in fp32.
        sync_batch_norm: Of several processes (torchrun), batch norm learns from the statistics of the whole batch, as
            one process does, and not from those of each one's slice.
        flip_test: The answer to an image is the mean of the logits of the image and of its mirror image.
        test_batch_norm: At test time batch norm uses its running statistics, or those of the test batch, which
            holds images of a single task (what the published code of PAH does; it is no honest evaluation).
    """

    epochs: int = 15
    first_epochs: int | None = None
    batch_size: int = 64
    min_steps: int = 0
    schedule: Literal["one-cycle", "constant"] = "one-cycle"
    evaluate_on: Part = "test"
    precision: Precision = "fp32"
    sync_batch_norm: bool = False
    flip_test: bool = False
    test_batch_norm: BatchNormStatistics = "running"

    def __post_init__(self) -> None:
        require(self.epochs >= 1, "training.epochs", "at least 1", self.epochs)
        require(self.epochs_of(0) >= 1, "training.first_epochs", "at least 1", self.first_epochs)
        # from 3 on, batches of nearly equal size hold at least 2 images each: batch norm needs them
        require(3 <= self.batch_size <= 65536, "training.batch_size", "3 to 65536", self.batch_size)
        require(self.min_steps >= 0, "training.min_steps", "at least 0", self.min_steps)

    def epochs_of(self, task: int) -> int:
        """Passes over the images of a task."""
        return self.epochs if task > 0 or self.first_epochs is None else self.first_epochs

    def batch_size_of(self, task: int, images: int) -> int:
        """Images in a step, at most, of a task of so many training images."""
        if not self.min_steps:
            return self.batch_size
        return min(self.batch_size, max(SMALLEST_BATCH, self.epochs_of(task) * images // self.min_steps))
