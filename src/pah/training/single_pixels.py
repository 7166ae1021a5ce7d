"""Whether a backbone halves maps of a single pixel, for which torch computes some gradients wrongly."""

import copy

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pah.models.backbone import Backbone
from pah.models.modes import evaluating

LARGE_IMAGE_PIXELS = 2**14  # above this size (128x128) a backbone is checked without computing any values


def halves_single_pixel(backbone: Backbone, channels: int, height: int, width: int) -> bool:
    """Return whether a convolution of stride 2 gets a map of one pixel, for images of this size.

    The backbone is run on one image, and its exceptions are passed on. A backbone on the meta device is not checked.
    """
    weights = dict((*backbone.named_parameters(), *backbone.named_buffers()))
    if any(tensor.is_meta for tensor in weights.values()):
        return False
    device = torch.device("cpu")
    # the meta device computes shapes alone: a check must not need the memory of a run, but importing it takes a second
    if height * width > LARGE_IMAGE_PIXELS:
        device = torch.device("meta")
        backbone = copy.deepcopy(backbone)  # some models keep tensors of the last pass
        weights = {name: tensor.to(device) for name, tensor in weights.items()}
    single_pixel: list[bool] = []

    def record_input(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        single_pixel.append(inputs[0].shape[2:] == (1, 1))

    halving = [layer for layer in backbone.modules() if isinstance(layer, nn.Conv2d) and layer.stride == (2, 2)]
    hooks = [layer.register_forward_pre_hook(record_input) for layer in halving if layer.kernel_size != (1, 1)]
    try:
        with torch.no_grad(), evaluating(backbone):
            functional_call(backbone, weights, torch.zeros(1, channels, height, width, device=device))
    finally:
        for hook in hooks:
            hook.remove()
    return any(single_pixel)
