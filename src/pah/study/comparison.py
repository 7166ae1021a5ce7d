"""Comparison of methods with the same stream, backbone, augmentation, epochs, optimizer and data.

<study>/<method>-seed<N>/  comparison.json  comparison.md  comparison.svg  comparison.png
<study>/tuning/<method>-trial<N>/  tuning/tuning.json, if options were tuned
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pah.core import files
from pah.methods import METHODS
from pah.runs.folder import METRICS, PREDICTIONS
from pah.study import tuning
from pah.study.bootstrap import CorrectMask
from pah.study.conditions import require_same_data
from pah.study.grid import (
    Cell,
    Engine,
    Outcome,
    Stop,
    Watch,
    claim_folder,
    correct_answers,
    require_matching_folders,
    run_cells,
    shared_options,
)
from pah.study.table import REFERENCE, as_markdown, difference_intervals, summarise
from pah.study.table_files import as_csv, as_latex, significantly_best
from pah.training.config import RunConfig, load_stream


@dataclass(frozen=True)
class Comparison:
    """A comparison: one configuration per method, equal in all but the method, and the seeds for each method."""

    configs: tuple[RunConfig, ...]
    seeds: tuple[int, ...]
    folder: Path
    trials: int = 0  # per method, to tune its options; 0 uses the options as given
    data_fingerprint: str | None = None  # of the data that each cell must have; None before `prepare`

    def cells(self, configs: Sequence[RunConfig]) -> list[Cell]:
        """Return the runs, ordered by seed: all methods with the first seed come first."""
        return [
            Cell(
                dataclasses.replace(config, seed=seed),
                self.folder / f"{config.method}-seed{seed}",
                self.data_fingerprint,
            )
            for seed in self.seeds
            for config in configs
        ]

    def trial_cells(self) -> list[Cell]:
        """Return the runs that tune options."""
        folder = self.folder / "tuning"
        cells = [cell for config in self.configs for cell in tuning.trial_cells(config, self.trials, folder)]
        return [dataclasses.replace(cell, data_fingerprint=self.data_fingerprint) for cell in cells]


def prepare(comparison: Comparison) -> Comparison:
    """Check the data and the options, create or check the study folder, and return the comparison on these data alone.

    Raises:
        InputError: bad data, a method that cannot learn the stream, or a folder that holds something else or runs on
            other data.
    """
    stream = load_stream(comparison.configs[0])
    for config in comparison.configs[1:]:
        load_stream(config)
    cells = comparison.trial_cells() if comparison.trials else comparison.cells(comparison.configs)
    require_matching_folders(cells)
    require_same_data(comparison.folder, stream)
    claim_folder(comparison.folder, comparison.configs[0])
    return dataclasses.replace(comparison, data_fingerprint=stream.data_fingerprint)


def tune_options(
    comparison: Comparison, watch: Watch, stop: Stop, checkpoint_seconds: float, run: Engine = run_cells
) -> tuple[RunConfig, ...]:
    """Run the trials, write `tuning/tuning.json`, and return the configurations with the chosen options.

    A method whose trials all failed keeps its options.
    """
    outcomes = run(comparison.trial_cells(), watch, stop, checkpoint_seconds)
    tasks = len(load_stream(comparison.configs[0]).tasks)
    by_method: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        by_method.setdefault(outcome.cell.config.method, []).append(outcome)
    if outcomes:
        log = tuning.log(shared_options(outcomes[0].cell.config.as_dict()), by_method, tasks)
        files.write_json(comparison.folder / "tuning" / "tuning.json", log)
    configs = []
    for config in comparison.configs:
        options = tuning.best_options(by_method.get(config.method, []), tasks) or config.method_options
        configs.append(dataclasses.replace(config, method_options=options))
    return tuple(configs)


def write_summary(folder: Path, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Write the tables of all finished cells in the folder; return the content of `comparison.json`.

    The tables are `comparison.json`, `comparison.md`, `table.csv` and `table.tex`.

    Raises:
        InputError: no cell is finished, or a file cannot be written.
    """
    missing = [
        {"method": outcome.cell.config.method, "seed": outcome.cell.config.seed, "reason": outcome.reason}
        for outcome in outcomes
        if outcome.metrics is None
    ]
    summary = summarise_folder(folder, missing)
    files.write_json(folder / "comparison.json", summary)
    texts = {"comparison.md": as_markdown(summary), "table.csv": as_csv(summary), "table.tex": as_latex(summary)}
    for name, text in texts.items():
        files.write_file(folder / name, text.encode())
    return summary


def summarise_folder(folder: Path, missing: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the content of `comparison.json`: the finished cells in the folder, and the given `missing` cells.

    Its key "significantly_best" is the best method, or None if no difference to all others is significant.
    """
    order = list(METHODS)
    runs = [files.read_json(path) for path in folder.glob(f"*-seed*/{METRICS}")]
    runs.sort(key=lambda metrics: (order.index(metrics["method"]), metrics["seed"]))
    answers: dict[str, dict[int, list[CorrectMask]]] = {}
    reference_seeds = {run["seed"] for run in runs if run["method"] == REFERENCE}
    for method, seed in ((run["method"], run["seed"]) for run in runs):
        run_folder = folder / f"{method}-seed{seed}"
        if seed in reference_seeds or (run_folder / PREDICTIONS).is_file():  # committed runs may lack their predictions
            answers.setdefault(method, {})[seed] = correct_answers(run_folder)
    summary = summarise(runs, difference_intervals(answers, REFERENCE), missing)
    return summary | {"significantly_best": significantly_best(summary["methods"], answers)}
