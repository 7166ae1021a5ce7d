"""What a lesson cost old tasks: measured on held-out images or estimated, and the limits that undo a lesson."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pah.data.sources import Source
from pah.learner.lesson import LessonResult, utc_now
from pah.learner.measurements import fingerprint
from pah.learner.predictor import Evaluation, Predictor
from pah.learner.store import Lesson

TOLERANCE = 1e-6  # points; a loss that equals the limit is allowed


class TaskLoss(NamedTuple):
    """The accuracy that an old task lost in a lesson.

    Attributes:
        task: Name of the task.
        points: Percent before the lesson minus percent after it; negative for a gain.
        right_before: Number of held-out images that were classified right before the lesson; None for an estimate.
        right_after: The same after it.
        images: Number of held-out images; None for an estimate.
    """

    task: str
    points: float
    right_before: int | None = None
    right_after: int | None = None
    images: int | None = None

    def __str__(self) -> str:
        """Return the loss in words."""
        if self.images is None:
            return f"{self.points:.1f} for {self.task!r} by the estimate"
        return (
            f"{self.points:.1f} for {self.task!r} (of {plural(self.images, 'held-out image')}, {self.right_before} "
            f"right before and {self.right_after} after; one image is {100 / self.images:.1f} points)"
        )


class DriftError(Exception):
    """A lesson was rolled back because an old task lost more accuracy than allowed.

    Attributes:
        drift: The share of its accuracy that each old task lost, by name, 0 to 1: measured on its held-out images if
            there are any, otherwise estimated.
    """

    def __init__(self, losses: Sequence[TaskLoss], limit: str, allowed: float) -> None:
        """Name the tasks that lost more than `allowed` points, which the option `limit` sets."""
        excessive = [loss for loss in losses if loss.points > allowed + TOLERANCE]
        estimated = [loss.task for loss in excessive if loss.images is None]
        advice = f"a larger {limit} accepts this; more images or a lower optimizer.lr may cost less"
        if estimated:
            advice = f"the estimate is rough: held_out images of {', '.join(estimated)} measure the loss instead"
        super().__init__(
            f"lesson rolled back, the learner is as before: expected no old task to lose more than {allowed:g} points "
            f"of accuracy ({limit}), got {', '.join(map(str, excessive))}; {advice}"
        )
        self.drift = {loss.task: max(0.0, loss.points / 100) for loss in losses}


@dataclass(frozen=True)
class HeldOutTask:
    """The held-out images of an old task.

    Args:
        index: Position of the task.
        images: The images, in the test part.
    """

    index: int
    images: Source


def measure(predictor: Predictor | None, held_out: Mapping[str, HeldOutTask]) -> dict[str, Evaluation]:
    """Return the accuracy on the held-out images of each task, with the task given, by task name."""
    if predictor is None:
        return {}
    return {name: predictor.evaluate(task.images, task.index, None) for name, task in held_out.items()}


def task_losses(
    drift: Mapping[str, float], before: Mapping[str, Evaluation], after: Mapping[str, Evaluation]
) -> list[TaskLoss]:
    """Return what each old task lost: measured if it has held-out images, otherwise estimated.

    Args:
        drift: The estimated share of its accuracy that each task lost, by name, 0 to 1.
        before: The accuracies on held-out images before the lesson, by task name.
        after: The accuracies on the same images after it.
    """
    measured = [
        TaskLoss(
            name,
            old.accuracy - after[name].accuracy,
            _right(old),
            _right(after[name]),
            old.images,
        )
        for name, old in before.items()
    ]
    return [*measured, *(TaskLoss(name, 100 * share) for name, share in drift.items() if name not in before)]


def refuse_losses(losses: Sequence[TaskLoss], max_drift: float | None, max_loss: float | None) -> None:
    """Raise DriftError if an old task lost more than allowed.

    Args:
        losses: What each old task lost.
        max_drift: Largest share of its accuracy that any task may lose, 0 to 1; no limit if None.
        max_loss: Largest number of points that a task with held-out images may lose, 0 to 100; no limit if None.
    """
    measured = [loss for loss in losses if loss.images is not None]
    limits = [("max_loss", max_loss, max_loss, measured)]
    limits.append(("max_drift", max_drift, None if max_drift is None else 100 * max_drift, list(losses)))
    for name, value, allowed, limited in limits:
        if allowed is not None and any(loss.points > allowed + TOLERANCE for loss in limited):
            raise DriftError(limited, f"{name} {value:g}", allowed)


def make_lesson(
    name: str,
    result: LessonResult,
    source: Source,
    seconds: float,
    notes: tuple[str, ...],
    held_out: Mapping[str, HeldOutTask],
    before: Mapping[str, Evaluation],
    after: Mapping[str, Evaluation],
) -> Lesson:
    """Return the record of a finished lesson.

    Args:
        name: Name of the new task.
        result: The result of the lesson.
        source: The images of the lesson.
        seconds: Duration of the lesson.
        notes: Its notes, which already name files relative to the folders of the images.
        held_out: The held-out images of old tasks, by task name.
        before: The accuracies on these before the lesson.
        after: The accuracies on these after it.
    """
    accuracies = {task: evaluation.accuracy for task, evaluation in after.items()}
    measured = {task: images.images for task, images in held_out.items()} | {name: source}
    return Lesson(
        name=name,
        taught=utc_now(),
        accuracies=accuracies if result.accuracy is None else accuracies | {name: result.accuracy},
        drift=result.drift,
        seconds=round(seconds, 3),
        notes=notes,
        before={task: evaluation.accuracy for task, evaluation in before.items()},
        images={task: len(images.test) for task, images in measured.items()},
        fingerprints={task: fingerprint(images.test, images.class_names) for task, images in measured.items()},
    )


def notes_on_limits(
    old_tasks: Sequence[str], estimated: Mapping[str, float], held_out: Mapping[str, object], max_loss: float | None
) -> tuple[str, ...]:
    """Return notes on the old tasks whose loss was not estimated, or not limited, because data are missing."""
    notes = []
    if without_estimate := [name for name in old_tasks if name not in estimated]:
        notes.append(f"no estimate of what {', '.join(without_estimate)} lost: no statistics of its classes are stored")
    if max_loss is not None and (unlimited := [name for name in old_tasks if name not in held_out]):
        notes.append(f"max_loss does not limit what {', '.join(unlimited)} lost: it has no held-out images")
    return tuple(notes)


def plural(count: int, noun: str) -> str:
    """Return a number with its noun, such as "1 image" or "2 images"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _right(evaluation: Evaluation) -> int:
    """Return the number of images that were classified right."""
    return round(evaluation.accuracy * evaluation.images / 100)
