"""Augmentation of a batch: shifts and mirror images by one selection of pixels, and changed colours.

B: images of the batch, C: channels, H and W: height and width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pah.core.config import require
from pah.core.devices import to_device


@dataclass(frozen=True)
class AugmentOptions:
    """How training images are augmented; test images are never changed.

    Args:
        crop: Shift each image by up to this many pixels each way; the border mirrors the image.
        flip: Mirror each image left to right with probability one half.
    """

    crop: int = 0
    flip: bool = False

    def __post_init__(self) -> None:
        require(0 <= self.crop <= 4096, "augment.crop", "0 to 4096", self.crop)


def augment(
    pixels: Tensor, options: AugmentOptions, generator: torch.Generator, first: int = 0, slice_of: int | None = None
) -> Tensor:
    """Return a shifted and possibly mirrored copy of each image.

    A slice of a batch is augmented as it would be within the whole batch, given the same generator.

    Args:
        pixels: Images (B, C, H, W), on any device.
        options: The largest shift, and whether to mirror.
        generator: A CPU generator, on whatever device the images are.
        first: Position of the first image in the whole batch, if these are a slice of it.
        slice_of: Number of images of the whole batch, if these are a slice of it.

    Returns:
        Images of the same shape, channels last in memory.
    """
    b, _, h, w = pixels.shape
    total = b if slice_of is None else slice_of
    shift = torch.randint(-options.crop, options.crop + 1, (2, total, 1), generator=generator)[:, first : first + b]
    rows = _reflect(shift[0] + torch.arange(h), h)  # (B, H)
    columns = _reflect(shift[1] + torch.arange(w), w)  # (B, W)
    if options.flip:
        flipped = torch.rand(total, 1, generator=generator)[first : first + b] < 0.5
        columns = torch.where(flipped, w - 1 - columns, columns)
    rows, columns = to_device(rows, pixels.device), to_device(columns, pixels.device)
    image = torch.arange(b, device=pixels.device)[:, None, None]
    return pixels[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def recolour(x: Tensor, generator: torch.Generator, first: int = 0, slice_of: int | None = None) -> Tensor:
    """Return a copy of each image in other colours.

    The channels are permuted, and each is inverted with probability one half. Its contrast is multiplied by a number
    between 0.5 and 1.5, and its brightness moves by a normal draw of standard deviation 0.7.

    Args:
        x: Normalised images (B, C, H, W).
        generator: As in `augment`.
        first: As in `augment`.
        slice_of: As in `augment`.

    Returns:
        Images of the same shape, channels last in memory.
    """
    b, channels = x.shape[:2]
    total = b if slice_of is None else slice_of
    order = torch.rand(total, channels, generator=generator)[first : first + b].argsort(dim=1)
    contrast = 0.5 + torch.rand(total, channels, generator=generator)[first : first + b]
    inverted = torch.rand(total, channels, generator=generator)[first : first + b] < 0.5
    brightness = 0.7 * torch.randn(total, channels, generator=generator)[first : first + b]
    scale = torch.where(inverted, -contrast, contrast)
    order, scale, brightness = (to_device(t, x.device)[:, :, None, None] for t in (order, scale, brightness))
    permuted = x.gather(1, order.expand_as(x)).contiguous(memory_format=torch.channels_last)
    return permuted * scale + brightness


def _reflect(positions: Tensor, size: int) -> Tensor:
    """Reflect positions outside [0, size) at the border pixel: -1 -> 1, size -> size - 2."""
    period = max(2 * (size - 1), 1)
    positions = positions.remainder(period)
    return torch.minimum(positions, period - positions) if size > 1 else torch.zeros_like(positions)
