"""Calibration of a predictor on validation images: temperatures, and quantiles of the scores of known images."""

import dataclasses

import torch

from pah.data.task import Examples
from pah.learner.predictor import Predictor
from pah.learner.task_inference import (
    AMONG_ALL,
    KNOWN_SCORE,
    SCORES,
    Score,
    fit_temperature,
    score,
    score_quantiles,
)


def calibrate(predictor: Predictor, task_index: int, validation: Examples) -> Predictor:
    """Return a predictor with the task's temperature and score quantiles, from its validation images.

    Without validation images, the predictor is returned as it is. A task of one class gets the quantiles of its
    distances; its probabilities are 1 at any temperature.
    """
    if not len(validation):
        return predictor
    task = predictor.record.tasks[task_index]
    batches = validation.rows.split(predictor.batch_size)
    if len(task.classes) == 1:
        distances = torch.cat([predictor.class_distances(validation.inputs(rows), [task_index]) for rows in batches])
        return predictor.with_task(
            task_index, dataclasses.replace(task, quantiles={KNOWN_SCORE: score_quantiles(-distances[:, 0])})
        )
    with torch.inference_mode():
        logits = torch.cat([predictor.logits(validation.inputs(rows), [task_index])[0] for rows in batches])
        temperature = task.temperature * fit_temperature(logits, validation.labels)
        similarity = None
        if predictor.has_prototypes:
            prototypes = predictor.prototype_features([task_index])
            similarity = torch.cat(
                [predictor.prototype_similarity(validation.inputs(r), [task_index], prototypes) for r in batches]
            )
    logits = logits * task.temperature / temperature
    kinds: list[Score] = [kind for kind in SCORES if kind != "prototypes" or similarity is not None]
    quantiles: dict[str, tuple[float, ...]] = {
        kind: score_quantiles(score(kind, [logits], similarity)[:, 0]) for kind in kinds
    }
    return predictor.with_task(task_index, dataclasses.replace(task, temperature=temperature, quantiles=quantiles))


def calibrate_among_all(predictor: Predictor, task_index: int, validation: Examples) -> Predictor:
    """Return a predictor with the quantiles of the task's known scores among all tasks, from its validation images.

    If a task has not been calibrated, the predictor is returned as it is.
    """
    tasks = predictor.record.tasks
    if not all(task.quantiles for task in tasks):
        return predictor
    batches = predictor.predict_batches(validation.inputs(validation.rows), range(len(tasks)), KNOWN_SCORE)
    known_scores = torch.cat([batch.known_scores for batch in batches])
    quantiles = {**tasks[task_index].quantiles, AMONG_ALL: score_quantiles(known_scores)}
    return predictor.with_task(task_index, dataclasses.replace(tasks[task_index], quantiles=quantiles))
