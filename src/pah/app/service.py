"""The actions of the page on one learner, independent of how the page looks. Many threads may use them."""

import re
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from pah.app import uploads, views
from pah.app.accuracies import last_accuracies
from pah.app.answers import AcceptedLearner, Answer, Refusal
from pah.app.learner_files import size_on_disk, zip_learner
from pah.app.lesson import Request, new_learner_config
from pah.app.lesson_queue import LessonQueue
from pah.app.messages import quoted
from pah.app.prototype_images import load_prototype_images
from pah.app.stored_files import TEMPORARY
from pah.core.config import InputError
from pah.data.image import decode_image, without_pillow_warnings
from pah.learner.defaults import DEFAULT_SIZE
from pah.learner.export import export
from pah.learner.learner import ContinualLearner

TOUR = (("0 to 3", "0123"), ("4 to 6", "456"), ("7 to 9", "789"))  # three lessons of the embedded digits
TOUR_EPOCHS = 15
EPOCHS, SIZES = (1, 500), (8, 256)  # smallest and largest value that a visitor may choose
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")  # allowed names of a new learner's folder
THUMBNAIL_SIDE = 96  # pixels
WATCH_SECONDS = 2.0  # between two looks whether another program made the learner forget a task


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
        self._closed = threading.Event()
        threading.Thread(target=self._watch_for_forgotten_tasks, daemon=True).start()

    def _watch_for_forgotten_tasks(self) -> None:
        while not self._closed.wait(WATCH_SECONDS):
            self.queue.delete_forgotten()

    @property
    def tasks(self) -> list[dict[str, Any]]:
        """The tasks that the learner knows, with the accuracy in percent that was measured last, and on what."""
        learner = self.accepted.learner
        last = last_accuracies(learner.history, learner.tasks) if learner else {}
        return [
            {
                "name": task.name,
                "classes": list(task.classes),
                "taught": task.taught,
                "images": task.images,
                "accuracy": last[task.name].percent if task.name in last else None,
                "accuracy_after": last[task.name].lesson if task.name in last else None,
                "accuracy_on": last[task.name].measured_on if task.name in last else None,
                "accuracy_images": last[task.name].images if task.name in last else None,
            }
            for task in (learner.tasks if learner else ())
        ]

    def ask(self, files: Sequence[str], task: str | None, unknown: bool) -> list[Answer]:
        """Return an answer for each image file; the task is inferred unless one is given."""
        with _short_file_names(files):
            return self.accepted.ask(list(files), task or None, unknown)

    def ask_each(self, files: Sequence[str], task: str | None, unknown: bool) -> list[Answer | Refusal]:
        """Return an answer for each image file, or what is wrong with it."""
        return self.accepted.ask_each(files, task or None, unknown)

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
        with tempfile.TemporaryDirectory(dir=self.queue.home, prefix=TEMPORARY) as temporary:
            summary = uploads.summarize(self._image_folder(archive, folder, Path(temporary) / "images"))
            samples: dict[str, list[Image.Image]] = {}
            for name, file in summary.samples:
                samples.setdefault(name, []).append(thumbnail(str(file)))
            return views.upload_summary(summary, samples)

    def _image_folder(self, archive: str | None, folder: str, target: Path) -> Path:
        """Unpack the zip to `target` if there is one, and return the folder of the images."""
        if archive is not None and folder.strip():
            raise InputError(f"images: expected a zip or a folder, got both: a zip and {quoted(folder)}")
        if archive is None:
            return uploads.allowed_folder(folder, self.roots)
        return uploads.unpack(Path(archive), target)

    @property
    def fixed_size(self) -> int | None:
        """Pixels a side of every further lesson: the learner's, or those of the first lesson that makes it.

        None if the next lesson makes the learner.
        """
        learner = self.accepted.learner
        if learner is not None:
            return learner.predictor.record.image_shape[1]
        requests = [lesson.request for lesson in self.queue.lessons]
        return new_learner_config(Request(**requests[0])).image_size if requests else None

    def teach(
        self,
        name: str,
        archive: str | None,
        folder: str,
        epochs: float | None,
        image_size: float | None,
        keep_check: bool,
    ) -> dict[str, Any]:
        """Queue a lesson from a zip, or from a folder on this machine.

        Args:
            name: Name of the task.
            archive: The zip.
            folder: The folder, if there is no zip.
            epochs: Passes over the images.
            image_size: Pixels a side of a new learner's images; 0 for the default. A learner that exists has its own,
                and another one is refused.
            keep_check: Whether the lesson's test images are kept to measure the task later.

        Returns:
            The lesson's public fields, with "left_out": sentences on the files that are not used.
        """
        passes, size = _whole_number("epochs", epochs, EPOCHS), self._image_size(image_size)
        summaries: list[uploads.UploadSummary] = []

        def provide_images(target: Path) -> Path:
            images = self._image_folder(archive, folder, target)
            summaries.append(uploads.summarize(images))  # refuses what a lesson would refuse
            return images

        if archive is None and not folder.strip():
            raise InputError("images: expected a zip of class folders, got none")
        options = {"epochs": passes, "image_size": size, "keep_check": keep_check}
        lesson = self.queue.teach(name, provide_images, **options)
        return lesson.public_fields() | {"left_out": summaries[0].notes}

    def _image_size(self, requested: float | None) -> int:
        """Return the pixels a side of a lesson; InputError if others were requested than the learner has."""
        fixed = self.fixed_size
        if not requested or requested == fixed:
            return fixed or DEFAULT_SIZE
        if fixed is not None:
            raise InputError(f"image size: expected {fixed}, which this learner has, got {requested}")
        return _whole_number("image size", requested, SIZES)

    @property
    def next_digits(self) -> str | None:
        """The name of the tour's next lesson; None after the last one, or if the learner's images are not digits."""
        learner = self.accepted.learner
        if learner is not None and learner.predictor.record.image_shape != (1, 8, 8):
            return None
        if learner is None and any(lesson.request["images"] for lesson in self.queue.lessons):
            return None  # the first lesson makes a learner of other images
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
        with tempfile.TemporaryDirectory(dir=self.queue.home, prefix=TEMPORARY) as temporary:
            file = Path(temporary) / "learner.onnx"
            export(ContinualLearner.load(self.folder), file)
            return f"{name}.onnx", file.read_bytes()

    def close(self) -> None:
        """End a running lesson's process."""
        self._closed.set()
        self.queue.close()


def _whole_number(option: str, value: float | None, limits: tuple[int, int]) -> int:
    """Return a whole number within the limits; InputError for anything else, which is not rounded."""
    least, most = limits
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most or value % 1:
        raise InputError(f"{option}: expected a whole number from {least} to {most}, got {value}")
    return int(value)


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
