"""The two bounds that give a method's numbers meaning: no protection at all, and no need of any."""

import torch
import torch.nn.functional as F

from pah.data.stream import Batch, Task
from pah.losses import stack_heads
from pah.methods.base import Method, Terms, descend


class Finetune(Method):
    """The lower bound: learn the new task, protect nothing; a stored head a task."""

    def begin_task(self, task: Task) -> None:
        """Only the backbone and the new head learn."""
        super().begin_task(task)
        head = [self.network.heads.per_task()[task.index]]
        of = self.optimizer_options
        self.optimizers = [of.build(of.groups(self.network.backbone, head))]

    def observe(self, batch: Batch) -> Terms:
        """One step on the cross entropy of the current task."""
        logits = self.network(batch.x, [self.task])
        return descend(self.optimizers[0], {"L_hm": F.cross_entropy(logits, batch.y)})


class Joint(Method):
    """The upper bound: at each task, learn from all data of all tasks seen; a stored head a task."""

    learns_from = "all tasks seen"

    def begin_task(self, task: Task) -> None:
        """The backbone and all heads learn."""
        super().begin_task(task)
        of = self.optimizer_options
        self.optimizers = [of.build(of.groups(self.network.backbone, self.network.heads.parameters()))]

    def observe(self, batch: Batch) -> Terms:
        """One step on the cross entropy of each image's own task."""
        seen = range(self.task + 1)
        stacked = stack_heads(self.network(batch.x, seen), self.network.sizes(seen))  # (B, J, C)
        logits = stacked[torch.arange(len(stacked)), batch.tasks]
        return descend(self.optimizers[0], {"L_hm": F.cross_entropy(logits, batch.y)})
