"""What there is to see of a learner, and to take away: tasks, lessons, prototypes, and files."""

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pah.app.asking import prototypes_of
from pah.core.config import InputError
from pah.learner.hub import CARD
from pah.learner.learner import ContinualLearner
from pah.learner.store import LEARNER, WEIGHTS

FILES = (LEARNER, WEIGHTS, CARD)  # of a learner; what else lies in the folder is its owner's own


@dataclass(frozen=True)
class Portrait:
    """A class's prototype as it started, after its own lesson and today; None where it was not kept."""

    task: str
    label: str
    start: Image.Image | None
    then: Image.Image | None
    today: Image.Image
    moved: float | None  # since, relative to its norm then


def portraits(learner: ContinualLearner, kept: Path) -> list[Portrait]:
    """The prototypes of every class; `kept` is the folder of those that were kept after their lessons."""
    taught, then = learner.taught, _kept(kept)
    found = []
    for task, today in zip(learner.tasks, prototypes_of(taught), strict=False):
        # another shape: of a forgotten task of that name
        known = {moment: of for moment, of in then.get(task.name, {}).items() if of.shape == today.shape}
        for c, label in enumerate(task.classes):
            shown = {moment: picture(learner, of[c]) for moment, of in known.items()}
            before = known["learned"][c] if "learned" in known else None
            moved = None if before is None else float((today[c] - before).norm() / before.norm())
            now = picture(learner, today[c])
            found.append(Portrait(task.name, label, shown.get("start"), shown.get("learned"), now, moved))
    return found


def picture(learner: ContinualLearner, prototype: Tensor) -> Image.Image:
    """A prototype (channels, s, s) as an image."""
    pixels = learner.taught.record.normalization.undone(prototype)
    return Image.fromarray(pixels.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy())


def _kept(folder: Path) -> dict[str, dict[str, Tensor]]:
    """Prototypes at their start and as learned in their own lesson, by task."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, "pt") as opened:
                found[opened.metadata()["task"]] = {moment: opened.get_tensor(moment) for moment in opened.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, KeyError, TypeError):  # a damaged picture is no reason to show nothing
            continue
    return found


def size_on_disk(folder: Path) -> int:
    """Bytes of the learner's files."""
    return sum((folder / name).stat().st_size for name in FILES if (folder / name).is_file())


def packed(folder: Path) -> bytes:
    """The learner's files as a zip.

    Raises:
        InputError: there is none.
    """
    if not (folder / LEARNER).is_file():
        raise InputError("learner: expected one that was taught a lesson, got a new one")
    ContinualLearner.load(folder)  # what is handed out is whole
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_STORED) as archive:
        for name in FILES:
            if (folder / name).is_file():
                archive.write(folder / name, f"{folder.name}/{name}")
    return whole.getvalue()
