"""The report of one run: what it says, section by section."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

import yaml

from pah.core.config import InputError
from pah.report import classes, curves, inside, pictures, training
from pah.report.exhibit import Cell, Exhibit, Table
from pah.report.rundata import Run, read_metrics, read_run
from pah.runs.folder import CONFIG, METRICS

SAME_STREAM = ("benchmark", "seed", "evaluated_on", "class_order", "task_names")
NO_CHOICE = ("seed", "data", "snapshots")  # options that do not make another method or training


class Card(NamedTuple):
    """A number that sums a run up."""

    name: str
    value: float
    meaning: str


class Section(NamedTuple):
    """A part of a page; `hidden` exhibits are files alone, as the page shows them in another form."""

    anchor: str
    title: str
    text: Sequence[str] = ()
    exhibits: Sequence[Exhibit] = ()
    tables: Sequence[Table] = ()
    galleries: Sequence[pictures.Gallery] = ()
    hidden: Sequence[Exhibit] = ()
    code: Sequence[tuple[str, str]] = ()  # what it is, and the text itself


class Page(NamedTuple):
    """What a template makes a report of."""

    title: str
    summary: Sequence[str]
    cards: Sequence[Card]
    sections: Sequence[Section]
    missing: Sequence[str]


def page_of(run: Run) -> Page:
    """The report of a run, with that of finetuning beside it where there is one."""
    finetune = finetuned(run)
    parts = (_accuracy(run, finetune), _training(run), _prototypes(run), _diagnosis(run), _classes(run), _origin(run))
    name = f"{run.method} on {run.metrics['benchmark']}, seed {run.metrics['seed']}"
    return Page(name, _summary(run, finetune), _cards(run), [part for part in parts if part], run.missing)


def finetuned(run: Run) -> Run | None:
    """The finished run of finetuning on the same stream in the folder beside, whose other options differ least."""
    if run.method == "finetune" or not run.finished:
        return None
    found = list(_finetuned_beside(run))
    return min(found, key=lambda other: len(differing(run, other)), default=None)


def _finetuned_beside(run: Run) -> Iterator[Run]:
    for path in sorted(run.folder.resolve().parent.glob(f"*/{METRICS}")):
        try:
            known = read_metrics(path.parent)
            same = all(known.get(key) == run.metrics.get(key) for key in SAME_STREAM)
            if same and known["method"] == "finetune" and len(known["accuracy_matrix"]) == len(run.matrix):
                yield read_run(path.parent)
        except InputError:  # nobody asked for that one
            continue


def differing(run: Run, other: Run) -> list[str]:
    """The options, by dotted name, in which two runs differ beside those of the method."""
    one, two = choices(run), choices(other)
    return [name for name in one | two if not name.startswith("method.") and one.get(name) != two.get(name)]


def choices(run: Run) -> dict[str, Any]:
    """The options, by dotted name, that tell one method or training from another."""
    return {name: value for name, value in flat(run.config).items() if name not in NO_CHOICE}


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Options by dotted name, as they were written."""
    return {
        name: value
        for key, group in config.items()
        for name, value in (
            ((f"{key}.{option}", of) for option, of in group.items()) if isinstance(group, dict) else [(key, group)]
        )
    }


def _summary(run: Run, finetune: Run | None) -> list[str]:
    """The run in plain words."""
    known, count = run.metrics, len(run.matrix)
    ended = "" if run.finished else f" The run is not finished: it has learned {count} of {run.tasks or 'its'} tasks."
    tasks = f"{count} tasks, one after another" if count > 1 else "one task"
    words = [
        f"{run.method} learned {tasks}, on {known['benchmark']}, and was measured on {known['evaluated_on']} images of "
        f"every task seen.{ended}",
        f"Told which task an image belongs to, it answers {known['average_accuracy']:.1f} % of the images correctly, "
        f"averaged over the tasks; right after each task was learned it was {known['learning_accuracy']:.1f} %. "
        f"Not told the task, it finds the right one of all classes for {known['class_incremental_accuracy']:.1f} %.",
    ]
    if finetune:
        rest = fmean(finetune.matrix[-1])
        less = known["average_accuracy"] - rest
        words.append(
            f"The same training without protection (finetune) would have kept {rest:.1f} %, {abs(less):.1f} points "
            f"{'less' if less >= 0 else 'more'} than {run.method}."
        )
        if others := differing(run, finetune):
            words.append(f"That run differs in other options as well: {', '.join(others)}.")
    return words


