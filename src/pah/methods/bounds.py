"""The reference methods: finetuning as the lower bound and joint training as the upper bound."""

import torch.nn.functional as F

from pah.data.task import Batch, Task
from pah.methods.base import Method, Terms, descend


class Finetune(Method):
    """The lower bound: learn the new task and protect nothing."""

    def begin_task(self, task: Task) -> None:
        """Build an optimizer over the backbone, the parameters that heads share, and the new head."""
        super().begin_task(task)
        heads = self.network.heads
        head_parameters = [*heads.shared_parameters(), heads.task_parameters()[self.task]]
        groups = self.optimizer_options.groups(self.network.backbone, head_parameters)
        self.optimizers = [self.optimizer_options.build(groups)]

    def observe(self, batch: Batch) -> Terms:
        """Take one step on the cross entropy of the current task."""
        logits = self.network(batch.x, [self.task])
        return descend(self.optimizers[0], {"L_hm": F.cross_entropy(logits, batch.y)})


class Joint(Method):
    """The upper bound: with each task, learn from all data of all tasks seen."""

    learns_from = "all tasks seen"

    def begin_task(self, task: Task) -> None:
        """Build an optimizer over the backbone and all heads."""
        super().begin_task(task)
        groups = self.optimizer_options.groups(self.network.backbone, self.network.heads.parameters())
        self.optimizers = [self.optimizer_options.build(groups)]

    def observe(self, batch: Batch) -> Terms:
        """Take one step on the cross entropy of each image for its own task."""
        logits = self.own_task_logits(batch.x, batch.tasks)
        return descend(self.optimizers[0], {"L_hm": F.cross_entropy(logits, batch.y)})
