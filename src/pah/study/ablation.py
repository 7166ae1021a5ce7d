"""Ablation: how one method's options change its result.

Cells differ from a base configuration in one option, or in a combination of several options.

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
from pah.study.bootstrap import CorrectMask
from pah.study.conditions import conditions_paragraph, different_conditions, require_same_data
from pah.study.grid import Cell, Outcome, claim_folder, correct_answers, require_matching_folders
from pah.study.table import (
    column_titles,
    difference_intervals,
    explain_columns,
    format_value,
    markdown_table,
    missing_paragraph,
    percent_columns,
    row_cells,
    summarise_seeds,
)
from pah.training.config import RunConfig, load_stream

BASE = "base"  # name of the cell with the base configuration
LEGEND = """\
{benchmark}, {tasks} tasks, measured on {images} images. {columns}

({base}): the base configuration, from which the others differ. It is in study.yaml. An option that a table does not
name has its value from the base. A cell that was measured on other images than the base has no difference to it."""


@dataclass(frozen=True)
class Panel:
    """The content of one table and one plot: dotted option names, and configurations that differ in these alone."""

    factors: tuple[str, ...]
    configs: tuple[RunConfig, ...]


@dataclass(frozen=True)
class Ablation:
    """An ablation: a base configuration, the changes to it, and the seeds for each cell."""

    base: RunConfig
    panels: tuple[Panel, ...]
    seeds: tuple[int, ...]
    folder: Path
    data_fingerprint: str | None = None  # of the data that each cell must have; None before `prepare`

    def configs_by_name(self) -> dict[str, RunConfig]:
        """Return each configuration once, by the name of its cell; the base is first if it is among them."""
        configs = [config for panel in self.panels for config in panel.configs]
        configs.sort(key=lambda config: config != self.base)
        return {self.cell_name(config): config for config in configs}

    def cell_name(self, config: RunConfig) -> str:
        """Return the cell name of a configuration: its changes in sorted order, e.g. "prototype_size=5,stability=3"."""
        short = short_names(self.base)
        changes = self.changed_options(config)
        parts = (f"{short[name]}={quote(format_value(value), safe='')}" for name, value in changes.items())
        return ",".join(sorted(parts)) or BASE

    def changed_options(self, config: RunConfig) -> dict[str, Any]:
        """Return the factors in which a configuration differs from the base, with its values."""
        own, base = flat_options(config), flat_options(self.base)
        factors = dict.fromkeys(name for panel in self.panels for name in panel.factors)
        return {name: own[name] for name in factors if name in own and own[name] != base[name]}

    def cells(self) -> list[Cell]:
        """Return the runs, ordered by seed: all configurations with the first seed come first."""
        return [
            Cell(dataclasses.replace(config, seed=seed), self.folder / f"{name}-seed{seed}", self.data_fingerprint)
            for seed in self.seeds
            for name, config in self.configs_by_name().items()
        ]


def flat_options(config: RunConfig) -> dict[str, Any]:
    """Return a configuration's options by dotted name, e.g. "method.stability"."""
    return flatten(config.as_dict())


