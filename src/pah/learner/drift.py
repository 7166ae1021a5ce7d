"""What a lesson did to the features: the class statistics carried along, and the accuracy that old tasks have lost."""

import dataclasses

import torch

from pah.core.config import generator
from pah.data.augment import AugmentOptions, augment, recoloured
from pah.data.task import Examples
from pah.learner.predictor import Predictor
from pah.models.class_statistics import Carry, ClassStatistics, estimated_losses

MEASURED, VIEWS = 500, 3  # images of a lesson at most, and views of each, on which features are compared


def fit_carry(before: Predictor, after: Predictor, lesson: Examples, options: AugmentOptions) -> Carry:
    """Fit the map from the features before a lesson to those after it.

    It is fitted on some views of the lesson's images and on a recoloured copy of each view. On the images alone
    nothing changes that a method holds on them, whatever it did to old images.

    Args:
        before: The predictor before the lesson.
        after: The predictor after it.
        lesson: The images of the lesson; at most `MEASURED` of them are used.
        options: How the views are augmented; the first view is not.
    """
    chosen = torch.randperm(len(lesson), generator=generator(0, "measured"))[:MEASURED]
    old, new = [], []
    for view in range(VIEWS):
        shifts, colours = generator(0, "view", view), generator(0, "colours", view)
        for rows in lesson.rows[chosen].split(after.batch_size):
            pixels = lesson.pixels[rows].cpu()
            x = after.record.normalization(augment(pixels, options if view else AugmentOptions(), shifts))
            both = torch.cat([x, recoloured(x, colours)])
            old.append(before.prepared_features(both))
            new.append(after.prepared_features(both))
    return Carry.fitted(torch.cat(old), torch.cat(new))


def estimate_drift(before: Predictor, after: Predictor, carry: Carry) -> dict[str, float]:
    """Estimate the share of its accuracy that each old task has lost in a lesson, by task name, 0 to 1.

    Tasks without statistics are left out.
    """
    old = range(len(before.record.tasks))
    lost = estimated_losses(before.known_statistics(), carry, before.heads(old), after.heads(old))
    names = (task.name for task in before.record.tasks)
    return {name: max(0.0, percent / 100) for name, percent in zip(names, lost, strict=True) if percent is not None}


def update_statistics(before: Predictor | None, after: Predictor, carry: Carry | None, lesson: Examples) -> Predictor:
    """Return the predictor `after` a lesson with the statistics of all its classes.

    Those of the last task come from the lesson's images; those of the tasks before it are carried along.
    """
    classes = after.method.network.sizes([len(after.record.tasks) - 1])[0]
    features = after.features(lesson.pixels[lesson.rows])
    statistics = ClassStatistics.measured(features, lesson.labels.cpu(), classes)
    if before is not None and carry is not None:
        statistics = before.known_statistics().carried(carry).joined(statistics)
    return dataclasses.replace(after, statistics=statistics)
