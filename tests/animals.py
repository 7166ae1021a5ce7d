"""A small learner of two tasks for tests of the page that teach no lesson of their own."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from pah import ContinualLearner
from pah.app.lesson import Request, new_learner_config

TASKS = {"birds": ("wren", "stork"), "fish": ("eel", "carp")}


def lesson_images(classes: tuple[str, ...], seed: int = 0) -> tuple[np.ndarray[Any, Any], list[int], list[str]]:
    """Return 8 images of 8x8 for each class, which differ in brightness, with labels and names."""
    labels = [k for k in range(len(classes)) for _ in range(8)]
    noise = np.random.default_rng(seed).integers(0, 60, (len(labels), 8, 8, 3))
    return (noise + np.array(labels).reshape(-1, 1, 1, 1) * 90).astype(np.uint8), labels, list(classes)


@cache
def _animals() -> ContinualLearner:
    learner = ContinualLearner(config=new_learner_config(Request("", "", "", "images", image_size=8)))
    learner.config = replace(learner.config, training=replace(learner.config.training, epochs=1))
    for name, classes in TASKS.items():
        learner.learn(name, lesson_images(classes))
    return learner


def save_animals(folder: Path) -> Path:
    """Save a learner of birds and fish, which the test may change, in a new folder, and return the folder."""
    _animals().save(folder)
    return folder
