"""The benchmarks by name: data set, number of tasks, and suitable settings."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pah.core.config import InputError, require, unknown_name_error
from pah.data.preprocessing import DEFAULT_RESIZING, Resizing
from pah.data.read_options import DEFAULT_READING, ReadOptions
from pah.data.small_lessons import IMAGE_SIZE, SMALL_STREAMS, SmallStream, small_stream_source
from pah.data.sources import Source, load_digits, load_source


@dataclass(frozen=True)
class Benchmark:
    """A data set and its usual split into tasks.

    Args:
        summary: The images and the split, in a line.
        tasks: Number of tasks; None for five, or for the number of pairs of classes if that is smaller.
        hub: The Hugging Face data set to download; None if the images are embedded, or given by `--data`.
        defaults: Option values, by dotted name, that replace the usual defaults.
        small_stream: The small lessons that it consists of, if it is a `small-…` benchmark.
    """

    summary: str
    tasks: int | None
    hub: str | None = None
    defaults: Mapping[str, object] = field(default_factory=dict)
    small_stream: SmallStream | None = None

    def load_source(
        self,
        data: str | None = None,
        image_size: int | None = None,
        options: ReadOptions = DEFAULT_READING,
        resizing: Resizing = DEFAULT_RESIZING,
        *,
        only_vectors: bool = False,
    ) -> Source:
        """Return the images.

        Args:
            data: A path or a hub id; None takes the embedded images or those of the benchmark's hub data set.
            image_size: Height and width to which images are resized; None keeps their own size.
            options: How the images and the labels are read; embedded and synthetic images have none.
            resizing: How images are resized.
            only_vectors: Whether images are refused, before they are read.

        Raises:
            InputError: there are no such data, or none are given although they are needed, or the network is down.
        """
        if data is None and self is BENCHMARKS["split-digits"]:
            require(image_size is None, "image_size", "none for the embedded digits", image_size)
            _refuse_read_options(options, "the embedded digits")
            return load_digits()
        if self.small_stream is not None:
            return _load_small_stream(self.small_stream, data, image_size, options, resizing)
        path_or_hub_id = data if data is not None else self.hub
        if path_or_hub_id is None:
            raise InputError(
                "benchmark split: expected --data PATH_OR_HUB_ID (a folder of class folders, a folder of Parquet "
                "files or a Hugging Face data set), got none"
            )
        return load_source(path_or_hub_id, image_size, options, resizing=resizing, only_vectors=only_vectors)


def _refuse_read_options(options: ReadOptions, images: str) -> None:
    """Raise InputError if an option is given for images that are not read from files."""
    for name, value in dataclasses.asdict(options).items():
        require(value == getattr(DEFAULT_READING, name), name, f"none for {images}", value)


def _load_small_stream(
    stream: SmallStream, data: str | None, image_size: int | None, options: ReadOptions, resizing: Resizing
) -> Source:
    """Return the images of small lessons; `data` is the folder of the data set, or the folder that contains it."""
    require(image_size in (None, IMAGE_SIZE), "image_size", f"{IMAGE_SIZE} for small lessons, or none", image_size)
    if stream.data_folder is None:
        require(data is None, "data", "none for images that are embedded or synthetic", data)
        _refuse_read_options(options, "images that are embedded or synthetic")
        return small_stream_source(stream, None)
    if data is None:
        name = next(name for name, candidate in SMALL_STREAMS.items() if candidate is stream)
        raise InputError(f"benchmark {name}: expected --data with the folder of {stream.data_folder}, got none")
    subfolder = Path(data) / stream.data_folder
    path = str(subfolder) if subfolder.is_dir() else data
    return small_stream_source(stream, load_source(path, IMAGE_SIZE, options, resizing=resizing))


# Options of a new learner's method and training. The benchmarks of small lessons use them too, so that they measure
# what a learner does.
LESSON_DEFAULTS: dict[str, object] = {
    "method.name": "pah",
    "method.stability": 1.0,
    "method.over_tasks": "sum",
    "method.hypernetwork_lr": 6e-4,
    # noise: better than a thumbnail of an image, which would reveal that image; at this size smaller than a head
    "method.prototype_start": "random",
    "method.prototype_size": 5,
    # a lesson has few, similar images: distilling heads of two classes on them preserves too little (docs/log.md,
    # small lessons)
    "method.later_batch_norm": "frozen",
    "method.later_lr_factor": 0.3,
    "method.feature_stability": 1.0,
    "method.head_stability": 10.0,
    "method.copies": True,
    "training.min_steps": 150,
}
# Options of vectors, in runs and in a new learner: those that are about images are off.
FROZEN_LESSON_DEFAULTS: dict[str, object] = {  # of a learner with a frozen backbone, whose features cannot change
    "method.hidden": (512,),  # on validation images better than 256: 79.3 and 78.2 % with 20 images a class
    "method.feature_stability": 0.0,
    "method.head_stability": 1.0,
    "method.copies": False,
    "optimizer.lr": 0.002,
}
VECTOR_DEFAULTS: dict[str, object] = {
    "backbone.name": "features",
    "augment.crop": 0,
    "augment.flip": False,
    "method.prototype_size": 10,
    "method.hypernetwork_lr": 1.5e-3,  # on validation vectors better than 6e-4 and 3e-3
}
_IMAGES_32: dict[str, object] = {"augment.crop": 4, "augment.flip": True, "backbone.name": "resnet18-slim"}


def _small_benchmark(stream: SmallStream) -> Benchmark:
    """Return a stream of small lessons as a benchmark, with the tasks in the stream's own order."""
    stream_defaults: dict[str, object] = {
        "stream.class_order": "natural",
        "stream.sizes": tuple(len(lesson) for lesson in stream.lessons),
        "stream.images": stream.images_per_class,
        "training.epochs": stream.epochs,
    }
    defaults = _IMAGES_32 | LESSON_DEFAULTS | stream_defaults
    return Benchmark(stream.summary, len(stream.lessons), defaults=defaults, small_stream=stream)


BENCHMARKS: dict[str, Benchmark] = {
    "split-digits": Benchmark(
        "handwritten digits of scikit-learn, 8x8 grey, 10 classes; embedded, no download",
        tasks=5,
        defaults={"backbone.name": "convnet", "training.epochs": 20, "training.batch_size": 32},
    ),
    "split-mnist": Benchmark(
        "MNIST, 28x28 grey, 10 classes",
        tasks=5,
        hub="ylecun/mnist",
        defaults={"backbone.name": "convnet", "training.epochs": 2, "augment.crop": 2},
    ),
    "split-cifar100": Benchmark(
        "CIFAR-100, 32x32 colour, 100 classes",
        tasks=10,
        hub="uoft-cs/cifar100",
        defaults=_IMAGES_32,
    ),
    "split-tinyimagenet": Benchmark(
        "TinyImageNet, 64x64 colour, 200 classes; 20 tasks of 10, --tasks 10 for 10 of 20",
        tasks=20,
        hub="zh-plus/tiny-imagenet",
        defaults=_IMAGES_32 | {"augment.crop": 8},
    ),
    "split": Benchmark("any image data set given by --data", tasks=None, defaults=_IMAGES_32),
    **{name: _small_benchmark(stream) for name, stream in SMALL_STREAMS.items()},
}


def find_benchmark(name: str) -> Benchmark:
    """Return the benchmark of that name; InputError, with the nearest name, if there is none."""
    if name not in BENCHMARKS:
        raise unknown_name_error("benchmark", name, BENCHMARKS)
    return BENCHMARKS[name]
