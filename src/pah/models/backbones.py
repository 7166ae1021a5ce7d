"""Backbones: images (B, channels, H, W) -> features (B, D). Each says its D as `features`.

B: images, H and W: height and width, D: features.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from pah.core.config import InputError, require, unknown
from pah.core.hub import cache_only_unless, hub_answers

FEW_CHANNELS = 16  # below which torch's kernel of a strided 1x1 convolution is wrong (`StridedPointwise`)


class StridedPointwise(nn.Conv2d):
    """A 1x1 convolution of stride s as one of stride 1 on every s-th pixel, which is the same.

    In torch 2.14.1 the backward pass of the strided one writes outside of its memory on a processor, with channels last
    and fewer than 16 input channels (oneDNN; maps of 56x56 and more, smaller ones without AVX-512): it ends in a
    segmentation fault, or in wrong gradients.
    """

    def forward(self, input: Tensor) -> Tensor:
        rows, columns = self.stride
        return F.conv2d(input[:, :, ::rows, ::columns], self.weight, self.bias, groups=self.groups)


class Backbone(nn.Module):
    """A network from images to features: `features` is D, `body` maps (B, channels, H, W) to (B, D)."""

    def __init__(self, body: nn.Module, features: int) -> None:
        super().__init__()
        for part in body.modules():
            if (
                type(part) is nn.Conv2d
                and _is_strided_pointwise(part)
                and part.in_channels < FEW_CHANNELS * part.groups
            ):
                part.__class__ = StridedPointwise  # its weights and its name stay as they are
        self.body = body
        self.features = features

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.body(x)  # (B, D)
        return features

    def stages(self) -> list[nn.Sequential]:
        """The body in stages, the pooling alone in the last one.

        A convolution of its own begins a stage, and so does a residual block that changes the shape: a residual
        network's stem goes with its first stage.

        Raises:
            InputError: the body is no sequence of layers.
        """
        if not isinstance(self.body, nn.Sequential):
            raise InputError(
                "backbone: expected one made of stages (convnet, resnet18, resnet18-slim, resnet32), "
                f"got {type(self.body).__name__}"
            )
        starts = [i for i, layer in enumerate(self.body) if _begins_a_stage(layer)]
        return [self.body[i:j] for i, j in zip(starts, [*starts[1:], len(self.body)], strict=True)]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut (He et al. 2016, section 3.2)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(inputs, outputs, stride)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = _conv3x3(outputs, outputs)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = (
            nn.Identity()
            if stride == 1 and inputs == outputs
            else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.norm1(self.conv1(x)), inplace=True)  # batch norm's gradient does not ask for what it gave
        return F.relu(self.norm2(self.conv2(out)).add_(self.shortcut(x)), inplace=True)


class GlobalPool(nn.Module):
    """The mean over all positions: (B, D, H, W) -> (B, D), for images and prototypes of any size."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3))


@dataclass(frozen=True)
class ConvNetOptions:
    """A small network of four convolutions, for images of 8x8 to 32x32.

    Args:
        width: Channels of the first convolution; the last has four times as many.
    """

    width: int = 32

    def __post_init__(self) -> None:
        require(1 <= self.width <= 65536, "backbone.width", "1 to 65536", self.width)

    def build(self, channels: int) -> Backbone:
        """The backbone for images of `channels` channels; D = 4 width."""
        layers: list[nn.Module] = []
        inputs = channels
        for outputs, stride in ((1, 1), (2, 2), (2, 1), (4, 2)):
            layers += [
                _conv3x3(inputs, outputs * self.width, stride),
                nn.BatchNorm2d(outputs * self.width),
                nn.ReLU(inplace=True),
            ]
            inputs = outputs * self.width
        return Backbone(nn.Sequential(*layers, GlobalPool()), inputs)


@dataclass(frozen=True)
class ResNet18Options:
    """ResNet-18 with a 3x3 stem, for images of 32x32 and 64x64 (He et al. 2016; stem as is usual on CIFAR)."""

    def build(self, channels: int) -> Backbone:
        """The backbone for images of `channels` channels; D = 512."""
        return _resnet(channels, widths=(64, 128, 256, 512), blocks=2, stem_stride=1)


