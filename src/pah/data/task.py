"""A task, the images that belong to it, and a batch of these as a method learns from it.

B: images of a batch, C: channels, H and W: height and width.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from pah.core.config import generator
from pah.core.devices import sent
from pah.data.augment import AugmentOptions, augment


@dataclass(frozen=True)
class Examples:
    """Some images of a data set, selected and not copied: `pixels[rows]` and their `labels` within the task."""

    pixels: Tensor  # uint8 (all images of the source, C, H, W)
    rows: Tensor  # int64 (N,)
    labels: Tensor  # int64 (N,), 0 to C_k - 1

    def __len__(self) -> int:
        return len(self.rows)


NO_EXAMPLES = Examples(
    torch.zeros(0, 1, 1, 1, dtype=torch.uint8),
    torch.zeros(0, dtype=torch.int64),
    torch.zeros(0, dtype=torch.int64),
)


@dataclass(frozen=True)
class Normalization:
    """Pixel statistics of each channel, in 0..1, by which images are normalised."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, pixels: Tensor) -> Tensor:
        """(uint8 / 255 - mean) / std: (B, C, H, W) uint8 -> float32, in the same memory format."""
        x = pixels.to(torch.float32, copy=True)
        mean = torch.tensor(self.mean)[:, None, None] * 255
        scale = 1 / (torch.tensor(self.std)[:, None, None] * 255)
        for operation, of in ((x.sub_, sent(mean, x.device)), (x.mul_, sent(scale, x.device))):
            operation(torch.empty_like(x[:1]).copy_(of))  # laid out as an image: a third of the time in channels-last
        return x

    def undone(self, image: Tensor) -> Tensor:
        """One normalised image (C, H, W) as uint8; one of a single channel is grey."""
        mean, std = torch.tensor(self.mean), torch.tensor(self.std)
        if len(image) == 1:
            mean, std = mean.mean(dim=0, keepdim=True), std.mean(dim=0, keepdim=True)
        return ((image * std[:, None, None] + mean[:, None, None]) * 255).round().clamp(0, 255).to(torch.uint8)


@dataclass(frozen=True)
class Task:
    """A group of classes to learn. A task whose images are gone keeps its names and has no examples.

    Args:
        index: Its place in the stream, from 0.
        class_names: Of its C classes; position = label within the task.
        labels: The classes' labels in the data set, in the same order.
        normalization: Of all tasks, from the first one's training images.
        train: What is learned from.
        validation: What is held out of it.
        test: What it is measured on.
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
        """The class names, the first three of them written out."""
        shown = ", ".join(self.class_names[:3])
        return shown if len(self.class_names) <= 3 else f"{shown}, +{len(self.class_names) - 3}"


@dataclass(frozen=True)
class Step:
    """One step of training: whatever is drawn in it is named by (seed, task, epoch, index)."""

    seed: int
    task: int
    epoch: int
    index: int
    options: AugmentOptions
    normalization: Normalization

    def generator(self, purpose: str) -> torch.Generator:
        """The random numbers of this step for one purpose."""
        return generator(self.seed, self.task, self.epoch, purpose, self.index)

    def prepare(self, pixels: Tensor, purpose: str = "augment", first: int = 0, of: int | None = None) -> Tensor:
        """Images as the network learns from them, augmented and normalised: (B, C, H, W) uint8 -> float32.

        `first` and `of` say which slice of a batch of how many they are, if they are one.
        """
        return self.normalization(augment(pixels, self.options, self.generator(purpose), first, of))


@dataclass(frozen=True)
class Batch:
    """Images to learn from.

    Args:
        x: float32 (B, C, H, W), augmented and normalised.
        y: int64 (B,), labels within their tasks.
        tasks: int64 (B,), the index of each image's task.
        pixels: uint8 (B, C, H, W), the same images before `step` prepared them: what a buffer stores.
        step: Names the random numbers of this step.
        of: The images of the whole batch, of which these are one process's slice; these are all unless given.
    """

    x: Tensor
    y: Tensor
    tasks: Tensor
    pixels: Tensor
    step: Step
    of: int | None = None

    @property
    def images(self) -> int:
        """The images of the whole batch."""
        return len(self.y) if self.of is None else self.of
