"""The lessons of one learner: one is taught at a time, the others wait, and each is kept or rolled back by its owner.

Each lesson has a folder `<home>/lessons/<id>/` with `lesson.json`, the uploaded images and, once it is done, the new
learner in `model/`. The accepted learner lies in another folder, which only `keep` writes, so a crash cannot harm it.
"""

import dataclasses
import secrets
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pah.app import stored_files
from pah.app.lesson import CHECK, MODEL, PROTOTYPES, Request
from pah.app.lesson_process import LessonProcess
from pah.app.messages import quoted, without_paths
from pah.core import files
from pah.core.config import InputError
from pah.core.files import locked
from pah.learner import store
from pah.learner.hub import refuse_to_replace, write_learner
from pah.learner.learner import ContinualLearner
from pah.learner.lesson import utc_now

State = Literal["waiting", "running", "paused", "interrupted", "failed", "done"]
MAX_WAITING = 4  # lessons behind the first one, which is being taught or is to be decided
LESSON, IMAGES = "lesson.json", "images"


@dataclass
class Lesson:
    """A lesson that its owner has not decided yet.

    Args:
        id: Name of its folder.
        name: Name of the task.
        asked: When it was queued, ISO 8601 in UTC.
        state: waiting for the lesson before it; running; paused; interrupted, because the server ended; failed; or
            done, to be kept or rolled back.
        request: The `Request` for `pah.app.lesson` as a dictionary.
        base: The state of the learner on which it builds (`store.fingerprint`); None for a new learner.
        progress: The last progress that it reported.
        result: Accuracies before and after, drift and notes.
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

    def public_fields(self) -> dict[str, Any]:
        """Return the fields that visitors may see; none of them holds a path."""
        return {key: value for key, value in asdict(self).items() if key not in ("request", "base")}


class LessonQueue:
    """The queue of lessons of one learner. Many threads may use it.

    Args:
        folder: Folder of the accepted learner.
        home: Folder for the lessons, check images and prototypes.
        max_waiting: How many lessons may wait behind the first one.

    Raises:
        InputError: another process uses `home`.
    """

    def __init__(self, folder: Path, home: Path, max_waiting: int = MAX_WAITING) -> None:
        self.folder, self.home, self.max_waiting = folder, home, max_waiting
        self._lock = threading.RLock()
        self._process: LessonProcess | None = None
        self._opened = ExitStack()
        self._opened.enter_context(locked(home))
        stored_files.delete_temporary(home)
        self._cleaned_for: str | None = None  # the learner's state at the last `delete_forgotten`
        self._lessons = sorted(self._load_lessons(), key=lambda lesson: lesson.id)
        for lesson in self._lessons:
            if lesson.state in ("running", "paused"):
                self._set_state(lesson, "interrupted")
        self.delete_forgotten()
        self._start_first()

    def _load_lessons(self) -> Iterator[Lesson]:
        """Load the lessons on disk; delete folders without one: a server was killed during an upload."""
        for folder in (self.home / "lessons").glob("*"):
            try:
                yield Lesson(**files.read_json(folder / LESSON))
            except (InputError, TypeError):
                shutil.rmtree(folder, ignore_errors=True)

    @property
    def lessons(self) -> list[Lesson]:
        """Copies of all lessons that are not decided, oldest first."""
        with self._lock:
            return [dataclasses.replace(lesson) for lesson in self._lessons]

    def teach(self, name: str, provide_images: Callable[[Path], Path | None], **options: Any) -> Lesson:
        """Queue a lesson.

        Args:
            name: Name of the task.
            provide_images: Called with a new folder's path; unpacks the images there, or not, and returns the folder
                that holds them, or None for the embedded digits.
            options: Fields of `Request`.

        Raises:
            InputError: the queue is full, the name is not allowed or already taken, or `provide_images` raised it.
        """
        self._require_acceptable(name)
        lesson_id = f"{utc_now().replace(':', '').replace('+0000', '')}-{secrets.token_hex(4)}"
        folder = self.home / "lessons" / lesson_id
        folder.mkdir(parents=True)
        try:
            images = provide_images(folder / IMAGES)
            request = Request(
                str(self.folder), str(folder), name, _relative_path(images, folder), checks=str(self.checks), **options
            )
            with self._lock:
                self._require_acceptable(name)
                lesson = Lesson(lesson_id, name, utc_now(), "waiting", asdict(request))
                self._set_state(lesson, "waiting")
                self._lessons.append(lesson)
                self._start_first()
                return dataclasses.replace(lesson)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    @property
    def checks(self) -> Path:
        """The folder of the check images."""
        return self.home / stored_files.CHECKS

    @property
    def prototypes(self) -> Path:
        """The folder of the prototypes that were saved after each lesson."""
        return self.home / stored_files.PROTOTYPES

    def _require_acceptable(self, name: str) -> None:
        """Raise InputError if a lesson of that name cannot be queued."""
        with self._lock:
            if not name or len(name) > 80 or not name.isprintable():
                raise InputError("name: expected 1 to 80 printable characters")
            if name != name.strip():
                raise InputError(f"name: expected no spaces at its beginning or end, got {quoted(name)}")
            if any(lesson.name == name for lesson in self._lessons):
                raise InputError(f"name: expected a new one, got {name!r}, which another lesson has")
            if store.fingerprint(self.folder) and name in [task.name for task in store.load(self.folder)[0].tasks]:
                raise InputError(f"name: expected a new one, got {name!r}, which was taught before")
            if len(self._lessons) > self.max_waiting:
                raise InputError(f"lessons: expected at most {self.max_waiting} to wait, got more: the queue is full")

    def pause(self, lesson_id: str) -> None:
        """Pause a running lesson after its next step."""
        self._send(lesson_id, "running", "pause")

    def go(self, lesson_id: str) -> None:
        """Continue a paused lesson, or start an interrupted or failed one again."""
        with self._lock:
            lesson = self._find(lesson_id)
            if lesson.state in ("interrupted", "failed"):
                self._set_state(lesson, "waiting")
                self._start_first()
            else:
                self._send(lesson_id, "paused", "go")

    def _send(self, lesson_id: str, state: State, command: str) -> None:
        """Send a command to the process of a lesson that must be in this state."""
        with self._lock:
            lesson = self._find(lesson_id)
            if lesson.state != state or self._process is None:
                raise InputError(f"lesson: expected one that is {state}, got one that is {lesson.state}")
            self._process.send(command)

    def stop(self, lesson_id: str) -> None:
        """End a lesson in any state but done, and delete its images."""
        with self._lock:
            lesson = self._find(lesson_id)
            if lesson.state == "done":
                raise InputError("lesson: expected one that is not done, got one that is: keep it or roll it back")
            self._delete(lesson)

    def roll_back(self, lesson_id: str) -> None:
        """Delete a lesson that is done; the learner stays as it is."""
        with self._lock:
            self._delete(self._find_done(lesson_id))

    def keep(self, lesson_id: str) -> None:
        """Replace the learner by the one that the lesson taught, completely or not at all.

        Raises:
            InputError: the lesson is not done, or the learner was changed by another program since it began.
        """
        with self._lock:
            lesson = self._find_done(lesson_id)
            folder = self._lesson_folder(lesson)
            candidate = ContinualLearner.load(folder / MODEL)
            with locked(self.folder):
                if store.fingerprint(self.folder) != lesson.base:
                    raise InputError(
                        "learner: expected the one that the lesson began with, got one that was taught since"
                    )
                refuse_to_replace(self.folder)
                write_learner(self.folder, candidate.predictor)
            for name, target in ((CHECK, self.checks), (PROTOTYPES, self.prototypes)):
                if (folder / name).is_file():
                    stored_files.keep(folder / name, target / f"{lesson.id}.safetensors", lesson.name)
            self._delete(lesson)
            self.delete_forgotten()

    def delete_forgotten(self) -> None:
        """Delete what is stored about tasks that the learner, unless it is missing or damaged, does not know any more.

        A done lesson that contains a forgotten task cannot be kept: what it taught is deleted, and can be taught again.
        """
        with self._lock, suppress(InputError, OSError):
            state = store.fingerprint(self.folder)
            if state is None or state == self._cleaned_for:
                return
            tasks = store.load(self.folder)[0].tasks
            stored_files.delete_forgotten(self.home, tasks)
            for lesson in self._lessons:
                if lesson.state == "done" and stored_files.knows_forgotten(self._lesson_folder(lesson) / MODEL, tasks):
                    self._discard_result(lesson)
            self._cleaned_for = state

    def _discard_result(self, lesson: Lesson) -> None:
        """Delete what a lesson taught, but not its images."""
        shutil.rmtree(self._lesson_folder(lesson) / MODEL, ignore_errors=True)
        for name in (CHECK, PROTOTYPES):
            (self._lesson_folder(lesson) / name).unlink(missing_ok=True)
        lesson.result = {}
        lesson.reason = "a task that the learner knew when the lesson began was forgotten: start the lesson again"
        self._set_state(lesson, "failed")

    def close(self) -> None:
        """End the process of a running lesson; the next server finds the lesson as interrupted."""
        with self._lock:
            if self._process is not None:
                self._process.kill()
            self._opened.close()

    def _find_done(self, lesson_id: str) -> Lesson:
        lesson = self._find(lesson_id)
        if lesson.state != "done":
            raise InputError(f"lesson: expected one that is done, got one that is {lesson.state}")
        return lesson

    def _find(self, lesson_id: str) -> Lesson:
        for lesson in self._lessons:
            if lesson.id == lesson_id:
                return lesson
        raise InputError("lesson: expected one that is not decided yet, got none of that id")

    def _lesson_folder(self, lesson: Lesson) -> Path:
        return self.home / "lessons" / lesson.id

    def _set_state(self, lesson: Lesson, state: State) -> None:
        lesson.state = state
        files.write_json(self._lesson_folder(lesson) / LESSON, asdict(lesson))

    def _delete(self, lesson: Lesson) -> None:
        """Remove a lesson and its folder, and start the next one."""
        self._lessons.remove(lesson)
        if self._process is not None and lesson.state in ("running", "paused"):
            self._process.kill()
            self._process = None
        (self._lesson_folder(lesson) / LESSON).unlink(missing_ok=True)  # without it the folder is no lesson any more
        shutil.rmtree(self._lesson_folder(lesson), ignore_errors=True)
        self._start_first()

    def _start_first(self) -> None:
        """Start the first lesson if it waits. The second one builds on the first, so it starts once that is decided."""
        if not self._lessons or self._lessons[0].state != "waiting":
            return
        lesson = self._lessons[0]
        folder = self._lesson_folder(lesson)
        shutil.rmtree(folder / MODEL, ignore_errors=True)
        lesson.base, lesson.progress, lesson.reason = store.fingerprint(self.folder), {}, ""
        self._set_state(lesson, "running")
        on_event, on_end = partial(self._handle_event, lesson), partial(self._handle_end, lesson)
        self._process = LessonProcess(folder, lesson.request, on_event, on_end)

    def _handle_end(self, lesson: Lesson, process: LessonProcess) -> None:
        """Mark a lesson as failed if its process ended without a result."""
        with self._lock:
            if self._process is not process:
                return
            self._process = None
            if lesson.state in ("running", "paused"):
                lesson.reason = "the lesson's process ended unexpectedly"
                self._set_state(lesson, "failed")

    def _handle_event(self, lesson: Lesson, process: LessonProcess, message: dict[str, Any]) -> None:
        """Update a lesson by a message of its process."""
        with self._lock:
            if self._process is not process:
                return
            event = message.pop("event")
            if event == "progress":
                lesson.progress = message
            elif event in ("paused", "running"):
                self._set_state(lesson, event)
            elif event == "done":
                lesson.result = message
                self._set_state(lesson, "done")
                self._cleaned_for = None
                self.delete_forgotten()  # a task may have been forgotten while the lesson was taught
            elif event == "failed":
                lesson.reason = without_paths(message["reason"], self._lesson_folder(lesson) / IMAGES, self.folder)
                self._set_state(lesson, "failed")


def _relative_path(images: Path | None, folder: Path) -> str | None:
    """Return the images' path, relative to the lesson's folder if they lie in it: the learner records that path."""
    if images is None:
        return None
    return str(images.relative_to(folder) if images.is_relative_to(folder) else images)
