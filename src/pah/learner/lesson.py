"""A lesson: one more task is learned, starting from a predictor of the earlier tasks."""

import dataclasses
from collections.abc import Callable
from datetime import UTC, datetime
from typing import NamedTuple

import torch

from pah.core.config import InputError, derived_seed
from pah.core.devices import CPU
from pah.data.sources import Images, Source
from pah.data.stream import make_stream
from pah.data.stream_options import StreamOptions
from pah.data.task import Normalization, Task
from pah.learner.calibration import calibrate, calibrate_among_all
from pah.learner.defaults import start_note
from pah.learner.drift import estimate_drift, fit_feature_map, update_statistics
from pah.learner.predictor import Predictor
from pah.learner.store import Record, TaughtTask
from pah.methods.base import Method
from pah.models.network import GeneratedHeads
from pah.training.config import RunConfig, build_method
from pah.training.evaluation import evaluate
from pah.training.features import with_features_if_frozen
from pah.training.loop import learn_task, require_finite
from pah.training.state import EpochDone, Event, PrototypesInitialized, TaskBegun, TrainState, Validated


class LessonResult(NamedTuple):
    """The result of a lesson.

    Attributes:
        predictor: The predictor after the lesson.
        accuracy: Accuracy on the test part of the new task, in percent; None if it has no test images.
        drift: Estimated share of its accuracy that each old task lost, by task name, 0 to 1.
        notes: What the lesson could not do.
    """

    predictor: Predictor
    accuracy: float | None
    drift: dict[str, float]
    notes: tuple[str, ...] = ()


def run_lesson(
    previous: Predictor | None,
    config: RunConfig,
    name: str,
    source: Source,
    watch: Callable[[Event], None],
    device: torch.device = CPU,
    validate: bool = False,
) -> LessonResult:
    """Train a copy of the previous predictor's network on one more task.

    All random numbers depend on the seed and the number of earlier lessons. So a learner that was saved and loaded
    learns the same, bit for bit, and `watch` changes nothing.

    Args:
        previous: The predictor of the earlier tasks; None for the first lesson.
        config: The options.
        name: Name of the task.
        source: Images of the task.
        watch: Called with every event of training.
        device: Where to train.
        validate: Whether to measure the accuracy on the validation images after each epoch, for `watch`.

    Raises:
        InputError: the method needs more than its network, it cannot learn tasks of these sizes, or the loss became
            infinite.
    """
    options = StreamOptions(class_order="natural", validation=config.stream.validation)
    if previous:
        normalization: Normalization | None = previous.record.normalization
    else:
        normalization = config.backbone_options.normalization(source.train.pixels.shape[1])
    stream = make_stream(source, options, 1, config.seed, 1, normalization).to(device)
    if previous:
        start = previous.copy()
    else:
        resizing = config.backbone_options.resizing
        record = Record(config, stream.image_shape, stream.normalization, resizing=resizing)
        start = Predictor(record, build_method(config, stream.image_shape).to(device))
    record, method = start.record, start.method
    method.optimizer_options = config.optimizer  # they may differ from those of the previous lesson
    _require_network_is_all(config.method, method)
    if len(source.class_names) == 1 and not start.shares_features:
        raise InputError(
            f"classes: expected at least 2 with {config.method}, whose features differ from task to task, got only "
            f"{source.class_names[0]!r}, which could not be told from the classes of other tasks"
        )
    stream = with_features_if_frozen(stream, method, config, watch)
    index = len(record.tasks)
    task = dataclasses.replace(stream.tasks[0], index=index)
    _train(method, task, record, config, watch, validate)
    entry = TaughtTask(name, task.class_names, task.labels, utc_now(), source.origin, len(task.train))
    predictor = Predictor(dataclasses.replace(record, tasks=(*record.tasks, entry)), method)
    drift: dict[str, float] = {}
    if predictor.shares_features:
        feature_map = None if previous is None else fit_feature_map(previous, predictor, task.train, config.augment)
        if previous is not None and feature_map is not None:
            drift = estimate_drift(previous, predictor, feature_map)
        predictor = update_statistics(previous, predictor, feature_map, task.train)
    predictor = calibrate(predictor, index, task.validation)
    predictor = calibrate_among_all(predictor, index, task.validation)
    accuracy = None
    if len(task.test):
        images = Images(task.test.inputs(task.test.rows), task.test.labels)
        accuracy = predictor.evaluate(dataclasses.replace(source, test=images), index, None).accuracy
    start_notes = (start_note(config),) if previous is None else ()
    return LessonResult(predictor, accuracy, drift, start_notes + _single_class_notes(predictor))


def _train(
    method: Method, task: Task, record: Record, config: RunConfig, watch: Callable[[Event], None], validate: bool
) -> None:
    """Train the method on a task that follows those of the record; pass all events to `watch`."""
    seen = (*(_task_without_images(k, entry, record) for k, entry in enumerate(record.tasks)), task)
    config.method_options.check_stream([len(each.class_names) for each in seen])
    seed, state = derived_seed(config.seed, "lesson", len(record.history)), TrainState(task=task.index)
    on_validation = dataclasses.replace(config.training, evaluate_on="validation") if validate else None
    for event in learn_task(method, seen, config.training, config.augment, seed, state):
        watch(event)
        heads = method.network.heads
        if isinstance(event, TaskBegun) and isinstance(heads, GeneratedHeads):
            watch(PrototypesInitialized(task.index, heads.prototypes.tasks[task.index].detach().cpu().clone()))
        if on_validation and isinstance(event, EpochDone):
            (accuracy,), _ = evaluate(method, (task,), on_validation)
            if accuracy is not None:  # it is None without validation images
                watch(Validated(task.index, event.epoch, accuracy))
    require_finite(method, state)


def _single_class_notes(predictor: Predictor) -> tuple[str, ...]:
    """Return what an owner must know about the last task if it has a single class."""
    tasks, statistics = predictor.record.tasks, predictor.statistics
    task = tasks[-1]
    if len(task.classes) > 1:
        return ()
    label = task.classes[0]
    notes = [
        f"{task.name} has a single class: with the task given, the answer is always {label}, with probability 1.0; "
        f"without the task, an image is {label} if its features are nearest to the mean of this class"
    ]
    if len(tasks) == 1:
        notes.append("the network learned nothing yet: a first lesson of two or more classes gives better features")
    if statistics and (unknown := [t.name for t, means in zip(tasks, statistics.means, strict=True) if not len(means)]):
        notes.append(
            f"without the task, no image will be {label}: no means of the classes of {', '.join(unknown)} are stored"
        )
    return tuple(notes)


def utc_now() -> str:
    """Return the current time, ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _require_network_is_all(name: str, method: Method) -> None:
    """Raise InputError if the method needs more than its network, e.g. samples: a learner saves only a network."""
    others = [key for key in method.state_dict() if not key.startswith("network.")]
    if others or not method.network_is_all or method.learns_from != "this task":
        raise InputError(f"method: expected one that goes on from its network alone, as pah and lwf do, got {name}")


def _task_without_images(index: int, task: TaughtTask, record: Record) -> Task:
    """Return a task that was learned earlier, without its images."""
    return Task(index, task.classes, task.labels, record.normalization)
