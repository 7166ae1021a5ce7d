"""The training loop over tasks, epochs and batches.

`train` is a generator. It computes and yields events; the caller saves, logs and displays. At each yield the
`TrainState` says exactly how far training is, so the caller can save it or stop there.
"""

import dataclasses
import math
import time
from collections.abc import Iterator

import torch

from pah.core import distributed
from pah.core.config import InputError, NonFiniteLossError, derived_seed
from pah.data.augment import AugmentOptions
from pah.data.stream import Stream, number_of_batches, training_batches
from pah.data.task import Task
from pah.methods.base import Method, step_context
from pah.models.modes import autocast
from pah.training.checkpoint import optimizer_tensors
from pah.training.evaluation import evaluate
from pah.training.options import TrainingOptions
from pah.training.state import EpochDone, Event, StepDone, TaskBegun, TaskDone, TrainState
from pah.training.transfer import measure_readiness


def train(
    method: Method, stream: Stream, options: TrainingOptions, augment: AugmentOptions, seed: int, state: TrainState
) -> Iterator[Event]:
    """Train the method on the stream, from `state` to the end.

    Args:
        method: The method to train, in place.
        stream: The tasks, in their order.
        options: Epochs, batch size, schedule, precision and evaluation.
        augment: How training images are augmented.
        seed: Seed of all random numbers except those of the initial weights.
        state: How far training is; updated in place. Pass a new one to start from the beginning.

    Yields:
        A `TaskBegun` at the start of each task, a `StepDone` after each batch, an `EpochDone` after each epoch, and a
        `TaskDone` with the accuracies on all tasks seen.

    Raises:
        InputError: a loss became NaN or infinite. The message names the term, the task and the step.
    """
    for task in stream.tasks[state.task :]:
        seen = stream.tasks[: task.index + 1]
        for event in learn_task(method, seen, options, augment, seed, state):
            if options.measure_transfer and isinstance(event, TaskBegun):
                _measure_transfer(method, task, options, state)
            yield event
        started = time.perf_counter()
        accuracies, class_incremental = evaluate(method, seen, options)
        state.matrix.append(accuracies)
        state.class_incremental.append(class_incremental)
        state.task, state.began, state.epoch, state.best_epoch = task.index + 1, False, 0, None
        state.seconds += time.perf_counter() - started
        yield TaskDone(task.index, accuracies)


def _measure_transfer(method: Method, task: Task, options: TrainingOptions, state: TrainState) -> None:
    """Add the accuracy on a task that was just begun to the state."""
    started = time.perf_counter()
    readiness = measure_readiness(method, task, options)
    state.head_before.append(readiness.head)
    state.features_before.append(readiness.features)
    state.seconds += time.perf_counter() - started


def learn_task(
    method: Method,
    seen: tuple[Task, ...],
    options: TrainingOptions,
    augment: AugmentOptions,
    seed: int,
    state: TrainState,
) -> Iterator[Event]:
    """Train the method on the last of the tasks `seen`, from `state` to the task's end, without evaluation.

    Raises:
        InputError: a loss became NaN or infinite. The message names the term, the task and the step.
    """
    task = seen[-1]
    _require_large_batches(method, seen, options)
    if not state.began:
        with autocast(options.precision, method.device):
            begin(method, task, seed)
        distributed.broadcast_from_main(list(method.state_dict().values()))
        state.began = True
        yield TaskBegun(task.index)
    while not epochs_are_over(state, options):
        yield from _train_epoch(method, seen, options, augment, seed, state)
    started = time.perf_counter()
    if options.validates:
        _end_validated_task(method, state)
    torch.manual_seed(derived_seed(seed, task.index, "end"))
    method.end_task(task)
    method.release()
    # processes on different machines may have computed slightly different numbers
    distributed.broadcast_from_main(list(method.state_dict().values()))
    state.seconds += time.perf_counter() - started


