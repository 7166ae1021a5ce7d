"""The prototypes of a learner as images: at their start, after their own lesson and today."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pah.app.stored_files import belongs_to
from pah.learner.learner import ContinualLearner
from pah.learner.predictor import Predictor
from pah.learner.store import TaughtTask
from pah.models.network import GeneratedHeads


@dataclass(frozen=True)
class PrototypeImages:
    """The images of a class's prototype.

    Args:
        task: Name of the task.
        label: Name of the class.
        start: The prototype before its lesson; None if it was not saved.
        learned: The prototype after its own lesson; None if it was not saved.
        today: The prototype as it is now.
        moved: Distance between `learned` and `today`, relative to the norm of `learned`; None if that was not saved.
    """

    task: str
    label: str
    start: Image.Image | None
    learned: Image.Image | None
    today: Image.Image
    moved: float | None


def load_prototype_images(learner: ContinualLearner, folder: Path) -> list[PrototypeImages]:
    """Return the prototypes of every class as images.

    Args:
        learner: The learner, whose prototypes are those of today.
        folder: Folder with the prototypes that were saved after each lesson.
    """
    saved = _load_saved(folder, learner.tasks)
    images = []
    for task, today in zip(learner.tasks, _current_prototypes(learner.predictor), strict=False):
        # prototypes of another shape are those of a forgotten task of the same name
        earlier = {moment: old for moment, old in saved.get(task.name, {}).items() if old.shape == today.shape}
        for c, label in enumerate(task.classes):
            shown = {moment: _to_image(learner, old[c]) for moment, old in earlier.items()}
            learned = earlier["learned"][c] if "learned" in earlier else None
            moved = None if learned is None else float((today[c] - learned).norm() / learned.norm())
            now = _to_image(learner, today[c])
            images.append(PrototypeImages(task.name, label, shown.get("start"), shown.get("learned"), now, moved))
    return images


def _current_prototypes(predictor: Predictor) -> list[Tensor]:
    """Return each task's prototypes, (C, channels, s, s); an empty list for a network without prototypes."""
    heads = predictor.method.network.heads
    return [p.detach() for p in heads.prototypes.tasks] if isinstance(heads, GeneratedHeads) else []


def _to_image(learner: ContinualLearner, prototype: Tensor) -> Image.Image:
    """Return a prototype (channels, s, s) as an RGB image."""
    pixels = learner.predictor.record.normalization.denormalize(prototype)
    return Image.fromarray(pixels.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy())


def _load_saved(folder: Path, tasks: Sequence[TaughtTask]) -> dict[str, dict[str, Tensor]]:
    """Return the saved prototypes of these tasks by task and by moment, which is "start" or "learned"."""
    prototypes = {}
    for path in sorted(folder.glob("*.safetensors")):
        task = next((task for task in tasks if belongs_to(path, task)), None)
        try:
            with safe_open(path, "pt") as file:
                if task is not None:
                    prototypes[task.name] = {moment: file.get_tensor(moment) for moment in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError):  # a damaged file must not hide the other prototypes
            continue
    return prototypes
