"""Folding batch norms into the convolutions before them, which makes inference faster and keeps its results."""

import copy
from itertools import pairwise

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pah.models.backbone import Backbone
from pah.models.layers import BasicBlock


def fold_batch_norm(backbone: Backbone, share_frozen: bool = False) -> Backbone:
    """Return a frozen copy of a backbone whose batch norms are folded into its convolutions.

    The copy computes what `backbone` computes in eval mode, up to rounding. It cannot be trained. A convolution with
    weights w gets w' = w γ / √(σ² + ε) and b' = β - μ γ / √(σ² + ε), with μ, σ², γ and β of the batch norm after it.
    Only the order of this project's own layers is known: in other models the batch norms stay.

    Args:
        backbone: The backbone to copy.
        share_frozen: Whether the copy shares the memory of the weights that lessons do not change, where it has them.
    """
    copied = backbone.copy_sharing_frozen() if share_frozen else copy.deepcopy(backbone)
    folded = copied.requires_grad_(False).eval()
    for module in folded.modules():
        if not isinstance(module, nn.Sequential | BasicBlock):
            continue
        for (name, layer), (next_name, next_layer) in pairwise(list(module.named_children())):
            if isinstance(layer, nn.Conv2d) and isinstance(next_layer, nn.BatchNorm2d):
                setattr(module, name, fuse_conv_bn_eval(layer, next_layer))
                setattr(module, next_name, nn.Identity())
    return folded
