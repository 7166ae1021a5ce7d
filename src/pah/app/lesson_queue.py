"""Lessons of one learner: one at a time, the others wait; each is on disk until its owner keeps it or rolls it back.

`<home>/lessons/<id>/` holds `lesson.json`, the images that were uploaded, and from the end of the lesson on the new
learner in `model/`. Whatever happens to the server, the accepted learner is another folder, which only `keep` writes.
"""

import dataclasses
import os
import secrets
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open

from pah.app.lesson import CHECK, MODEL, PROTOTYPES, Request
from pah.app.messages import without_paths
from pah.app.process import LessonProcess
from pah.core import files
from pah.core.config import InputError
from pah.core.files import locked
from pah.learner import store
from pah.learner.hub import refuse_to_replace, write_whole
from pah.learner.learner import ContinualLearner
from pah.learner.lesson import now

State = Literal["waiting", "running", "paused", "interrupted", "failed", "done"]
WAITING = 4  # lessons, at most, beside the one that goes on or is to be decided
LESSON, IMAGES = "lesson.json", "images"


@dataclass
class Lesson:
    """A lesson that is not decided yet.

    Args:
        id: Of its folder.
        name: Of the task.
        asked: When, ISO 8601 in UTC.
        state: waiting for another one; running; paused; interrupted, as the server ended meanwhile; failed; done and
            waiting to be kept or rolled back.
        request: What `pah.app.lesson` is to do.
        base: Which state of the learner it builds on (`store.state_of`); None for a new learner.
        progress: What the lesson last said of itself.
        result: Accuracies before and after, drift, notes.
        reason: Why it failed.
    """

    id: str
    name: str
    asked: str
    state: State
    request: dict[str, Any]
    base: str | None = None
    progress: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)
    reason: str = ""

    def shown(self) -> dict[str, Any]:
        """What users see of it: no path."""
        return {key: value for key, value in asdict(self).items() if key not in ("request", "base")}


