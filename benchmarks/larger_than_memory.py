"""Train on a data set that is larger than the permitted memory: it is decoded once, then memory-mapped.

    sudo python benchmarks/larger_than_memory.py --gigabytes 3 --limit 1.5 --json larger.json

Random images of 64x64 pixels are written as Parquet in the hub's layout. `pah run` learns them three times, each time
in a new process: with a memory limit from data that are not decoded yet, with the same limit from the cache, and
without a limit. The limit is a Linux control group, which needs root and also counts the kernel's file cache. All
three runs must succeed with the same accuracies.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image

SIDE, CLASSES, SHARD = 64, 4, 5000
datasets.disable_progress_bars()
V1, V2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")


def write_data(folder: Path, images: int) -> None:
    """Write Parquet files of random uncompressed images in `CLASSES` classes."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(CLASSES)})
    generator = np.random.default_rng(0)

    def encoded() -> bytes:
        file = BytesIO()
        Image.fromarray(generator.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(file, "BMP")
        return file.getvalue()

    for split, count in (("train", images), ("test", 20 * CLASSES)):
        starts = range(0, count, SHARD)
        for number, start in enumerate(starts):
            rows = range(start, min(start + SHARD, count))
            columns = {
                "image": [{"bytes": encoded(), "path": None} for _ in rows],
                "label": [i % CLASSES for i in rows],
            }
            name = f"{split}-{number:05d}-of-{len(starts):05d}.parquet"
            datasets.Dataset.from_dict(columns, features=features).to_parquet(folder / name)


@contextmanager
def limited(gigabytes: float) -> Iterator[Path]:
    """Yield the process file of a control group with this memory limit; a process that writes its id into it joins."""
    first = V1.is_dir()
    group = (V1 if first else V2) / f"pah-benchmark-{os.getpid()}"
    group.mkdir()
    try:
        (group / ("memory.limit_in_bytes" if first else "memory.max")).write_text(str(int(gigabytes * 2**30)))
        yield group / "cgroup.procs"
    finally:
        group.rmdir()


def run(data: Path, work: Path, name: str, procs: Path | None) -> dict[str, Any]:
    """Run `pah run`, in the control group if one is given; return its times, memory and accuracies."""
    words = ["run", "split", "--data", str(data), "--tasks", "2", "--epochs", "1", "--method", "finetune"]
    words += ["--backbone", "convnet", "--backbone.width", "4", "--training.batch_size", "256"]
    command = [sys.executable, "-m", "pah", *words, "--out", str(work / name)]
    join_group = None if procs is None else lambda: procs.write_text(str(os.getpid())) and None
    started = time.perf_counter()
    completed = subprocess.run(
        command,
        capture_output=True,
        text=True,
        preexec_fn=join_group,
        env=os.environ | {"HF_HOME": str(work / "cache")},
    )
    seconds = time.perf_counter() - started
    if completed.returncode:
        raise SystemExit(f"{name}: exit status {completed.returncode}\n{completed.stderr[-2000:]}")
    metrics = json.loads((work / name / "metrics.json").read_text())
    return {
        "seconds": round(seconds, 1),
        "training_seconds": round(metrics["seconds"], 1),
        "peak_memory_mb": metrics["peak_memory_mb"],
        "accuracy_matrix": metrics["accuracy_matrix"],
    }


def main() -> int:
    """Write the data, run three times and compare; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--gigabytes", type=float, default=3.0, help="size of the decoded pixels")
    parser.add_argument("--limit", type=float, default=1.5, help="memory limit of a run, gigabytes")
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    images = int(options.gigabytes * 2**30 / (3 * SIDE * SIDE))
    results: dict[str, Any] = {"gigabytes": options.gigabytes, "limit": options.limit, "images": images}
    with tempfile.TemporaryDirectory() as folder:
        data, work = Path(folder) / "data", Path(folder)
        data.mkdir()
        write_data(data, images)
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text(
            "3"
        )  # empty the file cache: pages that this process wrote would not count for the group
        with limited(options.limit) as procs:
            results["first, limited"] = run(data, work, "first", procs)
            results["again, limited"] = run(data, work, "again", procs)
        results["again, unlimited"] = run(data, work, "unlimited", None)
    same = len({str(result["accuracy_matrix"]) for result in results.values() if isinstance(result, dict)}) == 1
    results["same"] = same
    print(json.dumps(results, indent=1))
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    return 0 if same else 1


if __name__ == "__main__":
    raise SystemExit(main())