def _cards(run: Run) -> list[Card]:
    known = run.metrics
    return [
        Card("AA", known["average_accuracy"], "average accuracy over all tasks at the end, %"),
        Card("FM", known["forgetting"], "forgetting: what an old task lost since its best moment, points"),
        Card(
            "BWT", known["backward_transfer"], "backward transfer: what an old task gained since it was learned, points"
        ),
        Card("LA", known["learning_accuracy"], "learning accuracy: a task's accuracy right after it was learned, %"),
    ]


def _accuracy(run: Run, finetune: Run | None) -> Section:
    exhibits = [curves.accuracy_matrix(run), curves.over_time(run), curves.average_over_time(run, finetune)]
    exhibits.append(curves.kept(run, finetune))
    names = [", ".join(of) for of in run.names] if run.names else run.metrics.get("task_names")
    tasks = [Table("The tasks", ["task", "classes"], [[str(k + 1), of] for k, of in enumerate(names)])] if names else []
    return Section("accuracy", "What was learned, and what is kept", exhibits=exhibits, tables=tasks)


def _training(run: Run) -> Section | None:
    if not run.log:
        return None
    return Section("training", "Training", exhibits=[training.losses(run), training.effort(run)])


def _prototypes(run: Run) -> Section | None:
    if not (run.prototypes_now and any(run.prototypes)):
        return None
    shown, drift = pictures.galleries(run), inside.prototype_drift(run)
    text = [
        "Each class's prototype, the small learnable image from which its head is generated. From left to right, as "
        "far as recorded: the image it started from, its start, as it was after its own task, and as it is now. What "
        "is brighter than white or darker than black is shown white or black."
    ]
    if (total := sum(map(len, run.prototypes_now))) > pictures.SHOWN:
        text.append(f"Shown are the first {pictures.SHOWN} of {total} classes.")
    figure = pictures.figure(run)
    exhibits = [drift] if drift else []
    return Section("prototypes", "Prototypes", text, exhibits, galleries=shown, hidden=[figure])


def _diagnosis(run: Run) -> Section | None:
    if not (run.diagnosis and run.diagnosis["tasks"]):
        return None
    text = [
        "How much of what was lost a new linear head on today's features would bring back: that part lies in the head; "
        "the rest was lost in the features."
    ]
    exhibits = [inside.lost_parts(run.diagnosis), inside.similarity(run.diagnosis)]
    return Section("diagnosis", "Where forgetting comes from", text, exhibits)


def _classes(run: Run) -> Section | None:
    if run.answers is None or run.names is None:
        return None
    results = classes.class_results(run.answers, run.names)
    exhibit = classes.accuracies(run, results)
    return Section("classes", "Classes", exhibits=[exhibit], tables=classes.confusions(run.answers, run.names))


def _origin(run: Run) -> Section:
    """How the run came to be, and how to do it again."""
    known = run.metrics
    parameters = known.get("parameters", {})
    facts: dict[str, Cell] = {
        "seconds": known["seconds"],
        "images a second in training": known.get("images_per_second"),
        "peak memory of the process, MB": known.get("peak_memory_mb"),
        "stored samples": known.get("stored_samples"),
        "parameters in all": parameters.get("total"),
        "of the backbone": parameters.get("backbone"),
        "of a hypernetwork": parameters.get("hypernetwork"),
        "of a task alone, on average": fmean(parameters["per_task"]) if parameters.get("per_task") else None,
        "commit": known.get("commit"),
        **known.get("versions", {}),
    }
    rows = [[name, value] for name, value in facts.items() if value is not None]
    again = f"pah run --config {shlex.quote(str(run.folder / CONFIG))} --out NEW_FOLDER"
    options = yaml.safe_dump(dict(run.config), sort_keys=False, allow_unicode=True)
    code = [("To run it again", again), (f"All options, as {CONFIG} has them", options)]
    return Section(
        "origin", "Where it comes from", tables=[Table("Cost and versions", ["what", "value"], rows)], code=code
    )
