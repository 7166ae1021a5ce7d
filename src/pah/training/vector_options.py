"""Checks of a configuration whose data are vectors and not images."""

from pah.core.config import InputError, require
from pah.data.augment import AugmentOptions
from pah.data.sources import Source
from pah.methods.base import MethodOptions
from pah.methods.pah_options import PAHOptions
from pah.models.backbone import BackboneOptions


def refuse_image_options(
    image_size: int | None, augment: AugmentOptions, flip_test: bool, method_options: MethodOptions
) -> None:
    """Raise InputError if an option that changes nothing for vectors has another value than its default.

    Args:
        image_size: Pixels a side of images.
        augment: How training images are augmented.
        flip_test: Whether mirror images are used for evaluation.
        method_options: Options of the method; the prototypes of vectors have their size.
    """
    require(image_size is None, "image_size", "none with backbone features", image_size)
    require(augment.crop == 0, "augment.crop", "0 with backbone features", augment.crop)
    require(not augment.flip, "augment.flip", "false with backbone features", augment.flip)
    require(not flip_test, "training.flip_test", "false with backbone features", flip_test)
    if isinstance(method_options, PAHOptions):
        for name in ("prototype_size", "prototype_channels"):
            value, default = getattr(method_options, name), getattr(PAHOptions, name)
            expected = f"its default {default} with backbone features, whose prototypes are vectors"
            require(value == default, f"method.{name}", expected, value)


def require_kind(backbone: str, options: BackboneOptions, source: Source) -> None:
    """Raise InputError if the data are vectors and the backbone takes images, or the other way round.

    Args:
        backbone: Name of the backbone.
        options: Its options.
        source: The data.
    """
    if options.takes_vectors != (source.numbers is not None):
        got = "images" if source.numbers is None else f"vectors of {source.numbers} numbers, for backbone features"
        expected = "vectors" if options.takes_vectors else "images"
        raise InputError(f"{source.origin}: expected {expected} with backbone {backbone}, got {got}")
