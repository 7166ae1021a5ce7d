"""The benchmarks by name: where their images come from, how many tasks, and the settings that suit them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from pah.config import InputError, require, unknown
from pah.data.sources import Source, load_digits, load_source


@dataclass(frozen=True)
class Benchmark:
    """A data set and its usual split.

    Args:
        summary: What it is, in a line.
        tasks: Into how many tasks its classes are split; None for five, or as many as there are pairs of classes.
        hub: The Hugging Face data set to download; None where the images are embedded, or given by `--data`.
        defaults: Option values, by dotted name, that suit it.
    """

    summary: str
    tasks: int | None
    hub: str | None = None
    defaults: Mapping[str, object] = field(default_factory=dict)

    def source(self, data: str | None, label_column: str | None, image_size: int | None) -> Source:
        """The images: of `data` if given, else the embedded ones or those of the hub.

        Raises:
            InputError: no such data, none given where they are needed, or no network.
        """
        if data is None and self is BENCHMARKS["split-digits"]:
            for option, value in (("label_column", label_column), ("image_size", image_size)):
                require(value is None, option, "none for the embedded digits", value)
            return load_digits()
        where = data if data is not None else self.hub
        if where is None:
            raise InputError(
                "benchmark split: expected --data PATH_OR_HUB_ID (a folder of class folders, a folder of Parquet "
                "files or a Hugging Face data set), got none"
            )
        return load_source(where, label_column=label_column, image_size=image_size)


_IMAGES_32 = {"augment.crop": 4, "augment.flip": True, "backbone.name": "resnet18-slim"}

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
}


def benchmark(name: str) -> Benchmark:
    """The benchmark of that name; InputError, naming the nearest, if there is none."""
    if name not in BENCHMARKS:
        raise unknown("benchmark", name, BENCHMARKS)
    return BENCHMARKS[name]
