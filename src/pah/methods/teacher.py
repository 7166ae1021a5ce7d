"""The teacher, a frozen copy of the network from before the current task, and the sampling of old tasks for a step.

B: number of images, J: number of old tasks requested, P = Σ C_j: number of their classes, with one prototype each,
C: number of classes of the largest of them, D: number of features.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate

import torch
from torch import Tensor, nn

from pah.data.task import Step
from pah.methods.losses import ABSENT_LOGIT, Reduction, stack_logits
from pah.models.batch_norm_folding import fold_batch_norm
from pah.models.modes import BatchNormStatistics, evaluating
from pah.models.network import Network, apply_heads

MAX_OLD_TASKS = 20  # default number of old tasks in L_sm: the longest common benchmark has no more
MAX_ALIGNED_TASKS = 2  # default number of old tasks in L_sp
ASCENT_STEPS, ASCENT_STEP_SIZE = 3, 0.5  # of `Teacher.moved_toward_class`


def sample_old_tasks(old: Sequence[int], limit: int, step: Step) -> Sequence[int]:
    """Return the old tasks that a step uses: all, or a sorted random sample of `limit` tasks."""
    if len(old) <= limit:
        return old
    positions = torch.randperm(len(old), generator=step.generator("old tasks"))[:limit]
    return [old[k] for k in sorted(positions.tolist())]


def sampled_tasks_weight(old: Sequence[int], sampled: Sequence[int], reduction: Reduction) -> float:
    """Return the factor that makes a term over sampled tasks an unbiased estimate of the term over all old tasks."""
    return len(old) / len(sampled) if reduction == "sum" and sampled else 1.0


class Teacher(nn.Module):
    """f_old: a frozen copy of the backbone and of the rows of the old heads.

    Weights of the backbone that lessons do not change are shared with the network and not copied. A checkpoint within a
    task contains the teacher. It is deleted at the end of the task.

    Args:
        network: The network to copy.
        tasks: The old tasks, all of the network's.
        statistics: The batch-norm statistics that the teacher uses.
    """

    rows: Tensor

    def __init__(self, network: Network, tasks: Sequence[int], statistics: BatchNormStatistics) -> None:
        super().__init__()
        self.statistics = statistics
        self.sizes = network.sizes(tasks)
        backbone = network.backbone
        running = statistics == "running"
        copied = fold_batch_norm(backbone, "trained") if running else backbone.copy_sharing_fixed()
        self.backbone = copied.requires_grad_(False)
        with torch.no_grad():
            self.register_buffer("rows", network.heads.rows(tasks).clone())  # (P, D + 1)

    def forward(self, x: Tensor, tasks: Sequence[int]) -> Tensor:
        """Return the logits of old heads for images: (B, channels, H, W) -> (B, J, C)."""
        return self.logits(self.features(x), tasks)

    @torch.no_grad()
    def features(self, x: Tensor) -> Tensor:
        """Return the features of images: (B, channels, H, W) -> (B, D)."""
        with self._evaluating():
            features: Tensor = self.backbone(x)
        return features

    @torch.no_grad()
    def logits(self, features: Tensor, tasks: Sequence[int]) -> Tensor:
        """Return the logits of old heads for features: (B, D) -> (B, J, C)."""
        return self._stacked_logits(features, tasks)

    def moved_toward_class(self, x: Tensor, tasks: Sequence[int], task: Tensor, label: Tensor) -> Tensor:
        """Return images changed so that the teacher's logit of a given class increases.

        They are changed by `ASCENT_STEPS` steps of gradient ascent on the class's logit minus the mean logit of its
        task. Each step has a root mean square of `ASCENT_STEP_SIZE` standard deviations of a pixel.

        Args:
            x: Normalised images (B, channels, H, W).
            tasks: Old tasks.
            task: (B,), for each image a position in `tasks`.
            label: (B,), for each image a class of that task.

        Returns:
            (B, channels, H, W).
        """
        images = torch.arange(len(x), device=x.device)
        sizes = torch.tensor([self.sizes[k] for k in tasks], device=x.device)[task]
        with self._evaluating(), torch.enable_grad():
            for _ in range(ASCENT_STEPS):
                x = x.detach().requires_grad_(True)
                task_logits = self._stacked_logits(self.backbone(x), tasks)[images, task]  # (B, C)
                mean = torch.where(task_logits > ABSENT_LOGIT, task_logits, 0).sum(dim=1) / sizes
                (gradient,) = torch.autograd.grad((task_logits[images, label] - mean).sum(), x)
                root_mean_square = gradient.square().mean(dim=(1, 2, 3), keepdim=True).sqrt().clamp_min(1e-12)
                x = x + ASCENT_STEP_SIZE * gradient / root_mean_square
        return x.detach()

    def head_rows(self, tasks: Sequence[int]) -> Tensor:
        """Return the rows of the heads of some old tasks, (P, D + 1)."""
        return select_tasks(self.rows, self.sizes, tasks)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Set the teacher to eval mode; only what lessons change may use the statistics of the batch."""
        with evaluating(self.backbone), evaluating(*self.backbone.trained_modules(), statistics=self.statistics):
            yield

    def _stacked_logits(self, features: Tensor, tasks: Sequence[int]) -> Tensor:
        """Return the logits of old heads for features, with gradients: (B, D) -> (B, J, C)."""
        logits = apply_heads(features, self.head_rows(tasks))
        return stack_logits(logits, tuple(self.sizes[k] for k in tasks))


def select_tasks(rows: Tensor, sizes: Sequence[int], tasks: Sequence[int]) -> Tensor:
    """Return the rows of some tasks.

    Args:
        rows: (Σ C_k over all tasks, …).
        sizes: The number of classes of each task.
        tasks: The tasks to return.
    """
    if len(tasks) == len(sizes):
        return rows
    ends = list(accumulate(sizes))
    return torch.cat([rows[ends[k] - sizes[k] : ends[k]] for k in tasks])
