"""The benchmarks by name: where their images come from, how many tasks, and the settings that suit them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pah.core.config import InputError, require, unknown
from pah.data.small_lessons import SIZE, SMALL_STREAMS, SmallStream, small_source
from pah.data.sources import Source, load_digits, load_source


@dataclass(frozen=True)
class Benchmark:
    """A data set and its usual split.

    Args:
        summary: What it is, in a line.
        tasks: Into how many tasks its classes are split; None for five, or as many as there are pairs of classes.
        hub: The Hugging Face data set to download; None where the images are embedded, or given by `--data`.
        defaults: Option values, by dotted name, that suit it.
        small: The small lessons that it consists of, if it does.
    """

    summary: str
    tasks: int | None
    hub: str | None = None
    defaults: Mapping[str, object] = field(default_factory=dict)
    small: SmallStream | None = None

    def source(self, data: str | None, label_column: str | None, image_size: int | None) -> Source:
        """The images: of `data` if given, else the embedded ones or those of the hub.

        Raises:
            InputError: no such data, none given where they are needed, or no network.
        """
        if data is None and self is BENCHMARKS["split-digits"]:
            for option, value in (("label_column", label_column), ("image_size", image_size)):
                require(value is None, option, "none for the embedded digits", value)
            return load_digits()
        if self.small is not None:
            return self._small_source(self.small, data, label_column, image_size)
        where = data if data is not None else self.hub
        if where is None:
            raise InputError(
                "benchmark split: expected --data PATH_OR_HUB_ID (a folder of class folders, a folder of Parquet "
                "files or a Hugging Face data set), got none"
            )
        return load_source(where, label_column=label_column, image_size=image_size)

    def _small_source(
        self, small: SmallStream, data: str | None, label_column: str | None, image_size: int | None
    ) -> Source:
        """The images of small lessons; `data` is the folder of the data set, or that which holds its folder."""
        require(image_size in (None, SIZE), "image_size", f"{SIZE} for small lessons, or none", image_size)
        if small.data is None:
            for option, value in (("data", data), ("label_column", label_column)):
                require(value is None, option, "none for images that are embedded or made", value)
            return small_source(small, None)
        if data is None:
            name = next(name for name, of in SMALL_STREAMS.items() if of is small)
            raise InputError(f"benchmark {name}: expected --data with the folder of {small.data}, got none")
        inside = Path(data) / small.data
        where = str(inside) if inside.is_dir() else data
        return small_source(small, load_source(where, label_column=label_column, image_size=SIZE))


# The options of a new learner's method and training; so the benchmarks of small lessons measure what a learner does.
LESSONS: dict[str, object] = {
    "method.name": "pah",
    "method.stability": 1.0,
    "method.over_tasks": "sum",
    "method.hypernetwork_lr": 6e-4,
    # noise as prototypes: better than a thumbnail of an image, which would show that image, and smaller than a head
    "method.prototype_start": "random",
    "method.prototype_size": 5,
    # a few images of one kind: what a head of two classes says of them holds too little (docs/log.md, small lessons)
    "method.later_batch_norm": "frozen",
    "method.later_lr_factor": 0.3,
    "method.feature_stability": 3.0,
    "method.head_stability": 10.0,
    "method.copies": True,
    "training.min_steps": 150,
}
_IMAGES_32 = {"augment.crop": 4, "augment.flip": True, "backbone.name": "resnet18-slim"}


def _small(stream: SmallStream) -> Benchmark:
    """A stream of small lessons as a benchmark, its tasks in their own order."""
    own = {
        "stream.class_order": "natural",
        "stream.sizes": tuple(len(lesson) for lesson in stream.lessons),
        "stream.images": stream.images,
        "training.epochs": stream.epochs,
    }
    return Benchmark(stream.summary, len(stream.lessons), defaults=_IMAGES_32 | LESSONS | own, small=stream)


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
    **{name: _small(stream) for name, stream in SMALL_STREAMS.items()},
}


def benchmark(name: str) -> Benchmark:
    """The benchmark of that name; InputError, naming the nearest, if there is none."""
    if name not in BENCHMARKS:
        raise unknown("benchmark", name, BENCHMARKS)
    return BENCHMARKS[name]
