"""A run on a data set that does not fit the memory it is allowed: decoded once, then memory-mapped.

    sudo python benchmarks/larger_than_memory.py --gigabytes 3 --limit 1.5 --json larger.json

Random images of 64x64 are written as Parquet in the hub's layout. `pah run` learns them in a process of its own,
first under a limit of memory (a control group of Linux, which counts what the kernel keeps of files as well; hence
root), from data that nothing has decoded yet; then again, under the same limit, from the cache; then without a limit.
Wanted: all end well, with the same accuracies.
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
    """Parquet files of random images, stored uncompressed, and of as many classes as are learned."""
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
    """A control group that may take so much memory: whoever writes its process number into the file is in it."""
    first = V1.is_dir()
    group = (V1 if first else V2) / f"pah-benchmark-{os.getpid()}"
    group.mkdir()
    try:
        (group / ("memory.limit_in_bytes" if first else "memory.max")).write_text(str(int(gigabytes * 2**30)))
        yield group / "cgroup.procs"
    finally:
        group.rmdir()


def run(data: Path, work: Path, name: str, procs: Path | None) -> dict[str, Any]:
    """What a run, in the control group if there is one, took and found."""
    words = ["run", "split", "--data", str(data), "--tasks", "2", "--epochs", "1", "--method", "finetune"]
    words += ["--backbone", "convnet", "--backbone.width", "4", "--training.batch_size", "256"]
    command = [sys.executable, "-m", "pah", *words, "--out", str(work / name)]
    enter = None if procs is None else lambda: procs.write_text(str(os.getpid())) and None
    started = time.perf_counter()
    done = subprocess.run(
        command, capture_output=True, text=True, preexec_fn=enter, env=os.environ | {"HF_HOME": str(work / "cache")}
    )
    seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"{name}: exit status {done.returncode}\n{done.stderr[-2000:]}")
    metrics = json.loads((work / name / "metrics.json").read_text())
    return {
        "seconds": round(seconds, 1),
        "training_seconds": round(metrics["seconds"], 1),
        "peak_memory_mb": metrics["peak_memory_mb"],
        "accuracy_matrix": metrics["accuracy_matrix"],
    }


def main() -> int:
    """Write, run thrice, compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--gigabytes", type=float, default=3.0, help="of pixels, decoded")
    parser.add_argument("--limit", type=float, default=1.5, help="gigabytes that a run may take")
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    images = int(options.gigabytes * 2**30 / (3 * SIDE * SIDE))
    found: dict[str, Any] = {"gigabytes": options.gigabytes, "limit": options.limit, "images": images}
    with tempfile.TemporaryDirectory() as folder:
        data, work = Path(folder) / "data", Path(folder)
        data.mkdir()
        write_data(data, images)
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("3")  # what was just written is not of the group
        with limited(options.limit) as procs:
            found["first, limited"] = run(data, work, "first", procs)
            found["again, limited"] = run(data, work, "again", procs)
        found["again, unlimited"] = run(data, work, "unlimited", None)
    same = len({str(of["accuracy_matrix"]) for of in found.values() if isinstance(of, dict)}) == 1
    found["same"] = same
    print(json.dumps(found, indent=1))
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0 if same else 1


if __name__ == "__main__":
    raise SystemExit(main())