class Desk:
    """Takes lessons for the learner in `folder`; keeps what it needs in `home`. For use by many threads.

    Raises:
        InputError: another process holds `home`.
    """

    def __init__(self, folder: Path, home: Path, waiting: int = WAITING) -> None:
        self.folder, self.home, self.most = folder, home, waiting
        self._lock = threading.RLock()
        self._child: LessonProcess | None = None
        self._open = ExitStack()
        self._open.enter_context(locked(home))
        self._lessons = sorted(self._found(), key=lambda lesson: lesson.id)
        for lesson in self._lessons:
            if lesson.state in ("running", "paused"):
                self._set(lesson, "interrupted")
        self._go_on()

    def _found(self) -> Iterator[Lesson]:
        """The lessons on disk; a folder without one is what a killed server left of an upload."""
        for folder in (self.home / "lessons").glob("*"):
            try:
                yield Lesson(**files.read_json(folder / LESSON))
            except (InputError, TypeError):
                shutil.rmtree(folder, ignore_errors=True)

    @property
    def lessons(self) -> list[Lesson]:
        """All that are not decided, the first one first, as they stand at this moment."""
        with self._lock:
            return [dataclasses.replace(lesson) for lesson in self._lessons]

    def teach(self, name: str, put: Callable[[Path], Path | None], **options: Any) -> Lesson:
        """Queue a lesson.

        Args:
            name: Of the task.
            put: Puts the images into the folder it is given, or names the folder where they are; None for digits.
            options: Fields of `Request`.

        Raises:
            InputError: the queue is full, the name is taken or none, or what `put` raises.
        """
        name = name.strip()
        self._require_room(name)
        number = f"{now().replace(':', '').replace('+0000', '')}-{secrets.token_hex(4)}"
        folder = self.home / "lessons" / number
        folder.mkdir(parents=True)
        try:
            images = put(folder / IMAGES)
            request = Request(
                str(self.folder), str(folder), name, _beside(images, folder), checks=str(self.checks), **options
            )
            with self._lock:
                self._require_room(name)
                lesson = Lesson(number, name, now(), "waiting", asdict(request))
                self._set(lesson, "waiting")
                self._lessons.append(lesson)
                self._go_on()
                return dataclasses.replace(lesson)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    @property
    def checks(self) -> Path:
        """Where images for checking are kept."""
        return self.home / "checks"

    @property
    def prototypes(self) -> Path:
        """Where prototypes are kept as they stood after their own lesson."""
        return self.home / "prototypes"

    def _require_room(self, name: str) -> None:
        with self._lock:
            if not name or len(name) > 80 or not name.isprintable():
                raise InputError("name: expected 1 to 80 printable characters")
            if any(lesson.name == name for lesson in self._lessons):
                raise InputError(f"name: expected a new one, got {name!r}, which another lesson has")
            if store.state_of(self.folder) and name in [task.name for task in self._record().tasks]:
                raise InputError(f"name: expected a new one, got {name!r}, which was taught before")
            if len(self._lessons) > self.most:
                raise InputError(f"lessons: expected at most {self.most} that wait, got one more: the queue is full")

    def _record(self) -> store.Record:
        return store.load(self.folder)[0]

    def pause(self, number: str) -> None:
        """Have a lesson rest after its next step."""
        self._tell(number, "running", "pause")

    def go(self, number: str) -> None:
        """Have a paused lesson go on, or an interrupted or failed one start again."""
        with self._lock:
            lesson = self._of(number)
            if lesson.state in ("interrupted", "failed"):
                self._set(lesson, "waiting")
                self._go_on()
            else:
                self._tell(number, "paused", "go")

    def _tell(self, number: str, state: State, word: str) -> None:
        with self._lock:
            lesson = self._of(number)
            if lesson.state != state or self._child is None:
                raise InputError(f"lesson: expected one that is {state}, got one that is {lesson.state}")
            self._child.tell(word)

    def stop(self, number: str) -> None:
        """End a lesson that is not done, whatever its state, and delete its images."""
        with self._lock:
            lesson = self._of(number)
            if lesson.state == "done":
                raise InputError("lesson: expected one that goes on, got one that is done: keep it or roll it back")
            self._drop(lesson)

    def roll_back(self, number: str) -> None:
        """Decide against a lesson: the learner stays as it is."""
        with self._lock:
            self._drop(self._done(number))

    def keep(self, number: str) -> None:
        """Accept a lesson: the learner becomes what it was taught, whole or not at all.

        Raises:
            InputError: the lesson is not done, or the learner was taught by somebody else since it began.
        """
        with self._lock:
            lesson = self._done(number)
            taught = self._lesson_folder(lesson)
            candidate = ContinualLearner.load(taught / MODEL)
            with locked(self.folder):
                if store.state_of(self.folder) != lesson.base:
                    raise InputError("learner: expected the one that the lesson began with, got one taught since")
                refuse_to_replace(self.folder)
                write_whole(self.folder, candidate.taught)
            for name, into in ((CHECK, self.checks), (PROTOTYPES, self.prototypes)):
                for old in [file for file in into.glob("*.safetensors") if _task_of(file) == lesson.name]:
                    old.unlink()  # of a task of that name which was forgotten
                if (taught / name).is_file():
                    into.mkdir(exist_ok=True)
                    os.replace(taught / name, into / f"{lesson.id}.safetensors")
            self._drop(lesson)

    def close(self) -> None:
        """End the process of a lesson that goes on; it is found again as interrupted."""
        with self._lock:
            if self._child is not None:
                self._child.kill()
            self._open.close()

    def _done(self, number: str) -> Lesson:
        lesson = self._of(number)
        if lesson.state != "done":
            raise InputError(f"lesson: expected one that is done, got one that is {lesson.state}")
        return lesson

    def _of(self, number: str) -> Lesson:
        for lesson in self._lessons:
            if lesson.id == number:
                return lesson
        raise InputError("lesson: expected one that is not decided yet, got none of that id")

    def _lesson_folder(self, lesson: Lesson) -> Path:
        return self.home / "lessons" / lesson.id

    def _set(self, lesson: Lesson, state: State) -> None:
        lesson.state = state
        files.write_json(self._lesson_folder(lesson) / LESSON, asdict(lesson))

    def _drop(self, lesson: Lesson) -> None:
        """Forget a lesson and delete its folder; the next one begins."""
        self._lessons.remove(lesson)
        if self._child is not None and lesson.state in ("running", "paused"):
            self._child.kill()
            self._child = None
        (self._lesson_folder(lesson) / LESSON).unlink(missing_ok=True)  # from here on it is gone
        shutil.rmtree(self._lesson_folder(lesson), ignore_errors=True)
        self._go_on()

    def _go_on(self) -> None:
        """Begin the first lesson if it waits: one that builds on another begins when that one is decided."""
        if not self._lessons or self._lessons[0].state != "waiting":
            return
        lesson = self._lessons[0]
        folder = self._lesson_folder(lesson)
        shutil.rmtree(folder / MODEL, ignore_errors=True)
        lesson.base, lesson.progress, lesson.reason = store.state_of(self.folder), {}, ""
        self._set(lesson, "running")
        self._child = LessonProcess(folder, lesson.request, partial(self._take, lesson), partial(self._ended, lesson))

    def _ended(self, lesson: Lesson, child: LessonProcess) -> None:
        """Nobody says any more how the lesson goes."""
        with self._lock:
            if self._child is not child:
                return
            self._child = None
            if lesson.state in ("running", "paused"):
                lesson.reason = "the lesson's process ended unexpectedly"
                self._set(lesson, "failed")

    def _take(self, lesson: Lesson, child: LessonProcess, said: dict[str, Any]) -> None:
        """Take down what a lesson's process says."""
        with self._lock:
            if self._child is not child:
                return
            event = said.pop("event")
            if event == "progress":
                lesson.progress = said
            elif event in ("paused", "running"):
                self._set(lesson, event)
            elif event == "done":
                lesson.result = said
                self._set(lesson, "done")
            elif event == "failed":
                lesson.reason = without_paths(said["reason"], self._lesson_folder(lesson) / IMAGES, self.folder)
                self._set(lesson, "failed")


def _task_of(file: Path) -> str | None:
    """Whose check images or prototypes a file holds; None if it is damaged."""
    try:
        with safe_open(file, "pt") as opened:
            return str(opened.metadata()["task"])
    except (OSError, SafetensorError, KeyError, TypeError):
        return None


def _beside(images: Path | None, folder: Path) -> str | None:
    """The images' path from the lesson's folder, if they are in it: a learner tells where its images came from."""
    if images is None:
        return None
    return str(images.relative_to(folder) if images.is_relative_to(folder) else images)
