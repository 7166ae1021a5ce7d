"""Tasks, their images, and the batches that a method learns from.

B: images of a batch, C: channels, H and W: height and width.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from pah.core.config import generator
from pah.core.devices import to_device
from pah.data.augment import AugmentOptions, augment


@dataclass(frozen=True)
class Examples:
    """Some images of a data set, selected and not copied: `pixels[rows]` and their `labels` within the task.

    Args:
        pixels: uint8 (all images of the source, C, H, W); or vectors, float32 (all vectors of the source, D, 1, 1).
        rows: int64 (N,).
        labels: int64 (N,), 0 to C_k - 1.
        features: float32 (all images of the source, V, D), the features of V views of each image in `rows`, if a frozen
            backbone has computed them; None otherwise.
    """

    pixels: Tensor
    rows: Tensor
    labels: Tensor
    features: Tensor | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def inputs(self, rows: Tensor) -> Tensor:
        """Return what a predictor takes for the images at `rows` of the source: their features, or else their pixels.

        Args:
            rows: (B,), some of `self.rows`.

        Returns:
            float32 (B, V, D), or a selection of the pixels.
        """
        return self.pixels[rows] if self.features is None else self.features[rows]


NO_EXAMPLES = Examples(
    torch.zeros(0, 1, 1, 1, dtype=torch.uint8),
    torch.zeros(0, dtype=torch.int64),
    torch.zeros(0, dtype=torch.int64),
)


@dataclass(frozen=True)
class Normalization:
    """Mean and standard deviation of each channel, by which images are normalised: in 0..1, or in units of vectors."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return (pixels / 255 - mean) / std: (B, C, H, W) uint8 -> float32, in the same memory format.

        Vectors, float32 (B, D, 1, 1), are not divided by 255.
        """
        x, unit = pixels.to(torch.float32, copy=True), 1 if pixels.is_floating_point() else 255
        mean = torch.tensor(self.mean)[:, None, None] * unit
        scale = 1 / (torch.tensor(self.std)[:, None, None] * unit)
        for operation, values in ((x.sub_, to_device(mean, x.device)), (x.mul_, to_device(scale, x.device))):
            # expanded to an image's memory layout, which takes a third of the time if channels are last
            operation(torch.empty_like(x[:1]).copy_(values))
        return x

    def denormalize(self, image: Tensor) -> Tensor:
        """Return a normalised image (C, H, W) as uint8; an image of one channel takes the mean of the statistics."""
        mean, std = torch.tensor(self.mean), torch.tensor(self.std)
        if len(image) == 1:
            mean, std = mean.mean(dim=0, keepdim=True), std.mean(dim=0, keepdim=True)
        return ((image * std[:, None, None] + mean[:, None, None]) * 255).round().clamp(0, 255).to(torch.uint8)


@dataclass(frozen=True)
class Task:
    """A group of classes to learn. A task whose images have been deleted keeps its names and has no examples.

    Args:
        index: Its position in the stream, from 0.
        class_names: The names of its C classes; the position is the label within the task.
        labels: The labels of these classes in the data set, in the same order.
        normalization: The same for all tasks, from the first task's training images.
        train: Training images.
        validation: Images that are held out of the training images.
        test: Test images.
    """

    index: int
    class_names: tuple[str, ...]
    labels: tuple[int, ...]
    normalization: Normalization
    train: Examples = field(default=NO_EXAMPLES, repr=False)
    validation: Examples = field(default=NO_EXAMPLES, repr=False)
    test: Examples = field(default=NO_EXAMPLES, repr=False)

    @property
    def name(self) -> str:
        """The first three class names, and the number of the others."""
        shown = ", ".join(self.class_names[:3])
        return shown if len(self.class_names) <= 3 else f"{shown}, +{len(self.class_names) - 3}"


@dataclass(frozen=True)
class Step:
    """One training step; its random numbers are named by (seed, task, epoch, index)."""

    seed: int
    task: int
    epoch: int
    index: int
    options: AugmentOptions
    normalization: Normalization
    steps: int = 1  # of an epoch

    @property
    def number(self) -> int:
        """The number of the step within its task, from 0."""
        return self.epoch * self.steps + self.index

    def generator(self, purpose: str) -> torch.Generator:
        """Return the generator of this step for one purpose."""
        return generator(self.seed, self.task, self.epoch, purpose, self.index)

    def prepare(self, pixels: Tensor, purpose: str = "augment", first: int = 0, slice_of: int | None = None) -> Tensor:
        """Return images augmented and normalised: (B, C, H, W) uint8 -> float32.

        Args:
            pixels: The images.
            purpose: The name of the random numbers of the augmentation.
            first: Position of the first image in the whole batch, if these are a slice of it.
            slice_of: Number of images of the whole batch, if these are a slice of it.
        """
        return self.normalization(augment(pixels, self.options, self.generator(purpose), first, slice_of))


@dataclass(frozen=True)
class Batch:
    """Images to learn from: a whole batch, or the slice of it that one of several processes takes.

    Args:
        x: float32 (B, C, H, W), augmented and normalised; or (B, D), the features of one view of each image, if a
            frozen backbone has computed them.
        y: int64 (B,), labels within their tasks.
        tasks: int64 (B,), the index of each image's task.
        pixels: uint8 (B, C, H, W), the same images before `step` prepared them; replay buffers store these.
        step: Names the random numbers of this step.
        slice_of: Number of images of the whole batch, if this is a slice of it; None for a whole batch.
    """

    x: Tensor
    y: Tensor
    tasks: Tensor
    pixels: Tensor
    step: Step
    slice_of: int | None = None

    @property
    def global_size(self) -> int:
        """The number of images of the whole batch, over all processes."""
        return len(self.y) if self.slice_of is None else self.slice_of
