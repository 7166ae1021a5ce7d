"""Measure the memory of a long training: after the first task and at the end.

    OMP_NUM_THREADS=1 python benchmarks/long.py --minutes 30 --json long.json

A run of PAH trains in this process on five tasks of digits, with as many epochs as fill the time. A checkpoint every
two seconds also reveals leaks in saving. Resident memory, open files, threads and Python objects are sampled every
five seconds. After the first task, nothing but the prototypes may grow.
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
from pah.runs.progress import Progress
from pah.runs.run import start_run
from pah.training.state import EpochDone

SAMPLE_SECONDS = 5.0  # between two samples
MAX_GROWTH = 4.0  # MB by which a task's median may exceed the median of the first task's second half
PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Sample:
    """The resources of the process at one time."""

    seconds: float
    task: int
    megabytes: float
    files: int
    threads: int
    objects: int


class Sampler:
    """A `watch` callback that takes a sample at the end of an epoch, at most every `SAMPLE_SECONDS`."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.samples: list[Sample] = []

    def __call__(self, progress: Progress) -> None:
        seconds = time.monotonic() - self.started
        due = not self.samples or seconds >= self.samples[-1].seconds + SAMPLE_SECONDS
        if not due or not isinstance(progress.event, EpochDone):
            return
        gc.collect()
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * PAGE / 2**20
        files, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
        sample = Sample(seconds, progress.event.task + 1, resident, files, threads, len(gc.get_objects()))
        self.samples.append(sample)
        if len(self.samples) % 12 == 1:
            print(
                f"{seconds / 60:5.1f} min  task {sample.task}  {resident:.1f} MB  {files} files  {threads} threads  "
                f"{sample.objects} objects",
                flush=True,
            )


def epochs_for(minutes: float, method: str) -> int:
    """Return the number of epochs per task that fills the time, estimated by a short run."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        config = run_request(["--method", method, "--epochs", "20"]).config
        start_run(config, Path(folder) / "run", checkpoint_seconds=2)
        return max(1, round(20 * minutes * 60 / (time.monotonic() - started)))


def by_task(samples: list[Sample]) -> dict[int, float]:
    """Return the median memory of each task's samples in MB; of the first task, only the second half counts."""
    medians = {}
    for task in sorted({sample.task for sample in samples}):
        values = [sample.megabytes for sample in samples if sample.task == task]
        medians[task] = statistics.median(values[len(values) // 2 :] if task == 1 else values)
    return medians


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
    growth = max(medians.values()) - medians[1]
    print(f"{sampler.samples[-1].seconds / 60:.1f} minutes, {config.training.epochs} epochs a task")
    print("median MB by task: " + ", ".join(f"{task}: {median:.1f}" for task, median in medians.items()))
    print(f"growth after the first task: {growth:.1f} MB, at most {MAX_GROWTH} MB allowed")
    if options.json:
        results = {"medians_mb": medians, "samples": [asdict(sample) for sample in sampler.samples]}
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    return int(growth > MAX_GROWTH)


if __name__ == "__main__":
    sys.exit(program())
