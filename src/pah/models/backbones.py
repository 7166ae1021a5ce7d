"""The backbones: networks that map images (B, channels, H, W) to features (B, D).

B: number of images, H and W: height and width in pixels, D: number of features.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pah.core.config import InputError, require, unknown_name_error
from pah.core.hub import hub_access, hub_is_reachable
from pah.models.modes import evaluating

MIN_SAFE_CHANNELS = 16  # with fewer input channels, torch's strided 1x1 convolution is wrong (see `StridedPointwise`)


class StridedPointwise(nn.Conv2d):
    """A strided 1x1 convolution, computed as a 1x1 convolution of stride 1 on every s-th pixel.

    Both compute the same function. The class avoids an error of torch 2.14.1 (oneDNN): on a CPU, with channels last
    and fewer than 16 input channels, the backward pass of the strided convolution writes outside of its memory. The
    result is a segmentation fault or wrong gradients. It happens for maps of 56x56 and more, and without AVX-512 for
    smaller maps too.
    """

    def forward(self, input: Tensor) -> Tensor:
        row_stride, column_stride = self.stride
        return F.conv2d(input[:, :, ::row_stride, ::column_stride], self.weight, self.bias, groups=self.groups)


class Backbone(nn.Module):
    """A network that maps images to features.

    Args:
        body: A module that maps images (B, channels, H, W) to features (B, D).
        features: D.
    """

    def __init__(self, body: nn.Module, features: int) -> None:
        super().__init__()
        for layer in body.modules():
            if (
                type(layer) is nn.Conv2d
                and _is_strided_pointwise(layer)
                and layer.in_channels < MIN_SAFE_CHANNELS * layer.groups
            ):
                layer.__class__ = StridedPointwise  # keeps the layer's weights and its name in the state dict
        self.body = body
        self.features = features

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.body(x)  # (B, D)
        return features

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


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut (He et al. 2016, section 3.2)."""

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
        hidden = F.relu(self.norm1(self.conv1(x)), inplace=True)  # safe: batch norm's gradient does not use its output
        return F.relu(self.norm2(self.conv2(hidden)).add_(self.shortcut(x)), inplace=True)


