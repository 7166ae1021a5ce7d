"""A network that has been taught tasks, and what it answers.

B: images, N: images of a data set, C: classes of a task, T: tasks.
"""

import copy
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from pah.core.config import InputError, unknown
from pah.data.sources import Source
from pah.data.task import Examples
from pah.learner.store import STATISTICS, Record, TaughtTask
from pah.learner.task_inference import (
    AMONG_ALL,
    KNOWN,
    SCORES,
    SHARES,
    Rule,
    Score,
    fit_temperature,
    nearness_to,
    quantiles,
    score,
    task_scores,
    threshold,
)
from pah.methods.base import Method
from pah.models.class_statistics import ClassStatistics
from pah.models.folding import folded
from pah.models.network import GeneratedHeads, TaskNetwork
from pah.training.config import build_method
from pah.training.evaluation import task_logits

BATCH = 50  # images that are asked about at a time: more no longer fit the cache (1.5 times the time at 500, 64x64)
PIXELS = BATCH * 64 * 64  # of a batch, at most: memory stays the same with larger images


class Prediction(NamedTuple):
    """An answer about one image.

    Attributes:
        label: The class; None for "none of these".
        task: Whose class it is.
        probability: Of the class among its task's, 0 to 1, calibrated.
        task_probability: The share of the task in the scores by which it was chosen, 0 to 1; 1 where it was given.
    """

    label: str | None
    task: str
    probability: float
    task_probability: float


class Evaluation(NamedTuple):
    """How a learner answered about labelled images of a task.

    Attributes:
        accuracy: In percent.
        images: How many there were.
        of_class: The accuracy on the images of each class, in percent.
        task_accuracy: For how many of them the task was found, in percent; None where it was given.
    """

    accuracy: float
    images: int
    of_class: Mapping[str, float]
    task_accuracy: float | None


@dataclass(frozen=True)
class BatchAnswers:
    """Answers to a batch, each (B,): task, class within it, its probability, the task's share, how known it is: by the
    score of the task that was given, or by the best of all tasks', counted as `task_scores` does."""

    tasks: Tensor
    classes: Tensor
    probabilities: Tensor
    shares: Tensor
    known: Tensor
    given: bool  # whether the task was