@dataclass(frozen=True)
class SlimResNet18Options:
    """ResNet-18 with fewer channels: the default for 32x32 on an ordinary machine.

    Args:
        width: Channels of the first stage; each of the three later stages doubles them.
        stem_stride: 1 keeps the full resolution in the first stage; 2 halves it, at a third of the time.
    """

    width: int = 32
    stem_stride: int = 2

    def __post_init__(self) -> None:
        require(1 <= self.width <= 65536, "backbone.width", "1 to 65536", self.width)
        require(self.stem_stride in (1, 2), "backbone.stem_stride", "1 or 2", self.stem_stride)

    def build(self, channels: int) -> Backbone:
        """The backbone for images of `channels` channels; D = 8 width."""
        widths = tuple(self.width * 2**stage for stage in range(4))
        return _resnet(channels, widths, blocks=2, stem_stride=self.stem_stride)


@dataclass(frozen=True)
class ResNet32Options:
    """ResNet-32 for CIFAR: three stages of five blocks, 16, 32 and 64 channels (He et al. 2016, section 4.2)."""

    def build(self, channels: int) -> Backbone:
        """The backbone for images of `channels` channels; D = 64."""
        return _resnet(channels, widths=(16, 32, 64), blocks=5, stem_stride=1)


@dataclass(frozen=True)
class TimmOptions:
    """Any model of the timm library, named `timm:<name>`; needs the extra `timm`.

    Args:
        pretrained: Start from the weights that timm downloads for this model.
    """

    pretrained: bool = False
    model: str = ""  # the <name>; set from `timm:<name>`, no option of its own

    def build(self, channels: int) -> Backbone:
        """The model without its classifier; D is the model's own. InputError if timm cannot make it."""
        try:
            import timm
        except ImportError:
            raise InputError(f"backbone timm:{self.model} needs the extra: pip install 'pah[timm]'") from None
        if not timm.is_model(self.model):
            raise unknown("timm backbone", self.model, timm.list_models())
        try:
            with cache_only_unless(not self.pretrained or hub_answers()):
                body = timm.create_model(
                    self.model, pretrained=self.pretrained, num_classes=0, in_chans=channels, global_pool="avg"
                )
        except (OSError, RuntimeError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            expected, instead = f"a model for images of {channels} channels", ""
            if self.pretrained:
                expected, instead = "weights in the cache or from the hub", "; --backbone.pretrained false needs none"
            raise InputError(f"backbone timm:{self.model}: expected {expected}, got: {reason}{instead}") from None
        return Backbone(body, int(body.num_features))  # type: ignore[arg-type]


BackboneOptions = ConvNetOptions | ResNet18Options | SlimResNet18Options | ResNet32Options | TimmOptions

BACKBONES: dict[str, Callable[..., BackboneOptions]] = {
    "convnet": ConvNetOptions,
    "resnet18": ResNet18Options,
    "resnet18-slim": SlimResNet18Options,
    "resnet32": ResNet32Options,
}


def backbone_options(name: str, values: Mapping[str, Any]) -> BackboneOptions:
    """The options of the backbone of that name; InputError, naming the nearest, if there is none."""
    if name.startswith("timm:"):
        return TimmOptions(**values, model=name.removeprefix("timm:"))
    if name not in BACKBONES:
        raise unknown("backbone", name, [*BACKBONES, "timm:<name>"])
    return BACKBONES[name](**values)


def _is_strided_pointwise(layer: nn.Conv2d) -> bool:
    return layer.kernel_size == (1, 1) and max(layer.stride) > 1 and layer.padding == (0, 0)


def _begins_a_stage(layer: nn.Module) -> bool:
    reshapes = isinstance(layer, BasicBlock) and not isinstance(layer.shortcut, nn.Identity)
    return reshapes or isinstance(layer, nn.Conv2d | GlobalPool)


def _resnet(channels: int, widths: tuple[int, ...], blocks: int, stem_stride: int) -> Backbone:
    """A residual network of basic blocks: the first block of each later stage halves the resolution."""
    layers: list[nn.Module] = [
        _conv3x3(channels, widths[0], stem_stride),
        nn.BatchNorm2d(widths[0]),
        nn.ReLU(inplace=True),
    ]
    inputs = widths[0]
    for stage, outputs in enumerate(widths):
        for block in range(blocks):
            layers.append(BasicBlock(inputs, outputs, stride=2 if stage > 0 and block == 0 else 1))
            inputs = outputs
    for module in nn.Sequential(*layers).modules():
        if isinstance(module, nn.Conv2d) and not module.weight.is_meta:  # there, normal_ imports for seconds
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return Backbone(nn.Sequential(*layers, GlobalPool()), widths[-1])


def _conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
