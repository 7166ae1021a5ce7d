"""Methods side by side: the same stream, backbone, augmentation, epochs, optimizer and data for all of them.

<study>/<method>-seed<N>/  comparison.json  comparison.md  comparison.svg  comparison.png
<study>/tuning/<method>-trial<N>/  tuning/tuning.json, where options were chosen
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pah.core import files
from pah.methods import METHODS
from pah.runs.folder import METRICS
from pah.study import tuning
from pah.study.bootstrap import Correct, Interval
from pah.study.grid import Cell, Engine, Outcome, Stop, Watch, claim, correct, require_own, run_cells, shared_part
from pah.study.table import REFERENCE, as_markdown, differences, summarise
from pah.training.config import RunConfig, load_stream


@dataclass(frozen=True)
class Comparison:
    """What to compare: a configuration for each method, alike in all but the method, and the seeds for each."""

    configs: tuple[RunConfig, ...]
    seeds: tuple[int, ...]
    folder: Path
    trials: int = 0  # of each method, to choose its options; 0 takes them as they are

    def cells(self, configs: Sequence[RunConfig]) -> list[Cell]:
        """The runs, each method's first seed before any second one."""
        return [
            Cell(dataclasses.replace(config, seed=seed), self.folder / f"{config.method}-seed{seed}")
            for seed in self.seeds
            for config in configs
        ]

    def trial_cells(self) -> list[Cell]:
        """The runs by which options are chosen."""
        folder = self.folder / "tuning"
        return [cell for config in self.configs for cell in tuning.trial_cells(config, self.trials, folder)]


def prepare(comparison: Comparison) -> None:
    """Make sure that the comparison can begin, or go on, in its folder.

    Raises:
        InputError: bad data, a method that cannot learn the stream, or a folder that holds something
            else.
    """
    for config in comparison.configs:
        load_stream(config)
    require_own(comparison.trial_cells() if comparison.trials else comparison.cells(comparison.configs))
    claim(comparison.folder, comparison.configs[0])


def choose(
    comparison: Comparison, watch: Watch, stop: Stop, checkpoint_seconds: float, run: Engine = run_cells
) -> tuple[RunConfig, ...]:
    """The configurations with the options that the trials chose; writes `tuning/tuning.json`.

    A method whose trials all failed keeps its own.
    """
    outcomes = run(comparison.trial_cells(), watch, stop, checkpoint_seconds)
    tasks = len(load_stream(comparison.configs[0]).tasks)
    by_method: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        by_method.setdefault(outcome.cell.config.method, []).append(outcome)
    if outcomes:
        log = tuning.log(shared_part(outcomes[0].cell.config.as_dict()), by_method, tasks)
        files.write_json(comparison.folder / "tuning" / "tuning.json", log)
    return tuple(
        dataclasses.replace(c, method_options=tuning.best(by_method.get(c.method, []), tasks) or c.method_options)
        for c in comparison.configs
    )


def write(folder: Path, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Write `comparison.json` and `.md` of all finished cells in the folder; returns the first's content.

    Raises:
        InputError: no cell is finished, or a file cannot be written.
    """
    missing = [
        {"method": o.cell.config.method, "seed": o.cell.config.seed, "reason": o.reason}
        for o in outcomes
        if o.metrics is None
    ]
    summary = summary_of(folder, missing)
    files.write_json(folder / "comparison.json", summary)
    files.write_file(folder / "comparison.md", as_markdown(summary).encode())
    return summary


def summary_of(folder: Path, missing: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The finished cells in the folder as `comparison.json` holds them, beside those that are `missing`."""
    order = list(METHODS)
    found = [files.read_json(path) for path in folder.glob(f"*-seed*/{METRICS}")]
    found.sort(key=lambda metrics: (order.index(metrics["method"]), metrics["seed"]))
    return summarise(found, intervals(folder, found), missing)


def intervals(folder: Path, found: Sequence[dict[str, Any]]) -> dict[str, Interval]:
    """For each method, its difference in AA to the reference over the seeds that both finished."""
    seeds = {run["seed"] for run in found if run["method"] == REFERENCE}
    answers: dict[str, dict[int, list[Correct]]] = {}
    for method, seed in ((run["method"], run["seed"]) for run in found if run["seed"] in seeds):
        answers.setdefault(method, {})[seed] = correct(folder / f"{method}-seed{seed}")
    return differences(answers, REFERENCE)
