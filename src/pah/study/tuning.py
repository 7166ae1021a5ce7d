"""Tuning of method options on validation data, by one rule and with the same number of trials for every method."""

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

TRIAL_TASKS = 3  # a trial learns the first tasks of the stream
VALIDATION = 0.1  # share of each class's training images on which trials are measured
RULE = (
    f"Trials learn the first {TRIAL_TASKS} tasks and are measured on {VALIDATION:.0%} of their training images, held "
    "out. The first trial has the options as given, the others are a seeded sample of the values to try. The chosen "
    "trial has the highest expected average accuracy after all tasks of the stream, if each further task costs the old "
    "tasks as much as those of the trial did: LA + BWT (T - 1) / t, with LA and BWT of the trial, t its tasks and T "
    "those of the stream; the earlier trial if two are equal. The optimizer is the same for all."
)


def trials(config: RunConfig, count: int) -> list[MethodOptions]:
    """Return at most `count` settings of the method to try, the given one first; one if there is no other."""
    own, search = config.method_options, METHODS[config.method].options.search
    combinations = [
        dataclasses.replace(own, **dict(zip(search, values, strict=True)))
        for values in itertools.product(*search.values())
    ]
    order = torch.randperm(len(combinations), generator=generator(config.seed, "trials", config.method)).tolist()
    others = [combinations[i] for i in order if combinations[i] != own]
    return [own, *others][:count] if others else [own]


def trial_cells(config: RunConfig, count: int, folder: Path) -> list[Cell]:
    """Return the runs that tune a method's options; empty if there is nothing to choose."""
    options = trials(config, count)
    if len(options) == 1:
        return []
    return [
        Cell(trial_config(config, method_options), folder / f"{config.method}-trial{i}")
        for i, method_options in enumerate(options)
    ]


def trial_config(config: RunConfig, options: MethodOptions) -> RunConfig:
    """Return the configuration of a trial of these options."""
    stream = config.stream
    planned = stream.first, stream.tasks, len(stream.sizes or ())
    tasks = min(TRIAL_TASKS, *(number for number in planned if number))
    validation = config.stream.validation or VALIDATION
    return dataclasses.replace(
        config,
        method_options=options,
        stream=dataclasses.replace(config.stream, first=tasks, validation=validation),
        training=dataclasses.replace(config.training, evaluate_on="validation"),
    )


def best_options(outcomes: Sequence[Outcome], tasks: int) -> MethodOptions | None:
    """Return the options that `RULE` chooses for a stream of `tasks` tasks; None if every trial failed."""
    finished = [
        (expected_accuracy(outcome.metrics, tasks), outcome) for outcome in outcomes if outcome.metrics is not None
    ]
    return max(finished, key=lambda trial: trial[0])[1].cell.config.method_options if finished else None


def expected_accuracy(metrics: Mapping[str, Any], tasks: int) -> float:
    """Return a trial's average accuracy after t tasks, in percent, extrapolated to T = `tasks`.

    AA = LA + BWT (t - 1) / t holds by definition. BWT is a mean over old tasks, each followed by t / 2 other tasks on
    average. If each of these costs the same, BWT grows by T / t, and AA_T = LA + BWT (T / t) (T - 1) / T.
    """
    learned = len(metrics["accuracy_matrix"])
    return float(metrics["learning_accuracy"] + metrics["backward_transfer"] * (tasks - 1) / learned)


def log(shared: Mapping[str, Any], by_method: Mapping[str, Sequence[Outcome]], tasks: int) -> dict[str, Any]:
    """Return the content of `tuning.json`: the rule, the shared options, and each method's trials.

    Args:
        shared: the options that all trials share.
        by_method: the trials of each method; the chosen one is marked.
        tasks: number of tasks of the whole stream.
    """
    methods = {}
    for method, outcomes in by_method.items():
        chosen, search = best_options(outcomes, tasks), METHODS[method].options.search
        methods[method] = [_trial_entry(outcome, chosen, search, tasks) for outcome in outcomes]
    return {"rule": RULE, "tasks": tasks, "configuration": shared, "methods": methods}


def _trial_entry(
    outcome: Outcome, chosen: MethodOptions | None, search: Mapping[str, Any], tasks: int
) -> dict[str, Any]:
    """Return the entry of one trial in `tuning.json`."""
    options, metrics = outcome.cell.config.method_options, outcome.metrics
    trial = {"options": {name: getattr(options, name) for name in search}, "chosen": options == chosen}
    if metrics is None:
        return trial | {"failed": outcome.reason}
    measured = ("average_accuracy", "backward_transfer", "learning_accuracy", "seconds", "commit")
    return trial | {"expected": round(expected_accuracy(metrics, tasks), 3), **{key: metrics[key] for key in measured}}
