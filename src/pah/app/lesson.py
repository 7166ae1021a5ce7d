"""A lesson in a process of its own: teaches a copy of the learner, says how it goes, and ends with whoever started it.

`python -m pah.app.lesson` reads one line of JSON, a `Request`, from stdin, and then words: pause, go, stop. It writes
JSON to stdout, a line an event. When stdin ends, as it does when the server is killed, the process ends too.
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
from safetensors import safe_open

from pah.core import files
from pah.core.config import InputError
from pah.data.image import first_line
from pah.data.lesson import Data, load_lesson
from pah.data.sources import Source, load_digits
from pah.learner.learner import ContinualLearner, defaults
from pah.learner.store import LEARNER
from pah.models.network import GeneratedHeads
from pah.training.config import RunConfig
from pah.training.state import EpochDone, Event, PrototypesStarted, StepDone, Validated

OFTEN = 0.3  # seconds between lines of progress
MODEL, CHECK, PROTOTYPES = "model", "check.safetensors", "prototypes.safetensors"  # what a lesson leaves in its folder


class StoppedError(Exception):
    """The owner stopped the lesson."""


@dataclass(frozen=True)
class Request:
    """What is to be taught.

    Args:
        learner: Folder of the accepted learner, which is only read; a new one is made if there is none.
        folder: Of the lesson, into which it writes.
        name: Of the task.
        images: Folder of class folders; None for the embedded digits.
        classes: Only these; all if empty.
        epochs: Passes over the images; as the learner has them if 0.
        image_size: Of a new learner's images.
        checks: Folder with images of old tasks that were kept for checking.
        keep_check: Whether this lesson's test images are to be kept for checking.
    """

    learner: str
    folder: str
    name: str
    images: str | None
    classes: tuple[str, ...] = ()
    epochs: int = 0
    image_size: int = 64
    checks: str = ""
    keep_check: bool = False


class Wishes:
    """What the owner wants of a lesson that goes on."""

    def __init__(self) -> None:
        self.going = threading.Event()
        self.going.set()
        self.stopped = False

    def read(self, words: TextIO) -> None:
        """Take wishes until there is nobody left to have any; then the process ends, whatever it does."""
        for word in words:
            if word.strip() == "pause":
                self.going.clear()
            elif word.strip() in ("go", "stop"):
                self.stopped = self.stopped or word.strip() == "stop"
                self.going.set()
        os._exit(3)


class Progress:
    """Says how far a lesson is, and does as the owner wishes, after each step."""

    def __init__(self, out: TextIO, wishes: Wishes, epochs: int) -> None:
        self.out = out
        self.wishes = wishes
        self.seconds = self.said = 0.0
        self.prototypes: torch.Tensor | None = None  # where those of the task started
        self.state: dict[str, Any] = {"epoch": 0, "epochs": epochs, "accuracy": None, "seconds_left": None}

    def __call__(self, event: Event) -> None:
        """Take an event of training."""
        if not self.wishes.going.is_set():
            say(self.out, "paused")
            self.wishes.going.wait()
            say(self.out, "running")
        if self.wishes.stopped:
            raise StoppedError
        if isinstance(event, StepDone):
            self.seconds += event.seconds
            left = self.seconds / event.steps_done * event.steps_left
            share = event.steps_done / (event.steps_done + event.steps_left)
            self.state |= {"share": round(share, 4), "seconds_left": round(left, 1)}
        elif isinstance(event, PrototypesStarted):
            self.prototypes = event.prototypes
        elif isinstance(event, EpochDone):
            self.state["epoch"] = event.epoch + 1
        elif isinstance(event, Validated):
            self.state["accuracy"] = round(event.accuracy, 1)
        if time.monotonic() - self.said > OFTEN or not isinstance(event, StepDone):
            self.said = time.monotonic()
            say(self.out, "progress", **self.state)


def say(out: TextIO, event: str, **fields: Any) -> None:
    """One line, at once."""
    out.write(json.dumps({"event": event, **fields}) + "\n")
    out.flush()


def main() -> None:
    """Teach the lesson that stdin asks for."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is no event
    os.nice(10)  # asking comes first
    torch.set_num_threads(max(1, (os.cpu_count() or 1) - 1))
    request = Request(**json.loads(sys.stdin.readline()))
    wishes = Wishes()
    threading.Thread(target=wishes.read, args=(sys.stdin,), daemon=True).start()
    try:
        say(out, "done", **teach(request, out, wishes))
    except StoppedError:
        say(out, "stopped")
    except InputError as error:
        say(out, "failed", reason=str(error))
    except (OSError, MemoryError, RuntimeError) as error:
        say(out, "failed", reason=f"lesson: expected to go on, got: {first_line(error)}")


