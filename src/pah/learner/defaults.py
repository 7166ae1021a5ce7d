"""The default options of a new learner, which the command, Python and the web page share."""

from pah.data.augment import AugmentOptions
from pah.data.benchmarks import LESSON_DEFAULTS
from pah.data.stream_options import StreamOptions
from pah.models.backbone import BackboneOptions
from pah.models.backbones import backbone_options
from pah.training.config import RunConfig

IMAGE_SIZE = 64  # pixels a side, unless the backbone was made for another size
SMALL_IMAGE_SIZE = 32  # smaller images get the small backbone, because the other one would halve them to nothing


def default_image_size(options: BackboneOptions) -> int:
    """Return the pixels a side of a new learner's images: the size for which its backbone was made, if there is one."""
    return options.own_input_size or IMAGE_SIZE


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


DEFAULT = defaults()