class GlobalPool(nn.Module):
    """The mean over all positions: (B, D, H, W) -> (B, D). It accepts images and prototypes of any size."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3))


@dataclass(frozen=True)
class ConvNetOptions:
    """A small network of four convolutions for images of 8x8 to 32x32 pixels.

    Args:
        width: Number of channels of the first convolution. The last one has four times as many.
    """

    width: int = 32

    def __post_init__(self) -> None:
        require(1 <= self.width <= 65536, "backbone.width", "1 to 65536", self.width)

    def build(self, channels: int) -> Backbone:
        """Return the untrained backbone for images of `channels` channels. D = 4 width."""
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
    """ResNet-18 for images of 32x32 and 64x64 pixels (He et al. 2016), with the 3x3 stem that is usual on CIFAR."""

    def build(self, channels: int) -> Backbone:
        """Return the untrained backbone for images of `channels` channels. D = 512."""
        return _resnet(channels, widths=(64, 128, 256, 512), blocks=2, stem_stride=1)


@dataclass(frozen=True)
class SlimResNet18Options:
    """ResNet-18 with fewer channels. It is the default for 32x32 pixels on a machine without a GPU.

    Args:
        width: Number of channels of the first stage. Each of the three later stages doubles it.
        stem_stride: With 1 the first stage has the full resolution. With 2 it has half of it, and a step takes a
            third of the time.
    """

    width: int = 32
    stem_stride: int = 2

    def __post_init__(self) -> None:
        require(1 <= self.width <= 65536, "backbone.width", "1 to 65536", self.width)
        require(self.stem_stride in (1, 2), "backbone.stem_stride", "1 or 2", self.stem_stride)

    def build(self, channels: int) -> Backbone:
        """Return the untrained backbone for images of `channels` channels. D = 8 width."""
        widths = tuple(self.width * 2**stage for stage in range(4))
        return _resnet(channels, widths, blocks=2, stem_stride=self.stem_stride)


@dataclass(frozen=True)
class ResNet32Options:
    """ResNet-32 for CIFAR: three stages of five blocks with 16, 32 and 64 channels (He et al. 2016, section 4.2)."""

    def build(self, channels: int) -> Backbone:
        """Return the untrained backbone for images of `channels` channels. D = 64."""
        return _resnet(channels, widths=(16, 32, 64), blocks=5, stem_stride=1)


@dataclass(frozen=True)
class TimmOptions:
    """Any model of the timm library, named `timm:<name>`. It needs the extra `timm`.

    Args:
        pretrained: Start from the pretrained weights that timm downloads for this model.
    """

    pretrained: bool = False
    model: str = ""  # the <name> of `timm:<name>`, not an option of its own

    def build(self, channels: int, size: tuple[int, int] | None = None) -> Backbone:
        """Return the model without its classifier. D is the number of features that it returns for an image.

        Args:
            channels: Number of channels of the images.
            size: Height and width of the images; the size for which the model was made if None.

        Raises:
            InputError: timm is not installed, does not know the model, or cannot build it or load its weights; or the
                model does not return one vector for an image of this size.
        """
        try:
            import timm
        except ImportError:
            raise InputError(
                f"backbone timm:{self.model} needs the extra: in a clone of pah, run pip install -e '.[timm]'"
            ) from None
        if not timm.is_model(self.model):
            raise unknown_name_error("timm backbone", self.model, timm.list_models())
        try:
            with hub_access(not self.pretrained or hub_is_reachable()):
                body = self._create(channels)
        except Exception as error:  # the models of timm raise many types of exceptions
            expected, hint = f"a model for images of {channels} channels", ""
            if self.pretrained:
                expected, hint = "weights in the cache or from the hub", "; --backbone.pretrained false needs none"
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise InputError(f"backbone timm:{self.model}: expected {expected}, got: {reason}{hint}") from None
        height, width = size or tuple(getattr(body, "pretrained_cfg", {}).get("input_size", (3, 224, 224))[1:])
        return Backbone(body, self._count_features(body, channels, height, width))

    def _create(self, channels: int) -> nn.Module:
        """Return the model with the mean as its pooling, or with its own pooling if it allows no other."""
        import timm

        create = partial(timm.create_model, self.model, pretrained=self.pretrained, num_classes=0, in_chans=channels)
        start = torch.get_rng_state()
        try:
            return create(global_pool="avg")
        except (AssertionError, TypeError, ValueError, NotImplementedError):
            torch.set_rng_state(start)
            return create()

    def _count_features(self, body: nn.Module, channels: int, height: int, width: int) -> int:
        """Return D, the length of the vector that the model returns for one image of zeros.

        Raises:
            InputError: the model does not accept the image, or returns something else.
        """
        image = f"images of {height}x{width}"
        try:
            shape = _output_shape(body, channels, height, width)
        except Exception as error:  # the models of timm raise many types of exceptions
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InputError(f"backbone timm:{self.model}: expected one that takes {image}, got: {reason}") from None
        if shape is None or len(shape) != 2:
            got = "no tensor" if shape is None else "x".join(map(str, shape))
            raise InputError(f"backbone timm:{self.model}: expected one vector for each of {image}, got {got}")
        return shape[1]


BackboneOptions = ConvNetOptions | ResNet18Options | SlimResNet18Options | ResNet32Options | TimmOptions

BACKBONES: dict[str, Callable[..., BackboneOptions]] = {
    "convnet": ConvNetOptions,
    "resnet18": ResNet18Options,
    "resnet18-slim": SlimResNet18Options,
    "resnet32": ResNet32Options,
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


def _output_shape(body: nn.Module, channels: int, height: int, width: int) -> tuple[int, ...] | None:
    """Return the shape of what a model returns for one image; None if it returns no tensor.

    The model runs in eval mode. Only shapes are computed, because a large model would take seconds, unless the model
    needs values to compute them.
    """
    devices = [torch.device("meta"), next(iter(body.parameters())).device]
    for device in dict.fromkeys(devices):
        probe = copy.deepcopy(body).to(device)  # some models keep tensors of the last pass
        try:
            with torch.no_grad(), evaluating(probe), torch.random.fork_rng(devices=[]), device:
                output = probe(torch.zeros(1, channels, height, width))
            return tuple(output.shape) if isinstance(output, Tensor) else None
        except Exception:
            if device == devices[-1]:
                raise
    return None


def _is_strided_pointwise(layer: nn.Conv2d) -> bool:
    return layer.kernel_size == (1, 1) and max(layer.stride) > 1 and layer.padding == (0, 0)


def _starts_stage(layer: nn.Module) -> bool:
    changes_shape = isinstance(layer, BasicBlock) and not isinstance(layer.shortcut, nn.Identity)
    return changes_shape or isinstance(layer, nn.Conv2d | GlobalPool)


def _resnet(channels: int, widths: tuple[int, ...], blocks: int, stem_stride: int) -> Backbone:
    """Return a residual network of basic blocks. The first block of each later stage halves the resolution."""
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
        if isinstance(module, nn.Conv2d) and not module.weight.is_meta:  # normal_ is slow to import for meta tensors
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return Backbone(nn.Sequential(*layers, GlobalPool()), widths[-1])


def _conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
