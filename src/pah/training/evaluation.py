"""What a method answers to the images of every task seen, and how often it is right."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pah.core import distributed
from pah.data.stream import evaluation_batches
from pah.data.task import Examples, Task
from pah.methods.base import Method
from pah.models.modes import evaluating
from pah.training.options import TrainingOptions

EVALUATION_BATCH = 500


@dataclass(frozen=True)
class Answers:
    """What a method answers to the images of one task, in order; each (N,), int64, on the processor."""

    labels: Tensor  # the truth, within the task
    given: Tensor  # the answer within the task, task given
    not_given: Tensor  # the answer among the classes of all tasks seen, task after task


def answers(method: Method, seen: tuple[Task, ...], options: TrainingOptions) -> list[Answers]:
    """The method's answers to the images of each task seen; task not given, that of the largest logit of all heads.

    One backbone pass an image (two with `flip_test`), unless the features depend on the task.
    """
    indices = [task.index for task in seen]
    # the statistics of a test batch depend on its size: then it is the size of training, as published
    size = EVALUATION_BATCH if options.test_batch_norm == "running" else options.batch_size
    found = []
    with torch.inference_mode(), evaluating(method, statistics=options.test_batch_norm):
        for position, task in enumerate(seen):
            part = task.test if options.evaluate_on == "test" else task.validation
            own = _own_examples(part, options)
            given, not_given = [own.labels[:0]], [own.labels[:0]]
            for x, _ in evaluation_batches(task, own, size, method.device):
                logits = task_logits(method, x, indices, options.flip_test)
                given.append(logits[position].argmax(dim=1).cpu())
                not_given.append(torch.cat(logits, dim=1).argmax(dim=1).cpu())
            both = (torch.cat(given), torch.cat(not_given))
            found.append(Answers(part.labels, *(each if own is part else distributed.together(each) for each in both)))
    return found


def _own_examples(part: Examples, options: TrainingOptions) -> Examples:
    """The slice of a test part that this process answers; all of it where a batch's own statistics count."""
    if distributed.count() == 1 or options.test_batch_norm == "batch":
        return part
    own = distributed.own_part(len(part))
    return Examples(part.pixels, part.rows[own], part.labels[own])


def task_logits(method: Method, x: Tensor, tasks: Sequence[int], flip: bool) -> list[Tensor]:
    """Logits of several tasks' heads, with `flip` the mean over an image and its mirror image: a (B, C_k) for each."""
    logits = method.answers(x, tasks)
    if flip:
        logits = [(a + b) / 2 for a, b in zip(logits, method.answers(x.flip(3), tasks), strict=True)]
    return logits


def evaluate(method: Method, seen: tuple[Task, ...], options: TrainingOptions) -> tuple[list[float], float]:
    """Accuracy in percent on each task seen, task given; and over all their images together, task not given."""
    accuracies, correct, count, offset = [], 0, 0, 0
    for task, found in zip(seen, answers(method, seen, options), strict=True):
        accuracies.append(100 * int((found.given == found.labels).sum()) / len(found.labels))
        correct += int((found.not_given == found.labels + offset).sum())
        count += len(found.labels)
        offset += len(task.class_names)
    return accuracies, 100 * correct / count
