"""Folding batch norms into the convolutions before them, which makes inference faster and keeps its results."""

import copy
from collections import Counter
from contextlib import ExitStack
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pah.models.backbone import Backbone
from pah.models.layers import BasicBlock, StridedPointwise

Part = Literal["all", "kept", "trained"]


def fold_batch_norm(backbone: Backbone, part: Part = "all") -> Backbone:
    """Return a frozen copy of a backbone whose batch norms are folded into its convolutions; do not change it.

    The copy computes what `backbone` computes in eval mode, up to rounding. It cannot be trained. A convolution with
    weights w gets w' = w γ / √(σ² + ε) and b' = β - μ γ / √(σ² + ε), with μ, σ², γ and β of the batch norm after it.
    The order of this project's own layers is known. In other models a pass of one image shows which batch norm follows
    which convolution. If the copy then gives other features for this image, the batch norms stay.

    Args:
        backbone: The backbone to copy.
        part: Which batch norms are folded: all, those of `Backbone.kept`, or those that lessons change. In the last
            case the copy shares the memory of what lessons do not change.
    """
    if backbone.trained == "none" and part != "trained":
        if backbone.folded.backbone is None:
            backbone.folded.backbone = _fold(backbone, part)
        return backbone.folded.backbone
    return _fold(backbone, part)


def _fold(backbone: Backbone, part: Part) -> Backbone:
    folded = _copied(backbone, part).requires_grad_(False).eval()
    if part == "trained" and not folded.trained_modules():
        return folded
    if not isinstance(backbone.body, nn.Sequential):
        return _fold_followed(folded, part)
    trained = {id(layer) for module in folded.trained_modules() for layer in module.modules()}
    for module in folded.modules():
        if not (isinstance(module, BasicBlock) or type(module).forward is nn.Sequential.forward):
            continue
        for (name, layer), (next_name, next_layer) in pairwise(list(module.named_children())):
            exact = type(layer) in (nn.Conv2d, StridedPointwise) and type(next_layer) is nn.BatchNorm2d
            chosen = exact and (part != "trained" or id(layer) in trained)
            if chosen and isinstance(layer, nn.Conv2d) and isinstance(next_layer, nn.BatchNorm2d):
                setattr(module, name, fuse_conv_bn_eval(layer, next_layer))
                setattr(module, next_name, nn.Identity())
    return folded


@torch.no_grad()
def _fold_followed(backbone: Backbone, part: Part) -> Backbone:
    """Fold batch norms into the convolutions whose output they get in a pass; return the backbone as it is if wrong."""
    convolution = next((layer for layer in backbone.modules() if isinstance(layer, nn.Conv2d)), None)
    weights = [*backbone.parameters(), *backbone.buffers()]
    if convolution is None or backbone.input_size is None or any(tensor.is_meta for tensor in weights):
        return backbone
    channels, device = convolution.in_channels * convolution.groups, convolution.weight.device
    image = torch.randn(1, channels, *backbone.input_size, generator=torch.Generator().manual_seed(0)).to(device)
    followed = copy.deepcopy(backbone)  # some models keep tensors of the last pass
    folded = _copied(backbone, part)
    trained = {id(layer) for module in followed.trained_modules() for layer in module.modules()}
    try:
        pairs, expected = _follow(followed, image, part)
        if part == "trained":
            pairs = [pair for pair in pairs if id(followed.get_submodule(pair[0])) in trained]
        for name, next_name in pairs:
            layer, next_layer = folded.get_submodule(name), folded.get_submodule(next_name)
            assert isinstance(layer, nn.Conv2d)
            assert isinstance(next_layer, nn.BatchNorm2d)
            folded.set_submodule(name, fuse_conv_bn_eval(layer, next_layer))
            folded.set_submodule(next_name, _after_norm(next_layer))
        same = torch.allclose(
            _output(copy.deepcopy(folded), image, part), expected, rtol=1e-3, atol=1e-3 * float(expected.std())
        )
    except Exception:  # the models of timm raise many types of exceptions
        return backbone
    return folded if pairs and same else backbone


def _follow(backbone: Backbone, image: Tensor, part: Part) -> tuple[list[tuple[str, str]], Tensor]:
    """Return the names of each convolution and of the batch norm that gets its output, and the output."""
    outputs: dict[int, tuple[str, Tensor]] = {}  # by identity; the tensors are kept, so that no other gets the same one
    pairs: list[tuple[str, str]] = []
    calls: Counter[str] = Counter()

    def note_convolution(name: str, output: Tensor) -> None:
        calls[name] += 1
        outputs[id(output)] = (name, output)

    def note_norm(name: str, image: Tensor) -> None:
        calls[name] += 1
        if id(image) in outputs:
            pairs.append((outputs[id(image)][0], name))

    def hook(name: str, layer: nn.Module) -> Any:
        if isinstance(layer, nn.Conv2d):
            return layer.register_forward_hook(lambda _, inputs, output: note_convolution(name, output))
        return layer.register_forward_pre_hook(lambda _, inputs: note_norm(name, inputs[0]))

    with ExitStack() as stack:
        for name, layer in backbone.named_modules():
            if isinstance(layer, nn.Conv2d | nn.BatchNorm2d):
                stack.callback(hook(name, layer).remove)
        output = _output(backbone, image, part)
    used = Counter(name for pair in pairs for name in pair)
    once = [pair for pair in pairs if all(calls[name] == used[name] == 1 for name in pair)]
    return once, output


def _copied(backbone: Backbone, part: Part) -> Backbone:
    return backbone.copy_sharing_fixed() if part == "trained" else copy.deepcopy(backbone)


def _output(backbone: Backbone, image: Tensor, part: Part) -> Tensor:
    output: Tensor = backbone.kept(image) if part == "kept" else backbone(image)
    return output


def _after_norm(norm: nn.Module) -> nn.Module:
    """Return what remains of a batch norm of timm, which may hold an activation."""
    parts = [part for name in ("drop", "act") if isinstance(part := getattr(norm, name, None), nn.Module)]
    return nn.Sequential(*parts) if parts else nn.Identity()
