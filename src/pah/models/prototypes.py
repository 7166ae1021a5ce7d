"""Class prototypes: the small learnable images that are a task's memory key.

A task k of C_k classes owns p_k, a parameter (C_k, channels, s, s) in the backbone's normalised pixel units.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pah.core.devices import sent

PrototypeStart = Literal["semantic", "mean", "random"]


class Prototypes(nn.Module):
    """All tasks' prototypes, `channels` x `size` x `size` each; any number of tasks, any number of classes."""

    def __init__(self, size: int, channels: int) -> None:
        super().__init__()
        self.size = size
        self.channels = channels
        self.tasks = nn.ParameterList()

    def grow(self, classes: int) -> None:
        """Make room for one more task of `classes` classes; its prototypes are noise, named by the task, until set."""
        noise = torch.Generator().manual_seed(len(self.tasks))
        start = torch.randn(classes, self.channels, self.size, self.size, generator=noise)
        self.tasks.append(nn.Parameter(start))

    def set(self, task: int, start: Tensor) -> None:
        """Give a task its first prototypes, (C_k, channels, s, s)."""
        with torch.no_grad():
            self.tasks[task].copy_(start)

    def remove(self, task: int) -> None:
        """Drop a task's prototypes; those after it move up by one."""
        self.tasks = nn.ParameterList(p for k, p in enumerate(self.tasks) if k != task)

    def of(self, tasks: Sequence[int], detach: Sequence[int] = ()) -> Tensor:
        """The tasks' prototypes in one batch, (Σ C_k, channels, s, s); without gradient for those in `detach`."""
        return torch.cat([self.tasks[k].detach() if k in detach else self.tasks[k] for k in tasks])

    def as_images(self, prototypes: Tensor, channels: int) -> Tensor:
        """Prototypes as the backbone takes them: a single channel is repeated for a backbone of `channels`."""
        return prototypes.expand(-1, channels, -1, -1)


def owners(sizes: Sequence[int], device: torch.device) -> Tensor:
    """For each prototype of tasks with so many classes, the position of its task among them: (Σ C_j,)."""
    return sent(torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)), device)


def shrink(images: Tensor, size: int, channels: int) -> Tensor:
    """Images (N, c, H, W) as prototypes (N, channels, size, size): averaged over channels if c > channels = 1."""
    if channels == 1:
        images = images.mean(dim=1, keepdim=True)
    small = F.interpolate(images, (size, size), mode="bilinear", antialias=True, align_corners=False)
    return small.expand(-1, channels, -1, -1)
