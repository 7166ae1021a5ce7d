"""Batch norm folded into the convolutions before it: the same answers, without a pass over every activation."""

import copy
from itertools import pairwise

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pah.models.backbones import Backbone, BasicBlock


def folded(backbone: Backbone) -> Backbone:
    """A frozen copy that answers as `backbone` does in eval mode, up to rounding, and cannot be trained.

    w' = w γ / √(σ² + ε) and b' = β - μ γ / √(σ² + ε), of each convolution with weights w and the running μ, σ², γ and β
    of the batch norm after it. Only our own layers tell what comes after what; others keep their batch norms.
    """
    found = copy.deepcopy(backbone).requires_grad_(False).eval()
    for module in found.modules():
        if not isinstance(module, nn.Sequential | BasicBlock):
            continue
        for (name, layer), (after, norm) in pairwise(list(module.named_children())):
            if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(module, name, fuse_conv_bn_eval(layer, norm))
                setattr(module, after, nn.Identity())
    return found
