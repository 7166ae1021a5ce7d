"""A stream of tasks, each a group of a data set's classes, and the batches for training and evaluation.

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
from pah.core.devices import CPU, fits_on_gpu, to_device
from pah.data.augment import AugmentOptions
from pah.data.sources import Images, Source
from pah.data.task import Batch, Examples, Normalization, Step, Task

ClassOrder = Literal["seed", "natural"]


@dataclass(frozen=True)
class StreamOptions:
    """How a data set becomes a stream of tasks.

    Args:
        tasks: Number of tasks; the benchmark's own number unless given. If the classes do not divide evenly, the
            first tasks get one class more.
        first: Learn only this number of tasks, the first ones; all unless given.
        classes: Use only this number of classes, the first ones of the class order; all unless given.
        class_order: Shuffle the classes by the run's seed, or take them in the data set's own order.
        validation: Share of each class's training images that is held out, never trained on.
        sizes: Number of classes of each task, for tasks of unequal size; `tasks` is then their number.
        images: Largest number of training images of each class, drawn by the seed from those that are not held out.
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
        tasks: All tasks.
        normalization: Applied to every image.
        image_shape: Channels, height, width.
        origin: Where the images come from, in words.
    """

    tasks: tuple[Task, ...]
    normalization: Normalization
    image_shape: tuple[int, int, int]
    origin: str

    @property
    def class_order(self) -> list[int]:
        """The data set's labels in the order in which they arrive."""
        return [label for task in self.tasks for label in task.labels]

    def to(self, device: torch.device) -> "Stream":
        """Return the stream with its images in the memory of a GPU if they fit there; otherwise the stream itself."""
        parts = [part for task in self.tasks for part in (task.train, task.validation, task.test)]
        pixels_by_id = {id(part.pixels): part.pixels for part in parts}  # tasks share tensors: move each one once
        if not fits_on_gpu(device, sum(pixels.nbytes for pixels in pixels_by_id.values())):
            return self
        moved = {key: pixels.to(device) for key, pixels in pixels_by_id.items()}

        def move(part: Examples) -> Examples:
            return dataclasses.replace(part, pixels=moved[id(part.pixels)])

        tasks = (
            dataclasses.replace(task, train=move(task.train), validation=move(task.validation), test=move(task.test))
            for task in self.tasks
        )
        return dataclasses.replace(self, tasks=tuple(tasks))


def make_stream(
    source: Source, options: StreamOptions, tasks: int, seed: int, normalization: Normalization | None = None
) -> Stream:
    """Return the data set as a stream of tasks.

    Without a `normalization`, it uses only the training images of the first task, as later tasks are unknown when
    training starts.

    Args:
        source: The data set.
        options: How it is split into tasks.
        tasks: Number of tasks, unless `options.sizes` gives the size of each.
        seed: Orders the classes and draws held-out images.
        normalization: That of a pretrained backbone, if there is one.

    Raises:
        InputError: the options need more classes than there are, a task has a single class, or a class has no
            training image besides its validation images.
    """
    if options.sizes:
        count = len(options.sizes)
        consistent = options.tasks in (None, count)
        require(consistent, "stream.tasks", f"{count}, the number of stream.sizes, or none", options.tasks)
        tasks = count
    require(options.first is None or options.first <= tasks, "stream.first", f"at most {tasks} tasks", options.first)
    groups = _class_groups(source.class_names, options, tasks, seed)[: options.first]
    classes = len(source.class_names)
    train_rows, test_rows = (_rows_by_class(images.labels, classes) for images in (source.train, source.test))
    parts = []
    for labels in groups:
        train, validation = _training_rows(source.class_names, train_rows, labels, options, seed)
        test = [test_rows[y] for y in labels]
        examples = _examples(source.train, train), _examples(source.train, validation), _examples(source.test, test)
        parts.append((labels, *examples))
    normalization = normalization or _channel_statistics(parts[0][1])
    stream_tasks = tuple(
        Task(k, tuple(source.class_names[y] for y in labels), labels, normalization, *examples)
        for k, (labels, *examples) in enumerate(parts)
    )
    _, *shape = source.train.pixels.shape
    return Stream(stream_tasks, normalization, (shape[0], shape[1], shape[2]), source.origin)