def teach(request: Request, out: TextIO, wishes: Wishes) -> dict[str, Any]:
    """Teach it, and leave the new learner, what is kept for checking, and its prototypes, in the lesson's folder."""
    folder, accepted = Path(request.folder), Path(request.learner)
    known = ContinualLearner.load(accepted) if (accepted / LEARNER).is_file() else None
    learner = known or ContinualLearner(config=first_config(request))
    if request.epochs:
        training = dataclasses.replace(learner.config.training, epochs=request.epochs, first_epochs=None)
        learner.config = dataclasses.replace(learner.config, training=training)
    checks = read_checks(Path(request.checks), [task.name for task in learner.tasks])
    before = {name: learner.evaluate(data, name).accuracy for name, data in checks.items()}
    progress = Progress(out, wishes, learner.config.training.epochs_of(len(learner.tasks)))
    say(out, "progress", **progress.state)
    data, classes = data_of(request), list(request.classes) or None
    lesson = learner.learn(
        request.name, data, classes=classes, skip_unreadable=True, held_out=checks, watch=progress, validate=True
    )
    learner.save(folder / MODEL)
    keep_prototypes(folder / PROTOTYPES, learner, progress.prototypes)
    if request.keep_check:
        channels, size, _ = learner.taught.record.image_shape
        source = load_lesson(data, size, channels, classes=classes, skip_unreadable=True)
        keep_check(folder / CHECK, request.name, source)
    return {
        "before": before,
        "after": dict(lesson.accuracies),
        "drift": dict(lesson.drift),
        "notes": list(lesson.notes),
    }


def first_config(request: Request) -> RunConfig:
    """The options of a new learner, for the size of its images."""
    if request.images is not None:
        return defaults(request.image_size)
    of_digits = defaults(8)
    return dataclasses.replace(of_digits, augment=dataclasses.replace(of_digits.augment, flip=False))


def data_of(request: Request) -> Data:
    """The lesson's images; of the embedded digits those of its classes."""
    if request.images is not None:
        return Path(request.images)
    digits = load_digits()
    parts = (digits.train, digits.test)
    pixels, labels = (torch.cat([getattr(part, of) for part in parts]) for of in ("pixels", "labels"))
    return pixels[:, 0].numpy(), labels.tolist(), digits.class_names


def keep_check(path: Path, name: str, source: Source) -> None:
    """Keep a lesson's test images to measure its task after later lessons; none of a class that has fewer than two."""
    labels = source.test.labels
    enough = [c for c in range(len(source.class_names)) if int((labels == c).sum()) > 1]
    rows = torch.isin(labels, torch.tensor(enough, dtype=labels.dtype))
    tensors = {
        "pixels": source.test.pixels[rows].contiguous(),
        "labels": torch.searchsorted(torch.tensor(enough), labels[rows]),
    }
    names = json.dumps([source.class_names[c] for c in enough])
    files.write_file(path, safetensors.torch.save(tensors, {"task": name, "classes": names}))


def read_checks(folder: Path, tasks: Sequence[str]) -> dict[str, Data]:
    """What was kept for checking of those tasks, by name."""
    found: dict[str, Data] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as opened:
            about, pixels, labels = opened.metadata(), opened.get_tensor("pixels"), opened.get_tensor("labels")
        if about["task"] in tasks and len(labels):
            images = pixels.permute(0, 2, 3, 1).contiguous().numpy()
            found[about["task"]] = (images, labels.tolist(), json.loads(about["classes"]))
    return found


def keep_prototypes(path: Path, learner: ContinualLearner, start: torch.Tensor | None) -> None:
    """Keep the new task's prototypes as they started and after their own lesson, (C, channels, s, s) in the network's
    units."""
    heads = learner.taught.method.network.heads
    if isinstance(heads, GeneratedHeads):
        learned = heads.prototypes.tasks[len(learner.tasks) - 1].detach().contiguous()
        about = {"task": learner.tasks[-1].name}
        moments = {"learned": learned} if start is None else {"start": start, "learned": learned}
        files.write_file(path, safetensors.torch.save(moments, about))


if __name__ == "__main__":
    main()
    sys.stderr.flush()
    os._exit(0)  # all is written; a thread that waits for stdin, as one does, may not be there when Python ends
