"""The loop over tasks, epochs and batches.

`train` is a generator: it computes and yields what happened; whoever iterates saves, logs and shows. At each yield
the `TrainState` says exactly how far training has come, so that is where it may be saved, or left for good.
"""

import math
import time
from collections.abc import Iterator

import torch

from pah.core import distributed
from pah.core.config import InputError, NonFiniteLossError, derived_seed
from pah.data.augment import AugmentOptions
from pah.data.stream import Stream, number_of_batches, training_batches
from pah.data.task import Task
from pah.methods.base import Method, stepping
from pah.models.modes import computing
from pah.training.checkpoint import optimizer_tensors
from pah.training.evaluation import evaluate
from pah.training.options import TrainingOptions
from pah.training.state import EpochDone, Event, StepDone, TaskBegun, TaskDone, TrainState


def train(
    method: Method, stream: Stream, options: TrainingOptions, augment: AugmentOptions, seed: int, state: TrainState
) -> Iterator[Event]:
    """Learn the stream from where `state` stands to its end.

    Args:
        method: Learns, in place.
        stream: The tasks, in their order.
        options: How long and in what steps.
        augment: What may be changed of a training image.
        seed: Names all random numbers but those of the first weights.
        state: How far training has come, kept up to date in place; a new one to begin with.

    Yields:
        A `StepDone` after each batch, an `EpochDone`, and a `TaskDone` with the accuracies on all tasks seen.

    Raises:
        InputError: a loss became NaN or infinite: says which term, in which task and step.
    """
    for task in stream.tasks[state.task :]:
        seen = stream.tasks[: task.index + 1]
        yield from learn_task(method, seen, options, augment, seed, state)
        started = time.perf_counter()
        accuracies, class_incremental = evaluate(method, seen, options)
        state.matrix.append(accuracies)
        state.class_incremental.append(class_incremental)
        state.task, state.began, state.epoch = task.index + 1, False, 0
        state.seconds += time.perf_counter() - started
        yield TaskDone(task.index, accuracies)


def learn_task(
    method: Method,
    seen: tuple[Task, ...],
    options: TrainingOptions,
    augment: AugmentOptions,
    seed: int,
    state: TrainState,
) -> Iterator[Event]:
    """Learn the last of the tasks `seen` from where `state` stands to its end; nothing is evaluated.

    Raises:
        InputError: a loss became NaN or infinite: says which term, in which task and step.
    """
    task = seen[-1]
    _require_slices(method, seen, options)
    if not state.began:
        with computing(options.precision, method.device):
            begin(method, task, seed)
        distributed.agree(list(method.state_dict().values()))
        state.began = True
        yield TaskBegun(task.index)
    for _ in range(state.epoch, options.epochs_of(task.index)):
        yield from _epoch(method, seen, options, augment, seed, state)
    started = time.perf_counter()
    torch.manual_seed(derived_seed(seed, task.index, "end"))
    method.end_task(task)
    method.release()
    distributed.agree(
        list(method.state_dict().values())
    )  # processes on unlike machines may have measured unlike numbers
    state.seconds += time.perf_counter() - started


def _epoch(
    method: Method,
    seen: tuple[Task, ...],
    options: TrainingOptions,
    augment: AugmentOptions,
    seed: int,
    state: TrainState,
) -> Iterator[Event]:
    """The rest of the current task's epoch `state.epoch`, from batch `state.step` on."""
    source = _source(method, seen)
    images = sum(len(task.train) for task in source)
    batch_size = options.batch_size_of(state.task, images)
    per_epoch = number_of_batches(images, batch_size)
    total = options.epochs_of(state.task) * per_epoch
    device, scaler = method.device, _scaler(options, method.device, state)
    method.train()
    started = time.perf_counter()
    for batch in training_batches(source, batch_size, augment, seed, state.epoch, state.step, device):
        done = state.epoch * per_epoch + state.step
        share = len(batch.y) / batch.images
        set_learning_rates(method, lr_factor(done, total, options.schedule))
        torch.manual_seed(derived_seed(seed, state.task, state.epoch, state.step, "step"))  # dropout and the like
        step = f"step {state.step + 1} of {per_epoch}"
        try:
            with computing(options.precision, device), stepping(share, scaler, options.sync_batch_norm):
                terms = method.observe(batch)
        except NonFiniteLossError as error:
            raise _not_finite(error, step, state, options) from None
        state.unread.append((step, {name: term.detach() for name, term in terms.items()}))
        read_now = device.type == "cpu" or state.step + 1 == per_epoch
        found = read_terms(state, options) if read_now else {}
        seconds = time.perf_counter() - started
        _count(state, batch.images, seconds)
        if scaler is not None:
            state.scaler = scaler.state_dict()
        yield StepDone(found, batch.images, seconds, done + 1, total - done - 1)
        started = time.perf_counter()
    means = {name: value / per_epoch for name, value in state.term_sums.items()}
    lr = method.optimizer_options.lr * lr_factor((state.epoch + 1) * per_epoch - 1, total, options.schedule)
    line = EpochDone(state.task, state.epoch, means, lr, state.epoch_seconds, images / state.epoch_seconds)
    state.epoch, state.step, state.term_sums, state.epoch_seconds = state.epoch + 1, 0, {}, 0.0
    yield line


