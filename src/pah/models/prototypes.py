"""Class prototypes: small learnable images, one for each class, from which the hypernetwork generates heads.

A task k of C_k classes has the prototypes p_k, a parameter (C_k, channels, s, s) in normalised pixel units.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pah.core.devices import to_device

PrototypeStart = Literal["semantic", "mean", "random"]


class Prototypes(nn.Module):
    """The prototypes of all tasks, for any number of tasks and classes.

    Args:
        size: s, the side of a prototype in pixels.
        channels: Number of channels of a prototype.
    """

    def __init__(self, size: int, channels: int) -> None:
        super().__init__()
        self.size = size
        self.channels = channels
        self.tasks = nn.ParameterList()  # one parameter (C_k, channels, s, s) for each task

    def grow(self, classes: int) -> None:
        """Add one more task. Until `set` is called, its prototypes are noise seeded by the task's index."""
        noise = torch.Generator().manual_seed(len(self.tasks))
        start = torch.randn(classes, self.channels, self.size, self.size, generator=noise)
        self.tasks.append(nn.Parameter(start))

    def set(self, task: int, values: Tensor) -> None:
        """Set the prototypes of a task to `values` (C_k, channels, s, s)."""
        with torch.no_grad():
            self.tasks[task].copy_(values)

    def remove(self, task: int) -> None:
        """Remove a task. The index of every later task decreases by one."""
        self.tasks = nn.ParameterList(p for k, p in enumerate(self.tasks) if k != task)

    def batch(self, tasks: Sequence[int], detach: Sequence[int] = ()) -> Tensor:
        """Return the prototypes of several tasks, (Σ C_k, channels, s, s), without gradient for those in `detach`."""
        return torch.cat([self.tasks[k].detach() if k in detach else self.tasks[k] for k in tasks])

    def to_images(self, prototypes: Tensor, channels: int) -> Tensor:
        """Return prototypes as images of `channels` channels. A single channel is repeated."""
        return prototypes.expand(-1, channels, -1, -1)


def task_positions(sizes: Sequence[int], device: torch.device) -> Tensor:
    """Return for each prototype the position of its task, (Σ C_j,), for tasks with `sizes` classes each."""
    return to_device(torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)), device)


def downscale(images: Tensor, size: int, channels: int) -> Tensor:
    """Return images (N, c, H, W) scaled to prototypes (N, channels, size, size).

    With `channels` = 1 the channels are averaged.
    """
    if channels == 1:
        images = images.mean(dim=1, keepdim=True)
    small = F.interpolate(images, (size, size), mode="bilinear", antialias=True, align_corners=False)
    return small.expand(-1, channels, -1, -1)
