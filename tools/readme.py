"""Writes the tables of README.md from what is committed under results/.

    python tools/readme.py            write each table between its two marker comments
    python tools/readme.py --check    write nothing; exit 1 if README.md is not up to date

A run is a folder results/<study>/<method>-seed<N>/ with metrics.json and config.yaml; results/comparison/<study>/ is
what `pah compare` wrote; results/step-cost.json is what benchmarks/step_cost.py wrote, results/task-inference/ what
tools/task_inference.py wrote, results/three-lessons.json what examples/three_lessons.py wrote. All numbers come from
these.
"""

import argparse
import statistics
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from pah.core.config import InputError
from pah.core.files import read_json, read_yaml
from pah.methods import METHODS
from pah.runs.folder import PREDICTIONS
from pah.study.bootstrap import Correct
from pah.study.comparison import summary_of
from pah.study.grid import correct
from pah.study.table import (
    NONE,
    REFERENCE,
    count,
    differences,
    legend,
    markdown_table,
    spread,
    table_rows,
    with_interval,
)

ROOT = Path(__file__).resolve().parent.parent

FIGURES = {  # column -> its name in metrics.json, in percent
    "AA": "average_accuracy",
    "FM": "forgetting",
    "BWT": "backward_transfer",
    "LA": "learning_accuracy",
    "task not given": "class_incremental_accuracy",
}
MINUS = f"AA minus {REFERENCE.upper()} [95 % interval]"  # of methods whose runs' predictions are committed
SMALL_METHODS = ("pah", "lwf", "finetune", "independent", "joint")  # of the table of small lessons
UNFLIPPED = "AA without flip"  # of runs that average an image's answer with that of its mirror image
LEFT_OUT = {  # a method that belongs in the comparison -> why it is not there
    "cclis": "its classifier is fitted in a phase of its own after contrastive training, another loop than all share"
}
LEGEND = """\
Percent; mean ± sample standard deviation over seeds. AA: average accuracy over all tasks at the end; FM: forgetting;
BWT: backward transfer; LA: accuracy on each task right after it was learned; all four with the task given at test
time. Task not given: accuracy over all classes at once. AA minus PAH: on the same test images, over the seeds that both
have, by the paired bootstrap explained [below](#methods-side-by-side). AA without flip: where the answers are the mean
over an image and its mirror image, AA without the latter. Per new task: the numbers stored for one task alone. Made
from `results/` by `python tools/readme.py`."""


@dataclass(frozen=True)
class Run:
    """One committed run."""

    study: str
    method: str
    setting: str  # in words
    configuration: Mapping[str, Any]  # all of it but the seed, and where on a machine the data lay
    figures: Mapping[str, float]  # by column, percent
    per_task: float  # numbers stored for one task alone, mean over tasks
    minutes: float
    seed: int
    answers: Sequence[Correct] | None  # which test images of each task were answered correctly, if committed


def read_runs(results: Path) -> list[Run]:
    """All runs under `results`, by study, and in a study by method, PAH first.

    Raises:
        InputError: no run, one that cannot be read, or seeds of one method that differ in more than the seed.
    """
    runs = [read_run(path.parent) for path in sorted(results.glob("*/*-seed*/metrics.json"))]
    if not runs:
        raise InputError(f"{results}: expected runs in <study>/<method>-seed<N>/metrics.json, got none")
    runs.sort(key=lambda run: (run.study, run.method != "pah", run.method))
    for (study, method), seeds in by_method(runs):
        if any(run.configuration != seeds[0].configuration for run in seeds):
            raise InputError(f"{results / study}: expected one configuration for all seeds of {method}, got several")
    return runs


