"""Two lessons of a few JPEG photos each, taught to a learner with its defaults, as a user would.

    python benchmarks/few_photos.py --data ../shared/data --json results/small-lessons/few-photos.json
    python benchmarks/few_photos.py --data ../shared/data --methods pah --epochs 40 --json FILE

The photos are images of the streams of small lessons, enlarged to 96x96 and saved as JPEG; the learner reads them from
class folders at its own 64x64. Accuracy, task given, on test images that no lesson has seen.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from pah import ContinualLearner
from pah.data.benchmarks import find_benchmark
from pah.data.small_lessons import SMALL_STREAMS
from pah.data.sources import Images, Source
from pah.learner.defaults import FROM_SCRATCH
from pah.methods import METHODS

STREAMS = ("small-patterns", "small-alike", "small-few")
SIDE = 96  # pixels of a photo
TESTED = 50  # test photos of a class


def write_photos(images: Images, classes: Sequence[str], labels: Sequence[int], most: int, folder: Path) -> None:
    """Write the first images of some classes as JPEG files, one folder a class.

    Args:
        images: Images of a data set, with their labels.
        classes: The names of the classes to write.
        labels: Their labels in the data set.
        most: Images of a class, at most.
        folder: Where the class folders are made.
    """
    for name, label in zip(classes, labels, strict=True):
        (folder / name).mkdir(parents=True)
        for k, row in enumerate(torch.nonzero(images.labels == label).squeeze(1)[:most].tolist()):
            pixels = images.pixels[row].permute(1, 2, 0).numpy()
            photo = Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            photo.save(folder / name / f"{k}.jpg", quality=92)


def two_lessons(
    source: Source, lessons: Sequence[Sequence[str]], method: str, photos: int, epochs: int, seed: int
) -> dict[str, Any]:
    """Teach two lessons and ask about each.

    Args:
        source: The data set that the lessons' classes belong to.
        lessons: The class names of both lessons.
        method: The name of the method.
        photos: Photos of a class.
        epochs: Passes over the photos of a lesson.
        seed: The seed of the learner.

    Returns:
        In percent, "first": the accuracy on the first lesson right after it; "first_after" and "second": on both
        lessons at the end; "estimated": what the learner estimates the first lesson to have lost.
    """
    config = replace(FROM_SCRATCH, seed=seed, training=replace(FROM_SCRATCH.training, epochs=epochs))
    if method != "pah":
        config = replace(config, method=method, method_options=METHODS[method].options())
    learner = ContinualLearner(config=config)
    with tempfile.TemporaryDirectory() as written:
        folders = [Path(written) / name for name in ("first", "second")]
        for folder, classes in zip(folders, lessons, strict=True):
            labels = [source.class_names.index(name) for name in classes]
            write_photos(source.train, classes, labels, photos, folder / "train")
            write_photos(source.test, classes, labels, TESTED, folder / "test")
        learner.learn("first", folders[0])
        before = learner.evaluate(folders[0], "first").accuracy
        lesson = learner.learn("second", folders[1])
        after, second = (learner.evaluate(folder, folder.name).accuracy for folder in folders)
    measured = {"first": before, "first_after": after, "second": second, "estimated": 100 * lesson.drift["first"]}
    return {name: round(value, 1) for name, value in measured.items()}


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds cifar100 and tiny-imagenet-50")
    parser.add_argument("--json", type=Path, help="where to write what is measured")
    parser.add_argument("--methods", default="pah,lwf,finetune")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--photos", type=int, default=24, help="photos of a class")
    parser.add_argument("--epochs", type=int, default=FROM_SCRATCH.training.epochs)
    options = parser.parse_args()
    torch.set_num_threads(1)
    runs = []
    for name in STREAMS:
        stream = SMALL_STREAMS[name]
        source = find_benchmark(name).load_source(
            str(options.data / stream.data_folder) if stream.data_folder else None
        )
        for method in options.methods.split(","):
            for seed in map(int, options.seeds.split(",")):
                measured = two_lessons(source, stream.lessons[:2], method, options.photos, options.epochs, seed)
                runs.append({"stream": name, "method": method, "seed": seed, **measured})
                print(json.dumps(runs[-1]), file=sys.stderr)
    means = {
        method: {
            key: round(statistics.fmean(run[key] for run in runs if run["method"] == method), 1)
            for key in ("first", "first_after", "second")
        }
        for method in options.methods.split(",")
    }
    text = json.dumps({"photos": options.photos, "epochs": options.epochs, "means": means, "runs": runs}, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
