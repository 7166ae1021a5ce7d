"""The report of one run, section by section."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

import yaml

from pah.core.config import InputError
from pah.report import classes, curves, drift, prototype_pictures, training
from pah.report.charts import CellValue, Chart, Table
from pah.report.run_data import Run, read_metrics, read_run
from pah.runs.folder import CONFIG, METRICS
from pah.study.ablation import flatten

SAME_STREAM = ("benchmark", "seed", "evaluated_on", "class_order", "task_names")
IGNORED_OPTIONS = ("seed", "data", "snapshots")  # they change neither the method nor its training


class Card(NamedTuple):
    """A summary number of a run."""

    name: str
    value: float
    meaning: str


class Section(NamedTuple):
    """A part of a page."""

    anchor: str
    title: str
    text: Sequence[str] = ()
    charts: Sequence[Chart] = ()
    tables: Sequence[Table] = ()
    galleries: Sequence[prototype_pictures.Gallery] = ()
    file_only: Sequence[Chart] = ()  # charts saved as files, because the page shows their content in another form
    code: Sequence[tuple[str, str]] = ()  # heading and text


class Page(NamedTuple):
    """The content of a report: what the template renders, and the text of other files beside it, by name."""

    title: str
    summary: Sequence[str]
    cards: Sequence[Card]
    sections: Sequence[Section]
    missing: Sequence[str]
    files: Mapping[str, str] = {}


def page_of(run: Run) -> Page:
    """Return the report of a run, compared with finetuning if a run of it lies beside this one."""
    finetune = matching_finetune_run(run)
    parts = (_accuracy(run, finetune), _training(run), _prototypes(run), _diagnosis(run), _classes(run), _origin(run))
    title = f"{run.method} on {run.metrics['benchmark']}, seed {run.metrics['seed']}"
    return Page(title, _summary(run, finetune), _cards(run), [part for part in parts if part], run.missing)


def matching_finetune_run(run: Run) -> Run | None:
    """Return the finished finetuning run on the same stream in the parent folder with the fewest other options."""
    if run.method == "finetune" or not run.finished:
        return None
    candidates = list(_finetune_runs_beside(run))
    return min(candidates, key=lambda other: len(different_options(run, other)), default=None)


def _finetune_runs_beside(run: Run) -> Iterator[Run]:
    """Yield the finished finetuning runs on the same stream in the parent folder."""
    for path in sorted(run.folder.resolve().parent.glob(f"*/{METRICS}")):
        try:
            other = read_metrics(path.parent)
            same_stream = all(other.get(key) == run.metrics.get(key) for key in SAME_STREAM)
            if same_stream and other["method"] == "finetune" and len(other["accuracy_matrix"]) == len(run.matrix):
                yield read_run(path.parent)
        except InputError:  # a damaged neighbour must not prevent the report
            continue


def different_options(run: Run, other: Run) -> list[str]:
    """Return the options, by dotted name and except those of the method, in which two runs differ."""
    one, two = relevant_options(run), relevant_options(other)
    return [name for name in one | two if not name.startswith("method.") and one.get(name) != two.get(name)]


def relevant_options(run: Run) -> dict[str, Any]:
    """Return the options, by dotted name, that determine the method and its training."""
    return {name: value for name, value in flatten(run.config).items() if name not in IGNORED_OPTIONS}


def _summary(run: Run, finetune: Run | None) -> list[str]:
    """Return paragraphs that summarise the run in words."""
    scores, count = run.metrics, len(run.matrix)
    progress = (
        "" if run.finished else f" The run is not finished: it has learned {count} of {run.tasks or 'its'} tasks."
    )
    tasks = f"{count} tasks, one after another" if count > 1 else "one task"
    paragraphs = [
        f"{run.method} learned {tasks}, on {scores['benchmark']}, and was measured on {scores['evaluated_on']} images "
        f"of every task seen.{progress}",
        f"When the task is given, it classifies {scores['average_accuracy']:.1f} % of the images correctly, averaged "
        f"over the tasks. Right after each task was learned, it was {scores['learning_accuracy']:.1f} %. "
        f"When the task is not given, it finds the right class among all classes for "
        f"{scores['class_incremental_accuracy']:.1f} % of the images.",
    ]
    if finetune:
        finetune_accuracy = finetune.metrics["average_accuracy"]
        gain = scores["average_accuracy"] - finetune_accuracy
        paragraphs.append(
            f"The same training without protection (finetune) reaches {finetune_accuracy:.1f} %, {abs(gain):.1f} "
            f"points {'less' if gain >= 0 else 'more'} than {run.method}."
        )
        if others := different_options(run, finetune):
            paragraphs.append(f"That run differs in other options as well: {', '.join(others)}.")
    return paragraphs


def _cards(run: Run) -> list[Card]:
    """Return the four summary numbers."""
    scores = run.metrics
    return [
        Card("AA", scores["average_accuracy"], "average accuracy over all tasks at the end, %"),
        Card("FM", scores["forgetting"], "forgetting: loss of an old task since its best accuracy, points"),
        Card("BWT", scores["backward_transfer"], "backward transfer: gain of an old task since it was learned, points"),
        Card("LA", scores["learning_accuracy"], "learning accuracy: a task's accuracy right after it was learned, %"),
    ]


def _accuracy(run: Run, finetune: Run | None) -> Section:
    charts = [
        curves.accuracy_matrix(run),
        curves.accuracy_over_time(run),
        curves.average_over_time(run, finetune),
        curves.learned_and_final(run, finetune),
    ]
    names = [", ".join(task_names) for task_names in run.names] if run.names else run.metrics.get("task_names")
    rows = [[str(k + 1), classes_of_task] for k, classes_of_task in enumerate(names or ())]
    tables = [Table("The tasks", ["task", "classes"], rows)] if rows else []
    tables.append(_averages(run))
    return Section("accuracy", "Accuracy and forgetting", charts=charts, tables=tables)


def _averages(run: Run) -> Table:
    """Return the accuracies over all tasks seen after each task, and their means over the run."""
    given = curves.average_accuracies(run.matrix)
    not_given = run.metrics.get("class_incremental_curve") or [None] * len(given)  # older runs lack it
    rows = [[str(k), curves.cell(one), other] for k, (one, other) in enumerate(zip(given, not_given, strict=True), 1)]
    means = ("average_incremental_accuracy", "average_class_incremental_accuracy")
    rows.append(["mean", *(run.metrics.get(key) for key in means)])
    caption = "Over all tasks seen, %; the means are the average incremental accuracies (AIA)"
    return Table(caption, ["after task", "task given, average", "task not given"], rows)


def _training(run: Run) -> Section | None:
    if not run.log:
        return None
    return Section("training", "Training", charts=[training.losses(run), training.effort(run)])


def _prototypes(run: Run) -> Section | None:
    if not (run.prototypes_now and any(run.prototypes)):
        return None
    galleries, drift_chart = prototype_pictures.galleries(run), drift.prototype_drift(run)
    text = [
        "Each class's prototype is the small learnable image from which its head is generated. From left to right, as "
        "far as recorded: the image it started from, its start, after its own task, and at present. Values brighter "
        "than white or darker than black are shown as white or black."
    ]
    if (total := sum(map(len, run.prototypes_now))) > prototype_pictures.MAX_CLASSES:
        text.append(f"The first {prototype_pictures.MAX_CLASSES} of {total} classes are shown.")
    figure = prototype_pictures.prototype_figure(run)
    charts = [drift_chart] if drift_chart else []
    return Section("prototypes", "Prototypes", text, charts, galleries=galleries, file_only=[figure])


def _diagnosis(run: Run) -> Section | None:
    if not (run.diagnosis and run.diagnosis["tasks"]):
        return None
    text = [
        "A new linear head is trained on the present features. The accuracy that it recovers was lost in the head; the "
        "rest was lost in the features."
    ]
    charts = [drift.lost_parts(run.diagnosis), drift.similarity(run.diagnosis)]
    return Section("diagnosis", "Where forgetting comes from", text, charts)


def _classes(run: Run) -> Section | None:
    if run.answers is None or run.names is None:
        return None
    chart = classes.accuracies(run, classes.class_results(run.answers, run.names))
    return Section("classes", "Classes", charts=[chart], tables=classes.confusions(run.answers, run.names))


def _origin(run: Run) -> Section:
    """Return the section on cost, versions and options, with the command that repeats the run."""
    run_metrics = run.metrics
    parameters = run_metrics.get("parameters", {})
    facts: dict[str, CellValue] = {
        "seconds": run_metrics["seconds"],
        "images a second in training": run_metrics.get("images_per_second"),
        "peak memory of the process, MB": run_metrics.get("peak_memory_mb"),
        "stored samples": run_metrics.get("stored_samples"),
        "parameters, total": parameters.get("total"),
        "parameters of the backbone": parameters.get("backbone"),
        "parameters of a hypernetwork": parameters.get("hypernetwork"),
        "parameters of one task alone, mean": fmean(parameters["per_task"]) if parameters.get("per_task") else None,
        "commit": run_metrics.get("commit"),
        **run_metrics.get("versions", {}),
    }
    rows = [[name, value] for name, value in facts.items() if value is not None]
    table = Table("Cost and versions", ["what", "value"], rows)
    command = f"pah run --config {shlex.quote(str(run.folder / CONFIG))} --out NEW_FOLDER"
    options = yaml.safe_dump(dict(run.config), sort_keys=False, allow_unicode=True)
    code = [("To repeat the run", command), (f"All options, as in {CONFIG}", options)]
    return Section("origin", "Cost, versions and options", tables=[table], code=code)
