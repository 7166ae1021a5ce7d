"""A stream of tasks, each a group of a data set's classes, and the batches for training and evaluation.

B: images of a batch, C: channels, H and W: height and width.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pah.core import distributed
from pah.core.config import InputError, generator, require
from pah.core.devices import CPU, fits_on_gpu, to_device
from pah.data.augment import AugmentOptions
from pah.data.sources import Images, Source
from pah.data.stream_options import StreamOptions
from pah.data.task import Batch, Examples, Normalization, Step, Task

SIMILAR_SCALES = 10.0  # largest ratio of standard deviations to their median with which all numbers are scaled alike


@dataclass(frozen=True)
class Stream:
    """Tasks in the order in which they arrive.

    Args:
        tasks: All tasks.
        normalization: Applied to every image.
        image_shape: Channels, height, width; D, 1, 1 for vectors.
        origin: Where the images come from, in words.
        source: The data set of which it consists, if it is known.
        classes_left_out: Number of classes of the data set that the options leave out of the stream.
    """

    tasks: tuple[Task, ...]
    normalization: Normalization
    image_shape: tuple[int, int, int]
    origin: str
    source: Source | None = field(default=None, repr=False, compare=False)
    classes_left_out: int = 0

    @property
    def data_fingerprint(self) -> str | None:
        """The fingerprint of the whole data set (`Source.fingerprint`); None if the data set is not known."""
        return self.source.fingerprint if self.source else None

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
    source: Source,
    options: StreamOptions,
    tasks: int,
    seed: int,
    smallest: int = 2,
    normalization: Normalization | None = None,
) -> Stream:
    """Return the data set as a stream of tasks.

    Without a `normalization`, it uses only the training images of the first task, as later tasks are unknown when
    training starts.

    Args:
        source: The data set.
        options: How it is split into tasks.
        tasks: Number of tasks, unless `options.sizes` gives the size of each.
        seed: Orders the classes and draws held-out images.
        smallest: Smallest number of classes of a task. With 1, as in a lesson, a class may also have a single image,
            which is trained on and not held out.
        normalization: That of a pretrained backbone, if there is one.

    Raises:
        InputError: the options need more classes than there are, a task has fewer than `smallest` classes, or a class
            has no training image besides its validation images.
    """
    if options.sizes:
        count = len(options.sizes)
        consistent = options.tasks in (None, count)
        require(consistent, "stream.tasks", f"{count}, the number of stream.sizes, or none", options.tasks)
        tasks = count
    require(options.first is None or options.first <= tasks, "stream.first", f"at most {tasks} tasks", options.first)
    all_groups = _class_groups(len(source.class_names), options, tasks, seed, smallest)
    groups = all_groups[: options.first]
    classes = len(source.class_names)
    train_rows, test_rows = (_rows_by_class(images.labels, classes) for images in (source.train, source.test))
    parts = []
    for labels in groups:
        train, validation = _training_rows(source.class_names, train_rows, labels, options, seed, smallest == 1)
        test = [test_rows[y] for y in labels]
        examples = _examples(source.train, train), _examples(source.train, validation), _examples(source.test, test)
        parts.append((labels, *examples))
    normalization = normalization or (_channel_statistics if source.numbers is None else _vector_statistics)(
        parts[0][1]
    )
    stream_tasks = tuple(
        Task(k, tuple(source.class_names[y] for y in labels), labels, normalization, *examples)
        for k, (labels, *examples) in enumerate(parts)
    )
    _, *shape = source.train.pixels.shape
    image_shape = shape[0], shape[1], shape[2]
    left_out = classes - sum(map(len, all_groups))
    return Stream(stream_tasks, normalization, image_shape, source.origin, source, left_out)


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
        step = Step(seed, task_index, epoch, index, options, normalization, len(batches))
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


def _class_groups(total: int, options: StreamOptions, tasks: int, seed: int, smallest: int) -> list[tuple[int, ...]]:
    """Return the data set's labels of each task, given the data set's number of classes."""
    order, sizes = _ordered_classes(total, options, seed), options.sizes
    listed = isinstance(options.class_order, tuple)
    available = f"{len(order)} {'labels of stream.class_order' if listed else 'classes of the data set'}"
    used = options.classes if options.classes is not None else sum(sizes) if sizes else len(order)
    if sizes:
        required = options.classes or (len(order) if listed else None)
        fits = sum(sizes) == required if required else sum(sizes) <= len(order)
        expected = f"{required} classes" if required else f"at most the {available}"
        got = f"{', '.join(map(str, sizes))}, which add up to {sum(sizes)}"
        if not fits:
            raise InputError(f"stream.sizes: expected sizes that add up to {expected}, got {got}")
    require(used <= len(order), "stream.classes", f"at most the {available}", used)
    if smallest * tasks > used:
        raise InputError(
            f"stream.tasks: expected at least 2 classes in every task, got {tasks} tasks of {used} classes, "
            f"which leaves a task with a single class; at most {used // 2} tasks"
        )
    parts = order[:used].split(list(sizes)) if sizes else order[:used].tensor_split(tasks)
    return [tuple(part.tolist()) for part in parts]


def _ordered_classes(total: int, options: StreamOptions, seed: int) -> Tensor:
    """Return the labels of the data set's `total` classes in the order in which they are learned."""
    if isinstance(options.class_order, tuple):
        wrong = next((label for label in options.class_order if not 0 <= label < total), None)
        require(wrong is None, "stream.class_order", f"labels of the data set, 0 to {total - 1}", wrong)
        return torch.tensor(options.class_order)
    if options.class_order == "natural":
        return torch.arange(total)
    order_seed = seed if options.order_seed is None else options.order_seed
    return torch.randperm(total, generator=generator(order_seed, "class order"))


