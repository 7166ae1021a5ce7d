"""A stream of tasks: a data set's classes in groups, and the batches that training and evaluation see.

B: images of a batch, C: channels, H and W: height and width.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pah.core import distributed
from pah.core.config import InputError, generator, require
from pah.core.devices import CPU, holds, sent
from pah.data.augment import AugmentOptions
from pah.data.sources import Images, Source
from pah.data.task import Batch, Examples, Normalization, Step, Task

ClassOrder = Literal["seed", "natural"]


@dataclass(frozen=True)
class StreamOptions:
    """How a data set becomes a stream of tasks.

    Args:
        tasks: Number of tasks; the benchmark's own number unless given. Classes that do not divide evenly go to
            the first tasks, one more each.
        first: Learn only the first so many of these tasks; all unless given.
        classes: Use only the first so many classes of the class order; all unless given.
        class_order: Shuffle the classes by the run's seed, or take them in the data set's own order.
        validation: Share of each class's training images that is held out, never trained on.
        sizes: Classes of each task, for tasks of unequal size; `tasks` counts them unless given.
        images: Training images of each class, at most, drawn by the seed from those that are not held out.
    """

    tasks: int | None = None
    first: int | None = None
    classes: int | None = None
    class_order: ClassOrder = "seed"
    validation: float = 0.0
    sizes: tuple[int, ...] | None = None
    images: int | None = None

    def __post_init__(self) -> None:
        require(self.tasks is None or self.tasks >= 1, "stream.tasks", "at least 1", self.tasks)
        require(self.first is None or self.first >= 1, "stream.first", "at least 1", self.first)
        require(self.classes is None or self.classes >= 2, "stream.classes", "at least 2", self.classes)
        require(0 <= self.validation < 1, "stream.validation", "at least 0 and below 1", self.validation)
        sizes = self.sizes
        require(sizes is None or min(sizes, default=0) >= 2, "stream.sizes", "at least 2 classes a task", sizes)
        require(self.images is None or self.images >= 1, "stream.images", "at least 1", self.images)


@dataclass(frozen=True)
class Stream:
    """Tasks in the order in which they arrive.

    Args:
        tasks: All of them.
        normalization: By which every image is normalised.
        image_shape: Channels, height, width.
        where: The images come from, in words.
    """

    tasks: tuple[Task, ...]
    normalization: Normalization
    image_shape: tuple[int, int, int]
    where: str

    @property
    def class_order(self) -> list[int]:
        """The data set's labels in the order in which they arrive."""
        return [label for task in self.tasks for label in task.labels]

    def on(self, device: torch.device) -> "Stream":
        """The same stream with its images in the memory of the device, where they fit: otherwise batches are moved."""
        parts = [part for task in self.tasks for part in (task.train, task.validation, task.test)]
        every = {id(part.pixels): part.pixels for part in parts}
        if not holds(device, sum(pixels.nbytes for pixels in every.values())):
            return self
        moved = {key: pixels.to(device) for key, pixels in every.items()}

        def there(part: Examples) -> Examples:
            return dataclasses.replace(part, pixels=moved[id(part.pixels)])

        tasks = (
            dataclasses.replace(task, train=there(task.train), validation=there(task.validation), test=there(task.test))
            for task in self.tasks
        )
        return dataclasses.replace(self, tasks=tuple(tasks))


def make_stream(source: Source, options: StreamOptions, tasks: int, seed: int) -> Stream:
    """The data set in `tasks` groups of classes, ordered by `options` and `seed`.

    Normalisation uses the first task's training images alone: nothing is known of a task before it arrives.

    Raises:
        InputError: more classes asked than there are, a task with a single class, or a class whose training
            images do not suffice for the validation part.
    """
    if options.sizes:
        wanted = options.tasks in (None, len(options.sizes))
        require(wanted, "stream.tasks", f"{len(options.sizes)}, as there are so many sizes, or none", options.tasks)
        tasks = len(options.sizes)
    require(options.first is None or options.first <= tasks, "stream.first", f"at most {tasks} tasks", options.first)
    groups = _class_groups(source.class_names, options, tasks, seed)[: options.first]
    rows_of = [_rows_by_class(images.labels, len(source.class_names)) for images in (source.train, source.test)]
    parts = []
    for labels in groups:
        kept, held = zip(*(_hold_out(rows_of[0][y], options.validation, seed, y) for y in labels), strict=True)
        short = [source.class_names[y] for y, rows in zip(labels, kept, strict=True) if len(rows) == 0]
        if short:
            raise InputError(f"stream.validation {options.validation}: class {short[0]!r} keeps no training image")
        kept = tuple(_some(rows, options.images, seed, y) for y, rows in zip(labels, kept, strict=True))
        tested = [rows_of[1][y] for y in labels]
        train = _examples(source.train, kept)
        parts.append((labels, train, _examples(source.train, held), _examples(source.test, tested)))
    normalization = _statistics(parts[0][1])
    stream_tasks = tuple(
        Task(k, tuple(source.class_names[y] for y in labels), labels, normalization, train, validation, test)
        for k, (labels, train, validation, test) in enumerate(parts)
    )
    _, *shape = source.train.pixels.shape
    return Stream(stream_tasks, normalization, (shape[0], shape[1], shape[2]), source.where)


