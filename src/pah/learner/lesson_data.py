"""The labelled images or vectors of a lesson, as a learner takes them."""

import dataclasses
from collections.abc import Sequence

from pah.core.config import require
from pah.data.given_images import has_columns
from pah.data.lesson import LessonData, load_lesson
from pah.data.read_options import ReadOptions
from pah.data.sources import Source
from pah.learner.store import Record
from pah.training.config import RunConfig
from pah.training.vector_options import require_kind


def load_labelled(
    data: LessonData,
    config: RunConfig,
    record: Record | None,
    options: ReadOptions,
    classes: Sequence[str] | None = None,
) -> Source:
    """Return labelled images in a learner's size and channels, or vectors of its length.

    Args:
        data: The data, in any form that `pah.data.lesson.load_lesson` accepts.
        config: The learner's options.
        record: Its record; None before the first lesson.
        options: How the data are read.
        classes: Use only these classes; all unless given.

    Raises:
        InputError: the data are invalid, or images for a learner of vectors, or the other way round.
    """
    if record is None:
        size, backbone = config.image_size, config.backbone_options
        channels, resizing = backbone.start_channels(), backbone.resizing
    else:
        channels, height, width = record.image_shape
        require(height == width, "learner", "square images", f"{height}x{width}")
        size, resizing = None if config.takes_vectors else height, record.resizing
    source = load_lesson(data, size, channels, classes=classes, options=options, resizing=resizing)
    require_kind(config.backbone, config.backbone_options, source)
    return source


def check_options(data: LessonData, options: ReadOptions) -> ReadOptions:
    """Return how the held-out data of an old task are read, without names that only the lesson's data have.

    Args:
        data: The held-out data.
        options: How the lesson's data are read.
    """
    column = options.column if has_columns(data) else None
    return dataclasses.replace(options, label_column=None, test_split=None, column=column)
