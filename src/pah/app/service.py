"""The actions of the page on one learner, independent of how the page looks. Many threads may use them."""

import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from pah.app import uploads, views
from pah.app.answers import AcceptedLearner, Answer
from pah.app.learner_files import size_on_disk, zip_learner
from pah.app.lesson_queue import LessonQueue
from pah.app.prototype_images import load_prototype_images
from pah.core.config import InputError
from pah.data.image import decode_image, without_pillow_warnings
from pah.learner.export import export
from pah.learner.learner import ContinualLearner

TOUR = (("0 to 3", "0123"), ("4 to 6", "456"), ("7 to 9", "789"))  # three lessons of the embedded digits
TOUR_EPOCHS = 15
EPOCHS, SIZES = (1, 500), (8, 256)  # smallest and largest value that a visitor may choose
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")  # allowed names of a new learner's folder
THUMBNAIL_SIDE = 96  # pixels


def app_folder(folder: Path) -> Path:
    """Return the page's folder for a learner. It lies beside the learner, so a copied learner contains no images."""
    return folder.parent / f".{folder.name}.app"


class Service:
    """The actions on the learner in `folder`, which the first lesson makes if there is none.

    Args:
        folder: Folder of the learner.
        roots: Folders on this machine below which lessons may lie.

    Raises:
        InputError: the learner is damaged, or another server uses it.
    """

    def __init__(self, folder: Path, roots: Sequence[Path] = ()) -> None:
        self.folder, self.roots = folder, tuple(root.resolve() for root in roots)
        self.accepted = AcceptedLearner(folder)
        _ = self.accepted.learner  # load it now, so that a damaged one is refused at the start
        self.queue = LessonQueue(folder.resolve(), app_folder(folder.resolve()))
        self._prototype_uris: tuple[ContinualLearner, dict[tuple[str, str], str]] | None = None

    @property
    def tasks(self) -> list[dict[str, Any]]:
        """The tasks that the learner knows, with the accuracy that was measured last, in percent."""
        learner = self.accepted.learner
        accuracies = {
            name: accuracy
            for lesson in (learner.history if learner else ())
            for name, accuracy in lesson.accuracies.items()
        }
        return [
            {
                "name": task.name,
                "classes": list(task.classes),
                "taught": task.taught,
                "images": task.images,
                "accuracy": accuracies.get(task.name),
            }
            for task in (learner.tasks if learner else ())
        ]

    def ask(self, files: Sequence[str], task: str | None, unknown: bool) -> list[Answer]:
        """Return an answer for each image file; the task is inferred unless one is given."""
        with _short_file_names(files):
            return self.accepted.ask(list(files), task or None, unknown)

    def prototype_uri(self, task: str, label: str) -> str | None:
        """Return the image of a class's current prototype as a data URI; None if there is none."""
        learner = self.accepted.learner
        if learner is None:
            return None
        if self._prototype_uris is None or self._prototype_uris[0] is not learner:
            prototypes = load_prototype_images(learner, self.queue.prototypes)
            uris = {(prototype.task, prototype.label): views.data_uri(prototype.today) for prototype in prototypes}
            self._prototype_uris = learner, uris
        return self._prototype_uris[1].get((task, label))

    def describe_upload(self, archive: str | None, folder: str) -> str:
        """Return what a zip, or a folder on this machine, holds as HTML; unpacked files are deleted again."""
        with tempfile.TemporaryDirectory(dir=self.queue.home) as temporary:
            summary = uploads.summarize(self._image_folder(archive, folder, Path(temporary) / "images"))
            samples: dict[str, list[Image.Image]] = {}
            for name, file in summary.samples:
                samples.setdefault(name, []).append(thumbnail(str(file)))
            return views.upload_summary(summary, samples)

    def _image_folder(self, archive: str | None, folder: str, target: Path) -> Path:
        """Unpack the zip to `target` if there is one, and return the folder of the images."""
        if archive is None:
            return uploads.allowed_folder(folder, self.roots)
        return uploads.unpack(Path(archive), target)

    def teach(
        self, name: str, archive: str | None, folder: str, epochs: int, image_size: int, keep_check: bool
    ) -> dict[str, Any]:
        """Queue a lesson from a zip, or from a folder on this machine, and return it."""
        for option, value, (least, most) in (("epochs", epochs, EPOCHS), ("image size", image_size, SIZES)):
            if not least <= value <= most:
                raise InputError(f"{option}: expected {least} to {most}, got {value}")

        def provide_images(target: Path) -> Path:
            images = self._image_folder(archive, folder, target)
            uploads.summarize(images)  # refuses what a lesson would refuse
            return images

        if archive is None and not folder.strip():
            raise InputError("images: expected a zip of class folders, got none")
        options = {"epochs": int(epochs), "image_size": int(image_size), "keep_check": keep_check}
        return self.queue.teach(name, provide_images, **options).public_fields()

    @property
    def next_digits(self) -> str | None:
        """The name of the tour's next lesson; None after the last one, or if the learner's images are not digits."""
        learner = self.accepted.learner
        if learner is not None and learner.predictor.record.image_shape != (1, 8, 8):
            return None
        taken = {task["name"] for task in self.tasks} | {lesson.name for lesson in self.queue.lessons}
        return next((name for name, _ in TOUR if f"digits {name}" not in taken), None)

    def teach_digits(self) -> dict[str, Any]:
        """Queue the tour's next lesson, and return it."""
        name = self.next_digits
        if name is None:
            raise InputError("digits: expected a lesson that is left, got the end of the tour")
        classes = tuple(dict(TOUR)[name])
        lesson = self.queue.teach(
            f"digits {name}", lambda _: None, classes=classes, epochs=TOUR_EPOCHS, keep_check=True
        )
        return lesson.public_fields()

    def lessons(self) -> list[dict[str, Any]]:
        """Return all lessons that are not decided."""
        return [lesson.public_fields() for lesson in self.queue.lessons]

    def learner_html(self) -> str:
        """Return tasks, lessons and prototypes as HTML."""
        learner = self.accepted.learner
        if learner is None:
            return views.note("Nothing was taught yet: the first lesson makes the learner.")
        prototypes = load_prototype_images(learner, self.queue.prototypes)
        return views.learner_overview(learner, prototypes, size_on_disk(self.folder))

    def download(self, kind: str) -> tuple[str, bytes]:
        """Return the name and content of a download.

        Args:
            kind: "learner" for a zip of the learner, "report" for a web page, anything else for an ONNX file.
        """
        name, learner = self.folder.resolve().name, self.accepted.learner
        if learner is None:
            raise InputError("learner: expected one that was taught a lesson, got a new one")
        if kind == "learner":
            return f"{name}.zip", zip_learner(self.folder)
        if kind == "report":
            return f"{name}.html", views.whole_page(name, self.learner_html()).encode()
        with tempfile.TemporaryDirectory(dir=self.queue.home) as temporary:
            file = Path(temporary) / "learner.onnx"
            export(ContinualLearner.load(self.folder), file)
            return f"{name}.onnx", file.read_bytes()

    def close(self) -> None:
        """End a running lesson's process."""
        self.queue.close()


def thumbnail(file: str) -> Image.Image:
    """Return an image file as a small square image."""
    size = (THUMBNAIL_SIDE, THUMBNAIL_SIDE)
    with uploads.DECODING_LOCK, without_pillow_warnings():
        return Image.fromarray(decode_image({"path": file, "bytes": None}, "image", "RGB", size))


@contextmanager
def _short_file_names(files: Sequence[str]) -> Iterator[None]:
    """Inside the context, errors name uploaded files without their folders."""
    try:
        yield
    except InputError as error:
        message = str(error)
        for file in filter(None, files):
            message = message.replace(file, Path(file).name)
        raise InputError(message) from None