def training_batches(
    tasks: Sequence[Task],
    batch_size: int,
    options: AugmentOptions,
    seed: int,
    epoch: int,
    first: int = 0,
    device: torch.device = CPU,
) -> Iterator[Batch]:
    """One epoch over the training images of `tasks`, the last of which is the current one.

    Batches are of (nearly) equal size, none above `batch_size`. Order and augmentation are named by (seed, task,
    epoch, step), so an epoch that starts at batch `first` continues exactly as the whole one would, and of several
    processes each gets its slice of the very same batches.
    """
    current = tasks[-1].index
    rows, labels, owners = _joined(tasks)
    order = torch.randperm(len(rows), generator=generator(seed, current, epoch, "order"))
    pixels, normalization = tasks[-1].train.pixels, tasks[-1].normalization
    chosen = order.tensor_split(number_of_batches(len(rows), batch_size))
    for index in range(first, len(chosen)):
        images = len(chosen[index])
        part = distributed.own_part(images)
        pick = chosen[index][part]
        images_of = pixels[sent(rows[pick], pixels.device)]
        raw, y, of = (sent(tensor, device) for tensor in (images_of, labels[pick], owners[pick]))
        step = Step(seed, current, epoch, index, options, normalization)
        yield Batch(step.prepare(raw, first=part.start, of=images), y, of, raw, step, images)


def number_of_batches(images: int, batch_size: int) -> int:
    """How many batches of at most `batch_size` an epoch over `images` has."""
    return -(-images // batch_size)


def evaluation_batches(
    task: Task, part: Examples, batch_size: int, device: torch.device = CPU
) -> Iterator[tuple[Tensor, Tensor]]:
    """The images of one task, unchanged and in order: x (B, C, H, W) on the device, y (B,)."""
    for rows, y in zip(part.rows.split(batch_size), part.labels.split(batch_size), strict=True):
        x = task.normalization(part.pixels[rows].to(device))
        yield x.contiguous(memory_format=torch.channels_last), y


def _class_groups(class_names: Sequence[str], options: StreamOptions, tasks: int, seed: int) -> list[tuple[int, ...]]:
    """The labels of each task."""
    total, sizes = len(class_names), options.sizes
    used = options.classes if options.classes is not None else sum(sizes) if sizes else total
    require(used <= total, "stream.classes", f"at most the {total} classes of the data set", used)
    require(sizes is None or sum(sizes) == used, "stream.sizes", f"sizes that add up to {used} classes", sizes)
    if 2 * tasks > used:
        raise InputError(
            f"stream.tasks: expected at least 2 classes in every task, got {tasks} tasks of {used} classes, "
            f"which leaves a task with a single class; at most {used // 2} tasks"
        )
    order = torch.arange(total)
    if options.class_order == "seed":
        order = torch.randperm(total, generator=generator(seed, "class order"))
    parts = order[:used].split(list(sizes)) if sizes else order[:used].tensor_split(tasks)
    return [tuple(part.tolist()) for part in parts]


def _rows_by_class(labels: Tensor, classes: int) -> list[Tensor]:
    """For each class, the rows of its images, ascending."""
    order = labels.argsort(stable=True)
    return list(order.split(labels.bincount(minlength=classes).tolist()))


def _hold_out(rows: Tensor, share: float, seed: int, label: int) -> tuple[Tensor, Tensor]:
    """A class's rows as (kept, held out); the same share of every class, at least one image of it if any."""
    if share == 0:
        return rows, rows[:0]
    held = max(1, round(share * len(rows)))
    shuffled = rows[torch.randperm(len(rows), generator=generator(seed, "validation", label))]
    return shuffled[held:].sort().values, shuffled[:held].sort().values


def _some(rows: Tensor, most: int | None, seed: int, label: int) -> Tensor:
    """At most so many of a class's rows, ascending."""
    if most is None or len(rows) <= most:
        return rows
    return rows[torch.randperm(len(rows), generator=generator(seed, "images", label))[:most]].sort().values


def _examples(images: Images, rows_by_class: Sequence[Tensor]) -> Examples:
    labels = [torch.full((len(rows),), label) for label, rows in enumerate(rows_by_class)]
    return Examples(images.pixels, torch.cat(list(rows_by_class)), torch.cat(labels))


def _statistics(part: Examples) -> Normalization:
    """Mean and standard deviation of each channel over all pixels, in float64 and in pieces of 1,000 images."""
    total = squares = torch.zeros(part.pixels.shape[1], dtype=torch.float64)
    for rows in part.rows.split(1000):
        values = part.pixels[rows].to(torch.float64) / 255
        total = total + values.sum(dim=(0, 2, 3))
        squares = squares + values.square().sum(dim=(0, 2, 3))
    count = len(part) * part.pixels.shape[2] * part.pixels.shape[3]
    mean = total / count
    std = (squares / count - mean**2).clamp_min(0).sqrt().clamp_min(1 / 255)  # a blank channel stays finite
    return Normalization(tuple(mean.tolist()), tuple(std.tolist()))


def _joined(tasks: Sequence[Task]) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, labels and owning tasks of all training images."""
    owners = [torch.full((len(task.train),), task.index) for task in tasks]
    return (
        torch.cat([task.train.rows for task in tasks]),
        torch.cat([task.train.labels for task in tasks]),
        torch.cat(owners),
    )
