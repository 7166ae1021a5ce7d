"""How images of any size become images of the size that a network takes.

H and W: height and width in pixels.
"""

from dataclasses import dataclass
from typing import Literal

from PIL import Image, ImageOps

from pah.core.config import require

Interpolation = Literal["bilinear", "bicubic"]

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclass(frozen=True)
class Resizing:
    """How an image is resized. An image that already has the requested size stays as it is.

    Args:
        interpolation: The filter, "bilinear" or "bicubic". Pillow widens it when it makes an image smaller.
        crop_share: Share of the shorter side, above 0 and up to 1, that is kept. What is kept is the largest rectangle
            of the requested shape in the middle of the image, times this share.

    Raises:
        InputError: a value is out of range.
    """

    interpolation: Interpolation = "bilinear"
    crop_share: float = 1.0

    def __post_init__(self) -> None:
        require(self.interpolation in _FILTERS, "interpolation", " or ".join(_FILTERS), self.interpolation)
        require(0 < self.crop_share <= 1, "crop_share", "above 0 and up to 1", self.crop_share)

    def __str__(self) -> str:
        """Return in words what is done."""
        cut = "" if self.crop_share == 1 else f", the middle {100 * self.crop_share:g} % of the shorter side"
        return f"{self.interpolation}{cut}"

    def apply(self, image: Image.Image, size: tuple[int, int]) -> Image.Image:
        """Return an image in mode "L" or "RGB" with the size (H, W)."""
        height, width = size
        if image.size == (width, height):
            return image
        return ImageOps.fit(image, (width, height), _FILTERS[self.interpolation], bleed=(1 - self.crop_share) / 2)


DEFAULT_RESIZING = Resizing()
