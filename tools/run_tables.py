"""The tables of committed runs: the summary in README.md, all studies, and the comparisons of methods.

A run is a folder results/<study>/<method>-seed<N>/ with metrics.json and config.yaml. results/comparison/<study>/ was
written by `pah compare`.
"""

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from pah.core.config import InputError
from pah.core.files import read_json, read_yaml
from pah.methods import METHODS
from pah.runs.folder import PREDICTIONS
from pah.study.bootstrap import CorrectMask
from pah.study.comparison import summarise_folder
from pah.study.grid import correct_answers
from pah.study.table import (
    NO_VALUE,
    REFERENCE,
    difference_intervals,
    format_count,
    format_interval,
    format_mean_std,
    legend,
    markdown_table,
    table_rows,
)

FIGURES = {  # column -> its name in metrics.json, in percent
    "AA": "average_accuracy",
    "FM": "forgetting",
    "BWT": "backward_transfer",
    "LA": "learning_accuracy",
    "task not given": "class_incremental_accuracy",
}
DIFFERENCE = f"AA minus {REFERENCE.upper()} [95 % interval]"  # for methods whose predictions are committed
UNFLIPPED = "AA without flip"  # for runs that average an image's answer with that of its mirror image
LEFT_OUT = {  # a method that belongs in the comparison -> the reason why it is missing
    "cclis": "it fits its classifier in a separate phase after contrastive training, so it does not fit the shared loop"
}
LEGEND = """\
All numbers are percentages: the mean ± the sample standard deviation over seeds. AA is the average accuracy over all
tasks at the end, FM is forgetting, BWT is backward transfer, and LA is the accuracy on each task right after it was
learned. In these four, the task is given at test time. "Task not given" is the accuracy over all classes at once.
"AA minus PAH" compares the two methods on the same test images, over the seeds that both have, by the paired
bootstrap explained [below](#methods-side-by-side). "AA without flip" belongs to runs that average the answers for an
image and its mirror image: it is their AA without the mirror image. "Per new task" counts the numbers stored for one
task alone. The minutes are those of one CPU thread on a machine that did other work as well. The table is made from
`results/` by `python tools/tables.py`."""


@dataclass(frozen=True)
class Run:
    """One committed run.

    Args:
        study: Name of the folder that holds the run.
        method: Registry name of the method.
        setting: Tasks, epochs, backbone and evaluation in words.
        configuration: All options except the seed and the path of the data.
        figures: Measures in percent, by column.
        per_task: Numbers stored for one task alone, mean over tasks.
        minutes: Duration of the run.
        seed: Seed of the run.
        answers: For each task, which test images were answered correctly; None if predictions are not committed.
    """

    study: str
    method: str
    setting: str
    configuration: Mapping[str, Any]
    figures: Mapping[str, float]
    per_task: float
    minutes: float
    seed: int
    answers: Sequence[CorrectMask] | None


def read_runs(results: Path) -> list[Run]:
    """Return all runs under `results`, sorted by study and method, with PAH first in each study.

    Raises:
        InputError: no run, an unreadable run, or seeds of one method that differ in more than the seed.
    """
    runs = [read_run(path.parent) for path in sorted(results.glob("*/*-seed*/metrics.json"))]
    if not runs:
        raise InputError(f"{results}: expected runs in <study>/<method>-seed<N>/metrics.json, got none")
    runs.sort(key=lambda run: (run.study, run.method != REFERENCE, run.method))
    for (study, method), seeds in by_method(runs):
        if any(run.configuration != seeds[0].configuration for run in seeds):
            raise InputError(f"{results / study}: expected one configuration for all seeds of {method}, got several")
    return runs


