"""Memory over a long training: what a run holds after its first task, and what it holds at the end.

    OMP_NUM_THREADS=1 python benchmarks/long.py --minutes 30 --json long.json

A run of `pah` in this process, five tasks of digits, with as many epochs as fill the time, and a checkpoint every two
seconds, so that what saving might leak is seen as well. Resident memory, open files, threads and Python objects are
sampled at every fifth second. Wanted: after the first task, nothing grows beyond the prototypes.
"""

import argparse
import gc
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from pah.cli.options import run_request
from pah.runs.run import Progress, start_run
from pah.training.state import EpochDone

EVERY = 5.0  # seconds
ALLOWED = 4.0  # MB by which the median of a task's samples may exceed that of the first task's later half
PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Sample:
    """What the process held at a moment."""

    seconds: float
    task: int
    megabytes: float
    files: int
    threads: int
    objects: int


class Sampler:
    """A `watch` that takes a sample at the first epoch's end in every few seconds."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.samples: list[Sample] = []

    def __call__(self, happened: Progress) -> None:
        seconds = time.monotonic() - self.started
        due = not self.samples or seconds >= self.samples[-1].seconds + EVERY
        if not due or not isinstance(happened.event, EpochDone):
            return
        gc.collect()
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * PAGE / 2**20
        files, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
        sample = Sample(seconds, happened.event.task + 1, resident, files, threads, len(gc.get_objects()))
        self.samples.append(sample)
        if len(self.samples) % 12 == 1:
            print(
                f"{seconds / 60:5.1f} min  task {sample.task}  {resident:.1f} MB  {files} files  {threads} threads  "
                f"{sample.objects} objects",
                flush=True,
            )


def epochs_for(minutes: float, method: str) -> int:
    """How many epochs a task fill the time, by a short run on this machine."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        config = run_request(["--method", method, "--epochs", "20"]).config
        start_run(config, Path(folder) / "run", checkpoint_seconds=2)
        return max(1, round(20 * minutes * 60 / (time.monotonic() - started)))


def by_task(samples: list[Sample]) -> dict[int, float]:
    """The median memory of each task's samples, MB; of the first task's later half: until then a run warms up."""
    found = {}
    for task in sorted({sample.task for sample in samples}):
        of = [sample.megabytes for sample in samples if sample.task == task]
        found[task] = statistics.median(of[len(of) // 2 :] if task == 1 else of)
    return found


def program() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--method", default="pah")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    epochs = epochs_for(options.minutes, options.method)
    config = run_request(["--method", options.method, "--epochs", str(epochs)]).config
    sampler = Sampler()
    with tempfile.TemporaryDirectory() as folder:
        start_run(config, Path(folder) / "run", watch=sampler, checkpoint_seconds=2)
    medians = by_task(sampler.samples)
    grown = max(medians.values()) - medians[1]
    print(f"{sampler.samples[-1].seconds / 60:.1f} minutes, {config.training.epochs} epochs a task")
    print("median MB by task: " + ", ".join(f"{task}: {median:.1f}" for task, median in medians.items()))
    print(f"grown after the first task by {grown:.1f} MB, allowed {ALLOWED}")
    if options.json:
        found = {"medians_mb": medians, "samples": [asdict(sample) for sample in sampler.samples]}
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return int(grown > ALLOWED)


if __name__ == "__main__":
    sys.exit(program())
