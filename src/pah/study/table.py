"""The tables of studies: summaries of finished runs (comparison.json, ablation.json) and Markdown tables of them."""

import hashlib
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from pah.core.config import InputError
from pah.study.bootstrap import CorrectMask, Interval, Pair, paired_bootstrap
from pah.study.conditions import conditions_paragraph, different_conditions, require_one_data_set

REFERENCE = "pah"  # the method that the others are compared with
TIME_REFERENCE = "finetune"  # the method whose time counts as 1
BOUNDS = ("finetune", "joint", "independent")  # no protection, all data at once, a network per task: not competitors
PERCENT_COLUMNS = {  # column title -> key in metrics.json
    "AA": "average_accuracy",
    "FM": "forgetting",
    "BWT": "backward_transfer",
    "LA": "learning_accuracy",
    "task not given": "class_incremental_accuracy",
}
MORE_COLUMNS = {  # the same for numbers that not every run has; a table shows those that some entry has
    "AIA": "average_incremental_accuracy",
    "AIA, task not given": "average_class_incremental_accuracy",
    "FWT": "forward_transfer",
    "FWT, features": "feature_forward_transfer",
}
REQUIRED_KEYS = {
    "benchmark",
    "evaluated_on",
    "accuracy_matrix",
    "parameters",
    "stored_samples",
    "seconds",
    *PERCENT_COLUMNS.values(),
}
NO_VALUE = "–"
LONGEST_LIST = 80  # characters of a list in a table

COLUMNS = """\
Percent; mean ± sample standard deviation over n seeds.
AA: average accuracy over all tasks at the end; FM: forgetting; BWT: backward transfer; LA: accuracy on each task right
after it was learned; all four with the task given at test time. Task not given: accuracy over all classes at once.
{more}
AA minus {reference}: the difference on the same test images, over the seeds that both {rows} finished, with its
{level:g} % interval from a paired bootstrap over seeds and images. From one seed, the interval covers the choice of
test images only, not the variation between trainings. From fewer than about ten seeds, it is too narrow where seeds
differ much.

Stored samples: training images stored for later tasks. Parameters: all parameters of the model at the end; per new
task: the mean number that belongs to one task alone. Time: duration of the whole run divided by that of {unit} on the
same seed; other work of the machine during a run makes it longer."""
MORE_WORDS = {  # column title -> its explanation in the legend
    "AIA": "AIA: average incremental accuracy, the mean over tasks of the average accuracy after each task.",
    "AIA, task not given": "AIA, task not given: the same mean of the accuracy over all classes seen.",
    "FWT": "FWT: forward transfer, accuracy on each later task before its first step minus that of an untrained "
    "network.",
    "FWT, features": "FWT, features: the same with the nearest class mean instead of the new head.",
}
BOLD = "Bold: the highest mean AA of the methods without stored samples; the bounds ({bounds}) do not compete."


