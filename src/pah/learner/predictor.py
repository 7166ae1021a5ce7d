"""A trained network with the record of its tasks, and its predictions.

B: images of a batch, N: images of a data set, C: classes of a task, T: tasks, P: prototypes of all tasks, D: features.
"""

import copy
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from pah.core.config import InputError, require, unknown_name_error
from pah.data.sources import Source
from pah.learner.prediction import ClassProbability, Prediction, rank_classes
from pah.learner.store import Record, TaughtTask
from pah.learner.task_inference import (
    AMONG_ALL,
    KNOWN_SCORE,
    Rule,
    known_scores,
    largest_cosine_per_task,
    require_rule,
    task_scores,
    threshold,
)
from pah.methods.base import Method
from pah.models.batch_norm_folding import fold_batch_norm
from pah.models.class_statistics import ClassStatistics
from pah.models.network import GeneratedHeads, TaskNetwork
from pah.training.evaluation import task_logits

MAX_BATCH = 50  # images; larger batches do not fit the CPU cache (500 images of 64x64 take 1.5 times as long)
MAX_VECTORS, MAX_BATCH_PIXELS = 500, MAX_BATCH * 64 * 64  # keep the memory constant for larger images


class Evaluation(NamedTuple):
    """A learner's accuracy on labelled images of one task.

    Attributes:
        accuracy: Percent of the images whose class was predicted.
        images: Number of images.
        of_class: Accuracy on the images of each class, in percent, by class name.
        task_accuracy: Percent of the images whose task was inferred; None if the task was given.
    """

    accuracy: float
    images: int
    of_class: Mapping[str, float]
    task_accuracy: float | None