def _train_epoch(
    method: Method,
    seen: tuple[Task, ...],
    options: TrainingOptions,
    augment: AugmentOptions,
    seed: int,
    state: TrainState,
) -> Iterator[Event]:
    """Train on the rest of the epoch `state.epoch` of the current task, starting at batch `state.step`."""
    tasks = _training_tasks(method, seen)
    images = sum(len(task.train) for task in tasks)
    batch_size = options.batch_size_of(state.task, images)
    steps_per_epoch = number_of_batches(images, batch_size)
    total_steps = options.epochs_of(state.task) * steps_per_epoch
    device, scaler = method.device, _make_scaler(options, method.device, state)
    method.train()
    started = time.perf_counter()
    for batch in training_batches(tasks, batch_size, augment, seed, state.epoch, state.step, device):
        done = state.epoch * steps_per_epoch + state.step
        share = len(batch.y) / batch.global_size
        set_learning_rates(method, lr_factor(done, total_steps, options.schedule))
        torch.manual_seed(derived_seed(seed, state.task, state.epoch, state.step, "step"))  # e.g. for dropout
        step_name = f"step {state.step + 1} of {steps_per_epoch}"
        try:
            with autocast(options.precision, device), step_context(share, scaler, options.sync_batch_norm):
                terms = method.observe(batch)
        except NonFiniteLossError as error:
            raise _non_finite_error(error, step_name, state, options) from None
        state.unread.append((step_name, {name: term.detach() for name, term in terms.items()}))
        read_now = device.type == "cpu" or state.step + 1 == steps_per_epoch
        values = read_terms(state, options) if read_now else {}
        seconds = time.perf_counter() - started
        _count_step(state, batch.global_size, seconds)
        if scaler is not None:
            state.scaler = scaler.state_dict()
        yield StepDone(values, batch.global_size, seconds, done + 1, total_steps - done - 1)
        started = time.perf_counter()
    last_factor = lr_factor((state.epoch + 1) * steps_per_epoch - 1, total_steps, options.schedule)
    accuracy = _validate(method, tasks, options, state) if options.validates else None
    event = _finish_epoch(state, images, steps_per_epoch, method.optimizer_options.lr * last_factor)
    yield dataclasses.replace(event, validation_accuracy=accuracy, best_epoch=state.best_epoch)


def epochs_are_over(state: TrainState, options: TrainingOptions) -> bool:
    """Return whether the current task has had its last epoch: all are done, or `patience` is exhausted."""
    if state.epoch >= options.epochs_of(state.task):
        return True
    return options.patience > 0 and state.best_epoch is not None and state.epoch - state.best_epoch > options.patience


def _validate(method: Method, tasks: tuple[Task, ...], options: TrainingOptions, state: TrainState) -> float:
    """Return the mean accuracy on the tasks' validation images, in percent, and note in `state` if it is the best.

    Args:
        method: The method, at the end of an epoch.
        tasks: The tasks whose images it learns from. Other tasks have no say: their images are no longer there.
        options: How to evaluate.
        state: `state.epoch` is the epoch that ends.
    """
    started = time.perf_counter()
    if not all(len(task.validation) for task in tasks):
        raise InputError("training.patience or training.keep_best: expected validation images in every task, got none")
    accuracies, _ = evaluate(method, tasks, dataclasses.replace(options, evaluate_on="validation"))
    mean = torch.tensor(sum(accuracies) / len(accuracies), dtype=torch.float64)
    distributed.broadcast_from_main([mean])  # all processes must take the same decision
    accuracy = mean.item()
    if state.best_epoch is None or accuracy > state.best_accuracy:
        state.best_epoch, state.best_accuracy = state.epoch, accuracy
        if options.keep_best:
            state.best_tensors = {name: tensor.detach().clone() for name, tensor in method.state_dict().items()}
    state.seconds += time.perf_counter() - started
    return accuracy


def _end_validated_task(method: Method, state: TrainState) -> None:
    """Restore the method's state after the best epoch, if it was kept: as if the task had been stopped there."""
    if state.best_epoch is None:
        return
    state.epochs_trained.append(state.epoch)
    state.best_epochs.append(state.best_epoch)
    if state.best_tensors:
        method.load_state_dict(state.best_tensors, strict=True)
        state.best_tensors = {}


def _finish_epoch(state: TrainState, images: int, steps: int, lr: float) -> EpochDone:
    """Move the state to the next epoch and return the event of the epoch that ended."""
    means = {name: value / state.term_steps.get(name, steps) for name, value in state.term_sums.items()}
    event = EpochDone(state.task, state.epoch, means, lr, state.epoch_seconds, images / state.epoch_seconds)
    state.epoch, state.step, state.epoch_seconds = state.epoch + 1, 0, 0.0
    state.term_sums, state.term_steps = {}, {}
    return event


def _count_step(state: TrainState, images: int, seconds: float) -> None:
    """Add a finished step to the state."""
    state.step += 1
    state.images += images
    state.epoch_seconds += seconds
    state.train_seconds += seconds
    state.seconds += seconds