def summarise(
    runs: Sequence[Mapping[str, Any]],
    intervals: Mapping[str, Interval],
    missing: Iterable[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Return the content of `comparison.json`.

    Args:
        runs: the `metrics.json` of each finished run; methods are listed in the order of their first run.
        intervals: for each method, its difference in AA to `REFERENCE`.
        missing: a {"method", "seed", "reason"} for each cell that failed or did not run.

    Raises:
        InputError: no run, an incomplete run, two runs of one method and seed, or runs on different benchmarks or data.
    """
    _require_comparable(runs)
    by_method: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        by_method.setdefault(run["method"], []).append(run)
    reference_seconds = {run["seed"]: run["seconds"] for run in by_method.get(TIME_REFERENCE, [])}
    return {
        **_shared_facts(runs[0]),
        "reference": REFERENCE,
        "methods": {
            name: summarise_seeds(seeds, intervals.get(name), reference_seconds) for name, seeds in by_method.items()
        },
        "missing": [{key: cell[key] for key in ("method", "seed", "reason")} for cell in missing],
        "conditions": different_conditions(runs),
    }


def difference_intervals(
    answers: Mapping[str, Mapping[int, Sequence[CorrectMask]]], reference: str
) -> dict[str, Interval]:
    """Return, for each name but the reference, its difference in AA to the reference over their common seeds.

    Args:
        answers: by name and seed, for each task, which test images were answered correctly: boolean (N,).
        reference: one of the names; if it is not among them, the result is empty.
    """
    reference_seeds = answers.get(reference, {})
    intervals = {}
    for name, seeds in answers.items():
        common = [seed for seed in seeds if seed in reference_seeds]
        if name != reference and common:
            pairs = [_with_images(zip(seeds[seed], reference_seeds[seed], strict=True)) for seed in common]
            if pairs[0] and len({len(tasks) for tasks in pairs}) == 1:
                intervals[name] = paired_bootstrap(pairs)
    return intervals


def _with_images(pairs: Iterable[Pair]) -> list[Pair]:
    """Return the pairs of the tasks that have test images."""
    return [pair for pair in pairs if len(pair[0])]


def _require_comparable(runs: Sequence[Mapping[str, Any]]) -> None:
    """Raise InputError unless the runs can form one table."""
    if not runs:
        raise InputError("comparison: expected at least one finished run, got none")
    for run in runs:
        if absent := {key for key in REQUIRED_KEYS if run.get(key) is None}:
            raise InputError(f"{_cell_label(run)}: expected {', '.join(sorted(absent))} in its metrics, got none")
        if _shared_facts(run) != _shared_facts(runs[0]):
            expected, received = _shared_facts(runs[0]), _shared_facts(run)
            raise InputError(f"{_cell_label(run)}: expected a run on {expected}, got {received}")
    require_one_data_set((_cell_label(run), run) for run in runs)
    label, times = Counter(map(_cell_label, runs)).most_common(1)[0]
    if times > 1:
        raise InputError(f"{label}: expected one run, got {times}")


def _cell_label(run: Mapping[str, Any]) -> str:
    return f"{run['method']}, seed {run['seed']}"


def _shared_facts(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts that all runs of a table share."""
    facts = {key: run[key] for key in ("benchmark", "evaluated_on")}
    return facts | {"tasks": len(run["accuracy_matrix"])}


def summarise_seeds(
    runs: Sequence[Mapping[str, Any]], interval: Interval | None, reference_seconds: Mapping[int, float]
) -> dict[str, Any]:
    """Return the summary over seeds of one method, or of one cell of an ablation.

    Args:
        runs: the `metrics.json` of each seed.
        interval: the difference in AA to the reference, if known.
        reference_seconds: by seed, the duration that counts as 1.
    """
    relative = [run["seconds"] / reference_seconds[run["seed"]] for run in runs if run["seed"] in reference_seconds]
    return {
        "n": len(runs),
        "seeds": [run["seed"] for run in runs],
        **{name: _over_seeds(runs, name) for name in PERCENT_COLUMNS.values()},
        **{
            name: _over_seeds(runs, name)
            for name in MORE_COLUMNS.values()
            if all(run.get(name) is not None for run in runs)
        },
        "stored_samples": statistics.fmean(run["stored_samples"] for run in runs),
        "parameters": statistics.fmean(run["parameters"]["total"] for run in runs),
        "parameters_per_new_task": statistics.fmean(statistics.fmean(run["parameters"]["per_task"]) for run in runs),
        "seconds": statistics.fmean(run["seconds"] for run in runs),
        "relative_seconds": statistics.fmean(relative) if relative else None,
        "minus_reference": asdict(interval) if interval else None,
    }


def _over_seeds(runs: Sequence[Mapping[str, Any]], name: str) -> dict[str, Any]:
    """Return mean, sample standard deviation (None for one seed) and the values by seed, in percent."""
    values = [run[name] for run in runs]
    return {
        "mean": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "by_seed": {str(run["seed"]): run[name] for run in runs},  # text keys, as in JSON
    }


def as_markdown(summary: Mapping[str, Any]) -> str:
    """Return a comparison's summary as Markdown: the table, its legend, and the missing cells."""
    header, *rows = table_rows(summary)
    parts = [markdown_table([header, ["---", *["---:"] * (len(header) - 1)], *rows])]
    parts.append("{benchmark}, {tasks} tasks, measured on {evaluated_on} images. ".format(**summary) + legend(summary))
    parts += conditions_paragraph(summary)
    parts += missing_paragraph((_cell_label(cell), cell["reason"]) for cell in summary["missing"])
    return "\n\n".join(parts) + "\n"


def missing_paragraph(cells: Iterable[tuple[str, str]]) -> list[str]:
    """Return one paragraph with a line per missing cell and its reason; an empty list if no cell is missing."""
    lines = [f"- {cell}: {' '.join(reason.split())}" for cell, reason in cells]
    return ["\n".join(["Failed or missing, and not part of any number above:", "", *lines])] if lines else []


def table_rows(summary: Mapping[str, Any]) -> list[list[str]]:
    """Return the texts of a comparison's table: the column titles, then one row per method."""
    methods = summary["methods"]
    best = best_without_samples(methods)
    columns = percent_columns(methods).values()
    rows = ([name, *row_cells(entry, columns, bold=name in best)] for name, entry in methods.items())
    header = column_titles(summary["reference"].upper(), TIME_REFERENCE, methods)
    return [["method", *header], *rows]


def percent_columns(entries: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return the columns in percent of a table with these entries: column title -> key of an entry."""
    return PERCENT_COLUMNS | {
        title: key for title, key in MORE_COLUMNS.items() if any(key in entry for entry in entries.values())
    }


def column_titles(reference: str, time_reference: str, entries: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the titles of the columns that `row_cells` fills."""
    minus = f"AA minus {reference} [{interval_level(entries):g} % interval]"
    costs = ["stored samples", "parameters", "per new task", f"time / {time_reference}"]
    return ["n", *percent_columns(entries), minus, *costs]


def legend(summary: Mapping[str, Any]) -> str:
    """Return the explanation of a comparison's columns."""
    columns = explain_columns(summary["reference"].upper(), "methods", TIME_REFERENCE, summary["methods"])
    return f"{columns}\n\n{BOLD.format(bounds=', '.join(BOUNDS))}"


def explain_columns(reference: str, rows: str, unit: str, entries: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the explanation of the columns of a table with these entries.

    Args:
        reference: what AA is compared with.
        rows: what the table's rows are, in the plural.
        unit: whose time counts as 1.
        entries: the summaries over seeds that `summarise_seeds` returns, by name.
    """
    more = "".join(f"{MORE_WORDS[title]}\n" for title in percent_columns(entries) if title in MORE_WORDS)
    level = interval_level(entries)
    return COLUMNS.format(reference=reference, rows=rows, unit=unit, level=level, more=more)


def interval_level(entries: Mapping[str, Mapping[str, Any]]) -> float:
    """Return the level of the entries' intervals, in percent."""
    return 100 * next((e["minus_reference"]["level"] for e in entries.values() if e["minus_reference"]), 0.95)


def best_without_samples(methods: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """Return the methods with the highest mean AA among those without stored samples, except the bounds."""
    means = {name: methods[name]["average_accuracy"]["mean"] for name in competitors(methods)}
    return {name for name, mean in means.items() if mean == max(means.values())}


def competitors(methods: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the methods without stored samples, except the bounds."""
    return [name for name, entry in methods.items() if name not in BOUNDS and not entry["stored_samples"]]


def row_cells(entry: Mapping[str, Any], columns: Iterable[str], bold: bool = False) -> list[str]:
    """Return the texts of an entry's row, from the column n on; `columns` are the keys of its columns in percent."""
    percent = [format_mean_std(list(entry[key]["by_seed"].values())) if key in entry else NO_VALUE for key in columns]
    if bold:
        percent[0] = f"**{percent[0]}**"
    relative = entry["relative_seconds"]
    return [
        str(entry["n"]),
        *percent,
        format_interval(entry["minus_reference"]),
        f"{entry['stored_samples']:.0f}",
        format_count(entry["parameters"]),
        format_count(entry["parameters_per_new_task"]),
        NO_VALUE if relative is None else f"{relative:.2f}",
    ]


def format_interval(interval: Mapping[str, Any] | None) -> str:
    """Return a difference in percentage points with its interval, e.g. "+0.41 [-0.14, +1.00]"; a dash for None."""
    if interval is None:
        return NO_VALUE
    return f"{interval['difference']:+z.2f} [{interval['low']:+z.2f}, {interval['high']:+z.2f}]"


def format_mean_std(values: Sequence[float]) -> str:
    """Return the mean, followed by ± the sample standard deviation if there are several values."""
    mean = f"{statistics.fmean(values):z.2f}"  # z: no minus before a zero
    return f"{mean} ± {statistics.stdev(values):.2f}" if len(values) > 1 else mean


def format_count(number: float) -> str:
    """Return a number of parameters in short form: "258", "215.0 k", "3.05 M"."""
    if number < 999.5:
        return f"{number:.0f}"
    return f"{number / 1e3:.1f} k" if number < 999_950 else f"{number / 1e6:.2f} M"


def format_value(value: Any) -> str:
    """Return an option's value as text, the same for equal values: 0.5, 3 for 3.0, 64x64 for a list, true, none.

    A long list, such as an order of 100 classes, is cut, with a checksum: it is also part of a folder's name.
    """
    if isinstance(value, list):
        text = "x".join(map(format_value, value)) or "empty"
        if len(text) <= LONGEST_LIST:
            return text
        start, end, digest = text[:12].rpartition("x")[0], text.rpartition("x")[2], hashlib.sha256(text.encode())
        return f"{start}..{end}-{digest.hexdigest()[:6]}"
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of cells as a Markdown table; the second row is the rule below the titles."""
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
