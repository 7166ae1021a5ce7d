"""What a frozen part of a backbone returns is computed once for each view of an image, and methods learn from it.

In these modules it is called features: those of a frozen backbone, or the output of the first part if lessons train the
last part only.
N: images, V: views, D: number of values for a view (`Backbone.kept_size`), C: channels, H and W: height and width.
"""

import dataclasses
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pah.core import distributed
from pah.core.config import RecoveryWarning, generator
from pah.data.augment import AugmentOptions, augment
from pah.data.stream import Stream
from pah.data.task import Examples, Normalization, Task
from pah.methods.base import Method
from pah.models.backbone import Backbone
from pah.models.batch_norm_folding import fold_batch_norm
from pah.training.config import RunConfig
from pah.training.feature_cache import FeatureCache
from pah.training.state import ImagesRead

BATCH = 64  # images that pass through the backbone at a time
LARGE_BYTES = 2**30  # features that need more memory are kept in a temporary file
MOST_BYTES = 2**33  # outputs of a first part that need more are not kept


@dataclass(frozen=True)
class Views:
    """The views of an image whose features are kept.

    Args:
        names: The image itself, its mirror image, and augmented images, each with a number that names its random
            numbers.
        train: How many of them, from the first on, are for training.
        augment: How views are augmented.
        evaluated: The views for evaluation, as a slice.
    """

    names: tuple[str, ...]
    train: int
    augment: AugmentOptions
    evaluated: slice

    @classmethod
    def of(cls, views: int, options: AugmentOptions, mirrored: bool) -> "Views":
        """Return the views of training images, and of images for evaluation.

        Args:
            views: Views of a training image. Views that would be equal are left out.
            options: How training images are augmented.
            mirrored: Whether evaluation also sees mirror images.
        """
        names = ["image", *(["mirror image"] if options.flip else [])]
        if options.crop:
            names += [f"augmented {number}" for number in range(len(names), views)]
        names = names[:views]
        train = len(names)
        if mirrored and "mirror image" not in names:
            names.append("mirror image")
        step = names.index("mirror image") if mirrored else 1
        return cls(tuple(names), train, options, slice(0, step + 1, step) if mirrored else slice(0, 1))

    def view(self, pixels: Tensor, name: str, batch: int) -> Tensor:
        """Return one view of images (B, C, H, W). The number of the batch within its class names its random numbers.

        They do not depend on the run's seed, so that all runs on the same images share the features.
        """
        if name == "image":
            return pixels
        if name == "mirror image":
            return pixels.flip(3)
        return augment(pixels, self.augment, generator(0, name, batch))


def with_features_if_frozen(
    stream: Stream,
    method: Method,
    config: RunConfig,
    report: Callable[[ImagesRead], None] = lambda _: None,
    keep: bool = False,
) -> Stream:
    """Return the stream with the features of all its images, computed now, if the backbone or its first part is frozen.

    The output of a first part is much larger than the features of a whole backbone. If it would be too large, or if the
    backbone has no such output, the images stay, each step passes them through the whole backbone, and a warning says
    so.

    Args:
        stream: The tasks.
        method: The method, whose backbone computes the features on its device.
        config: The configuration. If it trains the whole backbone, the stream is returned as it is.
        report: Called after each batch of images.
        keep: Whether features are kept on disk, beside decoded data sets, and read from there if they are known.
    """
    options = config.backbone_options
    if options.train == "all":
        return stream
    views = Views.of(options.views, config.augment, config.training.flip_test)
    backbone = method.network.backbone
    if options.train == "last" and (reason := _reason_to_keep_nothing(stream, backbone, len(views.names))):
        if distributed.is_main_process():
            warnings.warn(
                f"backbone.train last: {reason}; every step passes images through all of {config.backbone}",
                RecoveryWarning,
                stacklevel=2,
            )
        return stream
    keep = keep and not backbone.takes_vectors  # vectors are their features
    cache = FeatureCache(backbone, stream.normalization, repr(views)) if keep else None
    parts = (part for task in stream.tasks for part in (task.train, task.validation, task.test))
    extraction = _Extraction(backbone, stream.normalization, views, cache, report, total=sum(map(len, parts)))
    return dataclasses.replace(stream, tasks=tuple(extraction.task(task) for task in stream.tasks))


