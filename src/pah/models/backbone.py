"""The backbone of a network, and the options that every backbone has.

B: number of images, H and W: height and width in pixels, D: number of features, K: number of values that the part
that lessons do not change returns for an image.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pah.core.config import InputError, require
from pah.data.preprocessing import DEFAULT_RESIZING, Interpolation, Resizing
from pah.data.task import Normalization
from pah.models.backbone_parts import Parts, find_parts
from pah.models.layers import BasicBlock, GlobalPool, replace_unsafe_convolutions
from pah.models.weights import load_weights, stem_channels

Trained = Literal["all", "last", "none"]


class FoldedCopy:
    """Holds the copy of a frozen backbone with folded batch norms; copies of the backbone share it."""

    def __init__(self) -> None:
        self.backbone: Backbone | None = None

    def __deepcopy__(self, memo: dict[int, object]) -> "FoldedCopy":
        return self


class Backbone(nn.Module):
    """A network that maps images to features.

    Args:
        body: A module that maps images (B, channels, H, W) to features (B, D).
        features: D.

    Attributes:
        input_size: (H, W) to which images and prototypes of another size are scaled before the body; None if the body
            takes them as they are.
        interpolation: How they are scaled.
        trained: What lessons change. What they do not change stays in inference mode, and its weights have no gradient.
        parts: The part that lessons train and the part before it, if they train the last part only.
        lr_factor: Factor of the learning rate, if the options give none for the backbone.
        takes_vectors: Whether its input are vectors (B, D, 1, 1) and not images.
        folded: What `fold_batch_norm` returned for a frozen backbone, which takes a second to find.
    """

    def __init__(self, body: nn.Module, features: int) -> None:
        super().__init__()
        self.input_size: tuple[int, int] | None = None
        self.interpolation: Interpolation = "bilinear"
        self.trained: Trained = "all"
        self.parts: Parts | None = None
        self.lr_factor = 1.0
        self.takes_vectors = False
        self.folded = FoldedCopy()
        replace_unsafe_convolutions(body)
        self.body = body
        self.features = features

    def forward(self, x: Tensor) -> Tensor:
        """Return the features of images (B, channels, H, W) as (B, D).

        In place of images, methods may pass what `kept` returned for them, (B, K): the body is then entered behind the
        part that lessons do not change. This is the only tensor of two dimensions that a backbone accepts.
        """
        if x.ndim == 2:
            return x if self.parts is None else self.parts.last(self.body, x)
        features: Tensor = self.body(self._scaled(x))  # (B, D)
        return features

    @property
    def kept_size(self) -> int | None:
        """K; None if there is nothing to keep, because every image must pass through the whole backbone."""
        if self.trained == "none":
            return self.features
        return self.parts.size if self.parts is not None and self.parts.chain is not None else None

    @torch.no_grad()
    def kept(self, x: Tensor) -> Tensor:
        """Return what stays the same of images during a lesson: (B, channels, H, W) -> (B, K).

        It is the output of the part that lessons do not change, flattened. `kept_size` says whether there is any.
        """
        if self.parts is not None:
            return self.parts.first(self.body, self._scaled(x))
        features: Tensor = self(x)
        return features

    def train(self, mode: bool = True) -> Self:
        """Set the mode. What lessons do not change stays in inference mode: no dropout, and constant batch norm.

        In the last part, batch norm keeps its statistics too and learns its weights alone: the few images of a lesson
        would give worse statistics.
        """
        super().train(mode and self.trained == "all")
        if self.trained == "last":
            for layer in (layer for module in self.trained_modules() for layer in module.modules()):
                layer.training = mode and not isinstance(layer, _BatchNorm)
        return self

    def _apply(self, fn: Callable[..., Tensor], recurse: bool = True) -> Self:
        self.folded = FoldedCopy()  # the weights move to another device or memory format
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def _load_from_state_dict(self, *arguments: Any, **options: Any) -> None:
        self.folded = FoldedCopy()
        super()._load_from_state_dict(*arguments, **options)

    def freeze(self) -> None:
        """Keep all weights as they are from now on."""
        self.folded = FoldedCopy()
        self.trained = "none"
        self.requires_grad_(False).eval()

    def freeze_first_part(self, image_shape: tuple[int, int, int], name: str) -> None:
        """Keep the weights of all but the last part as they are from now on.

        Args:
            image_shape: Channels, height and width of the images that the body takes.
            name: Name of the backbone, for messages.

        Raises:
            InputError: the body cannot be divided.
        """
        self.trained = "last"
        self.parts = find_parts(self.body, image_shape, name)
        last = {id(parameter) for module in self.trained_modules() for parameter in module.parameters()}
        for parameter in self.parameters():
            parameter.requires_grad_(parameter.requires_grad and id(parameter) in last)
        self.train(self.training)

    def trained_modules(self) -> list[nn.Module]:
        """Return the modules that lessons change: the body, those of its last part, or none."""
        if self.trained == "all":
            return [self.body]
        return [] if self.parts is None else self.parts.modules(self.body)

    def trained_parameters(self) -> list[nn.Parameter]:
        """Return the weights that lessons change."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def fixed_tensors(self) -> dict[str, Tensor]:
        """Return the weights and statistics that lessons do not change, by name."""
        trained = {id(tensor) for module in self.trained_modules() for tensor in _tensors(module).values()}
        return {name: tensor for name, tensor in _tensors(self).items() if id(tensor) not in trained}

    def copy_sharing_fixed(self) -> Self:
        """Return a copy that shares the memory of what lessons do not change.

        The shared tensors are not part of the state of the copy, which a checkpoint would hold twice.
        """
        shared = {id(tensor): tensor for tensor in self.fixed_tensors().values()}
        copied = copy.deepcopy(self, dict(shared))
        for module in copied.modules():
            for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
                if id(tensor) in shared:
                    delattr(module, name)
                    module.register_buffer(name, tensor.detach(), persistent=False)
        copied.register_load_state_dict_post_hook(_ignore_counters)  # type: ignore[no-untyped-call]
        return copied

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

    def _scaled(self, x: Tensor) -> Tensor:
        """Return images (B, channels, H, W) in the size that the body takes."""
        if self.input_size is None or x.shape[2:] == self.input_size:
            return x
        shrinks = x.shape[2] > self.input_size[0]
        return F.interpolate(x, self.input_size, mode=self.interpolation, align_corners=False, antialias=shrinks)


