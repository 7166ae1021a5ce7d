"""The tables of studies: finished runs as numbers (comparison.json, ablation.json) and as Markdown."""

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from pah.core.config import InputError
from pah.study.bootstrap import Correct, Interval, paired_bootstrap

REFERENCE = "pah"  # the method that the others are compared with
BASE = "finetune"  # the method whose time is the unit
BOUNDS = ("finetune", "joint", "independent")  # no protection, all data at once, a network a task: not competitors
PERCENT = {  # column -> its name in metrics.json
    "AA": "average_accuracy",
    "FM": "forgetting",
    "BWT": "backward_transfer",
    "LA": "learning_accuracy",
    "task not given": "class_incremental_accuracy",
}
NEEDED = {"benchmark", "evaluated_on", "accuracy_matrix", "parameters", "stored_samples", "seconds", *PERCENT.values()}
NONE = "–"

COLUMNS = """\
Percent; mean ± sample standard deviation over n seeds.
AA: average accuracy over all tasks at the end; FM: forgetting; BWT: backward transfer; LA: accuracy on each task right
after it was learned; all four with the task given at test time. Task not given: accuracy over all classes at once.

AA minus {reference}: the difference on the same test images, over the seeds that both {rows} finished, with its
{level:g} % interval from a paired bootstrap over seeds and images. From one seed, the interval covers the choice of
test images only, not how another training would have come out; from fewer than about ten, it is too narrow where seeds
differ much.

Stored samples: training images kept for later tasks. Parameters: all that the model holds at the end; per new task:
the mean number that belongs to one task alone. Time: of the whole run, relative to {unit} on the same seed, as the
runs ran: what else the machine did then is in it."""
BOLD = "Bold: the highest mean AA of the methods without stored samples; the bounds ({bounds}) do not compete."


