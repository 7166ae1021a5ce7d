"""Evaluation: a method's predictions for the images of all tasks seen, and their accuracy.

B: images of a batch, N: images of a task, C_k: classes of task k.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pah.core import distributed
from pah.data.stream import evaluation_batches
from pah.data.task import Examples, Task
from pah.methods.base import Method
from pah.models.modes import evaluating
from pah.training.metrics import Accuracy
from pah.training.options import TrainingOptions

EVALUATION_BATCH = 500  # images


@dataclass(frozen=True)
class TaskPredictions:
    """Labels of one task's images and a method's predictions for them, each (N,) int64 on the CPU.

    Attributes:
        labels: The true class, as an index within the task.
        task_given: The predicted class when the task is given, as an index within the task.
        task_not_given: The predicted class when the task is not given, as an index into the classes of all tasks seen.
    """

    labels: Tensor
    task_given: Tensor
    task_not_given: Tensor


def predict_tasks(method: Method, seen: tuple[Task, ...], options: TrainingOptions) -> list[TaskPredictions]:
    """Return the method's predictions for the images of each task seen.

    When the task is not given, the class with the largest logit of all heads is predicted. Every image passes through
    the backbone once (twice with `flip_test`), unless the features depend on the task.

    Args:
        method: The method to evaluate.
        seen: The tasks that it has learned, in order.
        options: Choose the part of the data, mirror images and the batch-norm statistics.
    """
    task_indices = [task.index for task in seen]
    # the statistics of a test batch depend on its size, so it has the size of training batches, as published
    batch_size = EVALUATION_BATCH if options.test_batch_norm == "running" else options.batch_size
    predictions = []
    with torch.inference_mode(), evaluating(method, statistics=options.test_batch_norm):
        for position, task in enumerate(seen):
            part = task.test if options.evaluate_on == "test" else task.validation
            own = _examples_of_this_process(part, options)
            given, not_given = [own.labels[:0]], [own.labels[:0]]
            for x, _ in evaluation_batches(task, own, batch_size, method.device):
                logits = task_logits(method, x, task_indices, options.flip_test)
                given.append(logits[position].argmax(dim=1).cpu())
                not_given.append(torch.cat(logits, dim=1).argmax(dim=1).cpu())
            columns = [torch.cat(given), torch.cat(not_given)]
            if own is not part:
                columns = [distributed.all_gather_rows(column) for column in columns]
            predictions.append(TaskPredictions(part.labels, *columns))
    return predictions


def _examples_of_this_process(part: Examples, options: TrainingOptions) -> Examples:
    """Return the slice of the examples that this process evaluates.

    It is all of them if batch statistics are used, because these depend on the whole batch.
    """
    if distributed.world_size() == 1 or options.test_batch_norm == "batch":
        return part
    own = distributed.own_slice(len(part))
    return Examples(part.pixels, part.rows[own], part.labels[own], part.features)


def task_logits(method: Method, x: Tensor, tasks: Sequence[int], flip: bool) -> list[Tensor]:
    """Return the logits of several tasks' heads, one (B, C_k) tensor for each task.

    Args:
        method: The method.
        x: Normalized images, (B, channels, H, W), or the features of V views of each image, (B, V, D).
        tasks: Indices of the tasks.
        flip: Whether to average the logits of each image and its mirror image. For features, these are the views;
            without it the first view counts.
    """
    if x.ndim == 3:
        x = x if flip else x[:, :1]
        logits = method.logits_per_task(x.flatten(0, 1), tasks)
        return [task_logits.unflatten(0, x.shape[:2]).mean(dim=1) for task_logits in logits]
    logits = method.logits_per_task(x, tasks)
    if flip:
        mirrored = method.logits_per_task(x.flip(3), tasks)
        logits = [(a + b) / 2 for a, b in zip(logits, mirrored, strict=True)]
    return logits


def evaluate(method: Method, seen: tuple[Task, ...], options: TrainingOptions) -> tuple[list[Accuracy], Accuracy]:
    """Return the accuracies on all tasks seen, in percent; None for a task that has no image to evaluate on.

    Returns:
        The accuracy on each task when the task is given, and the accuracy over all images when it is not.
    """
    accuracies: list[Accuracy] = []
    correct, count, first_class = 0, 0, 0
    for task, predictions in zip(seen, predict_tasks(method, seen, options), strict=True):
        labels = predictions.labels
        accuracies.append(percent(int((predictions.task_given == labels).sum()), len(labels)))
        correct += int((predictions.task_not_given == labels + first_class).sum())
        count += len(labels)
        first_class += len(task.class_names)
    return accuracies, percent(correct, count)


def percent(correct: int, count: int) -> Accuracy:
    """Return the share of correct answers in percent; None without images."""
    return 100 * correct / count if count else None
