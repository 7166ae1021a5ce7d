"""What the accuracies of a learner's history were measured on, in words."""

from collections.abc import Sequence
from dataclasses import dataclass

from pah.app.messages import shortened
from pah.learner.store import Lesson, TaughtTask

OWN, HELD_OUT = "its own test images", "images that were held out"


@dataclass(frozen=True)
class LastAccuracy:
    """The accuracy of a task that was measured last.

    Args:
        percent: The accuracy, 0 to 100.
        lesson: Name of the lesson after which it was measured.
        measured_on: `OWN` or `HELD_OUT`.
        images: Number of these images; None if it was not stored.
    """

    percent: float
    lesson: str
    measured_on: str
    images: int | None = None

    def __str__(self) -> str:
        number = "" if self.images is None else f" ({self.images})"
        when = "right after its lesson" if self.measured_on == OWN else f"after the lesson {shortened(self.lesson)}"
        return f"{self.percent:.1f}\N{NO-BREAK SPACE}%, {when}, on {self.measured_on}{number}"


def measured_on(lesson: Lesson, task: str) -> str:
    """Return what a lesson's accuracy of a task was measured on: only the lesson's own task has test images there."""
    return OWN if task == lesson.name else HELD_OUT


def lessons_since(history: Sequence[Lesson], task: TaughtTask) -> list[Lesson]:
    """Return the lessons from the one that taught the task: those before refer to a forgotten task of its name."""
    own = [i for i, lesson in enumerate(history) if lesson.name == task.name]
    return list(history[own[-1] if own else 0 :])


def last_accuracies(history: Sequence[Lesson], tasks: Sequence[TaughtTask]) -> dict[str, LastAccuracy]:
    """Return the accuracy of each task that was measured last, by task name; tasks without one are left out."""
    return {
        task.name: LastAccuracy(
            lesson.accuracies[task.name], lesson.name, measured_on(lesson, task.name), lesson.images.get(task.name)
        )
        for task in tasks
        for lesson in lessons_since(history, task)
        if task.name in lesson.accuracies
    }