def read_run(folder: Path) -> Run:
    """Return the run in a folder.

    Raises:
        InputError: its files are broken or incomplete, or belong to another run.
    """
    metrics, config = read_json(folder / "metrics.json"), read_yaml(folder / "config.yaml")
    try:
        name = f"{metrics['method']}-seed{metrics['seed']}"
        if name != folder.name:
            raise InputError(f"{folder}: expected the run that the folder is named after, got {name}")
        return Run(
            study=folder.parent.name,
            method=metrics["method"],
            setting=describe(metrics, config),
            configuration={key: value for key, value in config.items() if key not in ("seed", "data")},
            figures={column: float(metrics[key]) for column, key in FIGURES.items()} | unflipped(metrics, config),
            per_task=statistics.fmean(metrics["parameters"]["per_task"]),
            minutes=metrics["seconds"] / 60,
            seed=metrics["seed"],
            answers=correct_answers(folder) if (folder / PREDICTIONS).exists() else None,
        )
    except KeyError as error:
        raise InputError(f"{folder}: expected {error} in metrics.json or config.yaml, got none") from None


def unflipped(metrics: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, float]:
    """Return the average accuracy without mirror images, in percent by column, if the run uses mirror images."""
    flips = config["training"].get("flip_test", False)
    return {UNFLIPPED: float(metrics["average_accuracy_without_flip"])} if flips else {}