def read_run(folder: Path) -> Run:
    """The run in a folder; InputError if its files are broken, incomplete or of another run."""
    metrics, config = read_json(folder / "metrics.json"), read_yaml(folder / "config.yaml")
    try:
        name = f"{metrics['method']}-seed{metrics['seed']}"
        if name != folder.name:
            raise InputError(f"{folder}: expected the run that the folder's name says, got {name}")
        return Run(
            study=folder.parent.name,
            method=metrics["method"],
            setting=describe(metrics, config),
            configuration={key: value for key, value in config.items() if key not in ("seed", "data")},
            figures={column: float(metrics[name]) for column, name in FIGURES.items()} | unflipped(metrics, config),
            per_task=statistics.fmean(metrics["parameters"]["per_task"]),
            minutes=metrics["seconds"] / 60,
            seed=metrics["seed"],
            answers=correct(folder) if (folder / PREDICTIONS).exists() else None,
        )
    except KeyError as error:
        raise InputError(f"{folder}: expected {error} in metrics.json or config.yaml, got none") from None


def unflipped(metrics: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, float]:
    """The average accuracy without mirror images, of a run that uses them: percent, by column."""
    flips = config["training"].get("flip_test", False)
    return {UNFLIPPED: float(metrics["average_accuracy_without_flip"])} if flips else {}