def _rows_by_class(labels: Tensor, classes: int) -> list[Tensor]:
    """Return for each class the rows of its images, ascending."""
    order = labels.argsort(stable=True)
    return list(order.split(labels.bincount(minlength=classes).tolist()))


def _training_rows(
    class_names: Sequence[str],
    rows: Sequence[Tensor],
    labels: Sequence[int],
    options: StreamOptions,
    seed: int,
    for_lesson: bool,
) -> tuple[list[Tensor], list[Tensor]]:
    """Return training rows and validation rows of each of these classes, given all rows of every class.

    In a lesson, a single image of a class is not held out.
    """
    training, validation = [], []
    for y in labels:
        if for_lesson and len(rows[y]) == 0:
            raise InputError(
                f"class {class_names[y]!r}: expected training images, got only test images; choose the other classes"
            )
        share = 0.0 if for_lesson and len(rows[y]) == 1 else options.validation
        train_rows, held_out = _hold_out(rows[y], share, seed, y)
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


def _vector_statistics(part: Examples) -> Normalization:
    """Return mean and standard deviation of vectors, in float64: one for all numbers, or each number's own.

    One for all is better for embeddings, whose numbers have similar scales (docs/vectors.md). Otherwise each number has
    a scale of its own.
    """
    values = part.pixels[part.rows].flatten(1).double()  # (N, D)
    std = values.std(dim=0, correction=0)
    varying = std[std > 0]
    if len(varying) and std.max() > SIMILAR_SCALES * varying.median():
        std = torch.where(std > 0, std, 1.0)  # a constant number must not divide by 0
        return Normalization(tuple(values.mean(dim=0).tolist()), tuple(std.tolist()))
    one_std = values.std(correction=0).item() or 1.0
    return Normalization((values.mean().item(),) * values.shape[1], (one_std,) * values.shape[1])


def _concatenate_training_examples(tasks: Sequence[Task]) -> tuple[Tensor, Tensor, Tensor]:
    """Return rows, labels and task indices of the training images of all tasks, one after the other."""
    task_indices = [torch.full((len(task.train),), task.index) for task in tasks]
    return (
        torch.cat([task.train.rows for task in tasks]),
        torch.cat([task.train.labels for task in tasks]),
        torch.cat(task_indices),
    )
