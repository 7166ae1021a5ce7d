"""Folding batch norms into the convolutions before them, which makes inference faster and keeps its results."""

import copy
from itertools import pairwise

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pah.models.backbone import Backbone
from pah.models.layers import BasicBlock, StridedPointwise


def fold_batch_norm(backbone: Backbone) -> Backbone:
    """Return a frozen copy of a backbone whose batch norms are folded into its convolutions.

    The copy computes what `backbone` computes in eval mode, up to rounding. It cannot be trained. A convolution with
    weights w gets w' = w γ / √(σ² + ε) and b' = β - μ γ / √(σ² + ε), with μ, σ², γ and β of the batch norm after it.
    Only the order of layers in this project's own blocks and in plain sequences is known: other batch norms stay. So do
    the layers of other libraries that derive from convolutions and batch norms, because they compute more than these.
    """
    folded = copy.deepcopy(backbone).requires_grad_(False).eval()
    for module in folded.modules():
        if not (isinstance(module, BasicBlock) or type(module).forward is nn.Sequential.forward):
            continue
        for (name, layer), (next_name, next_layer) in pairwise(list(module.named_children())):
            exact = type(layer) in (nn.Conv2d, StridedPointwise) and type(next_layer) is nn.BatchNorm2d
            if exact and isinstance(layer, nn.Conv2d) and isinstance(next_layer, nn.BatchNorm2d):
                setattr(module, name, fuse_conv_bn_eval(layer, next_layer))
                setattr(module, next_name, nn.Identity())
    return folded
