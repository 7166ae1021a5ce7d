"""Small lessons: the accuracy and forgetting of each method, and the quality of a learner's estimate of its losses.

    python benchmarks/small_lessons.py run --data ../shared/data --out RUNS     # every stream, through `pah compare`
    python benchmarks/small_lessons.py table RUNS --json results/small-lessons/table.json
    python benchmarks/small_lessons.py gauge RUNS --json results/small-lessons/gauge.json

Settings were chosen on validation images of the streams in `CHOSEN_ON`; the other streams are only reported.
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
from pah.learner.drift import estimate_drift, fit_feature_map, update_statistics
from pah.learner.predictor import Predictor
from pah.learner.store import Record, TaughtTask
from pah.runs.diagnosis import load_snapshot
from pah.training.config import RunConfig, load_stream

CHOSEN_ON = ("small-alike", "small-few", "small-grey", "small-objects", "small-marks", "small-patterns")
WIDTH = "16"  # of the backbone; takes a quarter of the time of a learner's 32
LARGE_LOSS = 10.0  # points of accuracy; a lesson that costs an old task more should be flagged


def run(data: str, out: Path, methods: str, seeds: str, streams: Sequence[str]) -> int:
    """Run `pah compare` on each stream; the same command continues an interrupted one."""
    status = 0
    for name in streams:
        words = ["compare", name, "--methods", methods, "--seeds", seeds, "--backbone.width", WIDTH]
        words += ["--snapshots", "true", "--out", str(out / name)]
        if SMALL_STREAMS[name].data_folder is not None:
            words += ["--data", data]
        status = max(status, pah(words))
    return status


def table(runs: Path) -> dict[str, Any]:
    """Return mean AA and FM over the seeds of each method and stream, and the differences to PAH.

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
            streams[name] = {"half": half, "methods": {key: _entry(entry) for key, entry in methods.items()}}
    halves = {half: _means([s for s in streams.values() if s["half"] == half]) for half in ("chosen on", "reported")}
    return {"streams": streams, "halves": halves, "all": _means(list(streams.values()))}


def _entry(entry: dict[str, Any]) -> dict[str, Any]:
    """Return the means of one method on one stream."""
    means = {key: round(entry[key]["mean"], 2) for key in ("average_accuracy", "forgetting", "learning_accuracy")}
    worst = round(max(entry["forgetting"]["by_seed"].values()), 2)
    minus = entry["minus_reference"] and {
        key: round(entry["minus_reference"][key], 2) for key in ("difference", "low", "high")
    }
    return {"n": entry["n"], **means, "worst_forgetting": worst, "minus_pah": minus, "seconds": round(entry["seconds"])}


def _means(streams: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the means over the streams, for each method that all streams have."""
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
    """Compare each lesson's estimated loss of each old task with the true loss on test images, from snapshots.

    Returns:
        For each half, for each method and for all together: "lessons", the number of lessons and of those that cost an
        old task more than `LARGE_LOSS` points; "flagged", the share of the latter with an estimate above `LARGE_LOSS`;
        "false_alarms", the same share of the other lessons; "correlation" of estimate and truth over all old tasks.
        Besides these, "pairs" holds all numbers.
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
    return {name: _statistics(group) for name, group in groups.items() if group} | {"pairs": pairs}


def _pairs(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the estimated and the true loss in percent, for each lesson of a run and each earlier task."""
    config = RunConfig.from_dict(files.read_yaml(folder / "config.yaml"))
    matrix = files.read_json(folder / "metrics.json")["accuracy_matrix"]
    stream = load_stream(config)
    before: Predictor | None = None
    for k, task in enumerate(stream.tasks):
        now = _predictor(config, stream, folder, k)
        carry = None
        if before is not None:
            carry = fit_feature_map(before, now, task.train, config.augment)
            for j, (name, lost) in enumerate(estimate_drift(before, now, carry).items()):
                assert name == stream.tasks[j].name
                true = matrix[k - 1][j] - matrix[k][j]
                yield {"lesson": k, "task": j, "estimated": round(100 * lost, 2), "true": round(true, 2)}
        before = update_statistics(before, now, carry, task.train)


def _predictor(config: RunConfig, stream: Stream, folder: Path, last: int) -> Predictor:
    """Return the network after a task as a predictor, as a learner has it."""
    seen = stream.tasks[: last + 1]
    tasks = tuple(TaughtTask(task.name, task.class_names, task.labels) for task in seen)
    method = load_snapshot(config, stream, folder, last)
    return Predictor(Record(config, stream.image_shape, stream.normalization, tasks), method)


def _statistics(pairs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the statistics of `gauge` for some pairs."""
    worst: dict[tuple[str, str, int], tuple[float, float]] = {}
    for pair in pairs:
        key = (pair["stream"], pair["run"], pair["lesson"])
        estimated, true = worst.get(key, (0.0, -100.0))
        worst[key] = (max(estimated, pair["estimated"]), max(true, pair["true"]))
    flags_of_large = [estimated > LARGE_LOSS for estimated, true in worst.values() if true > LARGE_LOSS]
    flags_of_small = [estimated > LARGE_LOSS for estimated, true in worst.values() if true <= LARGE_LOSS]
    numbers = np.array([[pair["estimated"], pair["true"]] for pair in pairs])
    return {
        "lessons": {"all": len(worst), "lost": len(flags_of_large)},
        "flagged": round(float(np.mean(flags_of_large)), 3) if flags_of_large else None,
        "false_alarms": round(float(np.mean(flags_of_small)), 3) if flags_of_small else None,
        "correlation": round(float(np.corrcoef(numbers.T)[0, 1]), 3),
    }


def main() -> int:
    """Run the command; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    run_parser = verbs.add_parser("run", help="train every method on every stream")
    run_parser.add_argument("--data", required=True, help="folder that holds cifar100 and tiny-imagenet-50")
    run_parser.add_argument("--out", type=Path, required=True)
    run_parser.add_argument("--methods", default="finetune,lwf,pah,independent")
    run_parser.add_argument("--seeds", default="0,1,2")
    run_parser.add_argument("--streams", default=",".join(SMALL_STREAMS))
    for name, about in (("table", "accuracies and forgetting"), ("gauge", "estimated against true losses")):
        verb = verbs.add_parser(name, help=about)
        verb.add_argument("runs", type=Path)
        verb.add_argument("--json", type=Path, help="write the result to this file")
    verb.add_argument("--methods", default="finetune,lwf,pah")
    verb.add_argument("--seeds", default="0,1,2")
    options = parser.parse_args()
    if options.verb == "run":
        return run(options.data, options.out, options.methods, options.seeds, options.streams.split(","))
    torch.set_num_threads(1)
    if options.verb == "table":
        results = table(options.runs)
    else:
        results = gauge(options.runs, options.methods.split(","), options.seeds.split(","))
    if options.json:
        files.write_json(options.json, results)
    print(json.dumps({key: value for key, value in results.items() if key != "pairs"}, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
