"""`ContinualLearner`: a classifier that learns one group of classes after another."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, Unpack, overload

from pah.core.config import InputError, require
from pah.core.devices import CPU, DeviceName, find_device
from pah.core.files import locked
from pah.data.image import MAX_MEGAPIXELS
from pah.data.lesson import LessonData, with_all_images_in_test
from pah.data.read_options import ReadKeywords, ReadOptions
from pah.data.sources import Source
from pah.learner import arguments, store
from pah.learner.answering import How, Inputs, predict, predict_readable
from pah.learner.defaults import defaults
from pah.learner.held_out import DriftError as DriftError  # callers import it from here
from pah.learner.held_out import HeldOutTask, make_lesson, measure, notes_on_limits, refuse_losses, task_losses
from pah.learner.hub import download, refuse_to_replace, upload, write_learner
from pah.learner.lesson import run_lesson
from pah.learner.lesson_data import check_options, load_labelled
from pah.learner.prediction import Prediction
from pah.learner.predictor import Evaluation, Predictor
from pah.learner.privacy import public_note
from pah.learner.restore import restore_predictor
from pah.learner.store import Lesson, TaughtTask
from pah.learner.task_inference import DEFAULT_RULE, Rule, require_rule
from pah.models.backbones import backbone_options
from pah.training.config import RunConfig
from pah.training.state import Event


class ContinualLearner:
    """A classifier that learns tasks one after another, without storing their images, and predicts classes of all.

    Args:
        backbone: Name of the backbone, with its default options; that of `config` if None.
        config: Method, backbone, training and all other options. Images of any size are resized to its `image_size`.
            Its `stream.validation` is the share of a lesson's images on which probabilities are calibrated.
            `defaults(image_size)` if None.
        image_size: Pixels a side of the learner's images; None for the size for which the pretrained backbone was made,
            or else 64. Not allowed together with `config`, nor for vectors (backbone "features").

    Raises:
        InputError: the backbone is unknown, or `config` has no `image_size`, although it is for images.
    """

    def __init__(
        self, backbone: str | None = None, config: RunConfig | None = None, image_size: int | None = None
    ) -> None:
        require(image_size is None or config is None, "image_size", "none beside a config, which has one", image_size)
        arguments.require_type("backbone", backbone, str | None, "the name of a backbone")
        arguments.require_type("image_size", image_size, int | None, "a number of pixels")
        arguments.require_type("config", config, RunConfig | None, "a RunConfig")
        if config is None:
            config = defaults(image_size, backbone)
        elif backbone is not None:
            config = dataclasses.replace(config, backbone=backbone, backbone_options=backbone_options(backbone, {}))
        has_size = config.image_size is not None or config.takes_vectors
        require(has_size, "image_size", "the pixels a side of the learner's images", None)
        self._config = config
        self._device = CPU
        self._predictor: Predictor | None = None  # None before the first lesson
        self._origin: tuple[Path, str] | None = None  # folder of the last load or save, and its fingerprint

    @property
    def config(self) -> RunConfig:
        """The options. Those of training, optimizer, augmentation and validation may be changed between lessons.

        Raises:
            InputError: when set with another method, backbone, image size or seed than in the first lesson.
        """
        return self._predictor.record.config if self._predictor else self._config

    @config.setter
    def config(self, new: RunConfig) -> None:
        arguments.require_type("config", new, RunConfig, "a RunConfig")
        if self._predictor:
            arguments.require_same_network(self.config, new)
        self._config = new
        if self._predictor:
            record = dataclasses.replace(self._predictor.record, config=new)
            self._predictor = dataclasses.replace(self._predictor, record=record)

    def to(self, device: DeviceName) -> "ContinualLearner":
        """Move the learner to a device, on which it learns and predicts from now on, and return it.

        The device is not saved with the learner.

        Args:
            device: "cpu", "cuda" or "mps"; "auto" is a GPU if there is one.

        Raises:
            InputError: this machine has no such device.
        """
        self._device = find_device(device)
        if self._predictor:
            self._predictor.method.to(self._device)
            self._predictor = dataclasses.replace(self._predictor)  # drops its cached copy on the old device
        return self

    @property
    def tasks(self) -> tuple[TaughtTask, ...]:
        """The tasks that were learned, in order."""
        return self._predictor.record.tasks if self._predictor else ()

    @property
    def history(self) -> tuple[Lesson, ...]:
        """All lessons, with the measurements after each."""
        return self._predictor.record.history if self._predictor else ()

    @property
    def predictor(self) -> Predictor:
        """The network with the record of its tasks, for measurements and export. Do not change it.

        Raises:
            InputError: no task was learned yet.
        """
        if self._predictor is None:
            raise InputError("expected a learner that was taught a task, got a new one")
        return self._predictor

    def learn(
        self,
        name: str,
        data: LessonData,
        *,
        classes: Sequence[str] | None = None,
        held_out: Mapping[str, LessonData] | None = None,
        max_drift: float | None = None,
        max_loss: float | None = None,
        watch: Callable[[Event], None] = lambda _: None,
        validate: bool = False,
        **reading: Unpack[ReadKeywords],
    ) -> Lesson:
        """Learn a task. If anything goes wrong, the learner is unchanged.

        Args:
            name: Name of the task.
            data: Labelled images, in any form that `pah.data.lesson.load_lesson` accepts.
            classes: Names of the classes to use; all if None.
            held_out: Labelled images of old tasks by task name. Accuracy on them is measured before and after.
            max_loss: Largest number of points of accuracy, 0 to 100, that an old task may lose on its held-out images.
                A lesson that costs more is rolled back. It does not limit tasks without held-out images.
            max_drift: The same limit for all old tasks, as a share from 0 to 1: 0.1 is 10 points. The loss of a task
                without held-out images is the estimate (`Lesson.drift`), which is rough.
            watch: Called with every event of training. An exception that it raises ends the lesson.
            validate: Whether to measure the accuracy on the validation images after each epoch, for `watch`.
            **reading: How the images are read: the fields of `pah.data.read_options.ReadOptions`.

        Raises:
            InputError: the name is taken or cannot be written to a file, the data or an option are invalid, the method
                needs more than its network, or the loss became infinite.
            DriftError: an old task lost more than `max_loss` or `max_drift` allows.
        """
        started, old_tasks = time.monotonic(), [task.name for task in self.tasks]
        if arguments.require_name("task", name) in old_tasks:
            raise InputError(
                f"task {name!r}: expected a new name, got one taught before; forget({name!r}) makes room for it"
            )
        arguments.require_limits(max_drift, max_loss, old_tasks, held_out)
        arguments.require_class_names(data[-1] if isinstance(data, tuple) else ())
        source = self._load(data, options := ReadOptions(**reading), classes)
        arguments.require_class_names(source.class_names)
        loaded = {task: self._load(images, check_options(images, options)) for task, images in (held_out or {}).items()}
        checks = {
            task: HeldOutTask(self.predictor.index(task), with_all_images_in_test(images))
            for task, images in loaded.items()
        }
        notes = source.notes + tuple(
            f"{task}: {note}" for task, check in checks.items() for note in check.images.left_out
        )
        before = measure(self._predictor, checks)
        result = run_lesson(self._predictor, self.config, name, source, watch, self._device, validate)
        after = measure(result.predictor, checks)
        refuse_losses(task_losses(result.drift, before, after), max_drift, max_loss)
        notes = tuple(public_note(note, (data, *(held_out or {}).values())) for note in notes)
        notes += result.notes + notes_on_limits(old_tasks, result.drift, checks, max_loss)
        lesson = make_lesson(name, result, source, time.monotonic() - started, notes, checks, before, after)
        predictor = result.predictor
        record = dataclasses.replace(predictor.record, history=(*predictor.record.history, lesson))
        self._predictor = dataclasses.replace(predictor, record=record)
        return lesson

    @overload
    def predict(
        self, images: Inputs, task: str | None = ..., *, skip_unreadable: Literal[False] = ..., **how: Unpack[How]
    ) -> list[Prediction]: ...

    @overload
    def predict(
        self, images: Inputs, task: str | None = ..., *, skip_unreadable: bool, **how: Unpack[How]
    ) -> list[Prediction | None]: ...

    def predict(
        self,
        images: Inputs,
        task: str | None = None,
        *,
        rule: Rule = DEFAULT_RULE,
        unknown: bool | float = False,
        top: int = 0,
        skip_unreadable: bool = False,
        max_megapixels: int = MAX_MEGAPIXELS,
    ) -> list[Prediction] | list[Prediction | None]:
        """Return a prediction for each image.

        Args:
            images: One image or several, of any size, in any form that `pah.data.image.to_pixel_array` accepts; for
                a learner of vectors, one vector (D,) or several (N, D).
            task: Name of the task whose classes are considered; it is inferred if None.
            rule: How the task is inferred (`pah.learner.task_inference.task_scores`).
            unknown: Whether "none of these" may be predicted. A number is the share of images of known classes for
                which this is allowed; `True` stands for 0.05.
            top: Number of classes in `Prediction.top`; all of the task if it has fewer.
            skip_unreadable: Whether to return None for an image that cannot be read, instead of an error.
            max_megapixels: An image with more pixels counts as unreadable.

        Raises:
            InputError: the task is unknown, or the images are invalid.
        """
        how = How(rule=rule, unknown=unknown, top=top, max_megapixels=max_megapixels)
        return (predict_readable if skip_unreadable else predict)(self.predictor, images, task, how)

    def evaluate(
        self,
        data: LessonData,
        task: str,
        *,
        task_given: bool = True,
        rule: Rule = DEFAULT_RULE,
        **reading: Unpack[ReadKeywords],
    ) -> Evaluation:
        """Return the accuracy on labelled images of a task: on their test part if they have one, otherwise on all.

        Args:
            data: Labelled images, in any form that `pah.data.lesson.load_lesson` accepts. Their classes are those of
                the task, or some of them.
            task: Name of the task.
            task_given: Whether the task is given; otherwise it is inferred.
            rule: How the task is inferred.
            **reading: How the images are read, as in `learn`.

        Raises:
            InputError: the task is unknown, a class is not one of the task, or the data are invalid.
        """
        require_rule(rule)
        index = self.predictor.index(task)
        images = with_all_images_in_test(self._load(data, ReadOptions(**reading)))
        return self.predictor.evaluate(images, index, None if task_given else rule)

    def forget(self, name: str) -> None:
        """Remove a task with its names, prototypes and head. Predictions for the other tasks do not change.

        Raises:
            InputError: the task is unknown or the only one, or the network cannot separate its parts for a task.
        """
        predictor = self.predictor.copy()
        index = predictor.index(name)
        expected = "a task beside others, as a learner without tasks has no answer; delete its folder instead"
        require(len(self.tasks) > 1, "forget", expected, name)
        predictor.method.network.remove(index)
        predictor.method.task -= 1
        tasks = tuple(task for task in self.tasks if task.name != name)
        statistics = predictor.statistics.without_task(index) if predictor.statistics else None
        self._predictor = Predictor(dataclasses.replace(predictor.record, tasks=tasks), predictor.method, statistics)

    def save(self, folder: str | Path) -> None:
        """Write the learner into a folder, completely or not at all.

        Raises:
            InputError: no task was learned yet, the disk is full, or the folder holds another learner, one that
                another process changed in the meantime, or a file that would be lost.
        """
        with locked(Path(folder)):
            self.write(Path(folder))

    def write(self, path: Path) -> None:
        """Do what `save` does, for a caller that holds the folder's lock (`pah.core.files.locked`)."""
        predictor = self.predictor
        fingerprint = store.fingerprint(path)
        if fingerprint is not None and self._origin != (path.resolve(), fingerprint):
            raise InputError(
                f"{path}: expected no learner or the one that was loaded from there, got another, or one that was "
                "taught since; save it elsewhere"
            )
        refuse_to_replace(path)
        try:
            write_learner(path, predictor)
        finally:  # if the disk is full, all files except the model card may have been written
            self._origin = (path.resolve(), str(store.fingerprint(path)))

    @classmethod
    def load(cls, folder: str | Path) -> "ContinualLearner":
        """Return the learner in a folder, or the model of a run (`runs/x/model`).

        Raises:
            InputError: there is no learner, it is damaged, or a newer pah wrote it.
        """
        path = Path(folder)
        fingerprint = store.fingerprint(path)
        record, tensors = store.load(path)
        learner = cls(config=record.config)
        learner._predictor = restore_predictor(record, tensors)
        learner._origin = (path.resolve(), str(fingerprint))
        return learner

    def push_to_hub(self, repo_id: str, *, private: bool = False) -> str:
        """Upload the learner to the Hugging Face hub, with a model card, and return its address.

        Raises:
            InputError: no task was learned yet, or the hub cannot be reached or refuses.
        """
        return upload(self.predictor, repo_id, private)

    @classmethod
    def from_pretrained(cls, source: str | Path, *, revision: str | None = None) -> "ContinualLearner":
        """Return the learner in a folder or on the Hugging Face hub. Loading never runs code.

        Raises:
            InputError: there is no learner, or it is damaged.
        """
        return cls.load(source if Path(source).is_dir() else download(str(source), revision))

    def _load(self, data: LessonData, options: ReadOptions, classes: Sequence[str] | None = None) -> Source:
        """Return labelled images in the learner's size and channels, or labelled vectors."""
        record = self._predictor.record if self._predictor else None
        return load_labelled(data, self.config, record, options, classes)