def read_terms(state: TrainState, options: TrainingOptions) -> dict[str, float]:
    """Move the loss terms of finished steps from the device into `state.term_sums`.

    All unread terms are copied at once, because nothing else in a step waits for a GPU. Call this before the state is
    saved.

    Returns:
        The terms of the last step.

    Raises:
        InputError: a loss became NaN or infinite. The message names the term, the task, the epoch and the step.
    """
    unread, state.unread = state.unread, []
    unread_terms = [term for _, terms in unread for term in terms.values()]
    values = iter(torch.stack(unread_terms).cpu().tolist() if unread_terms else [])
    step_values: dict[str, float] = {}
    for step_name, terms in unread:
        step_values = {name: next(values) for name in terms}
        for name, value in step_values.items():
            if not math.isfinite(value):
                raise _non_finite_error(NonFiniteLossError(name, value), step_name, state, options)
            state.term_sums[name] = state.term_sums.get(name, 0.0) + value
            state.term_steps[name] = state.term_steps.get(name, 0) + 1
    return step_values


def _non_finite_error(
    error: NonFiniteLossError, step_name: str, state: TrainState, options: TrainingOptions
) -> InputError:
    """Return the error for a loss of the current epoch that is not finite."""
    advice = "--precision bf16 or fp32" if options.precision == "fp16" else "a lower --optimizer.lr"
    return InputError(
        f"{error} in task {state.task + 1}, epoch {state.epoch + 1}, {step_name}: "
        f"expected a finite loss; {advice} may help"
    )


def _training_tasks(method: Method, seen: tuple[Task, ...]) -> tuple[Task, ...]:
    """Return the tasks whose images the method learns from."""
    return seen if method.learns_from == "all tasks seen" else seen[-1:]


def _require_large_batches(method: Method, seen: tuple[Task, ...], options: TrainingOptions) -> None:
    """Raise InputError if a batch is too small to be divided: batch norm needs 2 images in every process."""
    images, processes = sum(len(task.train) for task in _training_tasks(method, seen)), distributed.world_size()
    batch_size = options.batch_size_of(seen[-1].index, images)
    smallest = images // number_of_batches(images, batch_size)
    if processes > 1 and smallest < 2 * processes:
        raise InputError(
            f"training.batch_size {batch_size}: expected at least 2 images for each of {processes} processes "
            f"in every batch, got a batch of {smallest} in task {seen[-1].index + 1}"
        )


def _make_scaler(options: TrainingOptions, device: torch.device, state: TrainState) -> torch.amp.GradScaler | None:
    """Return the loss scaler of fp16 in its state after the last step; None for other precisions."""
    if options.precision != "fp16":
        return None
    scaler = torch.amp.GradScaler(device.type)
    if state.scaler:
        scaler.load_state_dict(state.scaler)
    return scaler


def begin(method: Method, task: Task, seed: int) -> None:
    """Begin a task with random numbers that depend on `seed` and the task alone, so that it can be repeated."""
    torch.manual_seed(derived_seed(seed, task.index, "begin"))
    method.begin_task(task)


def replay(method: Method, stream: Stream, state: TrainState, seed: int) -> None:
    """Begin the tasks that `state` has begun on an untrained method, so that a saved state dict fits it."""
    for task in stream.tasks[: state.task + state.began]:
        method.release()
        begin(method, task, seed)
    if not state.began:
        method.release()


def require_finite(method: Method, state: TrainState) -> None:
    """Raise InputError if a parameter, a buffer or an optimizer state is NaN or infinite.

    No loss shows the effect of the last step. And a gradient whose square is infinite makes all later steps of Adam
    zero.
    """
    optimizer_state = {f"optimizer {name}": value for name, value in optimizer_tensors(method.optimizers).items()}
    for name, tensor in (method.state_dict() | optimizer_state).items():
        if not torch.isfinite(tensor).all():
            in_task = f"after {state.epoch} epochs and {state.step} steps of task {state.task + 1}"
            raise InputError(
                f"{name} became NaN or infinite {in_task if state.began else f'by the end of task {state.task}'}: "
                "expected finite numbers; a lower --optimizer.lr may help"
            )


def lr_factor(step: int, total: int, schedule: str) -> float:
    """Return the share of the peak learning rate at a step, 0 to 1.

    Args:
        step: The step within the task, from 0.
        total: The number of steps of the task.
        schedule: "one-cycle" or "constant".
    """
    if schedule == "constant":
        return 1.0
    warmup = max(1, total // 5)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup + 1) / (total - warmup + 1)))


def set_learning_rates(method: Method, factor: float) -> None:
    """Set the learning rate of every parameter group to its peak times `factor`."""
    for optimizer in method.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
