"""Layers of which the project's own backbones are made, and a safe form of one of torch's layers.

B: number of images, H and W: height and width in pixels, D: number of channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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


def replace_unsafe_convolutions(body: nn.Module) -> None:
    """Replace strided 1x1 convolutions of few input channels by `StridedPointwise`; weights and names stay."""
    for layer in body.modules():
        if (
            type(layer) is nn.Conv2d
            and _is_strided_pointwise(layer)
            and layer.in_channels < MIN_SAFE_CHANNELS * layer.groups
        ):
            layer.__class__ = StridedPointwise


def to_channels_last(module: nn.Module) -> None:
    """Store the weights of 2d convolutions channels last.

    Unlike `module.to(memory_format=torch.channels_last)`, it accepts tensors of more axes, which it leaves as they are.
    """
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.ndim == 4:
            tensor.data = tensor.data.to(memory_format=torch.channels_last)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut (He et al. 2016, section 3.2)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = conv3x3(outputs, outputs)
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


def conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """Return a 3x3 convolution that keeps the size for a stride of 1. It has no bias."""
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)


def _is_strided_pointwise(layer: nn.Conv2d) -> bool:
    return layer.kernel_size == (1, 1) and max(layer.stride) > 1 and layer.padding == (0, 0)
