"""The files of a learner: their size, and all of them in one zip to download."""

import io
import zipfile
from pathlib import Path

from pah.core.config import InputError
from pah.learner.hub import CARD
from pah.learner.learner import ContinualLearner
from pah.learner.store import LEARNER_FILE, WEIGHTS_FILE

FILES = (LEARNER_FILE, WEIGHTS_FILE, CARD)  # other files in the folder do not belong to the learner


def size_on_disk(folder: Path) -> int:
    """Return the size of the learner's files in bytes."""
    return sum((folder / name).stat().st_size for name in FILES if (folder / name).is_file())


def zip_learner(folder: Path) -> bytes:
    """Return a zip of the learner's files.

    Raises:
        InputError: the folder has no learner, or a damaged one.
    """
    if not (folder / LEARNER_FILE).is_file():
        raise InputError("learner: expected one that was taught a lesson, got a new one")
    ContinualLearner.load(folder)  # a damaged learner is refused
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as archive:
        for name in FILES:
            if (folder / name).is_file():
                archive.write(folder / name, f"{folder.name}/{name}")
    return content.getvalue()
