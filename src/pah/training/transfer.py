"""How well a method does on a task that it has begun and not yet learned, from which forward transfer is computed.

N: images, C: classes of the task, D: features.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pah.core.config import generator
from pah.data.stream import evaluation_batches
from pah.data.task import Examples, Task
from pah.methods.base import Method
from pah.models.modes import evaluating
from pah.models.network import TaskNetwork
from pah.training.evaluation import EVALUATION_BATCH, evaluate, percent
from pah.training.metrics import Accuracy
from pah.training.options import TrainingOptions

IMAGES_PER_CLASS = 100  # largest number of training images from which the mean feature of a class is computed


class Readiness(NamedTuple):
    """The accuracy on a task before it is learned, in percent, with the task given; None without test images.

    Attributes:
        head: With the task's new head: a stored head is random, a generated one comes from the initial prototypes.
        features: With the nearest class mean: the class whose training images have the nearest mean feature.
    """

    head: Accuracy
    features: Accuracy


def measure_readiness(method: Method, task: Task, options: TrainingOptions) -> Readiness:
    """Return the accuracy on a task that the method has begun, and for which it has made no step.

    The method and the global random numbers stay as they are.

    Args:
        method: The method, after `begin_task`.
        task: The task.
        options: Choose the images, mirror images (for the head alone) and the batch-norm statistics.
    """
    (head,), _ = evaluate(method, (task,), options)
    part = task.test if options.evaluate_on == "test" else task.validation
    if not len(part):
        return Readiness(None, None)
    train = _few_of_each_class(task)
    with torch.inference_mode(), evaluating(method, statistics=options.test_batch_norm):
        features, test_features = (_features(method, task, examples, options) for examples in (train, part))
    means = torch.stack([features[train.labels == label].mean(dim=0) for label in range(len(task.class_names))])
    nearest = torch.cdist(test_features, means).argmin(dim=1)  # (N, C) -> (N,)
    return Readiness(head, percent(int((nearest == part.labels).sum()), len(part)))


def _few_of_each_class(task: Task) -> Examples:
    """Return at most `IMAGES_PER_CLASS` training images of each class, the same ones at every call."""
    rows, labels = task.train.rows, task.train.labels
    order = torch.randperm(len(rows), generator=generator(0, "transfer", task.index))
    chosen = torch.cat([order[labels[order] == label][:IMAGES_PER_CLASS] for label in range(len(task.class_names))])
    return Examples(task.train.pixels, rows[chosen], labels[chosen])


def _features(method: Method, task: Task, examples: Examples, options: TrainingOptions) -> Tensor:
    """Return the features of images (N, D), in float64 on the CPU."""
    network = method.network
    size = EVALUATION_BATCH if options.test_batch_norm == "running" else options.batch_size
    batches = (x for x, _ in evaluation_batches(task, examples, size, method.device))
    if isinstance(network, TaskNetwork):
        return torch.cat([network.features(x, task.index).double().cpu() for x in batches])
    return torch.cat([network.backbone(x[:, 0] if x.ndim == 3 else x).double().cpu() for x in batches])
