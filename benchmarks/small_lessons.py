"""Small lessons: how much each method keeps of them, and whether a learner's estimate of what it forgot is right.

    python benchmarks/small_lessons.py run --data ../shared/data --out RUNS     # every stream, through `pah compare`
    python benchmarks/small_lessons.py table RUNS --json results/small-lessons/table.json
    python benchmarks/small_lessons.py gauge RUNS --json results/small-lessons/gauge.json

Settings were chosen on validation images of the streams in `CHOSEN_ON`; the others only report.
"""

import argparse
import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pah.cli import main as pah
from pah.core import files
from pah.data.small_lessons import SMALL_STREAMS
from pah.data.stream import Stream
from pah.learner.drift import estimate_drift, fit_carry, update_statistics
from pah.learner.predictor import Predictor
from pah.learner.store import Record, TaughtTask
from pah.runs.diagnosis import snapshot
from pah.training.config import RunConfig, load_stream

CHOSEN_ON = ("small-alike", "small-few", "small-grey", "small-objects", "small-marks", "small-patterns")
WIDTH = "16"  # of the backbone: a quarter of the time of a learner's 32
LOST = 10.0  # points of accuracy: a lesson that costs an old task more should be flagged


def run(data: str, out: Path, methods: str, seeds: str, streams: Sequence[str]) -> int:
    """`pah compare` on each stream; the same command goes on where it was stopped."""
    status = 0
    for name in streams:
        words = ["compare", name, "--methods", methods, "--seeds", seeds, "--backbone.width", WIDTH]
        words += ["--snapshots", "true", "--out", str(out / name)]
        if SMALL_STREAMS[name].data is not None:
            words += ["--data", data]
        status = max(status, pah(words))
    return status


def table(runs: Path) -> dict[str, Any]:
    """Mean AA and FM over the seeds of each method and stream, and how PAH stands against the others.

    Returns:
        "streams": for each stream its half, and for each method `average_accuracy`, `forgetting`,
        `learning_accuracy` (percent, mean over n seeds), `worst_forgetting` (of one seed), and
        `minus_pah` with its 95 % interval; "halves": for each half and method the means over its streams.
    """
    streams: dict[str, Any] = {}
    for name in SMALL_STREAMS:
        if (path := runs / name / "comparison.json").is_file():
            methods = files.read_json(path)["methods"]
            half = "chosen on" if name in CHOSEN_ON else "reported"
            streams[name] = {"half": half, "methods": {key: _entry(of) for key, of in methods.items()}}
    halves = {half: _means([s for s in streams.values() if s["half"] == half]) for half in ("chosen on", "reported")}
    return {"streams": streams, "halves": halves, "all": _means(list(streams.values()))}


def _entry(of: dict[str, Any]) -> dict[str, Any]:
    means = {key: round(of[key]["mean"], 2) for key in ("average_accuracy", "forgetting", "learning_accuracy")}
    worst = round(max(of["forgetting"]["by_seed"].values()), 2)
    minus = of["minus_reference"] and {
        key: round(of["minus_reference"][key], 2) for key in ("difference", "low", "high")
    }
    return {"n": of["n"], **means, "worst_forgetting": worst, "minus_pah": minus, "seconds": round(of["seconds"])}