def summarise(
    runs: Sequence[Mapping[str, Any]],
    intervals: Mapping[str, Interval],
    missing: Iterable[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """What `comparison.json` holds.

    Args:
        runs: the `metrics.json` of each finished run; methods come out in the order of their first run.
        intervals: by method, its difference in AA to `REFERENCE`.
        missing: a {"method", "seed", "reason"} for each cell that failed or did not run.

    Raises:
        InputError: no run, one that is incomplete or there twice, or runs that did not learn the same benchmark.
    """
    _check(runs)
    by_method: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        by_method.setdefault(run["method"], []).append(run)
    unit = {run["seed"]: run["seconds"] for run in by_method.get(BASE, [])}
    return {
        **_stream(runs[0]),
        "reference": REFERENCE,
        "methods": {name: entry(of, intervals.get(name), unit) for name, of in by_method.items()},
        "missing": [{key: cell[key] for key in ("method", "seed", "reason")} for cell in missing],
    }


def differences(answers: Mapping[str, Mapping[int, Sequence[Correct]]], reference: str) -> dict[str, Interval]:
    """For each name but the reference's, its difference in AA to the reference over the seeds that both have.

    Args:
        answers: by name and seed, for each task, which test images were answered correctly: boolean (N,).
        reference: one of the names; without it, nothing can be told.
    """
    of_reference = answers.get(reference, {})
    found = {}
    for name, of_seeds in answers.items():
        common = [seed for seed in of_seeds if seed in of_reference]
        if name != reference and common:
            pairs = [list(zip(of_seeds[seed], of_reference[seed], strict=True)) for seed in common]
            found[name] = paired_bootstrap(pairs)
    return found


def _check(runs: Sequence[Mapping[str, Any]]) -> None:
    """Raise InputError unless these runs make one table."""
    if not runs:
        raise InputError("comparison: expected at least one finished run, got none")
    for run in runs:
        if absent := NEEDED - run.keys():
            raise InputError(f"{_cell(run)}: expected {', '.join(sorted(absent))} in its metrics, got none")
        if _stream(run) != _stream(runs[0]):
            raise InputError(f"{_cell(run)}: expected a run on {_stream(runs[0])}, got {_stream(run)}")
    cell, times = Counter(map(_cell, runs)).most_common(1)[0]
    if times > 1:
        raise InputError(f"{cell}: expected one run, got {times}")


def _cell(run: Mapping[str, Any]) -> str:
    return f"{run['method']}, seed {run['seed']}"


def _stream(run: Mapping[str, Any]) -> dict[str, Any]:
    """What all runs of a table have in common."""
    facts = {key: run[key] for key in ("benchmark", "evaluated_on")}
    return facts | {"tasks": len(run["accuracy_matrix"])}


def entry(runs: Sequence[Mapping[str, Any]], interval: Interval | None, unit: Mapping[int, float]) -> dict[str, Any]:
    """One method, or one cell of an ablation, over its seeds; `unit` has the seconds by seed that count as 1."""
    relative = [run["seconds"] / unit[run["seed"]] for run in runs if run["seed"] in unit]
    return {
        "n": len(runs),
        "seeds": [run["seed"] for run in runs],
        **{name: _over_seeds(runs, name) for name in PERCENT.values()},
        "stored_samples": statistics.fmean(run["stored_samples"] for run in runs),
        "parameters": statistics.fmean(run["parameters"]["total"] for run in runs),
        "parameters_per_new_task": statistics.fmean(statistics.fmean(run["parameters"]["per_task"]) for run in runs),
        "seconds": statistics.fmean(run["seconds"] for run in runs),
        "relative_seconds": statistics.fmean(relative) if relative else None,
        "minus_reference": asdict(interval) if interval else None,
    }


def _over_seeds(runs: Sequence[Mapping[str, Any]], name: str) -> dict[str, Any]:
    """Mean, sample standard deviation (None of one value) and the values by seed, in percent."""
    values = [run[name] for run in runs]
    return {
        "mean": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "by_seed": {str(run["seed"]): run[name] for run in runs},  # text, as JSON has it: the same when read again
    }


def as_markdown(summary: Mapping[str, Any]) -> str:
    """A summary as a Markdown table, what its columns say, and the cells that it lacks."""
    titles, *rows = table_rows(summary)
    parts = [markdown_table([titles, ["---", *["---:"] * (len(titles) - 1)], *rows])]
    parts.append("{benchmark}, {tasks} tasks, measured on {evaluated_on} images. ".format(**summary) + legend(summary))
    parts += missing_part((_cell(cell), cell["reason"]) for cell in summary["missing"])
    return "\n\n".join(parts) + "\n"


def missing_part(cells: Iterable[tuple[str, str]]) -> list[str]:
    """A paragraph with a line for each cell and the reason why it is missing; none if there is none."""
    lines = [f"- {cell}: {' '.join(reason.split())}" for cell, reason in cells]
    return ["\n".join(["Failed or missing, and in no number above:", "", *lines])] if lines else []


def table_rows(summary: Mapping[str, Any]) -> list[list[str]]:
    """The table's cells: the titles, then a row a method."""
    methods = summary["methods"]
    best = best_without_samples(methods)
    rows = ([name, *row(of, bold=name in best)] for name, of in methods.items())
    return [["method", *titles(summary["reference"].upper(), BASE, level(methods))], *rows]


def titles(reference: str, unit: str, level: float) -> list[str]:
    """Of the columns that `row` fills."""
    minus = f"AA minus {reference} [{level:g} % interval]"
    return ["n", *PERCENT, minus, "stored samples", "parameters", "per new task", f"time / {unit}"]


def legend(summary: Mapping[str, Any]) -> str:
    """What the columns of a comparison say."""
    words = {"reference": summary["reference"].upper(), "rows": "methods", "unit": BASE}
    columns = COLUMNS.format(**words, level=level(summary["methods"]))
    return f"{columns}\n\n{BOLD.format(bounds=', '.join(BOUNDS))}"


def level(entries: Mapping[str, Mapping[str, Any]]) -> float:
    """That of the entries' intervals, in percent."""
    return 100 * next((e["minus_reference"]["level"] for e in entries.values() if e["minus_reference"]), 0.95)


def best_without_samples(methods: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """The methods with the highest mean AA among those without stored samples, the bounds aside."""
    means = {
        name: entry["average_accuracy"]["mean"]
        for name, entry in methods.items()
        if name not in BOUNDS and not entry["stored_samples"]
    }
    return {name for name, mean in means.items() if mean == max(means.values())}


def row(entry: Mapping[str, Any], bold: bool = False) -> list[str]:
    """An entry's cells, from n on."""
    percent = [spread(list(entry[key]["by_seed"].values())) for key in PERCENT.values()]
    if bold:
        percent[0] = f"**{percent[0]}**"
    relative = entry["relative_seconds"]
    return [
        str(entry["n"]),
        *percent,
        with_interval(entry["minus_reference"]),
        f"{entry['stored_samples']:.0f}",
        count(entry["parameters"]),
        count(entry["parameters_per_new_task"]),
        NONE if relative is None else f"{relative:.2f}",
    ]


def with_interval(interval: Mapping[str, Any] | None) -> str:
    """A difference in percentage points with its interval: "+0.41 [-0.14, +1.00]"; a dash for none."""
    if interval is None:
        return NONE
    return f"{interval['difference']:+z.2f} [{interval['low']:+z.2f}, {interval['high']:+z.2f}]"


def spread(values: Sequence[float]) -> str:
    """The mean, and ± the sample standard deviation if there are several values."""
    mean = f"{statistics.fmean(values):z.2f}"  # z: no minus before a zero
    return f"{mean} ± {statistics.stdev(values):.2f}" if len(values) > 1 else mean


def count(number: float) -> str:
    """A number of parameters as it reads best: "258", "215.0 k", "3.05 M"."""
    if number < 999.5:
        return f"{number:.0f}"
    return f"{number / 1e3:.1f} k" if number < 999_950 else f"{number / 1e6:.2f} M"


def shown(value: Any) -> str:
    """An option's value as text, the same one for equal values: 0.5, 3 for 3.0, 64x64 for a list, true, none."""
    if isinstance(value, list):
        return "x".join(map(shown, value)) or "empty"
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells, the second being the rule, as a Markdown table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
