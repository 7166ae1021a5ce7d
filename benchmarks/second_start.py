"""How long `pah run` takes to its first step where its data were decoded before, and what of that is torch's own.

    python benchmarks/second_start.py --data PATH_TO_CIFAR100 --repeats 5 --json results/second-start.json

Each start is a process of its own, timed from before it is there; the first one, which may decode, does not count.
Wanted: under 2 s.
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
began = float(sys.argv[1])
gc.disable()  # as pah.__main__ does
import torch
imported = time.time() - began
import pah.cli
from pah import runs
from pah.cli.options import run_request
from pah.training import StepDone
gc.freeze()
gc.enable()
started = time.time()
import torch._dynamo  # which every optimizer of torch imports when it is made
compiler = time.time() - started
def watch(happened):
    if isinstance(happened.event, StepDone):
        print(imported, compiler, time.time() - began)
        raise SystemExit
request = run_request(sys.argv[2:])
runs.start(request.config, request.out, watch=watch)
"""
PARTS = ("import torch", "torch imports its compiler", "first step done")


def start(data: str, place: Path) -> list[float]:
    """Seconds of each of `PARTS`, the last one from the start on."""
    words = ["split-cifar100", "--data", data, "--method", "finetune", "--out", str(place)]
    command = [sys.executable, "-c", START, repr(time.time()), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [float(seconds) for seconds in done.stdout.split()]


def main() -> None:
    """Measure, show and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", required=True, help="where CIFAR-100 lies")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        starts = [start(options.data, Path(folder) / str(i)) for i in range(options.repeats + 1)][1:]
    medians = [round(statistics.median(part), 2) for part in zip(*starts, strict=True)]
    found = dict(zip(PARTS, medians, strict=True)) | {"starts": options.repeats}
    print(json.dumps(found, indent=1))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
