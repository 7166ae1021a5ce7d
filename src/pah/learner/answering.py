"""Answers of a predictor about images, all of them or those that can be read.

N: images, C: channels, H x W: pixels.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias, TypedDict, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pah.core.config import InputError, require
from pah.data.image import AnyImages, Pixels
from pah.data.vectors import AnyVectors, Vectors, as_pixels, asked_vectors, bad_rows, name_rows, require_finite
from pah.learner.arguments import unknown_rate
from pah.learner.prediction import Prediction
from pah.learner.predictor import Predictor
from pah.learner.store import Record
from pah.learner.task_inference import Rule, require_rule

Inputs: TypeAlias = AnyImages | AnyVectors  # of a prediction: images, or vectors for a learner of vectors


class How(TypedDict, total=False):
    """How images are answered, as in `ContinualLearner.predict`.

    Attributes:
        rule: How the task is inferred.
        unknown: Whether, or with which rate, "none of these" may be predicted.
        top: Number of classes in `Prediction.top`.
        max_megapixels: An image with more pixels counts as unreadable.
    """

    rule: Rule
    unknown: bool | float
    top: int
    max_megapixels: int


def predict(predictor: Predictor, images: Inputs, task: str | None, how: How) -> list[Prediction]:
    """Return a prediction for each image; InputError if one cannot be read, or if the task or a choice is invalid."""
    record = predictor.record
    if record.numbers is not None:
        vectors = require_finite(asked_vectors(images, record.numbers))
        return _answer(predictor, as_pixels(vectors), task, how)
    return _answer(predictor, record.decode(cast("AnyImages", images), how["max_megapixels"]), task, how)


def predict_readable(predictor: Predictor, images: Inputs, task: str | None, how: How) -> list[Prediction | None]:
    """Return a prediction for each image, None for those that cannot be read; InputError for an invalid choice."""
    record = predictor.record
    decoded: list[Pixels | Vectors | InputError]
    if record.numbers is not None:
        decoded = list(check_each(asked_vectors(images, record.numbers)))
    else:
        decoded = list(decode_each(cast("AnyImages", images), record, how["max_megapixels"]))
    readable = [pixels for pixels in decoded if not isinstance(pixels, InputError)]
    kind = np.uint8 if record.numbers is None else np.float32
    pixels: NDArray[Any] = np.stack(readable) if readable else np.empty((0, *record.image_shape), kind)
    answers = iter(_answer(predictor, pixels, task, how))
    return [None if isinstance(pixels, InputError) else next(answers) for pixels in decoded]


def check_each(vectors: Vectors, name: str = "vectors") -> Iterator[Vectors | InputError]:
    """Yield each of the vectors (N, D) as an array (D, 1, 1), or the reason why it is refused.

    Args:
        vectors: The vectors.
        name: What messages call them.
    """
    bad = set(bad_rows(vectors).tolist())
    for row, vector in enumerate(vectors):
        if row in bad:
            yield InputError(f"{name}: expected finite numbers, got NaN or infinite ones in {name_rows([row])}")
        else:
            yield vector[:, None, None]


def _answer(predictor: Predictor, pixels: Pixels | Vectors, task: str | None, how: How) -> list[Prediction]:
    """Return a prediction for each of the images (N, C, H, W) or vectors (N, D, 1, 1)."""
    rule, rate, top = how["rule"], unknown_rate(how["unknown"]), how["top"]
    require_rule(rule)
    require(top >= 0, "top", "a number of classes, at least 0", top)
    candidates = range(len(predictor.record.tasks)) if task is None else [predictor.index(task)]
    batches = predictor.predict_batches(torch.from_numpy(pixels), candidates, rule, top)
    return [prediction for batch in batches for prediction in predictor.to_predictions(batch, rate)]


def decode_each(images: AnyImages, record: Record, max_megapixels: int) -> Iterator[Pixels | InputError]:
    """Yield each image as an array (C, H, W), or the reason why it cannot be read.

    Args:
        images: As in `ContinualLearner.predict`.
        record: The learner's record, which says how images are read.
        max_megapixels: An image with more pixels counts as unreadable.
    """
    if isinstance(images, np.ndarray):
        yield from record.decode(images, max_megapixels)
        return
    for image in [images] if isinstance(images, str | Path | Image.Image) else images:
        try:
            yield record.decode([image], max_megapixels)[0]
        except InputError as error:
            yield error
