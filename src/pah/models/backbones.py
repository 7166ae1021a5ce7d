"""The backbones: networks that map images (B, channels, H, W) to features (B, D).

B: number of images, H and W: height and width in pixels, D: number of features.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from pah.core.config import require, unknown_name_error
from pah.models.backbone import Backbone, BackboneOptions
from pah.models.layers import BasicBlock, GlobalPool, conv3x3
from pah.models.timm_backbones import EfficientNetLite0Options, TimmOptions
from pah.models.vector_backbone import FeaturesOptions


@dataclass(frozen=True)
class ConvNetOptions(BackboneOptions):
    """A small network of four convolutions for images of 8x8 to 32x32 pixels.

    Args:
        width: Number of channels of the first convolution. The last one has four times as many.
    """

    width: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        require(1 <= self.width <= 65536, "backbone.width", "1 to 65536", self.width)

    def build(self, channels: int) -> Backbone:
        """Return the untrained backbone for images of `channels` channels. D = 4 width."""
        layers: list[nn.Module] = []
        inputs = channels
        for outputs, stride in ((1, 1), (2, 2), (2, 1), (4, 2)):
            layers += [
                conv3x3(inputs, outputs * self.width, stride),
                nn.BatchNorm2d(outputs * self.width),
                nn.ReLU(inplace=True),
            ]
            inputs = outputs * self.width
        return Backbone(nn.Sequential(*layers, GlobalPool()), inputs)


@dataclass(frozen=True)
class ResNet18Options(BackboneOptions):
    """ResNet-18 for images of 32x32 and 64x64 pixels (He et al. 2016), with the 3x3 stem that is usual on CIFAR."""

    def build(self, channels: int) -> Backbone:
        """Return the untrained backbone for images of `channels` channels. D = 512."""
        return _resnet(channels, widths=(64, 128, 256, 512), blocks=2, stem_stride=1)


@dataclass(frozen=True)
class SlimResNet18Options(BackboneOptions):
    """ResNet-18 with fewer channels. It is the default for 32x32 pixels on a machine without a GPU.

    Args:
        width: Number of channels of the first stage. Each of the three later stages doubles it.
        stem_stride: With 1 the first stage has the full resolution. With 2 it has half of it, and a step takes a
            third of the time.
    """

    width: int = 32
    stem_stride: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        require(1 <= self.width <= 65536, "backbone.width", "1 to 65536", self.width)
        require(self.stem_stride in (1, 2), "backbone.stem_stride", "1 or 2", self.stem_stride)

    def build(self, channels: int) -> Backbone:
        """Return the untrained backbone for images of `channels` channels. D = 8 width."""
        widths = tuple(self.width * 2**stage for stage in range(4))
        return _resnet(channels, widths, blocks=2, stem_stride=self.stem_stride)


@dataclass(frozen=True)
class ResNet32Options(BackboneOptions):
    """ResNet-32 for CIFAR: three stages of five blocks with 16, 32 and 64 channels (He et al. 2016, section 4.2)."""

    def build(self, channels: int) -> Backbone:
        """Return the untrained backbone for images of `channels` channels. D = 64."""
        return _resnet(channels, widths=(16, 32, 64), blocks=5, stem_stride=1)


BACKBONES: dict[str, Callable[..., BackboneOptions]] = {
    "convnet": ConvNetOptions,
    "resnet18": ResNet18Options,
    "resnet18-slim": SlimResNet18Options,
    "resnet32": ResNet32Options,
    "efficientnet-lite0": EfficientNetLite0Options,
    "features": FeaturesOptions,
}


def backbone_options(name: str, values: Mapping[str, Any]) -> BackboneOptions:
    """Return the options of a backbone with the given values.

    Args:
        name: A key of `BACKBONES`, or `timm:<name>`.
        values: The option values by field name.

    Raises:
        InputError: the name or a value is not valid. For an unknown name the message suggests the nearest one.
    """
    if name.startswith("timm:"):
        return TimmOptions(**values, model=name.removeprefix("timm:"))
    if name not in BACKBONES:
        raise unknown_name_error("backbone", name, [*BACKBONES, "timm:<name>"])
    return BACKBONES[name](**values)


def _resnet(channels: int, widths: tuple[int, ...], blocks: int, stem_stride: int) -> Backbone:
    """Return a residual network of basic blocks. The first block of each later stage halves the resolution."""
    layers: list[nn.Module] = [
        conv3x3(channels, widths[0], stem_stride),
        nn.BatchNorm2d(widths[0]),
        nn.ReLU(inplace=True),
    ]
    inputs = widths[0]
    for stage, outputs in enumerate(widths):
        for block in range(blocks):
            layers.append(BasicBlock(inputs, outputs, stride=2 if stage > 0 and block == 0 else 1))
            inputs = outputs
    for module in nn.Sequential(*layers).modules():
        if isinstance(module, nn.Conv2d) and not module.weight.is_meta:  # normal_ is slow to import for meta tensors
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return Backbone(nn.Sequential(*layers, GlobalPool()), widths[-1])
