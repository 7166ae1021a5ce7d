"""Time `pah run` from its start to its first step with data that are already decoded, and torch's part of it.

    python benchmarks/second_start.py --data PATH_TO_CIFAR100 --repeats 5 --json results/second-start.json

Each start is a new process, timed from before it is created. The first start may decode the data and does not count.
The target is under 2 s.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

START = """
import gc, sys, time
start_time = float(sys.argv[1])
gc.disable()  # as pah.__main__ does
import torch
imported = time.time() - start_time
import pah.cli
from pah.cli.options import run_request
from pah.runs.run import start_run
from pah.training.state import StepDone
gc.freeze()
gc.enable()
before = time.time()
import torch._dynamo  # every optimizer of torch imports it
compiler = time.time() - before
def watch(progress):
    if isinstance(progress.event, StepDone):
        print(imported, compiler, time.time() - start_time)
        raise SystemExit
request = run_request(sys.argv[2:])
start_run(request.config, request.out, watch=watch)
"""
PARTS = ("import torch", "torch imports its compiler", "first step done")


def start(data: str, folder: Path) -> list[float]:
    """Start `pah run` in a new process; return the seconds of each of `PARTS`, the last one since the start."""
    words = ["split-cifar100", "--data", data, "--method", "finetune", "--out", str(folder)]
    command = [sys.executable, "-c", START, repr(time.time()), *words]
    completed = subprocess.run(command, capture_output=True, text=True, check=True)
    return [float(seconds) for seconds in completed.stdout.split()]


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", required=True, help="path of CIFAR-100")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        starts = [start(options.data, Path(folder) / str(i)) for i in range(options.repeats + 1)][1:]
    medians = [round(statistics.median(part), 2) for part in zip(*starts, strict=True)]
    results = dict(zip(PARTS, medians, strict=True)) | {"starts": options.repeats}
    print(json.dumps(results, indent=1))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