def _means(streams: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """For each method that every one of the streams has, means over them."""
    if not streams:
        return {}
    common = set.intersection(*(set(stream["methods"]) for stream in streams))
    keys = ("average_accuracy", "forgetting", "learning_accuracy")
    return {
        method: {
            **{key: round(statistics.fmean(s["methods"][method][key] for s in streams), 2) for key in keys},
            "worst_forgetting": max(s["methods"][method]["worst_forgetting"] for s in streams),
        }
        for method in sorted(common)
    }


def gauge(runs: Path, methods: Sequence[str], seeds: Sequence[str]) -> dict[str, Any]:
    """Each lesson's estimated loss of each old task against the true one, on test images, from the runs' snapshots.

    Returns:
        For each half, each method and all together "lessons", how many there were and how many cost an old task more
        than `LOST` points; "flagged", the share of these whose estimate was above `LOST`; "false_alarms", the share of
        the others whose was; "correlation" of estimate and truth over all old tasks; and "pairs", all numbers.
    """
    pairs = []
    for name in SMALL_STREAMS:
        for folder in sorted((runs / name).glob("*-seed*")):
            method, _, seed = folder.name.partition("-seed")
            if method in methods and seed in seeds and (folder / "metrics.json").is_file():
                pairs += [{"stream": name, "run": folder.name, **pair} for pair in _pairs(folder)]
    groups = {"all": pairs, "chosen on": [p for p in pairs if p["stream"] in CHOSEN_ON]}
    groups["reported"] = [p for p in pairs if p["stream"] not in CHOSEN_ON]
    groups |= {method: [p for p in pairs if p["run"].startswith(f"{method}-seed")] for method in methods}
    return {name: _judged(of) for name, of in groups.items() if of} | {"pairs": pairs}


def _pairs(folder: Path) -> Iterator[dict[str, Any]]:
    """For each lesson of a run and each task known before it: percent estimated, and percent lost in truth."""
    config = RunConfig.from_dict(files.read_yaml(folder / "config.yaml"))
    matrix = files.read_json(folder / "metrics.json")["accuracy_matrix"]
    stream = load_stream(config)
    before: Predictor | None = None
    for k, task in enumerate(stream.tasks):
        now = _taught(config, stream, folder, k)
        carry = None
        if before is not None:
            carry = fit_carry(before, now, task.train, config.augment)
            for j, (name, lost) in enumerate(estimate_drift(before, now, carry).items()):
                assert name == stream.tasks[j].name
                true = matrix[k - 1][j] - matrix[k][j]
                yield {"lesson": k, "task": j, "estimated": round(100 * lost, 2), "true": round(true, 2)}
        before = update_statistics(before, now, carry, task.train)


def _taught(config: RunConfig, stream: Stream, folder: Path, last: int) -> Predictor:
    """The network after a task, as a learner has it."""
    seen = stream.tasks[: last + 1]
    tasks = tuple(TaughtTask(task.name, task.class_names, task.labels) for task in seen)
    method = snapshot(config, stream, folder, last)
    return Predictor(Record(config, stream.image_shape, stream.normalization, tasks), method)


def _judged(pairs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What `gauge` says of some pairs."""
    worst: dict[tuple[str, str, int], tuple[float, float]] = {}
    for pair in pairs:
        key = (pair["stream"], pair["run"], pair["lesson"])
        estimated, true = worst.get(key, (0.0, -100.0))
        worst[key] = (max(estimated, pair["estimated"]), max(true, pair["true"]))
    lost = [estimated > LOST for estimated, true in worst.values() if true > LOST]
    kept = [estimated > LOST for estimated, true in worst.values() if true <= LOST]
    numbers = np.array([[pair["estimated"], pair["true"]] for pair in pairs])
    return {
        "lessons": {"all": len(worst), "lost": len(lost)},
        "flagged": round(float(np.mean(lost)), 3) if lost else None,
        "false_alarms": round(float(np.mean(kept)), 3) if kept else None,
        "correlation": round(float(np.corrcoef(numbers.T)[0, 1]), 3),
    }


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    of_run = verbs.add_parser("run", help="train every method on every stream")
    of_run.add_argument("--data", required=True, help="folder that holds cifar100 and tiny-imagenet-50")
    of_run.add_argument("--out", type=Path, required=True)
    of_run.add_argument("--methods", default="finetune,lwf,pah,independent")
    of_run.add_argument("--seeds", default="0,1,2")
    of_run.add_argument("--streams", default=",".join(SMALL_STREAMS))
    for name, about in (("table", "accuracies and forgetting"), ("gauge", "estimated against true losses")):
        verb = verbs.add_parser(name, help=about)
        verb.add_argument("runs", type=Path)
        verb.add_argument("--json", type=Path, help="where to write what is found")
    verb.add_argument("--methods", default="finetune,lwf,pah")
    verb.add_argument("--seeds", default="0,1")
    options = parser.parse_args()
    if options.verb == "run":
        return run(options.data, options.out, options.methods, options.seeds, options.streams.split(","))
    torch.set_num_threads(1)
    if options.verb == "table":
        found = table(options.runs)
    else:
        found = gauge(options.runs, options.methods.split(","), options.seeds.split(","))
    if options.json:
        files.write_json(options.json, found)
    print(json.dumps({key: of for key, of in found.items() if key != "pairs"}, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
