"""The frozen network: how things stood when the current task began, and which old tasks a step asks it about.

J: old tasks asked, P = Σ C_j: their classes, one prototype each; C: classes of the largest of them; D: features.
"""

import copy
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn

from pah.data.task import Step
from pah.methods.losses import ABSENT, Reduction, stack_heads
from pah.models.folding import folded
from pah.models.modes import BatchNormStatistics, evaluating
from pah.models.network import Network, apply_rows

OLD_TASKS = 20  # that a step asks at most, unless told otherwise: those of the longest common benchmark are all asked
STEPS, STRIDE = 3, 0.5  # by which an image is moved to an old class
ALIGNED_TASKS = 2  # whose prototypes are aligned in a step at most, unless told otherwise


def asked_tasks(old: Sequence[int], most: int, step: Step) -> Sequence[int]:
    """The old tasks that a step asks: all, or `most` of them drawn for the step, each as likely as any other."""
    if len(old) <= most:
        return old
    drawn = torch.randperm(len(old), generator=step.generator("old tasks"))[:most]
    return [old[k] for k in sorted(drawn.tolist())]


def weight_of_asked(old: Sequence[int], asked: Sequence[int], reduction: Reduction) -> float:
    """By what a term over the tasks asked is multiplied, so that its expectation is the term over all old tasks."""
    return len(old) / len(asked) if reduction == "sum" and asked else 1.0


class Teacher(nn.Module):
    """f_old for the tasks seen: a copy of the backbone and the old heads' rows, none of which ever changes.

    It is part of a checkpoint inside a task, and gone when the task ends.
    """

    rows: Tensor

    def __init__(self, network: Network, tasks: Sequence[int], statistics: BatchNormStatistics) -> None:
        super().__init__()
        self.statistics = statistics
        self.sizes = network.sizes(tasks)
        fixed = folded if statistics == "running" else copy.deepcopy
        self.backbone = fixed(network.backbone).requires_grad_(False)
        with torch.no_grad():
            self.register_buffer("rows", network.heads.rows(tasks).clone())  # (P, D + 1)

    def forward(self, x: Tensor, tasks: Sequence[int]) -> Tensor:
        """The answers of old tasks' heads to images: (B, channels, H, W) -> (B, J, C)."""
        return self.answers(self.features(x), tasks)

    @torch.no_grad()
    def features(self, x: Tensor) -> Tensor:
        """What the old backbone sees in images: (B, channels, H, W) -> (B, D)."""
        with evaluating(self.backbone, statistics=self.statistics):
            features: Tensor = self.backbone(x)
        return features

    @torch.no_grad()
    def answers(self, features: Tensor, tasks: Sequence[int]) -> Tensor:
        """The answers of old tasks' heads to features: (B, D) -> (B, J, C)."""
        rows = apply_rows(features, self.rows_of(tasks))
        return stack_heads(rows, tuple(self.sizes[k] for k in tasks))

    def moved_to(self, x: Tensor, tasks: Sequence[int], task: Tensor, label: Tensor) -> Tensor:
        """Images changed so that the old network takes them more for a class: (B, channels, H, W) -> the same shape.

        `STEPS` steps of gradient ascent on the class's logit less the mean logit of its task, each as long as `STRIDE`
        standard deviations of a pixel.

        Args:
            x: Normalised images.
            tasks: Old tasks.
            task: For each image, which of `tasks`, (B,).
            label: For each image, which class of that task, (B,).
        """
        images = torch.arange(len(x), device=x.device)
        sizes = torch.tensor([self.sizes[k] for k in tasks], device=x.device)[task]
        with evaluating(self.backbone, statistics=self.statistics), torch.enable_grad():
            for _ in range(STEPS):
                x = x.detach().requires_grad_(True)
                rows = apply_rows(self.backbone(x), self.rows_of(tasks))
                own = stack_heads(rows, tuple(self.sizes[k] for k in tasks))[images, task]  # (B, C)
                mean = torch.where(own > ABSENT, own, 0).sum(dim=1) / sizes
                (slope,) = torch.autograd.grad((own[images, label] - mean).sum(), x)
                length = slope.square().mean(dim=(1, 2, 3), keepdim=True).sqrt().clamp_min(1e-12)
                x = x + STRIDE * slope / length
        return x.detach()

    def rows_of(self, tasks: Sequence[int]) -> Tensor:
        """The heads of some old tasks, (Σ C_k, D + 1)."""
        return of_tasks(self.rows, self.sizes, tasks)


def of_tasks(rows: Tensor, sizes: Sequence[int], tasks: Sequence[int]) -> Tensor:
    """The rows of some tasks out of those of all: (Σ C_k, …) of tasks with `sizes` classes each."""
    if len(tasks) == len(sizes):
        return rows
    ends = list(accumulate(sizes))
    return torch.cat([rows[ends[k] - sizes[k] : ends[k]] for k in tasks])