@dataclass(frozen=True, kw_only=True)
class BackboneOptions(ABC):
    """Options that every backbone has.

    Args:
        weights: File with the weights to start from: safetensors, or a .pth file, which is read without running code.
            The tensors of a classifier are left out.
        train: What lessons change: all weights, those of the last part, or none. The last part is the last stage or
            blocks, with about a quarter of the layers. What lessons do not change sees each view of a training image
            once, and its output is kept for the lesson: with "none", a lesson takes little longer than one pass over
            its images. With "last", batch norm keeps its statistics.
        views: Views of each training image that a frozen backbone, or the frozen part of it, sees: the image, its
            mirror image if `augment.flip` is set, then augmented ones.
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
    def is_pretrained(self) -> bool:
        """Whether training starts from given weights and not from random ones."""
        return self.weights is not None

    @property
    def takes_vectors(self) -> bool:
        """Whether the data are vectors and not images."""
        return False

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


def _ignore_counters(_: nn.Module, keys: Any) -> None:
    """Let a state be loaded although torch adds to it the counters of batch norms that it lacks."""
    keys.unexpected_keys[:] = [key for key in keys.unexpected_keys if not key.endswith("num_batches_tracked")]


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers of a module by name."""
    return dict((*module.named_parameters(), *module.named_buffers()))


def _starts_stage(layer: nn.Module) -> bool:
    changes_shape = isinstance(layer, BasicBlock) and not isinstance(layer.shortcut, nn.Identity)
    return changes_shape or isinstance(layer, nn.Conv2d | GlobalPool)
