"""The default options of a new learner, which the command, Python and the web page share."""

from pah.data.augment import AugmentOptions
from pah.data.benchmarks import LESSON_DEFAULTS, VECTOR_DEFAULTS
from pah.data.stream_options import StreamOptions
from pah.models.backbones import backbone_options
from pah.training.config import RunConfig

IMAGE_SIZE = 64  # pixels a side
SMALL_IMAGE_SIZE = 32  # smaller images get the small backbone, because the other one would halve them to nothing


def defaults(image_size: int = IMAGE_SIZE) -> RunConfig:
    """Return the default options of a new learner for images of that many pixels a side."""
    backbone = "convnet" if image_size < SMALL_IMAGE_SIZE else "resnet18-slim"
    values = RunConfig(
        benchmark="split",
        image_size=image_size,
        backbone=backbone,
        backbone_options=backbone_options(backbone, {}),
        stream=StreamOptions(validation=0.1),
        augment=AugmentOptions(crop=image_size // 8, flip=True),
    ).as_dict()
    for name, value in LESSON_DEFAULTS.items():
        group, _, option = name.partition(".")
        values[group][option] = value
    return RunConfig.from_dict(values)


def defaults_for(backbone: str | None, image_size: int | None) -> RunConfig:
    """Return the default options of a new learner that is given a backbone, and perhaps an image size.

    Args:
        backbone: Name of a backbone; None for the default one.
        image_size: Pixels a side; None for the default size, or for vectors.

    Raises:
        InputError: the backbone is unknown.
    """
    if backbone is not None and image_size is None and backbone_options(backbone, {}).takes_vectors:
        return vector_defaults()
    return defaults(IMAGE_SIZE if image_size is None else image_size)


def vector_defaults() -> RunConfig:
    """Return the default options of a new learner for vectors."""
    values = defaults().as_dict() | {"image_size": None}
    for name, value in VECTOR_DEFAULTS.items():
        group, _, option = name.partition(".")
        values[group] = {} if option == "name" else values[group]
        values[group][option] = value
    return RunConfig.from_dict(values)


DEFAULT = defaults()
