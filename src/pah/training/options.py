"""The options of training, which are the same for every method."""

from dataclasses import dataclass
from typing import Literal

from pah.core.config import require
from pah.models.modes import BatchNormStatistics, Precision

Part = Literal["test", "validation"]

SMALLEST_BATCH = 8  # images; `min_steps` does not make batches smaller


@dataclass(frozen=True)
class TrainingOptions:
    """How long and with which batches every method trains, and on which images it is evaluated.

    Args:
        epochs: Passes over the training images of each task.
        first_epochs: Passes over the training images of the first task, whose features all later tasks build on;
            `epochs` unless given.
        batch_size: Largest number of images in a step, 3 to 65536.
        min_steps: Smallest number of steps for a task. Where a task has too few images for it, batches become smaller,
            down to 8 images. With 0, batches are never made smaller.
        schedule: "one-cycle": the learning rate rises over the first fifth of a task and falls along a cosine to zero.
            "constant": it stays the same.
        patience: Stop a task after this number of epochs without a better accuracy on its validation images (needs
            stream.validation above 0). With 0, every task has all its epochs. The learning rate follows the schedule
            of all epochs.
        keep_best: At the end of a task, go on with the weights of the epoch with the best accuracy on its validation
            images, the earliest of several (needs stream.validation above 0).
        evaluate_on: Evaluate on the test images, or on the held-out validation images, on which choices are made.
        precision: Number format of the backbone during training. bf16 is faster if the processor supports it, fp16 is
            for GPUs without bf16. Weights, heads and evaluation stay in fp32.
        sync_batch_norm: With several processes (torchrun), batch norm uses the statistics of the whole batch, as one
            process does, instead of those of each process's slice.
        flip_test: Predict from the mean of the logits of an image and of its mirror image.
        test_batch_norm: At test time, batch norm uses its running statistics ("running") or those of the test batch
            ("batch"). A test batch holds images of a single task. The published code of PAH uses "batch", which is not
            a fair evaluation.
        measure_transfer: Measure forward transfer: evaluate each task also before its first step, and an untrained
            network at the end.
    """

    epochs: int = 15
    first_epochs: int | None = None
    batch_size: int = 64
    min_steps: int = 0
    schedule: Literal["one-cycle", "constant"] = "one-cycle"
    patience: int = 0
    keep_best: bool = False
    evaluate_on: Part = "test"
    precision: Precision = "fp32"
    sync_batch_norm: bool = False
    flip_test: bool = False
    test_batch_norm: BatchNormStatistics = "running"
    measure_transfer: bool = False

    def __post_init__(self) -> None:
        require(self.epochs >= 1, "training.epochs", "at least 1", self.epochs)
        require(self.epochs_of(0) >= 1, "training.first_epochs", "at least 1", self.first_epochs)
        # with a batch size of at least 3, batches of nearly equal size have the 2 images that batch norm needs
        require(3 <= self.batch_size <= 65536, "training.batch_size", "3 to 65536", self.batch_size)
        require(self.min_steps >= 0, "training.min_steps", "at least 0", self.min_steps)
        require(self.patience >= 0, "training.patience", "at least 0", self.patience)

    @property
    def validates(self) -> bool:
        """Whether the accuracy on the validation images is measured after each epoch."""
        return self.patience > 0 or self.keep_best

    def epochs_of(self, task: int) -> int:
        """Return the number of epochs of a task."""
        return self.epochs if task > 0 or self.first_epochs is None else self.first_epochs

    def batch_size_of(self, task: int, images: int) -> int:
        """Return the largest batch size of a task with that many training images."""
        if not self.min_steps:
            return self.batch_size
        return min(self.batch_size, max(SMALLEST_BATCH, self.epochs_of(task) * images // self.min_steps))
