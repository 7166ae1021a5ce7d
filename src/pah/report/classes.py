"""What single classes are taken for: accuracies of classes and the worst confusions, from a run's answers."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pah.report.exhibit import Cell, Exhibit, Table, count_tasks, drawing, line_style
from pah.report.rundata import Run
from pah.training.evaluation import Answers

WORST = 20  # confusions shown


class ClassResult(NamedTuple):
    """A class: its accuracy, in percent, task given; and what its images are taken for most often instead."""

    task: int
    name: str
    images: int
    accuracy: float
    taken_for: str | None


def class_results(answers: Sequence[Answers], names: Sequence[Sequence[str]]) -> list[ClassResult]:
    """Every class, task after task."""
    found = []
    for k, (of, of_task) in enumerate(zip(answers, names, strict=True)):
        for label, name in enumerate(of_task):
            given = of.given[of.labels == label]
            counts = given.bincount(minlength=len(of_task))
            right = int(counts[label])
            counts[label] = 0
            other = of_task[int(counts.argmax())] if int(counts.max()) else None
            found.append(ClassResult(k, name, len(given), 100 * right / max(len(given), 1), other))
    return found


def accuracies(run: Run, results: Sequence[ClassResult]) -> Exhibit:
    """A dot for each class, by task."""
    worst, best = min(results, key=lambda of: of.accuracy), max(results, key=lambda of: of.accuracy)
    with drawing() as (figure, [axes]):
        points = {"linestyle": "", "marker": "o", "markersize": 3.5, "alpha": 0.75, "color": line_style(0)["color"]}
        axes.plot([of.task + 1 for of in results], [of.accuracy for of in results], **points)
        last = run.matrix[-1]
        mean = {"linestyle": "", "marker": "_", "markersize": 14, "color": line_style(1)["color"]}
        axes.plot(range(1, len(last) + 1), last, label="the task's accuracy", **mean)
        axes.set(xlabel="task", ylabel="accuracy of a class, %")
        axes.grid(visible=False, axis="x")
        axes.set_xlim(0.4, len(last) + 0.6)
        count_tasks(axes.xaxis, len(last))
        figure.legend(loc="outside upper right", fontsize=8)
    words = (
        f"A dot for each of {len(results)} classes, in the column of its task. Worst is {worst.name} with "
        f"{worst.accuracy:.1f} %, best {best.name} with {best.accuracy:.1f} %."
    )
    rows: list[list[Cell]] = [[of.name, str(of.task + 1), of.accuracy, str(of.images), of.taken_for] for of in results]
    titles = ["class", "task", "accuracy, %", "images", "most often taken for"]
    return Exhibit(
        "class-accuracy", "Accuracy of each class", words, figure, Table("At the end, task given", titles, rows)
    )


def confusions(answers: Sequence[Answers], names: Sequence[Sequence[str]]) -> list[Table]:
    """The pairs of classes that are confused most, where the task is given and where it is not."""
    found = [
        ("Task given", _pairs(answers, names, given=True)),
        ("Task not given", _pairs(answers, names, given=False)),
    ]
    titles = ["images of", "taken for", "images", "share, %"]
    return [Table(f"{when}: the {len(rows)} worst confusions", titles, rows) for when, rows in found if rows]


def _pairs(answers: Sequence[Answers], names: Sequence[Sequence[str]], *, given: bool) -> list[list[Cell]]:
    """Rows of truth, answer, how many images, and which share of the class's images."""
    pairs = sorted(_wrong(answers, names, given), key=lambda pair: pair[3], reverse=True)
    return [[truth, answer, str(images), share] for truth, answer, images, share in pairs[:WORST]]


def _wrong(
    answers: Sequence[Answers], names: Sequence[Sequence[str]], given: bool
) -> Iterator[tuple[str, str, int, float]]:
    """Every pair of classes of which the first was taken for the second."""
    all_names = [name for of_task in names for name in of_task]
    for k, (of, of_task) in enumerate(zip(answers, names, strict=True)):
        offset = sum(map(len, names[:k]))
        known, answered, own = (of_task, of.given, 0) if given else (all_names, of.not_given, offset)
        for label, name in enumerate(of_task):
            counts = answered[of.labels == label].bincount(minlength=len(known))
            total = int(counts.sum())
            counts[own + label] = 0
            for other in counts.nonzero().flatten().tolist():
                images = int(counts[other])
                yield name, known[other], images, 100 * images / total
