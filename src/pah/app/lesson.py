"""A lesson in a process of its own: it teaches a copy of the learner and reports its progress.

`python -m pah.app.lesson` reads one line of JSON, a `Request`, from stdin, and then the commands pause, go and stop,
one a line. It writes events to stdout, one line of JSON each. The process ends when its stdin is closed, which also
happens when the server is killed.
"""

import dataclasses
import json
import os
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open

from pah.app.stored_files import belongs_to, metadata_of
from pah.core import files
from pah.core.config import InputError
from pah.data.image import first_line
from pah.data.lesson import LessonData
from pah.data.read_options import ReadOptions
from pah.data.sources import Source, load_digits
from pah.learner.defaults import DEFAULT_SIZE, defaults
from pah.learner.learner import ContinualLearner
from pah.learner.lesson_data import load_labelled
from pah.learner.store import LEARNER_FILE, TaughtTask
from pah.models.network import GeneratedHeads
from pah.training.config import RunConfig
from pah.training.state import EpochDone, Event, ImagesRead, PrototypesInitialized, StepDone, Validated

REPORT_SECONDS = 0.3  # between two lines of progress
MODEL, CHECK, PROTOTYPES = "model", "check.safetensors", "prototypes.safetensors"  # results in the lesson's folder


class StoppedError(Exception):
    """The user stopped the lesson."""


@dataclass(frozen=True)
class Request:
    """What to teach, and with which options.

    Args:
        learner: Folder of the accepted learner, which is only read; if it has none, a new learner is made.
        folder: Folder of the lesson, in which the results are written.
        name: Name of the task.
        images: Folder of class folders; None for the embedded digits.
        classes: Teach only these classes; empty for all.
        epochs: Passes over the images; 0 for the number that the learner has.
        image_size: Side in pixels of a new learner's images.
        checks: Folder with the check images of old tasks.
        keep_check: Whether this lesson's test images are saved as check images.
    """

    learner: str
    folder: str
    name: str
    images: str | None
    classes: tuple[str, ...] = ()
    epochs: int = 0
    image_size: int = DEFAULT_SIZE
    checks: str = ""
    keep_check: bool = False


class Controls:
    """The commands that the user gives to a running lesson: pause, go and stop."""

    def __init__(self) -> None:
        self.running = threading.Event()
        self.running.set()
        self.stopped = False

    def read(self, commands: TextIO) -> None:
        """Read commands until the input is closed, then end the process at once: the server is gone."""
        for line in commands:
            command = line.strip()
            if command == "pause":
                self.running.clear()
            elif command in ("go", "stop"):
                self.stopped = self.stopped or command == "stop"
                self.running.set()
        os._exit(3)


class ProgressReporter:
    """Reports the progress of a lesson, and pauses or stops it between two steps."""

    def __init__(self, output: TextIO, controls: Controls, epochs: int) -> None:
        self.output = output
        self.controls = controls
        self.seconds = 0.0  # of all steps so far
        self.last_report = 0.0
        self.prototypes: torch.Tensor | None = None  # those of the task at their start
        self.state: dict[str, Any] = {"epoch": 0, "epochs": epochs, "accuracy": None, "seconds_left": None}

    def __call__(self, event: Event) -> None:
        """Handle an event of the training.

        Raises:
            StoppedError: the user stopped the lesson.
        """
        if not self.controls.running.is_set():
            write_event(self.output, "paused")
            self.controls.running.wait()
            write_event(self.output, "running")
        if self.controls.stopped:
            raise StoppedError
        self._update(event)
        if time.monotonic() - self.last_report > REPORT_SECONDS or not isinstance(event, StepDone | ImagesRead):
            self.last_report = time.monotonic()
            write_event(self.output, "progress", **self.state)

    def _update(self, event: Event) -> None:
        if isinstance(event, StepDone):
            self.seconds += event.seconds
            left = self.seconds / event.steps_done * event.steps_left
            share = event.steps_done / (event.steps_done + event.steps_left)
            self.state |= {"share": round(share, 4), "seconds_left": round(left, 1)}
        elif isinstance(event, ImagesRead):
            self.state |= {"images_read": event.done, "images": event.total}
        elif isinstance(event, PrototypesInitialized):
            self.prototypes = event.prototypes
        elif isinstance(event, EpochDone):
            self.state["epoch"] = event.epoch + 1
        elif isinstance(event, Validated):
            self.state["accuracy"] = round(event.accuracy, 1)


def write_event(output: TextIO, event: str, **fields: Any) -> None:
    """Write an event as one line of JSON, and flush it."""
    output.write(json.dumps({"event": event, **fields}) + "\n")
    output.flush()


def main() -> None:
    """Teach the lesson that the first line of stdin describes."""
    output = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries may print to stdout, which is for events only
    os.nice(10)  # answers to questions have priority
    torch.set_num_threads(max(1, (os.cpu_count() or 1) - 1))
    request = Request(**json.loads(sys.stdin.readline()))
    controls = Controls()
    threading.Thread(target=controls.read, args=(sys.stdin,), daemon=True).start()
    try:
        write_event(output, "done", **teach(request, output, controls))
    except StoppedError:
        write_event(output, "stopped")
    except InputError as error:
        write_event(output, "failed", reason=str(error))
    except (OSError, MemoryError, RuntimeError) as error:
        write_event(output, "failed", reason=f"lesson: expected to continue, got: {first_line(error)}")