def describe(metrics: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """What was learned, how long and on what: "10 tasks of 10 classes, 12 epochs a task, resnet18-slim (width 32)"."""
    tasks = len(metrics["task_names"])
    fewest, more = divmod(len(metrics["class_order"]), tasks)  # the first `more` tasks have one class more
    classes = f"{fewest} to {fewest + 1}" if more else str(fewest)
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
    """The seeds of each study and method."""
    for key, seeds in groupby(runs, key=lambda run: (run.study, run.method)):
        yield key, list(seeds)


def table(runs: Sequence[Run]) -> str:
    """The runs as a Markdown table, a line for each study and method; what a study is, is said once."""
    lines = [
        ["study", "method", "seeds", *FIGURES, MINUS, UNFLIPPED, "per new task", "minutes"],
        ["---", "---", *["---:"] * (len(FIGURES) + 5)],
    ]
    said = ""
    intervals = {study: of_study(group) for study, group in groupby(runs, key=lambda run: run.study)}
    for (study, method), seeds in by_method(runs):
        what = f"**{study}**: {seeds[0].setting}"
        figures = [spread([run.figures[column] for run in seeds]) for column in FIGURES]
        plain = [run.figures[UNFLIPPED] for run in seeds if UNFLIPPED in run.figures]
        figures.append(with_interval(intervals[study].get(method)))
        figures.append(spread(plain) if plain else NONE)
        figures.append(count(seeds[0].per_task))
        minutes = f"{statistics.fmean(run.minutes for run in seeds):.1f}"
        lines.append(["" if what == said else what, method, str(len(seeds)), *figures, minutes])
        said = what
    return markdown_table(lines)


def of_study(runs: Iterable[Run]) -> dict[str, dict[str, Any]]:
    """For each method of one study, its difference in AA to PAH, where both have committed answers."""
    answers: dict[str, dict[int, Sequence[Correct]]] = {}
    for run in runs:
        if run.answers is not None:
            answers.setdefault(run.method, {})[run.seed] = run.answers
    return {method: asdict(interval) for method, interval in differences(answers, REFERENCE).items()}


def comparisons(results: Path) -> str:
    """The comparisons under `results` as Markdown tables, with what a column says below the last one.

    Raises:
        InputError: there is none, or one that does not say what its runs say.
    """
    parts = []
    paths = sorted(results.glob("comparison/*/comparison.json"))
    for path in paths:
        stored = read_json(path)
        summary = summary_of(path.parent, stored["missing"])
        titles, *rows = table_rows(summary)
        if [titles, *rows] != table_rows(stored):
            raise InputError(f"{path}: expected what its runs say, got other numbers: run its `pah compare` again")
        run = min(path.parent.glob("*-seed*/metrics.json"))
        setting = describe(read_json(run), read_yaml(run.with_name("config.yaml")))
        whole = summary["methods"].keys() == METHODS.keys()
        left_out = [[name, "0", *[NONE] * (len(titles) - 2)] for name in LEFT_OUT if whole]
        table = markdown_table([titles, ["---", *["---:"] * (len(titles) - 1)], *rows, *left_out])
        parts.append(f"**{path.parent.name}**: {setting}\n\n{table}")
    if not paths:
        raise InputError(f"{results}: expected comparison/<study>/comparison.json, got none")
    reasons = "\n".join(f"Left out is `{name}`: {reason}." for name, reason in LEFT_OUT.items())
    return "\n\n".join([*parts, legend(summary), reasons])


def step_table(path: Path) -> str:
    """The cost of a step as a Markdown table, a line for each number of learned tasks."""
    found = read_json(path)
    lines = [
        [
            "tasks learned",
            "finetune, ms",
            "PAH, ms",
            "PAH, a pass per old head, ms",
            "PAH / finetune",
            "per head / PAH",
        ],
        ["---:"] * 6,
    ]
    for row in found["rows"]:
        finetune, pah, per_head = row["finetune_ms"], row["pah_ms"], row["per_head_ms"]
        milliseconds = (f"{ms:.0f}" for ms in (finetune, pah, per_head))
        lines.append([str(row["tasks"]), *milliseconds, f"{pah / finetune:.2f}", f"{per_head / pah:.1f}"])
    side, threads = found["image"], found["threads"]
    legend = (
        f"Median of {found['repeats']} steps, in one process and taking turns: {found['backbone']}, batch "
        f"{found['batch']}, {side}x{side}, tasks of {found['classes']} classes, {threads} threads, torch "
        f"{found['torch']}."
    )
    return markdown_table(lines) + f"\n\n{legend}"


def inference_table(path: Path) -> str:
    """How well each rule finds the task, as a Markdown table, and how well what was never taught is told."""
    found = read_json(path)
    chance, unknown = 100 / found["tasks"], found["unknown"]
    lines = [["rule", "task found, %", "class right, %"], ["---", "---:", "---:"]]
    for rule, of in found["rules"].items():
        name = f"`{rule}`" + (" (default)" if rule == found["default"] else "")
        lines.append([name, f"{of['task_accuracy']:.1f}", f"{of['class_accuracy']:.1f}"])
    lines.append(["by chance", f"{chance:.1f}", f"{found['task_given_accuracy'] * chance / 100:.1f}"])
    lines.append(["task given", "–", f"{found['task_given_accuracy']:.1f}"])
    legend = (
        f"Recipe `fast` with a tenth of the training images held out, the first {found['tasks']} tasks of "
        f"Split-CIFAR100, seed {found['run']['seed']}, {found['images']:,} test images. From {unknown['images']:,} "
        f"images of {unknown['classes']} classes never taught, `unknown=True` tells them with an AUROC of "
        f"{unknown['auroc']:.1f} %; allowed to refuse {unknown['false_alarm_asked']:.0f} % of the known, it refused "
        f"{unknown['false_alarm']:.1f} % of them, {unknown['detected']:.1f} % of the others."
    )
    return markdown_table(lines) + f"\n\n{legend}"


def lessons_table(path: Path) -> str:
    """What was known after each of three lessons, as a Markdown table."""
    found = read_json(path)
    stages = {stage: of for stage, of in found.items() if stage.startswith("after ")}
    lines = [["lesson", "classes", *stages], ["---", "---:", *["---:"] * len(stages)]]
    for lesson, classes in found["classes"].items():
        cells = [
            f"{of[lesson]['task given']:.1f} / {of[lesson]['task inferred']:.1f}" if lesson in of else ""
            for of in stages.values()
        ]
        lines.append([lesson, str(classes), *cells])
    speed, heads = found["images a second"], found["bytes of a stored head"]
    kept = ", ".join(
        f"{of:,} of {lesson} (a stored head: {heads[lesson]:,})"
        for lesson, of in found["bytes of prototypes a task"].items()
    )
    legend = (
        f"Test accuracy, %, task given / not given; {found['epochs']} epochs a lesson, one seed, made by `python "
        f"examples/three_lessons.py`. Bytes of prototypes: {kept}. The saved weights take "
        f"{found['bytes of the saved learner'] / 1e6:.1f} MB. `predict` answers {speed['predict']:.0f} images of 64x64 "
        f"a second, {100 * speed['predict'] / speed['backbone']:.0f} % of what the bare backbone takes."
    )
    return markdown_table(lines) + f"\n\n{legend}"


def small_table(table: Path, gauge: Path) -> str:
    """What is kept of small lessons, a line for each stream, and how well a learner's estimate tells what is not."""
    found, judged = read_json(table), read_json(gauge)
    titles = ["stream", "settings", *(f"{name}, AA / FM" for name in SMALL_METHODS), "LwF minus PAH [95 % interval]"]
    lines = [titles, ["---", "---", *["---:"] * (len(titles) - 2)]]
    for name, stream in found["streams"].items():
        methods = stream["methods"]
        minus = methods["lwf"]["minus_pah"]
        interval = f"{minus['difference']:+.1f} [{minus['low']:+.1f}, {minus['high']:+.1f}]"
        lines.append([f"`{name}`", stream["half"], *_kept(methods), interval])
    lines.append(["**mean of all**", "", *_kept(found["all"]), ""])
    seeds = {
        method: min(
            stream["methods"][method]["n"] for stream in found["streams"].values() if method in stream["methods"]
        )
        for method in SMALL_METHODS
        if method in found["all"]
    }
    legend = (
        f"Percent, task given, test images; means over seeds (n = {', '.join(f'{n} {m}' for m, n in seeds.items())}), "
        "by `python benchmarks/small_lessons.py` and `pah compare`. Settings were chosen on validation images of the "
        "streams marked so. LwF minus PAH is taken over the seeds that both have."
    )
    return f"{markdown_table(lines)}\n\n{legend}\n\n{_gauge_table(judged)}"


def _gauge_table(judged: Mapping[str, Any]) -> str:
    """How often a learner's estimate of what a lesson cost was right, a line a method."""
    titles = ["lessons of", "lessons", "cost an old task over 10 points", "of these flagged", "others flagged"]
    lines = [titles, ["---", *["---:"] * (len(titles) - 1)]]
    for name in (*(name for name in SMALL_METHODS if name in judged), "all"):
        of = judged[name]
        shares = ("–" if of[key] is None else f"{100 * of[key]:.0f} %" for key in ("flagged", "false_alarms"))
        lines.append([name, str(of["lessons"]["all"]), str(of["lessons"]["lost"]), *shares])
    legend = "Flagged: estimated to cost more than 10 points, without an old image (`drift`), on seeds 0 and 1."
    return f"{markdown_table(lines)}\n\n{legend} Correlation of estimate and truth: {judged['all']['correlation']:.2f}."


def _kept(methods: Mapping[str, Any]) -> list[str]:
    """AA / FM of the methods of `small_table`; a dash where one is missing."""
    shown = (methods.get(name) for name in SMALL_METHODS)
    return [f"{of['average_accuracy']:.1f} / {of['forgetting']:.1f}" if of else "–" for of in shown]


def with_section(readme: str, name: str, content: str) -> str:
    """The README with `content` between the markers of that name.

    Raises:
        InputError: it has not one marker of each kind, in this order.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, found_begin, rest = readme.partition(begin)
    _, found_end, after = rest.partition(end)
    if not (found_begin and found_end) or begin in rest or end in before + after:
        raise InputError(f"README.md: expected {begin} and, after it, {end}, once each")
    return f"{before}{begin}\n\n{content}\n\n{end}{after}"


def main(words: Sequence[str] | None = None) -> int:
    """Write or check; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if README.md is not up to date")
    parser.add_argument("--root", type=Path, default=ROOT, help="folder that holds README.md and results/")
    options = parser.parse_args(words)
    readme = options.root / "README.md"
    try:
        now = readme.read_text(encoding="utf-8")
        results = options.root / "results"
        wanted = with_section(now, "results", f"{table(read_runs(results))}\n\n{LEGEND}")
        wanted = with_section(wanted, "comparison", comparisons(results))
        wanted = with_section(wanted, "steps", step_table(results / "step-cost.json"))
        wanted = with_section(wanted, "inference", inference_table(results / "task-inference" / "test.json"))
        small = results / "small-lessons"
        wanted = with_section(wanted, "small", small_table(small / "table.json", small / "gauge.json"))
        wanted = with_section(wanted, "lessons", lessons_table(results / "three-lessons.json"))
    except (InputError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    if options.check and now != wanted:
        print(f"{readme} does not show what results/ holds: run python tools/readme.py", file=sys.stderr)
        return 1
    if not options.check:
        readme.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