def _reason_to_keep_nothing(stream: Stream, backbone: Backbone, views: int) -> str | None:
    """Return why the output of a first part cannot be kept, in words; None if it can.

    All images of the sources count, so that the answer is the same for a run that goes on to more tasks.
    """
    if backbone.kept_size is None:
        return "its first part does not return a single tensor"
    parts = (part for task in stream.tasks for part in (task.train, task.validation, task.test))
    images = {part.pixels.data_ptr(): len(part.pixels) for part in parts}
    size = 4 * sum(images.values()) * views * backbone.kept_size
    if size <= MOST_BYTES:
        return None
    return f"the output of its first part for all images takes {size / 1e9:.0f} GB, more than {MOST_BYTES / 1e9:.0f} GB"


class _Extraction:
    """Computes the features of class after class into one tensor for the images of each source."""

    def __init__(
        self,
        backbone: Backbone,
        normalization: Normalization,
        views: Views,
        cache: FeatureCache | None,
        report: Callable[[ImagesRead], None],
        total: int,
    ) -> None:
        self.backbone = fold_batch_norm(backbone, "kept")
        self.normalization = normalization
        self.views = views
        self.cache = cache
        self.report = report
        self.done, self.total = 0, total  # images
        self.tensors: dict[int, Tensor] = {}  # by the place of the images in memory

    def task(self, task: Task) -> Task:
        """Return a task with the features of its images."""
        held_out_of_train = task.validation.pixels.data_ptr() == task.train.pixels.data_ptr()
        for label in range(len(task.class_names)):
            train, validation, test = (
                part.rows[part.labels == label] for part in (task.train, task.validation, task.test)
            )
            if held_out_of_train:  # then the class has the same images, whatever the seed that held them out
                train, validation = torch.cat([train, validation]).sort().values, validation[:0]
            self._read(task.train, train)
            self._read(task.validation, validation)
            self._read(task.test, test)
        return dataclasses.replace(
            task,
            train=self._with_features(task.train, slice(0, self.views.train)),
            validation=self._with_features(task.validation, self.views.evaluated),
            test=self._with_features(task.test, self.views.evaluated),
        )

    def _read(self, examples: Examples, rows: Tensor) -> None:
        """Write the features of the images at `rows` into the tensor of their source."""
        if not len(rows):
            return
        features = self._tensor(examples)
        key = self.cache.key(examples.pixels, rows) if self.cache else ""
        known = self.cache.load(key, (len(rows), *features.shape[1:])) if self.cache else None
        if known is None:
            for batch, selected in enumerate(rows.split(BATCH)):
                features[selected] = self._features(examples.pixels[selected], batch)
                self._count(len(selected))
            if self.cache:
                self.cache.save(key, features[rows].numpy())
        else:
            features[rows] = known
            self._count(len(rows))

    @torch.no_grad()
    def _features(self, pixels: Tensor, batch: int) -> Tensor:
        """Return the features of all views of some images, (B, V, D), on the CPU."""
        device, views = next(self.backbone.parameters()).device, []
        for name in self.views.names:
            x = self.normalization(self.views.view(pixels, name, batch).to(device))
            views.append(self.backbone.kept(x.contiguous(memory_format=torch.channels_last)).float().cpu())
        return torch.stack(views, dim=1)

    def _count(self, images: int) -> None:
        self.done += images
        self.report(ImagesRead(self.done, self.total))

    def _tensor(self, examples: Examples) -> Tensor:
        """Return the features of all images of the examples' source, (images, V, D), as far as they are computed."""
        place = examples.pixels.data_ptr()
        if place not in self.tensors:
            assert self.backbone.kept_size is not None, "there is something to keep"
            self.tensors[place] = _new_tensor((len(examples.pixels), len(self.views.names), self.backbone.kept_size))
        return self.tensors[place]

    def _with_features(self, examples: Examples, views: slice) -> Examples:
        return dataclasses.replace(examples, features=self._tensor(examples)[:, views])


def _new_tensor(shape: tuple[int, ...]) -> Tensor:
    """Return a float32 tensor whose memory is used only where it is written; a large one is in a temporary file."""
    if 4 * np.prod(shape, dtype=np.int64) <= LARGE_BYTES:
        return torch.empty(shape)
    with tempfile.TemporaryFile() as file:  # the mapping keeps the file until it is no longer used
        return torch.from_numpy(np.memmap(file, np.float32, "w+", shape=shape))
