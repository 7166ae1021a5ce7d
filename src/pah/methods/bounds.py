"""The two bounds that give a method's numbers meaning: no protection at all, and no need of any."""

import torch.nn.functional as F

from pah.data.task import Batch, Task
from pah.methods.base import Method, Terms, descend


class Finetune(Method):
    """The lower bound: learn the new task, protect nothing."""

    def begin_task(self, task: Task) -> None:
        """All learn but what belongs to old tasks: the backbone, what heads share, the new head."""
        super().begin_task(task)
        heads, of = self.network.heads, self.optimizer_options
        self.optimizers = [of.build(of.groups(self.network.backbone, [*heads.shared(), heads.per_task()[self.task]]))]

    def observe(self, batch: Batch) -> Terms:
        """One step on the cross entropy of the current task."""
        logits = self.network(batch.x, [self.task])
        return descend(self.optimizers[0], {"L_hm": F.cross_entropy(logits, batch.y)})


class Joint(Method):
    """The upper bound: at each task, learn from all data of all tasks seen."""

    learns_from = "all tasks seen"

    def begin_task(self, task: Task) -> None:
        """The backbone and all heads learn."""
        super().begin_task(task)
        of = self.optimizer_options
        self.optimizers = [of.build(of.groups(self.network.backbone, self.network.heads.parameters()))]

    def observe(self, batch: Batch) -> Terms:
        """One step on the cross entropy of each image's own task."""
        return descend(self.optimizers[0], {"L_hm": F.cross_entropy(self.own_logits(batch.x, batch.tasks), batch.y)})
