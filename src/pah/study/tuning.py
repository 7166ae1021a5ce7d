"""One rule by which every method's options are chosen, on validation data and with an equal number of trials."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pah.core.config import generator
from pah.methods import METHODS
from pah.methods.base import MethodOptions
from pah.study.grid import Cell, Outcome
from pah.training.config import RunConfig

TASKS = 3  # the first tasks of the stream, on which trials are made
VALIDATION = 0.1  # share of each class's training images that trials are judged on
RULE = (
    f"Trials learn the first {TASKS} tasks and are measured on {VALIDATION:.0%} of their training images, held out. "
    "The options as given are the first trial, the others a seeded sample of the values to try. Chosen is the highest "
    "average accuracy to be expected after all tasks of the stream, if each further task costs the old ones what those "
    "of the trial did: LA + BWT (T - 1) / t, with LA and BWT of the trial, t its tasks and T those of the stream; the "
    "earlier trial if two are equal. The optimizer is the same for all."
)


def trials(config: RunConfig, count: int) -> list[MethodOptions]:
    """At most `count` settings of the configuration's method to try, its own first; one where nothing is to choose."""
    own, search = config.method_options, METHODS[config.method].options.search
    combinations = [
        dataclasses.replace(own, **dict(zip(search, values, strict=True)))
        for values in itertools.product(*search.values())
    ]
    order = torch.randperm(len(combinations), generator=generator(config.seed, "trials", config.method)).tolist()
    others = [combinations[i] for i in order if combinations[i] != own]
    return [own, *others][:count] if others else [own]


def trial_cells(config: RunConfig, count: int, folder: Path) -> list[Cell]:
    """The runs that choose a method's options; none where nothing is to choose."""
    options = trials(config, count)
    if len(options) == 1:
        return []
    return [
        Cell(trial_config(config, method_options), folder / f"{config.method}-trial{i}")
        for i, method_options in enumerate(options)
    ]


def trial_config(config: RunConfig, options: MethodOptions) -> RunConfig:
    """The configuration of one trial."""
    tasks = min(TASKS, config.stream.first or TASKS, config.stream.tasks or TASKS)
    validation = config.stream.validation or VALIDATION
    return dataclasses.replace(
        config,
        method_options=options,
        stream=dataclasses.replace(config.stream, first=tasks, validation=validation),
        training=dataclasses.replace(config.training, evaluate_on="validation"),
    )


def best(outcomes: Sequence[Outcome], tasks: int) -> MethodOptions | None:
    """The options that `RULE` chooses for a stream of so many tasks; None if every trial failed."""
    finished = [(expected(o.metrics, tasks), o) for o in outcomes if o.metrics is not None]
    return max(finished, key=lambda trial: trial[0])[1].cell.config.method_options if finished else None


def expected(metrics: Mapping[str, Any], tasks: int) -> float:
    """A trial's average accuracy after t tasks, in percent, carried on to T = `tasks`.

    AA = LA + BWT (t - 1) / t holds by definition. BWT is a mean over old tasks, each followed by t / 2 others on
    average; where each of these costs the same, BWT grows by T / t, and AA_T = LA + BWT (T / t) (T - 1) / T.
    """
    learned = len(metrics["accuracy_matrix"])
    return float(metrics["learning_accuracy"] + metrics["backward_transfer"] * (tasks - 1) / learned)


def log(shared: Mapping[str, Any], by_method: Mapping[str, Sequence[Outcome]], tasks: int) -> dict[str, Any]:
    """What `tuning.json` holds: the rule, what trials have in common, each method's trials, the chosen one marked."""
    return {
        "rule": RULE,
        "tasks": tasks,
        "configuration": shared,
        "methods": {
            method: [_entry(o, best(outcomes, tasks), METHODS[method].options.search, tasks) for o in outcomes]
            for method, outcomes in by_method.items()
        },
    }


def _entry(outcome: Outcome, chosen: MethodOptions | None, search: Mapping[str, Any], tasks: int) -> dict[str, Any]:
    """One trial."""
    options, metrics = outcome.cell.config.method_options, outcome.metrics
    trial = {"options": {name: getattr(options, name) for name in search}, "chosen": options == chosen}
    if metrics is None:
        return trial | {"failed": outcome.reason}
    figures = ("average_accuracy", "backward_transfer", "learning_accuracy", "seconds", "commit")
    return trial | {"expected": round(expected(metrics, tasks), 3), **{name: metrics[name] for name in figures}}
