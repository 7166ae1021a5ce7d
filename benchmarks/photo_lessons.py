"""Lessons of photos as a user teaches them with `pah learn`: from scratch, and from pretrained weights.

    python benchmarks/photo_lessons.py --data ../shared/data/cifar100 --json results/pretrained/photo-lessons.json

The photos are images of CIFAR-100, enlarged to 640x480 and saved as JPEG files. Two learners, with and without
pretrained weights, are taught two lessons: three animals with 60 photos each, then two insects. A lesson of ten classes
with 60 photos each is timed too. Seconds are from the command to the saved learner; accuracy, in percent with the task
given, is on 100 test images of each class.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from pah import ContinualLearner
from pah.data.sources import Images, Source, load_source

SIZE = (640, 480)
PHOTOS = 60  # of a class
LESSONS = {"animals": ("bear", "fox", "rabbit"), "insects": ("bee", "butterfly")}
TEN = ("apple", "bottle", "bridge", "bus", "chair", "clock", "cup", "lamp", "orange", "pear")
BACKBONES = {"scratch": ["--backbone", "resnet18-slim"], "pretrained": []}  # options of the first lesson


def write_photos(images: Images, source: Source, classes: tuple[str, ...], most: int, folder: Path) -> None:
    """Write the first images of some classes as JPEG files, one folder a class."""
    for name in classes:
        (folder / name).mkdir(parents=True)
        rows = torch.nonzero(images.labels == source.class_names.index(name)).squeeze(1)[:most]
        for k, row in enumerate(rows.tolist()):
            photo = Image.fromarray(images.pixels[row].permute(1, 2, 0).numpy())
            photo.resize(SIZE, Image.Resampling.BICUBIC).save(folder / name / f"{k}.jpg", quality=92)


def teach(learner: Path, name: str, photos: Path, options: list[str]) -> float:
    """Teach a lesson by the command, and return the seconds from the command to the saved learner."""
    start = time.perf_counter()
    words = [sys.executable, "-m", "pah", "learn", str(learner), "--name", name, "--data", str(photos), *options]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    return round(time.perf_counter() - start, 1)


def main() -> None:
    """Run the benchmark and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="CIFAR-100")
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    source = load_source(arguments.data)
    results: dict[str, Any] = {"threads": torch.get_num_threads(), "photos": PHOTOS, "size": SIZE}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for lesson, classes in (LESSONS | {"ten": TEN}).items():
            write_photos(source.train, source, classes, PHOTOS, folder / "train" / lesson)
            write_photos(source.test, source, classes, 100, folder / "test" / lesson)
        for start, options in BACKBONES.items():
            learner = folder / f"{start}-learner"
            seconds = {
                lesson: teach(learner, lesson, folder / "train" / lesson, options if first else [])
                for first, lesson in ((lesson == "animals", lesson) for lesson in LESSONS)
            }
            taught = ContinualLearner.load(learner)
            accuracy = {lesson: taught.evaluate(folder / "test" / lesson, lesson).accuracy for lesson in LESSONS}
            seconds["ten"] = teach(folder / f"{start}-ten", "ten", folder / "train" / "ten", options)
            ten = ContinualLearner.load(folder / f"{start}-ten").evaluate(folder / "test" / "ten", "ten").accuracy
            results[start] = {"seconds": seconds, "accuracy": accuracy | {"ten": ten}}
            print(start, json.dumps(results[start]), flush=True)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
