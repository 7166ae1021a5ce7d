"""Augmentation of a batch as one selection of pixels, drawn from a seeded generator."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pah.core.config import require
from pah.core.devices import sent


@dataclass(frozen=True)
class AugmentOptions:
    """What may be changed of a training image; a test image is never changed.

    Args:
        crop: Shift each image by up to this many pixels each way; the border mirrors the image.
        flip: Mirror each image left to right with probability one half.
    """

    crop: int = 0
    flip: bool = False

    def __post_init__(self) -> None:
        require(0 <= self.crop <= 4096, "augment.crop", "0 to 4096", self.crop)


def augment(
    pixels: Tensor, options: AugmentOptions, generator: torch.Generator, first: int = 0, of: int | None = None
) -> Tensor:
    """A shifted, perhaps mirrored, copy of each image: (B, C, H, W) -> the same shape, channels last in memory.

    If these are the images from number `first` on in a batch `of` so many, each is changed as in the whole batch. The
    generator is the processor's, wherever the images are.
    """
    b, _, h, w = pixels.shape
    whole = b if of is None else of
    shift = torch.randint(-options.crop, options.crop + 1, (2, whole, 1), generator=generator)[:, first : first + b]
    rows = _mirrored(shift[0] + torch.arange(h), h)  # (B, H)
    columns = _mirrored(shift[1] + torch.arange(w), w)  # (B, W)
    if options.flip:
        flipped = torch.rand(whole, 1, generator=generator)[first : first + b] < 0.5
        columns = torch.where(flipped, w - 1 - columns, columns)
    rows, columns = sent(rows, pixels.device), sent(columns, pixels.device)
    image = torch.arange(b, device=pixels.device)[:, None, None]
    return pixels[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def recoloured(x: Tensor, generator: torch.Generator, first: int = 0, of: int | None = None) -> Tensor:
    """A copy of each image in other colours: (B, C, H, W), normalised -> the same shape, channels last in memory.

    The channels change places, each is inverted with probability one half, its contrast becomes 0.5 to 1.5 times what
    it was, and its brightness moves by a normal draw of 0.7. `first`, `of` and the generator are as in `augment`.
    """
    b, channels = x.shape[:2]
    whole = b if of is None else of
    places = torch.rand(whole, channels, generator=generator)[first : first + b].argsort(dim=1)
    contrast = 0.5 + torch.rand(whole, channels, generator=generator)[first : first + b]
    inverted = torch.rand(whole, channels, generator=generator)[first : first + b] < 0.5
    brightness = 0.7 * torch.randn(whole, channels, generator=generator)[first : first + b]
    scale = torch.where(inverted, -contrast, contrast)
    places, scale, brightness = (sent(t, x.device)[:, :, None, None] for t in (places, scale, brightness))
    moved = x.gather(1, places.expand_as(x)).contiguous(memory_format=torch.channels_last)
    return moved * scale + brightness


def _mirrored(positions: Tensor, size: int) -> Tensor:
    """Positions outside [0, size) folded back at the border pixel: -1 -> 1, size -> size - 2."""
    period = max(2 * (size - 1), 1)
    positions = positions.remainder(period)
    return torch.minimum(positions, period - positions) if size > 1 else torch.zeros_like(positions)