def read_terms(state: TrainState, options: TrainingOptions) -> dict[str, float]:
    """Add to `state.term_sums` what steps have left on the device, fetched in one piece; returns the last one's terms.

    To be called before the state is saved. Nothing else in a step waits for a GPU.

    Raises:
        InputError: a loss became NaN or infinite: says which term, in which task, epoch and step.
    """
    unread, state.unread = state.unread, []
    every = [term for _, terms in unread for term in terms.values()]
    values = iter(torch.stack(every).cpu().tolist() if every else [])
    found: dict[str, float] = {}
    for step, terms in unread:
        found = {name: next(values) for name in terms}
        for name, value in found.items():
            if not math.isfinite(value):
                raise _not_finite(NonFiniteLossError(name, value), step, state, options)
            state.term_sums[name] = state.term_sums.get(name, 0.0) + value
    return found


def _not_finite(error: NonFiniteLossError, step: str, state: TrainState, options: TrainingOptions) -> InputError:
    """What is said of a loss of the current epoch."""
    return InputError(
        f"{error} in task {state.task + 1}, epoch {state.epoch + 1}, {step}: "
        f"expected a finite loss; {_what_helps(options)} may help"
    )


def _source(method: Method, seen: tuple[Task, ...]) -> tuple[Task, ...]:
    """The tasks whose images the method learns from."""
    return seen if method.learns_from == "all tasks seen" else seen[-1:]


def _require_slices(method: Method, seen: tuple[Task, ...], options: TrainingOptions) -> None:
    """Raise InputError for a batch too small to be shared out: batch norm needs 2 images in every process."""
    images, processes = sum(len(task.train) for task in _source(method, seen)), distributed.count()
    batch_size = options.batch_size_of(seen[-1].index, images)
    smallest = images // number_of_batches(images, batch_size)
    if processes > 1 and smallest < 2 * processes:
        raise InputError(
            f"training.batch_size {batch_size}: expected at least 2 images for each of {processes} processes "
            f"in every batch, got a batch of {smallest} in task {seen[-1].index + 1}"
        )


def _scaler(options: TrainingOptions, device: torch.device, state: TrainState) -> torch.amp.GradScaler | None:
    """What scales losses in fp16, as it stood after the last step."""
    if options.precision != "fp16":
        return None
    scaler = torch.amp.GradScaler(device.type)
    if state.scaler:
        scaler.load_state_dict(state.scaler)
    return scaler


def _what_helps(options: TrainingOptions) -> str:
    """Against a loss that is not finite."""
    return "--precision bf16 or fp32" if options.precision == "fp16" else "a lower --optimizer.lr"


def begin(method: Method, task: Task, seed: int) -> None:
    """Begin a task, with what it draws named by (seed, task): replaying it draws the same."""
    torch.manual_seed(derived_seed(seed, task.index, "begin"))
    method.begin_task(task)


def replay(method: Method, stream: Stream, state: TrainState, seed: int) -> None:
    """Bring a fresh method into the shape that `state` describes, ready for its tensors to be loaded."""
    for task in stream.tasks[: state.task + state.began]:
        method.release()
        begin(method, task, seed)
    if not state.began:
        method.release()


def require_finite(method: Method, state: TrainState) -> None:
    """Raise InputError for numbers that are of no use: the loss of a last step is seen by nobody, and of a gradient
    whose square is infinite Adam makes a step of zero, now and ever after."""
    steps = optimizer_tensors(method.optimizers)
    for name, tensor in (method.state_dict() | {f"optimizer {name}": value for name, value in steps.items()}).items():
        if not torch.isfinite(tensor).all():
            inside = f"after {state.epoch} epochs and {state.step} steps of task {state.task + 1}"
            raise InputError(
                f"{name} became NaN or infinite {inside if state.began else f'by the end of task {state.task}'}: "
                "expected finite numbers; a lower --optimizer.lr may help"
            )


def lr_factor(step: int, total: int, schedule: str) -> float:
    """The share of the peak learning rate at a step of a task of `total` steps: a pure function of the step."""
    if schedule == "constant":
        return 1.0
    warm = max(1, total // 5)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm + 1) / (total - warm + 1)))


def set_learning_rates(method: Method, factor: float) -> None:
    """Set every group of the method's optimizers to its peak times `factor`."""
    for optimizer in method.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor


def _count(state: TrainState, images: int, seconds: float) -> None:
    """Put a finished step down."""
    state.step += 1
    state.images += images
    state.epoch_seconds += seconds
    state.train_seconds += seconds
    state.seconds += seconds
