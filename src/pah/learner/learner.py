"""A classifier that learns one group of classes after another, and can be saved, taught and asked at any time."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from pah.core.config import InputError, require
from pah.core.devices import CPU, DeviceName, find_device
from pah.core.files import locked
from pah.data.augment import AugmentOptions
from pah.data.benchmarks import LESSONS
from pah.data.image import Images, to_pixels
from pah.data.lesson import Data, load_lesson, whole
from pah.data.sources import Source
from pah.data.stream import StreamOptions
from pah.learner import store
from pah.learner.hub import download, refuse_to_replace, upload, write_whole
from pah.learner.lesson import now, teach
from pah.learner.predictor import Evaluation, Prediction, Predictor
from pah.learner.store import Lesson, TaughtTask
from pah.learner.task_inference import RULE, Rule
from pah.models.backbones import backbone_options
from pah.training.config import RunConfig
from pah.training.state import Event

FALSE_ALARM = 0.05  # share of images of known classes that `unknown=True` takes for none of them
IMAGE_SIZE = 64  # pixels a side of a learner's images
SMALL = 32  # pixels a side, below which the small backbone learns: the other one would halve them away


def defaults(image_size: int = IMAGE_SIZE) -> RunConfig:
    """The options of a new learner for images of that many pixels a side: of the command, Python and the page."""
    backbone = "convnet" if image_size < SMALL else "resnet18-slim"
    usual = RunConfig(
        benchmark="split",
        image_size=image_size,
        backbone=backbone,
        backbone_options=backbone_options(backbone, {}),
        stream=StreamOptions(validation=0.1),
        augment=AugmentOptions(crop=image_size // 8, flip=True),
    ).as_dict()
    for name, value in LESSONS.items():
        group, _, option = name.partition(".")
        usual[group][option] = value
    return RunConfig.from_dict(usual)


DEFAULT = defaults()


class DriftError(Exception):
    """A lesson cost an old task more than its owner allows, and was rolled back. `drift`: of each task, 0 to 1."""

    def __init__(self, drift: Mapping[str, float], allowed: float) -> None:
        worst = max(drift, key=lambda name: drift[name])
        super().__init__(
            f"lesson rolled back: expected no old task to lose more than {100 * allowed:g} points of accuracy, by the "
            f"estimate or on held-out images, got {100 * drift[worst]:.1f} for {worst!r}"
        )
        self.drift = drift


class ContinualLearner:
    """Learns tasks one after another without keeping their images, and answers about all of them.

    Args:
        backbone: Name of the backbone, with its default options; that of `config` unless given.
        config: Method, backbone, training and the rest of the options; `image_size` is that of the learner's images,
            whatever size arrives, and `stream.validation` the share of a lesson that probabilities are calibrated on.
            `defaults(image_size)` unless given.
        image_size: Pixels a side of its images; 64 unless given, and not to be given beside a `config`.

    Raises:
        InputError: there is no such backbone, or the method keeps more than a network, which is all a learner keeps.
    """

    def __init__(
        self, backbone: str | None = None, config: RunConfig | None = None, image_size: int | None = None
    ) -> None:
        require(image_size is None or config is None, "image_size", "none beside a config, which has one", image_size)
        config = config or defaults(image_size or IMAGE_SIZE)
        if backbone is not None:
            config = dataclasses.replace(config, backbone=backbone, backbone_options=backbone_options(backbone, {}))
        require(config.image_size is not None, "image_size", "the pixels a side of the learner's images", None)
        self._config = config
        self._device = CPU
        self._taught: Predictor | None = None  # from the first lesson on
        self._came_from: tuple[Path, str] | None = None  # the folder it was loaded from or saved in, and its state

    @property
    def config(self) -> RunConfig:
        """Its options. Those of training, optimizer, augmentation and validation may be set anew between lessons.

        Raises:
            InputError: when set, for another method, backbone, image size or seed than the first lesson had.
        """
        return self._taught.record.config if self._taught else self._config

    @config.setter
    def config(self, new: RunConfig) -> None:
        for key in ("method", "method_options", "backbone", "backbone_options", "image_size", "seed"):
            old, asked = getattr(self.config, key), getattr(new, key)
            require(self._taught is None or asked == old, key, f"that of the first lesson, {old!r}", asked)
        self._config = new
        if self._taught:
            self._taught = dataclasses.replace(
                self._taught, record=dataclasses.replace(self._taught.record, config=new)
            )

    def to(self, device: DeviceName) -> "ContinualLearner":
        """The learner itself, from now on learning and answering on the device, of which nothing is saved.

        Args:
            device: cpu, cuda, mps; or auto, a GPU where there is one.

        Raises:
            InputError: this machine has no such device.
        """
        self._device = find_device(device)
        if self._taught:
            self._taught.method.to(self._device)
            self._taught = dataclasses.replace(self._taught)  # what it answers with is made anew, there
        return self

    @property
    def tasks(self) -> tuple[TaughtTask, ...]:
        """What it knows, in the order of the lessons."""
        return self._taught.record.tasks if self._taught else ()

    @property
    def history(self) -> tuple[Lesson, ...]:
        """Every lesson, with what was measured after it."""
        return self._taught.record.history if self._taught else ()

    @property
    def taught(self) -> Predictor:
        """Its network and what is kept of each task, for whoever measures or exports it; not to be changed.

        Raises:
            InputError: nothing was taught yet.
        """
        if self._taught is None:
            raise InputError("expected a learner that was taught a task, got a new one")
        return self._taught

    def learn(
        self,
        name: str,
        data: Data,
        *,
        classes: Sequence[str] | None = None,
        label_column: str | None = None,
        skip_unreadable: bool = False,
        held_out: Mapping[str, Data] | None = None,
        max_drift: float | None = None,
        watch: Callable[[Event], None] = lambda _: None,
        validate: bool = False,
    ) -> Lesson:
        """Teach a task; whatever goes wrong, the learner stays as it was.

        Args:
            name: By which the task is asked.
            data: Its images; what `load_lesson` takes.
            classes: Only these classes of the data; all unless given.
            label_column: Of the labels, where it is not plain.
            skip_unreadable: Leave out image files that cannot be read.
            held_out: For old tasks by name, images kept for checking: accuracy on them is measured before and after.
            max_drift: The largest share of an old task's images, 0 to 1, that may be answered worse than before, by
                the estimate (`Lesson.drift`) or on what was held out for it: 0.1 undoes a lesson that costs an old task
                more than 10 points of accuracy.
            watch: Called with every event of training; what it raises ends the lesson.
            validate: Whether to measure accuracy on the validation images after each epoch, for `watch`.

        Raises:
            InputError: the name is taken, the data are not good, or the loss became infinite.
            DriftError: there was more drift than `max_drift`.
        """
        started = time.monotonic()
        if any(task.name == name for task in self.tasks):
            raise InputError(
                f"task {name!r}: expected a new name, got one taught before; forget({name!r}) makes room for it"
            )
        require(name.strip() != "", "task", "a name", name)
        require(max_drift is None or 0 <= max_drift <= 1, "max_drift", "a number from 0 to 1", max_drift)
        source, notes = self._load(data, classes=classes, label_column=label_column, skip_unreadable=skip_unreadable)
        checks = {
            old: (self.taught.index(old), whole(self._load(images)[0])) for old, images in (held_out or {}).items()
        }
        before = {old: self.taught.evaluate(images, k, None).accuracy for old, (k, images) in checks.items()}
        taught, accuracy, drift = teach(self._taught, self.config, name, source, watch, self._device, validate)
        after = {old: taught.evaluate(images, k, None).accuracy for old, (k, images) in checks.items()}
        worst = drift | {old: max(drift.get(old, 0.0), (before[old] - after[old]) / 100) for old in checks}
        if max_drift is not None and any(moved > max_drift for moved in worst.values()):
            raise DriftError(worst, max_drift)
        if silent := [task.name for task in self.tasks if task.name not in drift]:
            notes += (f"no estimate of what was lost of {', '.join(silent)}: no statistics of its classes were kept",)
        lesson = Lesson(
            name=name,
            taught=now(),
            accuracies=after | {name: accuracy},
            drift=drift,
            seconds=round(time.monotonic() - started, 3),
            notes=notes,
        )
        record = dataclasses.replace(taught.record, history=(*taught.record.history, lesson))
        self._taught = dataclasses.replace(taught, record=record)
        return lesson

    def predict(
        self, images: Images, task: str | None = None, *, rule: Rule = RULE, unknown: bool | float = False
    ) -> list[Prediction]:
        """What is on each image.

        Args:
            images: uint8 (N, H, W) or (N, H, W, 3), PIL images, or image files; of any size.
            task: Whose classes are asked; inferred unless given.
            rule: How the task is inferred (`pah.learner.task_inference.task_scores`).
            unknown: Whether "none of these" is an answer; a number is the share of images of known classes for which
                it may be the answer, `True` stands for 0.05.

        Raises:
            InputError: an unknown task, or images that are none.
        """
        taught = self.taught
        rate = (FALSE_ALARM if unknown is True else float(unknown)) if unknown is not False else None
        require(rate is None or 0 < rate <= 0.5, "unknown", "a share above 0 and up to 0.5", rate)
        among = range(len(self.tasks)) if task is None else [taught.index(task)]
        pixels = torch.from_numpy(to_pixels(images, taught.record.image_shape))
        return [one for found in taught.answer(pixels, among, rule) for one in taught.predictions(found, rate)]

    def evaluate(self, data: Data, task: str, *, task_given: bool = True, rule: Rule = RULE) -> Evaluation:
        """Accuracy on labelled images of a task: of their own test part, where they have one, otherwise of all.

        Args:
            data: What `load_lesson` takes; its classes are the task's, or some of them.
            task: Whose images they are.
            task_given: Whether the learner is told so.
            rule: How it finds the task where it is not told.

        Raises:
            InputError: an unknown task, other classes, or data that are not good.
        """
        index = self.taught.index(task)
        return self.taught.evaluate(whole(self._load(data)[0]), index, None if task_given else rule)

    def forget(self, name: str) -> None:
        """Remove a task, its names, prototypes and head: what remains answers as before.

        Raises:
            InputError: an unknown task, the only one, or a network whose parts for a task cannot be told apart.
        """
        taught = self.taught.copied()
        index = taught.index(name)
        require(len(self.tasks) > 1, "forget", "a task beside others", name)
        taught.method.network.remove(index)
        taught.method.task -= 1
        tasks = tuple(task for task in self.tasks if task.name != name)
        statistics = taught.statistics.without(index) if taught.statistics else None
        self._taught = Predictor(dataclasses.replace(taught.record, tasks=tasks), taught.method, statistics)

    def save(self, folder: str | Path) -> None:
        """Write the learner into a folder, whole or not at all.

        Raises:
            InputError: nothing was taught yet, the folder holds another learner, one that another process taught in
                the meantime, or a file that would be lost, or the disk is full.
        """
        with locked(Path(folder)):
            self.write(Path(folder))

    def write(self, path: Path) -> None:
        """`save`, for whoever holds the folder's lock (`pah.runs.folder.locked`)."""
        taught = self.taught
        state = store.state_of(path)
        if state is not None and self._came_from != (path.resolve(), state):
            raise InputError(
                f"{path}: expected no learner or the one that was loaded from there, got another, or one that was "
                "taught since; save it elsewhere"
            )
        refuse_to_replace(path)
        try:
            write_whole(path, taught)
        finally:  # a full disk may come when all but the model card is written
            self._came_from = (path.resolve(), str(store.state_of(path)))

    @classmethod
    def load(cls, folder: str | Path) -> "ContinualLearner":
        """The learner in a folder, or the model of a run (`runs/x/model`).

        Raises:
            InputError: there is none, it is damaged, or a newer pah wrote it.
        """
        path = Path(folder)
        state = store.state_of(path)
        record, weights = store.load(path)
        learner = cls(config=record.config)
        learner._taught = Predictor.restored(record, weights)
        learner._came_from = (path.resolve(), str(state))
        return learner

    def push_to_hub(self, repo_id: str, *, private: bool = False) -> str:
        """Put the learner on the Hugging Face hub, with a model card; returns its address.

        Raises:
            InputError: nothing was taught yet, or the hub cannot be reached or refuses.
        """
        return upload(self.taught, repo_id, private)

    @classmethod
    def from_pretrained(cls, source: str | Path, *, revision: str | None = None) -> "ContinualLearner":
        """The learner in a folder, or on the Hugging Face hub.

        Raises:
            InputError: there is none, or it is damaged; loading never runs code.
        """
        return cls.load(source if Path(source).is_dir() else download(str(source), revision))

    def _load(self, data: Data, **choice: object) -> tuple[Source, tuple[str, ...]]:
        """Labelled images in the learner's size and channels, and what had to be changed for that."""
        size, channels = self.config.image_size, None
        if self._taught:
            channels, size, width = self._taught.record.image_shape
            require(size == width, "learner", "square images", f"{size}x{width}")
        assert size is not None, "checked when the learner was made"
        source = load_lesson(data, size, channels, **choice)  # type: ignore[arg-type]
        return source, tuple(f"left out, unreadable: {file}" for file in source.skipped) + source.changed
