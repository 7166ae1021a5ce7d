"""How one method's options change its result: cells that differ from a base in one option, or in a product of several.

<study>/<cell>-seed<N>/  ablation.json  ablation.md  ablation.svg  ablation.png
"""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pah.core import files
from pah.study.bootstrap import Correct
from pah.study.grid import Cell, Outcome, claim, correct, require_own
from pah.study.table import COLUMNS, differences, entry, level, markdown_table, missing_part, row, shown, titles
from pah.training.config import RunConfig, load_stream

BASE = "base"  # the cell that differs from the base in nothing
LEGEND = """\
{benchmark}, {tasks} tasks, measured on {images} images. {columns}

({base}): the configuration from which the others differ, as in study.yaml; an option that a table does not name has its
value there. A cell that was measured on other images than the base has no difference to it."""


@dataclass(frozen=True)
class Panel:
    """What one table and one plot show: the dotted names of options, and configurations that differ in these alone."""

    factors: tuple[str, ...]
    configs: tuple[RunConfig, ...]


@dataclass(frozen=True)
class Ablation:
    """What to find out: a base, what to change in it, and the seeds for each cell."""

    base: RunConfig
    panels: tuple[Panel, ...]
    seeds: tuple[int, ...]
    folder: Path

    def named(self) -> dict[str, RunConfig]:
        """The configurations by their cell's name, each once, the base first if it is among them."""
        found = [config for panel in self.panels for config in panel.configs]
        found.sort(key=lambda config: config != self.base)
        return {self.name(config): config for config in found}

    def name(self, config: RunConfig) -> str:
        """The same one for the same configuration, whatever else is varied: "prototype_size=5,stability=3"."""
        short = short_names(self.base)
        parts = (f"{short[name]}={quote(shown(value), safe='')}" for name, value in self.differs(config).items())
        return ",".join(sorted(parts)) or BASE

    def differs(self, config: RunConfig) -> dict[str, Any]:
        """The factors in which a configuration differs from the base, with its values."""
        own, base = flat(config), flat(self.base)
        factors = dict.fromkeys(name for panel in self.panels for name in panel.factors)
        return {name: own[name] for name in factors if name in own and own[name] != base[name]}

    def cells(self) -> list[Cell]:
        """The runs, each configuration's first seed before any second one."""
        return [
            Cell(dataclasses.replace(config, seed=seed), self.folder / f"{name}-seed{seed}")
            for seed in self.seeds
            for name, config in self.named().items()
        ]


def flat(config: RunConfig) -> dict[str, Any]:
    """A configuration's options by dotted name, e.g. "method.stability"; those of no group by their own."""
    plain = config.as_dict()
    return {
        name: value
        for key, group in plain.items()
        for name, value in (
            ((f"{key}.{option}", of) for option, of in group.items()) if isinstance(group, dict) else [(key, group)]
        )
    }


def short_names(config: RunConfig) -> dict[str, str]:
    """What a configuration's options are called where space is scarce: the last part of the name, if that is enough."""
    last = {name: name.rpartition(".")[2] for name in flat(config)}
    times = Counter(last.values())
    own = {"method.name": "method", "backbone.name": "backbone"}
    return {name: own.get(name, short if times[short] == 1 else name) for name, short in last.items()}


def prepare(ablation: Ablation) -> None:
    """Make sure that the ablation can begin, or go on, in its folder.

    Raises:
        InputError: bad data, a configuration that cannot learn its stream, or a folder that holds
            something else.
    """
    for config in ablation.named().values():
        load_stream(config)
    require_own(ablation.cells())
    claim(ablation.folder, ablation.base, but=("seed",))


def write(ablation: Ablation, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Write `ablation.json` and `.md` of the finished cells; returns the first's content.

    Raises:
        InputError: a run's predictions cannot be read, or a file cannot be written.
    """
    summary = summarise(ablation, outcomes)
    files.write_json(ablation.folder / "ablation.json", summary)
    files.write_file(ablation.folder / "ablation.md", as_markdown(summary).encode())
    return summary


def summarise(ablation: Ablation, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """What `ablation.json` holds: the finished cells, in which panels they are shown, and those that are missing."""
    runs: dict[str, list[dict[str, Any]]] = {}
    answers: dict[str, dict[int, list[Correct]]] = {}
    named, missing = ablation.named(), []
    for outcome in outcomes:
        name, seed = outcome.cell.folder.name.rpartition("-seed")[0], outcome.cell.config.seed
        if outcome.metrics is None:
            missing.append({"cell": name, "seed": seed, "reason": outcome.reason})
            continue
        runs.setdefault(name, []).append(outcome.metrics)
        if _measured_on(named[name]) == _measured_on(ablation.base):
            answers.setdefault(name, {})[seed] = correct(outcome.cell.folder)
    intervals = differences(answers, BASE)
    unit = {run["seed"]: run["seconds"] for run in runs.get(BASE, [])}
    return {
        "benchmark": ablation.base.benchmark,
        "reference": BASE,
        "panels": [of for panel in ablation.panels if (of := _panel(ablation, panel, runs))["rows"]],
        "cells": {
            name: {
                "differs": ablation.differs(config),
                "tasks": len(runs[name][0]["accuracy_matrix"]),
                "evaluated_on": config.training.evaluate_on,
                **entry(runs[name], intervals.get(name), unit),
            }
            for name, config in named.items()
            if name in runs
        },
        "missing": missing,
    }


def _measured_on(config: RunConfig) -> tuple[Any, ...]:
    """What decides on which images an accuracy is measured, the seed aside."""
    return config.stream, config.training.evaluate_on


def _panel(ablation: Ablation, panel: Panel, finished: Mapping[str, Any]) -> dict[str, Any]:
    """A panel's options, and a row for each of its cells that is finished, with the values of these options."""
    short = short_names(ablation.base)
    names = [(ablation.name(config), flat(config)) for config in panel.configs]
    return {
        "factors": list(panel.factors),
        "short": [short[name] for name in panel.factors],
        "rows": [
            {"values": [of[factor] for factor in panel.factors], "cell": name} for name, of in names if name in finished
        ],
    }


def panel_rows(summary: Mapping[str, Any], panel: Mapping[str, Any]) -> list[list[str]]:
    """The cells of a panel's table: the titles, then a row for each of its configurations."""
    cells = summary["cells"]
    rows = []
    for of in panel["rows"]:
        first, *rest = map(shown, of["values"])
        if of["cell"] == BASE:
            first = f"{first} ({BASE})"
        rows.append([first, *rest, *row(cells[of["cell"]])])
    return [[*panel["short"], *titles(BASE, BASE, level(cells))], *rows]


def as_markdown(summary: Mapping[str, Any]) -> str:
    """A Markdown table for each panel, what the columns say, and the cells that are missing."""
    parts = []
    for panel in summary["panels"]:
        header, *rows = panel_rows(summary, panel)
        parts.append(markdown_table([header, ["---", *["---:"] * (len(header) - 1)], *rows]))
    of = summary["cells"].values()
    tasks, images = (" or ".join(dict.fromkeys(str(cell[key]) for cell in of)) for key in ("tasks", "evaluated_on"))
    columns = COLUMNS.format(reference=BASE, rows="cells", unit="the base", level=level(summary["cells"]))
    parts.append(LEGEND.format(benchmark=summary["benchmark"], tasks=tasks, images=images, columns=columns, base=BASE))
    parts += missing_part((f"{cell['cell']}, seed {cell['seed']}", cell["reason"]) for cell in summary["missing"])
    return "\n\n".join(parts) + "\n"
