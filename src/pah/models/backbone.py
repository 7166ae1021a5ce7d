"""The backbone of a network, and the options that every backbone has.

B: number of images, H and W: height and width in pixels, D: number of features.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pah.core.config import InputError, require
from pah.data.preprocessing import DEFAULT_RESIZING, Interpolation, Resizing
from pah.data.task import Normalization
from pah.models.layers import BasicBlock, GlobalPool, replace_unsafe_convolutions
from pah.models.weights import load_weights, stem_channels

Trained = Literal["all", "none"]


class Backbone(nn.Module):
    """A network that maps images to features.

    Args:
        body: A module that maps images (B, channels, H, W) to features (B, D).
        features: D.

    Attributes:
        input_size: (H, W) to which images and prototypes of another size are scaled before the body; None if the body
            takes them as they are.
        interpolation: How they are scaled.
        trained: What lessons change. A frozen backbone stays in inference mode and its weights have no gradient.
    """

    def __init__(self, body: nn.Module, features: int) -> None:
        super().__init__()
        self.input_size: tuple[int, int] | None = None
        self.interpolation: Interpolation = "bilinear"
        self.trained: Trained = "all"
        replace_unsafe_convolutions(body)
        self.body = body
        self.features = features

    def forward(self, x: Tensor) -> Tensor:
        """Return the features of images (B, channels, H, W) as (B, D).

        Features (B, D) are returned as they are: a frozen backbone computes them once for a lesson, and methods then
        pass them in place of images.
        """
        if x.ndim == 2:
            return x
        if self.input_size is not None and x.shape[2:] != self.input_size:
            shrinks = x.shape[2] > self.input_size[0]
            x = F.interpolate(x, self.input_size, mode=self.interpolation, align_corners=False, antialias=shrinks)
        features: Tensor = self.body(x)  # (B, D)
        return features

    def train(self, mode: bool = True) -> Self:
        """Set the mode. A frozen backbone stays in inference mode: no dropout, and batch norm keeps its statistics."""
        return super().train(mode and self.trained == "all")

    def freeze(self) -> None:
        """Keep all weights as they are from now on."""
        self.trained = "none"
        self.requires_grad_(False).eval()

    def trained_parameters(self) -> list[nn.Parameter]:
        """Return the weights that lessons change: all, or none of a frozen backbone."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def stages(self) -> list[nn.Sequential]:
        """Return the body split into stages. The last stage holds only the pooling.

        A stage begins at a convolution outside of a residual block, and at a residual block that changes the shape.
        The stem of a residual network therefore belongs to its first stage.

        Raises:
            InputError: the body is not a sequence of layers.
        """
        if not isinstance(self.body, nn.Sequential):
            raise InputError(
                "backbone: expected one made of stages (convnet, resnet18, resnet18-slim, resnet32), "
                f"got {type(self.body).__name__}"
            )
        starts = [i for i, layer in enumerate(self.body) if _starts_stage(layer)]
        ends = [*starts[1:], len(self.body)]
        return [self.body[start:end] for start, end in zip(starts, ends, strict=True)]


@dataclass(frozen=True, kw_only=True)
class BackboneOptions(ABC):
    """Options that every backbone has.

    Args:
        weights: File with the weights to start from: safetensors, or a .pth file, which is read without running code.
            The tensors of a classifier are left out.
        train: What lessons change: all weights, or none. A frozen backbone sees each view of a training image once
            and keeps its features for the lesson, so that a lesson takes little longer than one pass over its images.
        views: Views of each training image that a frozen backbone sees: the image, its mirror image if
            `augment.flip` is set, then augmented ones.
        input_size: Pixels a side to which the backbone scales images and prototypes. By default images keep the size
            that they were read with. Prototypes are scaled to the size of the images, or keep their own size in the
            small backbones, which take any size.
    """

    weights: str | None = None
    train: Trained = "all"
    views: int = 2
    input_size: int | None = None

    def __post_init__(self) -> None:
        require(self.views >= 1, "backbone.views", "at least 1", self.views)
        size = self.input_size
        require(size is None or 1 <= size <= 1024, "backbone.input_size", "1 to 1024", size)

    @property
    def scales_prototypes(self) -> bool:
        """Whether prototypes are scaled to the size of the images before they pass through the backbone."""
        return self.input_size is not None

    @property
    def own_input_size(self) -> int | None:
        """Pixels a side of the images for which the backbone was made; None if it takes any size."""
        return None

    @property
    def interpolation(self) -> Interpolation:
        """How images and prototypes are scaled to the input size."""
        return "bilinear"

    @property
    def has_fixed_input_size(self) -> bool:
        """Whether the backbone takes images of one size only."""
        return False

    @property
    def resizing(self) -> Resizing:
        """How the images were resized with which the start weights were trained; the usual way without any."""
        return DEFAULT_RESIZING

    def start_channels(self) -> int | None:
        """Return the number of channels of the images with which the start weights were trained.

        It is None if training starts from random weights, which take any images, and if the file of the weights cannot
        be read: `load_start_weights` reports it.
        """
        if self.weights is None:
            return None
        with torch.device("meta"):
            body = self.build(3).body
        return stem_channels(body, Path(self.weights))

    def normalization(self, channels: int) -> Normalization | None:
        """Return the normalisation with which the start weights were trained; None to measure it on the data."""
        return None

    @abstractmethod
    def build(self, channels: int) -> Backbone:
        """Return the untrained backbone for images of `channels` channels."""

    def build_for(self, channels: int, size: tuple[int, int]) -> Backbone:
        """Return the untrained backbone for images of this height and width, if it depends on them."""
        return self.build(channels)

    def load_start_weights(self, backbone: Backbone) -> None:
        """Load the weights from which training starts; without `weights` the random ones stay.

        Raises:
            InputError: the file cannot be read or does not fit the backbone.
        """
        if self.weights is not None:
            load_weights(backbone.body, Path(self.weights))


def _starts_stage(layer: nn.Module) -> bool:
    changes_shape = isinstance(layer, BasicBlock) and not isinstance(layer.shortcut, nn.Identity)
    return changes_shape or isinstance(layer, nn.Conv2d | GlobalPool)