@dataclass(frozen=True)
class BatchPredictions:
    """Predictions for a batch of images; each tensor is (B,).

    Attributes:
        tasks: Index of the predicted task.
        classes: Index of the predicted class within its task.
        probabilities: Probability of the class within its task.
        task_probabilities: Share of the task among the task scores.
        known_scores: How likely the image shows a known class: the score of the given task, or the largest score of
            all tasks in the units of `task_scores`.
        task_given: Whether the task was given.
        ranking: The most likely classes of the predicted task, best first, and their probabilities, (B, K) each; a
            task with fewer than K classes is filled up with class -1. K is 0 unless a ranking was asked for.
    """

    tasks: Tensor
    classes: Tensor
    probabilities: Tensor
    task_probabilities: Tensor
    known_scores: Tensor
    task_given: bool
    ranking: tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Predictor:
    """A record and the method with the network that it describes. It is never changed; a lesson creates a new one.

    Args:
        record: Tasks, history and options.
        method: The method with the trained network.
        statistics: Class statistics of the features; None if there are none, or if features depend on the task.
    """

    record: Record
    method: Method
    statistics: ClassStatistics | None = None

    @property
    def batch_size(self) -> int:
        """Number of images that are predicted at a time."""
        _, height, width = self.record.image_shape
        if self.record.numbers is not None:
            return MAX_VECTORS
        return max(1, min(MAX_BATCH, MAX_BATCH_PIXELS // (height * width)))

    @property
    def shares_features(self) -> bool:
        """Whether an image's features are the same for every task."""
        return not isinstance(self.method.network, TaskNetwork)

    @property
    def has_prototypes(self) -> bool:
        """Whether images can be compared with prototypes: in features that do not depend on the task."""
        return isinstance(self.method.network.heads, GeneratedHeads) and self.shares_features

    @cached_property
    def _inference_method(self) -> Method:
        """A copy of the method for inference, with a faster backbone unless features depend on the task."""
        with torch.inference_mode(False):  # its tensors can be used with and without a graph
            method = copy.deepcopy(self.method).eval().requires_grad_(False)
            if not isinstance(method.network, TaskNetwork):
                method.network.backbone = fold_batch_norm(method.network.backbone)
        return method

    def copy(self) -> "Predictor":
        """Return a predictor with a copy of the network."""
        return Predictor(self.record, copy.deepcopy(self.method), self.statistics)

    def with_task(self, index: int, task: TaughtTask) -> "Predictor":
        """Return a predictor whose record has `task` at that position."""
        tasks = (*self.record.tasks[:index], task, *self.record.tasks[index + 1 :])
        return dataclasses.replace(self, record=dataclasses.replace(self.record, tasks=tasks))

    def index(self, name: str) -> int:
        """Return the position of a task; raise InputError, naming the known tasks, if the name is unknown."""
        names = [task.name for task in self.record.tasks]
        require(isinstance(name, str), "task", "the name of a task", name)
        if name not in names:
            raise unknown_name_error("task", name, names)
        return names.index(name)

    def logits(self, pixels: Tensor, tasks: Sequence[int]) -> list[Tensor]:
        """Return logits divided by each task's temperature, on the CPU.

        Args:
            pixels: Images, (B, channels, H, W) uint8, or the features of V views of each, (B, V, D).
            tasks: Positions of the tasks.

        Returns:
            A (B, C) tensor for each task.
        """
        if pixels.ndim == 4:
            pixels = pixels.contiguous(memory_format=torch.channels_last)  # bytes are faster to rearrange
        x = self._normalize(pixels)
        logits = task_logits(self._inference_method, x, tasks, self.record.config.training.flip_test)
        return [z.cpu() / self.record.tasks[k].temperature for k, z in zip(tasks, logits, strict=True)]

    def _normalize(self, pixels: Tensor) -> Tensor:
        """Return pixels as the network's input, on its device; features stay as they are."""
        if pixels.ndim < 4:
            return pixels.to(self._inference_method.device)
        return self.record.normalization(pixels.to(self._inference_method.device))

    def predict_batches(
        self, pixels: Tensor, tasks: Sequence[int], rule: Rule, top: int = 0
    ) -> Iterator[BatchPredictions]:
        """Yield predictions among the classes of `tasks`, batch by batch.

        Args:
            pixels: Images, (N, channels, H, W) uint8, or the features of V views of each, (N, V, D).
            tasks: Positions of the tasks; with a single one, the task is given.
            rule: How the task is inferred.
            top: Number of classes in the ranking.

        Raises:
            InputError: the rule needs prototypes, and the network has none.
        """
        require_rule(rule)
        uses_prototypes = rule in ("prototypes", "combined") and len(tasks) > 1
        if uses_prototypes and not self.has_prototypes:
            raise InputError(
                f"rule: expected softmax, energy or contrast, as there are no prototypes to compare with, got {rule}"
            )
        with torch.inference_mode():
            prototypes = self.prototype_features(tasks) if uses_prototypes else None
            for batch in pixels.split(self.batch_size):
                yield self._predict_batch(batch, tasks, rule if len(tasks) > 1 else KNOWN_SCORE, prototypes, top)

    def _predict_batch(
        self, pixels: Tensor, tasks: Sequence[int], rule: Rule, prototypes: Tensor | None, top: int
    ) -> BatchPredictions:
        """Return predictions for one batch; `prototypes` are the features (P, D) of the tasks' prototypes."""
        logits = self.logits(pixels, tasks)
        similarity = None if prototypes is None else self.prototype_similarity(pixels, tasks, prototypes)
        distances = self.class_distances(pixels, tasks) if 1 in self.method.network.sizes(tasks) else None
        quantiles = [self.record.tasks[k].quantiles for k in tasks]
        scores = task_scores(rule, logits, similarity, quantiles, distances)  # (B, T)
        best = scores.argmax(dim=1)
        rows = torch.arange(len(best))
        of_classes = [z.softmax(dim=1) for z in logits]
        probabilities, classes = zip(*(p.max(dim=1) for p in of_classes), strict=True)
        return BatchPredictions(
            tasks=torch.tensor(tasks)[best],
            classes=torch.stack(classes, dim=1)[rows, best],
            probabilities=torch.stack(probabilities, dim=1)[rows, best],
            task_probabilities=scores.softmax(dim=1)[rows, best],
            known_scores=known_scores(logits, quantiles, distances),
            task_given=len(tasks) == 1,
            ranking=rank_classes(of_classes, best, top),
        )

    def prototype_features(self, tasks: Sequence[int]) -> Tensor:
        """Return the features (P, D) of the tasks' prototypes, on the CPU."""
        network = self._inference_method.network
        assert isinstance(network.heads, GeneratedHeads), "the caller checks has_prototypes"
        prototypes = network.heads.prototypes
        features: Tensor = network.backbone(prototypes.to_images(prototypes.batch(tasks), self.record.image_shape[0]))
        return features.cpu()

    def prototype_similarity(self, pixels: Tensor, tasks: Sequence[int], prototypes: Tensor) -> Tensor:
        """Return the largest similarity of each image to a prototype of each task, (B, T).

        Args:
            pixels: Images, (B, channels, H, W) uint8.
            tasks: Positions of the tasks.
            prototypes: Features of the tasks' prototypes, (P, D).
        """
        sizes = self._inference_method.network.sizes(tasks)
        return largest_cosine_per_task(self.features(pixels), prototypes, sizes)

    def class_distances(self, pixels: Tensor, tasks: Sequence[int]) -> Tensor:
        """Return the distances of images (B, channels, H, W) uint8 from the class means of each task, (B, T)."""
        return self.statistics_or_empty().distances(self.features(pixels), tasks)

    def to_predictions(self, batch: BatchPredictions, unknown_rate: float | None) -> Iterator[Prediction]:
        """Yield the predictions of a batch with names.

        Args:
            batch: The predictions of a batch.
            unknown_rate: Share of images of known classes for which "none of these" may be predicted; never if None.

        Raises:
            InputError: there are no validation scores to derive the threshold from.
        """
        tasks = self.record.tasks
        columns = (batch.tasks, batch.classes, batch.probabilities, batch.task_probabilities, batch.known_scores)
        rows = zip(*(column.tolist() for column in (*columns, *batch.ranking)), strict=True)
        for k, c, probability, share, known, ranked, ranked_probabilities in rows:
            unknown = unknown_rate is not None and known < self._threshold(
                k if batch.task_given else None, unknown_rate
            )
            answer = Prediction(None if unknown else tasks[k].classes[c], tasks[k].name, probability, share)
            names = [tasks[k].classes[other] for other in ranked if other >= 0]
            answer.top = tuple(map(ClassProbability, names, ranked_probabilities))
            yield answer

    def _threshold(self, task_index: int | None, rate: float) -> float:
        """Return the known score below which that share of known images falls.

        With a `task_index`, the score is that of this task; without, it is that among all tasks.
        """
        tasks = self.record.tasks
        kind, task = (AMONG_ALL, tasks[-1]) if task_index is None else (KNOWN_SCORE, tasks[task_index])
        if kind not in task.quantiles:
            raise InputError(
                f"unknown: expected tasks that were learned with validation images, got {task.name!r} without; "
                "a stream.validation above 0 gives them"
            )
        return threshold(task.quantiles[kind], rate)

    def evaluate(self, images: Source, task_index: int, rule: Rule | None) -> Evaluation:
        """Return the accuracy on the test part of labelled images of a task.

        Args:
            images: The images; their classes are among those of the task.
            task_index: Position of the task.
            rule: How the task is inferred; if None, the task is given.

        Raises:
            InputError: a class is not among those of the task.
        """
        task = self.record.tasks[task_index]
        positions = {name: c for c, name in enumerate(task.classes)}
        if foreign := [name for name in images.class_names if name not in positions]:
            raise InputError(
                f"{images.origin}: expected classes of task {task.name!r} ({', '.join(task.classes)}), "
                f"got {foreign[0]!r}"
            )
        require(len(images.test) > 0, str(images.origin), "images to evaluate", "none")
        labels = torch.tensor([positions[name] for name in images.class_names])[images.test.labels]
        candidates = [task_index] if rule is None else list(range(len(self.record.tasks)))
        batches = list(self.predict_batches(images.test.pixels, candidates, rule or "softmax"))
        right_task = torch.cat([batch.tasks for batch in batches]) == task_index
        right = right_task & (torch.cat([batch.classes for batch in batches]) == labels)
        return Evaluation(
            accuracy=100 * right.double().mean().item(),
            images=len(labels),
            of_class={
                task.classes[c]: 100 * right[labels == c].double().mean().item() for c in labels.unique().tolist()
            },
            task_accuracy=None if rule is None else 100 * right_task.double().mean().item(),
        )

    def features(self, pixels: Tensor) -> Tensor:
        """Return the features (N, D) of images, on the CPU.

        Args:
            pixels: (N, channels, H, W) uint8, or the features of V views of each, (N, V, D), of which it is the first.
        """
        batches = (pixels[:, 0] if pixels.ndim == 3 else pixels).split(self.batch_size)
        return torch.cat([self.features_of_normalized(self._normalize(batch)) for batch in batches])

    def kept(self, x: Tensor) -> Tensor:
        """Return what lessons do not change of normalized images, (B, K), if the backbone keeps it; otherwise `x`."""
        backbone = self._inference_method.network.backbone
        with torch.inference_mode():
            return x if backbone.kept_size is None else backbone.kept(x.to(self._inference_method.device))

    def features_of_normalized(self, x: Tensor) -> Tensor:
        """Return the features (B, D) of normalized images (B, channels, H, W) or of `kept`, on the CPU."""
        with torch.inference_mode():
            features: Tensor = self._inference_method.network.backbone(x.to(self._inference_method.device))
            return features.cpu()

    def heads(self, tasks: Sequence[int]) -> list[Tensor]:
        """Return the heads of the tasks, (C, D + 1) each, on the CPU."""
        network = self._inference_method.network
        with torch.inference_mode():
            return list(network.heads.rows(tasks).cpu().split(network.sizes(tasks)))

    def statistics_or_empty(self) -> ClassStatistics:
        """Return the class statistics; empty ones for a learner of an older format, which has none."""
        return self.statistics or ClassStatistics.empty(len(self.record.tasks), self.method.network.backbone.features)