@dataclass(frozen=True)
class Predictor:
    """A record and the method whose network it describes. A lesson makes another one, it does not change this one."""

    record: Record
    method: Method
    statistics: ClassStatistics | None = None  # of features; None where these depend on the task

    @classmethod
    def restored(cls, record: Record, weights: Mapping[str, Tensor]) -> "Predictor":
        """The taught network as it was saved; InputError if the weights are not those of the record's network."""
        try:
            with torch.device("meta"):  # its shapes alone: what is described may be larger than any memory
                wanted = _untaught(record).network.state_dict()
        except (RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"learner: expected a network that can be built, got: {reason}") from None
        statistics = {
            name.removeprefix(STATISTICS): tensor for name, tensor in weights.items() if name.startswith(STATISTICS)
        }
        weights = {name: tensor for name, tensor in weights.items() if not name.startswith(STATISTICS)}
        for name in sorted({*wanted, *weights}):
            expected, came = (list(of[name].shape) if name in of else "none" for of in (wanted, weights))
            if expected != came:
                raise InputError(
                    f"weights: expected those of the network that is described, got {name} of shape {came} and not "
                    f"{expected}"
                )
        if any(len(kept) != len(SHARES) for task in record.tasks for kept in task.quantiles.values()):
            raise InputError(f"learner: expected {len(SHARES)} quantiles of each score, got another number")
        method = _untaught(record)
        method.network.load_state_dict(weights, strict=True)
        sizes, features = method.network.sizes(range(len(record.tasks))), method.network.backbone.features
        known = ClassStatistics.from_tensors(statistics, sizes, features) if statistics else None
        return cls(record, method, known)

    @property
    def batch_size(self) -> int:
        """Images that are asked about at a time."""
        _, height, width = self.record.image_shape
        return max(1, min(BATCH, PIXELS // (height * width)))

    @cached_property
    def _answering(self) -> Method:
        """A copy of the method for answering alone: with a faster backbone, unless features depend on the task."""
        with torch.inference_mode(False):  # tensors that whoever asks may use with or without a graph
            found = copy.deepcopy(self.method).eval().requires_grad_(False)
            if not isinstance(found.network, TaskNetwork):
                found.network.backbone = folded(found.network.backbone)
        return found

    def copied(self) -> "Predictor":
        """The same, with a network of its own."""
        return Predictor(self.record, copy.deepcopy(self.method), self.statistics)

    def index(self, name: str) -> int:
        """The position of a task; InputError, naming those known, if there is none of that name."""
        names = [task.name for task in self.record.tasks]
        if name not in names:
            raise unknown("task", name, names)
        return names.index(name)

    def logits(self, pixels: Tensor, tasks: Sequence[int]) -> list[Tensor]:
        """Logits divided by each task's temperature: pixels (B, channels, H, W) uint8 -> a (B, C) for each task.

        Whatever the network's device, what it answers is judged on the processor.
        """
        x = self._prepared(pixels.contiguous(memory_format=torch.channels_last))  # as bytes: a quarter to move
        found = task_logits(self._answering, x, tasks, self.record.config.training.flip_test)
        return [z.cpu() / self.record.tasks[k].temperature for k, z in zip(tasks, found, strict=True)]

    def _prepared(self, pixels: Tensor) -> Tensor:
        """Pixels as the network takes them, on its device."""
        return self.record.normalization(pixels.to(self._answering.device))

    def calibrated(self, index: int, held: Examples) -> "Predictor":
        """With a task's temperature and quantiles, from its validation images; as it was if there are none."""
        if not len(held):
            return self
        task = self.record.tasks[index]
        with torch.inference_mode():
            logits = torch.cat(
                [self.logits(held.pixels[rows], [index])[0] for rows in held.rows.split(self.batch_size)]
            )
            temperature = task.temperature * fit_temperature(logits, held.labels)
            near = None
            if self._has_prototypes:
                of = self._features_of_prototypes([index])
                near = torch.cat(
                    [self._nearness(held.pixels[r], [index], of) for r in held.rows.split(self.batch_size)]
                )
        logits = logits * task.temperature / temperature
        kinds: list[Score] = [kind for kind in SCORES if kind != "prototypes" or near is not None]
        kept: dict[str, tuple[float, ...]] = {kind: quantiles(score(kind, [logits], near)[:, 0]) for kind in kinds}
        return self._with(index, dataclasses.replace(task, temperature=temperature, quantiles=kept))

    def calibrated_among_all(self, index: int, held: Examples) -> "Predictor":
        """With a task's quantiles of how known its validation images are among all tasks, each of them calibrated."""
        tasks = self.record.tasks
        if not all(task.quantiles for task in tasks):
            return self
        known = torch.cat([found.known for found in self.answer(held.pixels[held.rows], range(len(tasks)), KNOWN)])
        task = dataclasses.replace(tasks[index], quantiles={**tasks[index].quantiles, AMONG_ALL: quantiles(known)})
        return self._with(index, task)

    def _with(self, index: int, task: TaughtTask) -> "Predictor":
        tasks = (*self.record.tasks[:index], task, *self.record.tasks[index + 1 :])
        return dataclasses.replace(self, record=dataclasses.replace(self.record, tasks=tasks))

    def answer(self, pixels: Tensor, tasks: Sequence[int], rule: Rule) -> Iterator[BatchAnswers]:
        """Answers about images (N, channels, H, W) uint8, batch by batch, among the `tasks`.

        Raises:
            InputError: the rule asks prototypes, which the network does not have.
        """
        asks = rule in ("prototypes", "combined") and len(tasks) > 1
        if asks and not self._has_prototypes:
            raise InputError(
                f"rule: expected softmax, energy or contrast, as there are no prototypes to compare with, got {rule}"
            )
        with torch.inference_mode():
            of_prototypes = self._features_of_prototypes(tasks) if asks else None
            for batch in pixels.split(self.batch_size):
                yield self._answer(batch, tasks, rule if len(tasks) > 1 else KNOWN, of_prototypes)

    def _answer(self, pixels: Tensor, tasks: Sequence[int], rule: Rule, of_prototypes: Tensor | None) -> BatchAnswers:
        logits = self.logits(pixels, tasks)
        near = None if of_prototypes is None else self._nearness(pixels, tasks, of_prototypes)
        kept = [self.record.tasks[k].quantiles for k in tasks]
        scores = task_scores(rule, logits, near, kept)  # (B, T)
        known = task_scores(KNOWN, logits, near, kept) if len(tasks) > 1 else score(KNOWN, logits, near)
        best = scores.argmax(dim=1)
        each = torch.arange(len(best))
        probability, label = zip(*(z.softmax(dim=1).max(dim=1) for z in logits), strict=True)
        return BatchAnswers(
            tasks=torch.tensor(tasks)[best],
            classes=torch.stack(label, dim=1)[each, best],
            probabilities=torch.stack(probability, dim=1)[each, best],
            shares=scores.softmax(dim=1)[each, best],
            known=known.amax(dim=1),
            given=len(tasks) == 1,
        )

    @property
    def _has_prototypes(self) -> bool:
        """Whether images can be compared with prototypes: in features that do not depend on the task."""
        return isinstance(self.method.network.heads, GeneratedHeads) and self.shares_features

    def _features_of_prototypes(self, tasks: Sequence[int]) -> Tensor:
        """(P, D) of the tasks' prototypes."""
        network = self._answering.network
        assert isinstance(network.heads, GeneratedHeads), "the caller asks whether there are prototypes"
        prototypes = network.heads.prototypes
        features: Tensor = network.backbone(prototypes.as_images(prototypes.of(tasks), self.record.image_shape[0]))
        return features.cpu()

    def _nearness(self, pixels: Tensor, tasks: Sequence[int], of_prototypes: Tensor) -> Tensor:
        """How near images are to each task's prototypes, (B, T)."""
        network = self._answering.network
        features = network.backbone(self._prepared(pixels))
        return nearness_to(features.cpu(), of_prototypes, network.sizes(tasks))

    def predictions(self, found: BatchAnswers, unknown_rate: float | None) -> Iterator[Prediction]:
        """Answers by name; with `unknown_rate`, "none of these" below the score that so many known images miss.

        Raises:
            InputError: it is not known how known images score.
        """
        tasks = self.record.tasks
        columns = (found.tasks, found.classes, found.probabilities, found.shares, found.known)
        for k, c, p, share, known in zip(*(column.tolist() for column in columns), strict=True):
            unknown = unknown_rate is not None and known < self._threshold(k if found.given else None, unknown_rate)
            yield Prediction(None if unknown else tasks[k].classes[c], tasks[k].name, p, share)

    def _threshold(self, given: int | None, rate: float) -> float:
        """What that share of known images scores less than: of a task that is given, or of the last one among all."""
        tasks = self.record.tasks
        kind, asked = (AMONG_ALL, tasks[-1]) if given is None else (KNOWN, tasks[given])
        if kind not in asked.quantiles:
            raise InputError(
                f"unknown: expected tasks that were taught with validation images, got {asked.name!r} without; "
                "a stream.validation above 0 gives them"
            )
        return threshold(asked.quantiles[kind], rate)

    def evaluate(self, images: Source, task: int, rule: Rule | None) -> Evaluation:
        """Accuracy on the test part of labelled images of a task; with a rule, the task is not given."""
        known = self.record.tasks[task]
        positions = {name: c for c, name in enumerate(known.classes)}
        if foreign := [name for name in images.class_names if name not in positions]:
            raise InputError(
                f"{images.where}: expected classes of task {known.name!r} ({', '.join(known.classes)}), "
                f"got {foreign[0]!r}"
            )
        labels = torch.tensor([positions[name] for name in images.class_names])[images.test.labels]
        among = [task] if rule is None else list(range(len(self.record.tasks)))
        found = list(self.answer(images.test.pixels, among, rule or "softmax"))
        tasks, classes = (torch.cat([getattr(f, part) for f in found]) for part in ("tasks", "classes"))
        right = (tasks == task) & (classes == labels)
        return Evaluation(
            accuracy=100 * right.double().mean().item(),
            images=len(labels),
            of_class={
                known.classes[c]: 100 * right[labels == c].double().mean().item() for c in labels.unique().tolist()
            },
            task_accuracy=None if rule is None else 100 * (tasks == task).double().mean().item(),
        )

    @property
    def shares_features(self) -> bool:
        """Whether an image's features are the same for every task."""
        return not isinstance(self.method.network, TaskNetwork)

    def features(self, pixels: Tensor) -> Tensor:
        """The features of images (N, channels, H, W) uint8: (N, D), on the processor."""
        return torch.cat([self.prepared_features(self._prepared(part)) for part in pixels.split(self.batch_size)])

    def prepared_features(self, x: Tensor) -> Tensor:
        """The features of prepared images (B, channels, H, W): (B, D), on the processor."""
        with torch.inference_mode():
            features: Tensor = self._answering.network.backbone(x.to(self._answering.device))
            return features.cpu()

    def heads(self, tasks: Sequence[int]) -> list[Tensor]:
        """The heads of tasks, (C, D + 1) each, on the processor."""
        network = self._answering.network
        with torch.inference_mode():
            return list(network.heads.rows(tasks).cpu().split(network.sizes(tasks)))

    def known_statistics(self) -> ClassStatistics:
        """Its statistics; of an older learner, which kept none, those of unknown tasks."""
        return self.statistics or ClassStatistics.unknown(len(self.record.tasks), self.method.network.backbone.features)


def _untaught(record: Record) -> Method:
    """The method on its network, with room for all tasks of the record."""
    method = build_method(record.config, record.image_shape)
    for task in record.tasks:
        method.network.grow(len(task.classes))
    method.task = len(record.tasks) - 1
    return method