def describe(metrics: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """Return a run's setting: "10 tasks of 10 classes, 12 epochs a task, resnet18-slim (width 32)"."""
    tasks = len(metrics["task_names"])
    fewest, larger_tasks = divmod(len(metrics["class_order"]), tasks)  # the first `larger_tasks` have one class more
    classes = f"{fewest} to {fewest + 1}" if larger_tasks else str(fewest)
    if sizes := config.get("stream", {}).get("sizes"):
        classes = " to ".join(map(str, sorted({min(sizes[:tasks]), max(sizes[:tasks])})))
    training, backbone = config["training"], dict(config["backbone"])
    name = backbone.pop("name")
    options = ", ".join(f"{option.replace('_', ' ')} {value}" for option, value in backbone.items())
    parts = [
        f"{tasks} tasks of {classes} classes",
        f"{training['epochs']} epoch{'s' if training['epochs'] > 1 else ''} a task",
        f"{name} ({options})" if options else name,
    ]
    if side := config.get("image_size"):
        parts.append(f"resized to {side}x{side}")
    if training["evaluate_on"] != "test":
        parts.append(f"measured on {training['evaluate_on']} images")
    if training.get("flip_test", False):
        parts.append("answers averaged over an image and its mirror image")
    if training["test_batch_norm"] != "running":
        parts.append(f"batch norm at test time by {training['test_batch_norm']}")
    return ", ".join(parts)


def by_method(runs: Sequence[Run]) -> Iterator[tuple[tuple[str, str], list[Run]]]:
    """Yield each study and method with its seeds."""
    for key, seeds in groupby(runs, key=lambda run: (run.study, run.method)):
        yield key, list(seeds)


def runs_table(runs: Sequence[Run]) -> str:
    """Return the runs as a Markdown table with a row for each study and method."""
    lines = [
        ["study", "method", "seeds", *FIGURES, DIFFERENCE, UNFLIPPED, "per new task", "minutes"],
        ["---", "---", *["---:"] * (len(FIGURES) + 5)],
    ]
    previous = ""
    intervals = {study: intervals_of(list(group)) for study, group in groupby(runs, key=lambda run: run.study)}
    for (study, method), seeds in by_method(runs):
        title = f"**{study}**: {seeds[0].setting}"
        unflipped_accuracies = [run.figures[UNFLIPPED] for run in seeds if UNFLIPPED in run.figures]
        cells = [format_mean_std([run.figures[column] for run in seeds]) for column in FIGURES]
        cells.append(format_interval(intervals[study].get(method)))
        cells.append(format_mean_std(unflipped_accuracies) if unflipped_accuracies else NO_VALUE)
        cells.append(format_count(seeds[0].per_task))
        cells.append(f"{statistics.fmean(run.minutes for run in seeds):.1f}")
        lines.append(["" if title == previous else title, method, str(len(seeds)), *cells])
        previous = title
    return markdown_table(lines)


def intervals_of(runs: Iterable[Run]) -> dict[str, dict[str, Any]]:
    """Return the difference in AA to PAH for each method of one study, where both have committed predictions."""
    answers: dict[str, dict[int, Sequence[CorrectMask]]] = {}
    for run in runs:
        if run.answers is not None:
            answers.setdefault(run.method, {})[run.seed] = run.answers
    return {method: asdict(interval) for method, interval in difference_intervals(answers, REFERENCE).items()}


def summary_rows(runs: Sequence[Run]) -> list[list[str]]:
    """Return the rows of the recipes `best` and `fast` in the README's summary.

    Each row has the experiment, the number of seeds, AA, FM and one sentence.

    Raises:
        InputError: a run that a sentence needs is missing.
    """
    groups = dict(by_method(runs))
    try:
        best, fast, lwf = (groups[key] for key in (("best", "pah"), ("fast", "pah"), ("fast", "lwf")))
    except KeyError as error:
        raise InputError(f"results: expected runs of {error} (study, method), got none") from None
    minutes = statistics.fmean(run.minutes for run in best)
    time = f"This is the most accurate recipe; one run takes {minutes:.0f} minutes on one CPU thread."
    return [
        ["Split-CIFAR100, recipe `best`", *_figures(best), time],
        ["Split-CIFAR100, recipe `fast`", *_figures(fast), _compared_with_lwf(fast, lwf)],
    ]


def _accuracies(seeds: Sequence[Run]) -> list[float]:
    """Return the average accuracy of each seed."""
    return [run.figures["AA"] for run in seeds]


def _figures(seeds: Sequence[Run]) -> list[str]:
    """Return the number of seeds, AA and FM of one method as cells."""
    return [str(len(seeds)), format_mean_std(_accuracies(seeds)), format_mean_std([run.figures["FM"] for run in seeds])]


def _compared_with_lwf(pah: Sequence[Run], lwf: Sequence[Run]) -> str:
    """Return one sentence on LwF, which stores a head for each task instead of generating it."""
    sentence = f"LwF, which stores a head for each task, reaches {format_mean_std(_accuracies(lwf))}"
    interval = intervals_of([*pah, *lwf]).get("lwf")
    if interval is None:
        return f"{sentence}."
    significant = "not significant" if interval["low"] <= 0 <= interval["high"] else "significant"
    seeds = f"{interval['seeds']} seed{'s' if interval['seeds'] > 1 else ''}"
    return f"{sentence}; over {seeds} this difference is {significant}."


def comparisons(results: Path) -> str:
    """Return the comparisons under `results` as Markdown tables, followed by what the columns mean.

    Raises:
        InputError: there is no comparison, or one that does not agree with its runs.
    """
    parts = []
    paths = sorted(results.glob("comparison/*/comparison.json"))
    for path in paths:
        stored = read_json(path)
        summary = summarise_folder(path.parent, stored["missing"])
        titles, *rows = table_rows(summary)
        if [titles, *rows] != table_rows(stored):
            raise InputError(f"{path}: expected the numbers of its runs, got others: run its `pah compare` again")
        run = min(path.parent.glob("*-seed*/metrics.json"))
        setting = describe(read_json(run), read_yaml(run.with_name("config.yaml")))
        all_methods = summary["methods"].keys() == METHODS.keys()
        left_out = [[name, "0", *[NO_VALUE] * (len(titles) - 2)] for name in LEFT_OUT if all_methods]
        table = markdown_table([titles, ["---", *["---:"] * (len(titles) - 1)], *rows, *left_out])
        parts.append(f"**{path.parent.name}**: {setting}\n\n{table}")
    if not paths:
        raise InputError(f"{results}: expected comparison/<study>/comparison.json, got none")
    reasons = "\n".join(f"`{name}` is left out: {reason}." for name, reason in LEFT_OUT.items())
    return "\n\n".join([*parts, legend(summary), reasons])