def training_batches(
    tasks: Sequence[Task],
    batch_size: int,
    options: AugmentOptions,
    seed: int,
    epoch: int,
    first: int = 0,
    device: torch.device = CPU,
) -> Iterator[Batch]:
    """Yield the batches of one epoch over the training images of `tasks`.

    Batches are of nearly equal size. Their order and augmentation are named by (seed, task, epoch, step). So an epoch
    that starts at batch `first` continues exactly as the whole epoch would, and each of several processes gets its
    slice of the same batches.

    Args:
        tasks: The tasks to learn from; the last one is the current task.
        batch_size: Largest number of images of a batch, over all processes.
        options: How images are augmented.
        seed: Of the run.
        epoch: Number of the epoch within the task, from 0.
        first: Number of the first batch, from 0.
        device: Where the batches are needed.
    """
    task_index = tasks[-1].index
    rows, labels, task_indices = _concatenate_training_examples(tasks)
    order = torch.randperm(len(rows), generator=generator(seed, task_index, epoch, "order"))
    pixels, normalization = tasks[-1].train.pixels, tasks[-1].normalization
    features = tasks[-1].train.features  # of all images of the source, as the pixels are
    batches = order.tensor_split(number_of_batches(len(rows), batch_size))
    for index in range(first, len(batches)):
        size = len(batches[index])
        part = distributed.own_slice(size)
        selection = batches[index][part]
        selected = (pixels[to_device(rows[selection], pixels.device)], labels[selection], task_indices[selection])
        raw, y, batch_tasks = (to_device(tensor, device) for tensor in selected)
        step = Step(seed, task_index, epoch, index, options, normalization)
        if features is None:
            x = step.prepare(raw, first=part.start, slice_of=size)
        else:
            views = torch.randint(features.shape[1], (size,), generator=step.generator("view"))[part]
            x = to_device(features[rows[selection], views], device)
        yield Batch(x, y, batch_tasks, raw, step, slice_of=size)


def number_of_batches(images: int, batch_size: int) -> int:
    """Return the number of batches of at most `batch_size` images in an epoch over `images`."""
    return -(-images // batch_size)


def evaluation_batches(
    task: Task, part: Examples, batch_size: int, device: torch.device = CPU
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield images of one task, not augmented and in order, on the device, and their labels (B,) on the CPU.

    The images are x (B, C, H, W), or the features (B, V, D) of their views if a frozen backbone has computed them.
    """
    for rows, y in zip(part.rows.split(batch_size), part.labels.split(batch_size), strict=True):
        if part.features is not None:
            yield part.features[rows].to(device), y
            continue
        x = task.normalization(part.pixels[rows].to(device))
        yield x.contiguous(memory_format=torch.channels_last), y


def _class_groups(class_names: Sequence[str], options: StreamOptions, tasks: int, seed: int) -> list[tuple[int, ...]]:
    """Return the data set's labels of each task."""
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
    """Return for each class the rows of its images, ascending."""
    order = labels.argsort(stable=True)
    return list(order.split(labels.bincount(minlength=classes).tolist()))


def _training_rows(
    class_names: Sequence[str], rows: Sequence[Tensor], labels: Sequence[int], options: StreamOptions, seed: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Return training rows and validation rows of each of these classes, given all rows of every class."""
    training, validation = [], []
    for y in labels:
        train_rows, held_out = _hold_out(rows[y], options.validation, seed, y)
        if len(train_rows) == 0:
            name = class_names[y]
            raise InputError(f"stream.validation {options.validation}: class {name!r} keeps no training image")
        training.append(_draw_rows(train_rows, options.images, seed, y))
        validation.append(held_out)
    return training, validation


def _hold_out(rows: Tensor, share: float, seed: int, label: int) -> tuple[Tensor, Tensor]:
    """Return a class's rows as (training, held out): the same share of every class, at least one if it is above 0."""
    if share == 0:
        return rows, rows[:0]
    count = max(1, round(share * len(rows)))
    shuffled = rows[torch.randperm(len(rows), generator=generator(seed, "validation", label))]
    return shuffled[count:].sort().values, shuffled[:count].sort().values


def _draw_rows(rows: Tensor, count: int | None, seed: int, label: int) -> Tensor:
    """Return at most `count` of a class's rows, drawn at random, ascending; all of them if it is None."""
    if count is None or len(rows) <= count:
        return rows
    return rows[torch.randperm(len(rows), generator=generator(seed, "images", label))[:count]].sort().values


def _examples(images: Images, rows_by_class: Sequence[Tensor]) -> Examples:
    """Return the examples of a task, given the rows of each of its classes."""
    labels = [torch.full((len(rows),), label) for label, rows in enumerate(rows_by_class)]
    return Examples(images.pixels, torch.cat(list(rows_by_class)), torch.cat(labels))


def _channel_statistics(part: Examples) -> Normalization:
    """Return mean and standard deviation of each channel over all pixels, in float64, 1,000 images at a time."""
    total = squares = torch.zeros(part.pixels.shape[1], dtype=torch.float64)
    for rows in part.rows.split(1000):
        values = part.pixels[rows].to(torch.float64) / 255
        total = total + values.sum(dim=(0, 2, 3))
        squares = squares + values.square().sum(dim=(0, 2, 3))
    count = len(part) * part.pixels.shape[2] * part.pixels.shape[3]
    mean = total / count
    std = (squares / count - mean**2).clamp_min(0).sqrt().clamp_min(1 / 255)  # a constant channel must not divide by 0
    return Normalization(tuple(mean.tolist()), tuple(std.tolist()))


def _concatenate_training_examples(tasks: Sequence[Task]) -> tuple[Tensor, Tensor, Tensor]:
    """Return rows, labels and task indices of the training images of all tasks, one after the other."""
    task_indices = [torch.full((len(task.train),), task.index) for task in tasks]
    return (
        torch.cat([task.train.rows for task in tasks]),
        torch.cat([task.train.labels for task in tasks]),
        torch.cat(task_indices),
    )