def flatten(groups: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested options by dotted name; an option outside a group keeps its name."""
    options: dict[str, Any] = {}
    for key, group in groups.items():
        options |= (
            {f"{key}.{name}": value for name, value in group.items()} if isinstance(group, dict) else {key: group}
        )
    return options


def short_names(config: RunConfig) -> dict[str, str]:
    """Return a short name for each dotted option name: its last part, if no other option has the same last part."""
    last_parts = {name: name.rpartition(".")[2] for name in flat_options(config)}
    times = Counter(last_parts.values())
    special = {"method.name": "method", "backbone.name": "backbone"}
    return {name: special.get(name, last if times[last] == 1 else name) for name, last in last_parts.items()}


def prepare(ablation: Ablation) -> Ablation:
    """Check the data and the options, create or check the study folder, and return the ablation of these data alone.

    Raises:
        InputError: bad data, a configuration that does not fit its stream, or a folder of another study or other data.
    """
    base, *others = ablation.configs_by_name().values()
    stream = load_stream(base)
    for config in others:
        load_stream(config)
    require_matching_folders(ablation.cells())
    require_same_data(ablation.folder, stream)
    claim_folder(ablation.folder, ablation.base, cell_options=("seed",))
    return dataclasses.replace(ablation, data_fingerprint=stream.data_fingerprint)


def write_summary(ablation: Ablation, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Write `ablation.json` and `ablation.md` of the finished cells; return the content of the first.

    Raises:
        InputError: a run's predictions cannot be read, or a file cannot be written.
    """
    summary = summarise(ablation, outcomes)
    files.write_json(ablation.folder / "ablation.json", summary)
    files.write_file(ablation.folder / "ablation.md", as_markdown(summary).encode())
    return summary


def summarise(ablation: Ablation, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return the content of `ablation.json`: the finished cells, the panels that show them, and the missing cells."""
    runs: dict[str, list[dict[str, Any]]] = {}
    answers: dict[str, dict[int, list[CorrectMask]]] = {}
    configs, missing = ablation.configs_by_name(), []
    for outcome in outcomes:
        name, seed = outcome.cell.folder.name.rpartition("-seed")[0], outcome.cell.config.seed
        if outcome.metrics is None:
            missing.append({"cell": name, "seed": seed, "reason": outcome.reason})
            continue
        runs.setdefault(name, []).append(outcome.metrics)
        if _image_options(configs[name]) == _image_options(ablation.base):
            answers.setdefault(name, {})[seed] = correct_answers(outcome.cell.folder)
    intervals = difference_intervals(answers, BASE)
    base_seconds = {run["seed"]: run["seconds"] for run in runs.get(BASE, [])}
    panels = [_panel_summary(ablation, panel, runs) for panel in ablation.panels]
    return {
        "benchmark": ablation.base.benchmark,
        "reference": BASE,
        "panels": [panel for panel in panels if panel["rows"]],
        "cells": {
            name: {
                "differs": ablation.changed_options(config),
                "tasks": len(runs[name][0]["accuracy_matrix"]),
                "evaluated_on": config.training.evaluate_on,
                **summarise_seeds(runs[name], intervals.get(name), base_seconds),
            }
            for name, config in configs.items()
            if name in runs
        },
        "missing": missing,
        "conditions": different_conditions(run for cell_runs in runs.values() for run in cell_runs),
    }


def _image_options(config: RunConfig) -> tuple[Any, ...]:
    """Return the options, except the seed, that decide on which images an accuracy is measured."""
    return config.stream, config.training.evaluate_on


def _panel_summary(ablation: Ablation, panel: Panel, finished: Mapping[str, Any]) -> dict[str, Any]:
    """Return a panel's options, and one row with their values for each of its finished cells."""
    short = short_names(ablation.base)
    options_by_cell = [(ablation.cell_name(config), flat_options(config)) for config in panel.configs]
    return {
        "factors": list(panel.factors),
        "short": [short[name] for name in panel.factors],
        "rows": [
            {"values": [options[factor] for factor in panel.factors], "cell": name}
            for name, options in options_by_cell
            if name in finished
        ],
    }


def panel_rows(summary: Mapping[str, Any], panel: Mapping[str, Any]) -> list[list[str]]:
    """Return the texts of a panel's table: the column titles, then one row per configuration."""
    cells = summary["cells"]
    columns = percent_columns(cells).values()
    rows = []
    for row in panel["rows"]:
        first, *rest = map(format_value, row["values"])
        if row["cell"] == BASE:
            first = f"{first} ({BASE})"
        rows.append([first, *rest, *row_cells(cells[row["cell"]], columns)])
    return [[*panel["short"], *column_titles(BASE, BASE, cells)], *rows]


def as_markdown(summary: Mapping[str, Any]) -> str:
    """Return an ablation's summary as Markdown: a table per panel, the legend, and the missing cells."""
    parts = []
    for panel in summary["panels"]:
        header, *rows = panel_rows(summary, panel)
        parts.append(markdown_table([header, ["---", *["---:"] * (len(header) - 1)], *rows]))
    cells = summary["cells"].values()
    tasks, images = (" or ".join(dict.fromkeys(str(cell[key]) for cell in cells)) for key in ("tasks", "evaluated_on"))
    columns = explain_columns(BASE, "cells", "the base", summary["cells"])
    parts.append(LEGEND.format(benchmark=summary["benchmark"], tasks=tasks, images=images, columns=columns, base=BASE))
    parts += conditions_paragraph(summary)
    parts += missing_paragraph((f"{cell['cell']}, seed {cell['seed']}", cell["reason"]) for cell in summary["missing"])
    return "\n\n".join(parts) + "\n"
