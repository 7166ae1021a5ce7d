"""The effect of a lesson on the features: updated class statistics, and the accuracy that old tasks lost."""

import dataclasses

import torch

from pah.core.config import generator
from pah.data.augment import AugmentOptions, augment, recolour
from pah.data.task import Examples
from pah.learner.predictor import Predictor
from pah.models.class_statistics import ClassStatistics, FeatureMap, estimate_accuracy_drops

MAX_IMAGES = 500  # images of a lesson on which features are compared
VIEWS = 3  # views of each of these images


def fit_feature_map(before: Predictor, after: Predictor, examples: Examples, options: AugmentOptions) -> FeatureMap:
    """Fit the map from the features before a lesson to those after it.

    It is fitted on several views of the lesson's images and on a recolour copy of each view. On the images alone,
    a method that preserves their features would show no change, whatever it did to the features of old images.

    Args:
        before: The predictor before the lesson.
        after: The predictor after it.
        examples: The images of the lesson; at most `MAX_IMAGES` of them are used.
        options: How the views are augmented. The first view is not augmented.
    """
    if after.method.network.backbone.trained == "none":
        return FeatureMap.identity(after.method.network.backbone.features)
    chosen = torch.randperm(len(examples), generator=generator(0, "measured"))[:MAX_IMAGES]
    features_before, features_after = [], []
    for view in range(VIEWS):
        shifts, colours = generator(0, "view", view), generator(0, "colours", view)
        for rows in examples.rows[chosen].split(after.batch_size):
            pixels = examples.pixels[rows].cpu()
            x = after.record.normalization(augment(pixels, options if view else AugmentOptions(), shifts))
            views = after.kept(torch.cat([x, recolour(x, colours)]))
            features_before.append(before.features_of_normalized(views))
            features_after.append(after.features_of_normalized(views))
    return FeatureMap.fit(torch.cat(features_before), torch.cat(features_after))


def estimate_drift(before: Predictor, after: Predictor, feature_map: FeatureMap) -> dict[str, float]:
    """Estimate the share of its accuracy that each old task lost in a lesson.

    Returns:
        The share by task name, 0 to 1. Tasks without statistics are omitted.
    """
    tasks = range(len(before.record.tasks))
    drops = estimate_accuracy_drops(before.statistics_or_empty(), feature_map, before.heads(tasks), after.heads(tasks))
    names = (task.name for task in before.record.tasks)
    return {name: max(0.0, percent / 100) for name, percent in zip(names, drops, strict=True) if percent is not None}


def update_statistics(
    before: Predictor | None, after: Predictor, feature_map: FeatureMap | None, examples: Examples
) -> Predictor:
    """Return the predictor `after` a lesson with the statistics of all its classes.

    The statistics of the last task are computed from the lesson's images. Those of earlier tasks are mapped to the new
    features.
    """
    classes = after.method.network.sizes([len(after.record.tasks) - 1])[0]
    features = after.features(examples.inputs(examples.rows))
    statistics = ClassStatistics.from_features(features, examples.labels.cpu(), classes)
    if before is not None and feature_map is not None:
        statistics = before.statistics_or_empty().mapped(feature_map).merged(statistics)
    return dataclasses.replace(after, statistics=statistics)
