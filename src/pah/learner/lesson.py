"""A lesson: what a network that was taught before becomes when it learns one more task."""

import dataclasses
from collections.abc import Callable
from datetime import UTC, datetime
from typing import NamedTuple

import torch

from pah.core.config import InputError, derived_seed
from pah.core.devices import CPU
from pah.data.sources import Source
from pah.data.stream import StreamOptions, make_stream
from pah.data.task import Task
from pah.learner.drift import estimate_drift, fit_carry, update_statistics
from pah.learner.predictor import Predictor
from pah.learner.store import Record, TaughtTask
from pah.methods.base import Method
from pah.models.network import GeneratedHeads
from pah.training.config import RunConfig, build_method
from pah.training.evaluation import evaluate
from pah.training.loop import learn_task, require_finite
from pah.training.state import EpochDone, Event, PrototypesStarted, TaskBegun, TrainState, Validated


class LessonDone(NamedTuple):
    """What a lesson came to.

    Attributes:
        taught: What is known now.
        accuracy: On the test part of the new task, in percent.
        drift: The share of its accuracy that each old task is estimated to have lost, by name, 0 to 1.
    """

    taught: Predictor
    accuracy: float
    drift: dict[str, float]


def teach(
    known: Predictor | None,
    config: RunConfig,
    name: str,
    source: Source,
    watch: Callable[[Event], None],
    device: torch.device = CPU,
    validate: bool = False,
) -> LessonDone:
    """What is known and one task more, in a network of its own.

    Everything that is drawn is named by the seed and the number of lessons so far: a learner that was saved and
    loaded before learns the same, bit for bit, watched or not. With `validate` an epoch is followed by the accuracy on
    the validation images.

    Raises:
        InputError: the method keeps more than a network, which is all a learner keeps, it cannot learn tasks of these
            sizes, or the loss became infinite.
    """
    options = StreamOptions(class_order="natural", validation=config.stream.validation)
    stream = make_stream(source, options, 1, config.seed).on(device)
    if known:
        begun = known.copied()
    else:
        record = Record(config, stream.image_shape, stream.normalization)
        begun = Predictor(record, build_method(config, stream.image_shape).to(device))
    record, method = begun.record, begun.method
    method.optimizer_options = config.optimizer  # a lesson may have others than the one before
    _require_network_is_all(config.method, method)
    index = len(record.tasks)
    task = dataclasses.replace(stream.tasks[0], index=index, normalization=record.normalization)
    seen = (*(without_images(k, of, record) for k, of in enumerate(record.tasks)), task)
    config.method_options.check_stream([len(of.class_names) for of in seen])
    seed, state = derived_seed(config.seed, "lesson", len(record.history)), TrainState(task=index)
    for event in learn_task(method, seen, config.training, config.augment, seed, state):
        watch(event)
        heads = method.network.heads
        if isinstance(event, TaskBegun) and isinstance(heads, GeneratedHeads):
            watch(PrototypesStarted(index, heads.prototypes.tasks[index].detach().cpu().clone()))
        if validate and isinstance(event, EpochDone) and len(task.validation):
            (accuracy,), _ = evaluate(method, (task,), dataclasses.replace(config.training, evaluate_on="validation"))
            watch(Validated(index, event.epoch, accuracy))
    require_finite(method, state)
    entry = TaughtTask(name, task.class_names, task.labels, now(), source.where, len(task.train))
    taught = Predictor(dataclasses.replace(record, tasks=(*record.tasks, entry)), method)
    taught = taught.calibrated(index, task.validation).calibrated_among_all(index, task.validation)
    drift: dict[str, float] = {}
    if taught.shares_features:
        carry = None if known is None else fit_carry(known, taught, task.train, config.augment)
        drift = {} if known is None or carry is None else estimate_drift(known, taught, carry)
        taught = update_statistics(known, taught, carry, task.train)
    return LessonDone(taught, taught.evaluate(source, index, None).accuracy, drift)


def now() -> str:
    """The time, ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _require_network_is_all(name: str, method: Method) -> None:
    """Raise InputError for a method that keeps samples or weights' importance: a learner keeps a network alone."""
    kept = [name for name in method.state_dict() if not name.startswith("network.")]
    if kept or method.learns_from != "this task":
        raise InputError(f"method: expected one that goes on from its network alone, as pah and lwf do, got {name}")


def without_images(index: int, task: TaughtTask, record: Record) -> Task:
    """A task learned earlier, whose images are gone."""
    return Task(index, task.classes, task.labels, record.normalization)
