"""The features of a frozen backbone: each view of an image passes through it once, and methods learn from features.

N: images, V: views, D: features, C: channels, H and W: height and width.
"""

import dataclasses
import tempfile
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pah.core.config import generator
from pah.data.augment import AugmentOptions, augment
from pah.data.stream import Stream
from pah.data.task import Examples, Task
from pah.methods.base import Method
from pah.models.backbone import Backbone
from pah.models.batch_norm_folding import fold_batch_norm
from pah.training.config import RunConfig

BATCH = 64  # images that pass through the backbone at a time
LARGE_BYTES = 2**30  # features that need more memory are kept in a temporary file

Part = Literal["train", "validation", "test"]
PARTS: tuple[Part, ...] = ("train", "validation", "test")


@dataclass(frozen=True)
class Views:
    """The views of an image whose features are kept.

    Args:
        train: Number of views of a training image: the image itself, its mirror image if `augment.flip` is set, and
            then images that are augmented at random. Views that would be equal are left out.
        mirrored_test: Whether images for evaluation have their mirror image as a second view.
        augment: How views are augmented.
        seed: Names the random numbers of the augmented views.
    """

    train: int
    mirrored_test: bool
    augment: AugmentOptions
    seed: int

    def count(self, part: Part) -> int:
        """Return the number of views of each image of a part of the data."""
        if part != "train":
            return 1 + self.mirrored_test
        return self.train if self.augment.crop else min(self.train, 1 + self.augment.flip)

    def view(self, pixels: Tensor, number: int, part: Part, *names: int) -> Tensor:
        """Return view `number` of images (B, C, H, W); `names` name the random numbers of the batch."""
        if number == 0:
            return pixels
        if number == 1 and (self.augment.flip or part != "train"):
            return pixels.flip(3)
        return augment(pixels, self.augment, generator(self.seed, "view", number, *names))


def with_features_if_frozen(stream: Stream, method: Method, config: RunConfig) -> Stream:
    """Return the stream with the features of all its images, computed now, if the backbone is frozen.

    Args:
        stream: The tasks.
        method: The method, whose backbone computes the features on its device.
        config: The configuration. If it does not freeze the backbone, the stream is returned as it is.
    """
    options = config.backbone_options
    if options.train == "all":
        return stream
    views = Views(options.views, config.training.flip_test, config.augment, config.seed)
    extraction = _Extraction(method.network.backbone, views)
    return dataclasses.replace(stream, tasks=tuple(extraction.task(task) for task in stream.tasks))


class _Extraction:
    """Computes features task after task into one tensor for each part of the data."""

    def __init__(self, backbone: Backbone, views: Views) -> None:
        self.backbone = fold_batch_norm(backbone)
        self.views = views
        self.tensors: dict[Part, Tensor] = {}

    def task(self, task: Task) -> Task:
        """Return a task with the features of its images."""
        train, validation, test = (self._examples(task, part) for part in PARTS)
        return dataclasses.replace(task, train=train, validation=validation, test=test)

    @torch.no_grad()
    def _examples(self, task: Task, part: Part) -> Examples:
        examples: Examples = getattr(task, part)
        views = self.views.count(part)
        if part not in self.tensors:
            self.tensors[part] = _new_tensor((len(examples.pixels), views, self.backbone.features))
        features, device = self.tensors[part], next(self.backbone.parameters()).device
        for batch, rows in enumerate(examples.rows.split(BATCH) if len(examples) else ()):
            pixels = examples.pixels[rows]
            for number in range(views):
                x = task.normalization(self.views.view(pixels, number, part, task.index, batch).to(device))
                features[rows, number] = self.backbone(x.contiguous(memory_format=torch.channels_last)).float().cpu()
        return dataclasses.replace(examples, features=features)


def _new_tensor(shape: tuple[int, ...]) -> Tensor:
    """Return a float32 tensor whose memory is used only where it is written; a large one is in a temporary file."""
    if 4 * np.prod(shape, dtype=np.int64) <= LARGE_BYTES:
        return torch.empty(shape)
    with tempfile.TemporaryFile() as file:  # the mapping keeps the file until it is no longer used
        return torch.from_numpy(np.memmap(file, np.float32, "w+", shape=shape))