def teach(request: Request, output: TextIO, controls: Controls) -> dict[str, Any]:
    """Teach the lesson, and save the new learner, its check images and its prototypes in the lesson's folder.

    Returns:
        The accuracies in percent before and after the lesson by task, the drift of old tasks, and notes.
    """
    folder, accepted = Path(request.folder), Path(request.learner)
    existing = ContinualLearner.load(accepted) if (accepted / LEARNER_FILE).is_file() else None
    learner = existing or ContinualLearner(config=new_learner_config(request))
    if request.epochs:
        training = dataclasses.replace(learner.config.training, epochs=request.epochs, first_epochs=None)
        learner.config = dataclasses.replace(learner.config, training=training)
    checks, unreadable = load_check_images(Path(request.checks), learner.tasks)
    before = {name: learner.evaluate(data, name).accuracy for name, data in checks.items()}
    progress = ProgressReporter(output, controls, learner.config.training.epochs_of(len(learner.tasks)))
    write_event(output, "progress", **progress.state)
    data, classes = lesson_data(request), list(request.classes) or None
    lesson = learner.learn(
        request.name, data, classes=classes, skip_unreadable=True, held_out=checks, watch=progress, validate=True
    )
    learner.save(folder / MODEL)
    save_prototypes(folder / PROTOTYPES, learner, progress.prototypes)
    if request.keep_check:
        options = ReadOptions(skip_unreadable=True)
        source = load_labelled(data, learner.config, learner.predictor.record, options, classes)
        save_check_images(folder / CHECK, learner.tasks[-1], source)
    return {
        "before": before,
        "after": dict(lesson.accuracies),
        "drift": dict(lesson.drift),
        "notes": [*lesson.notes, *(f"left out, unreadable: the check images in {name}" for name in unreadable)],
    }


def new_learner_config(request: Request) -> RunConfig:
    """Return the options of a new learner, which depend on the size of its images."""
    if request.images is not None:
        return defaults(request.image_size)
    config = defaults(8)
    return dataclasses.replace(config, augment=dataclasses.replace(config.augment, flip=False))


def lesson_data(request: Request) -> LessonData:
    """Return the lesson's images: its folder, or all embedded digits as pixels, labels and class names."""
    if request.images is not None:
        return Path(request.images)
    digits = load_digits()
    parts = (digits.train, digits.test)
    pixels, labels = (torch.cat([getattr(part, field) for part in parts]) for field in ("pixels", "labels"))
    return pixels[:, 0].numpy(), labels.tolist(), digits.class_names


def save_check_images(path: Path, task: TaughtTask, source: Source) -> None:
    """Save a lesson's test images, with which later lessons measure its task.

    Classes with fewer than two test images are left out.
    """
    labels = source.test.labels
    enough = [c for c in range(len(source.class_names)) if int((labels == c).sum()) > 1]
    rows = torch.isin(labels, torch.tensor(enough, dtype=labels.dtype))
    tensors = {
        "pixels": source.test.pixels[rows].contiguous(),
        "labels": torch.searchsorted(torch.tensor(enough), labels[rows]),
    }
    names = json.dumps([source.class_names[c] for c in enough])
    files.write_file(path, safetensors.torch.save(tensors, metadata_of(task) | {"classes": names}))


def load_check_images(folder: Path, tasks: Sequence[TaughtTask]) -> tuple[dict[str, LessonData], list[str]]:
    """Return the check images of these tasks by task name, and the names of the files that cannot be read."""
    checks: dict[str, LessonData] = {}
    unreadable = []
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, "pt") as file:
                metadata, pixels, labels = file.metadata(), file.get_tensor("pixels"), file.get_tensor("labels")
            name, classes = metadata["task"], json.loads(metadata["classes"])
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            unreadable.append(path.name)
            continue
        if any(belongs_to(path, task) for task in tasks) and len(labels):
            images = pixels.permute(0, 2, 3, 1).contiguous().numpy()
            checks[name] = (images, labels.tolist(), classes)
    return checks, unreadable


def save_prototypes(path: Path, learner: ContinualLearner, start: torch.Tensor | None) -> None:
    """Save the new task's prototypes at their start and after the lesson, as the network uses them.

    Args:
        path: The file to write. A network without prototypes writes none.
        learner: The learner after the lesson.
        start: The prototypes before training, (C, channels, s, s).
    """
    heads = learner.predictor.method.network.heads
    if isinstance(heads, GeneratedHeads):
        learned = heads.prototypes.tasks[len(learner.tasks) - 1].detach().contiguous()
        moments = {"learned": learned} if start is None else {"start": start, "learned": learned}
        files.write_file(path, safetensors.torch.save(moments, metadata_of(learner.tasks[-1])))


if __name__ == "__main__":
    main()
    sys.stderr.flush()
    os._exit(0)  # everything is written; Python's own exit could crash while a thread still reads stdin
