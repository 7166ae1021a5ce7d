"""What a page can do with one learner: the verbs, without any page. For use by many threads."""

import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from pah.app import gallery, uploads, views
from pah.app.asking import Accepted, Answer
from pah.app.lesson_queue import Desk
from pah.core.config import InputError
from pah.data.image import decode_image, without_warnings
from pah.learner.export import export
from pah.learner.learner import ContinualLearner

TOUR = (("0 to 3", "0123"), ("4 to 6", "456"), ("7 to 9", "789"))  # lessons of unequal size of the embedded digits
TOUR_EPOCHS = 15
EPOCHS, SIZES = (1, 500), (8, 256)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")  # of a new learner's folder
SHOWN_SIDE = 96


def home_of(folder: Path) -> Path:
    """Where the page keeps what is no part of the learner: beside it, so that who passes it on passes no images on."""
    return folder.parent / f".{folder.name}.app"


class Service:
    """The learner in `folder`, whose folder need not be there yet.

    Args:
        folder: Of the learner.
        roots: Folders on this machine, below which lessons may be.

    Raises:
        InputError: the learner is damaged, or another page teaches it.
    """

    def __init__(self, folder: Path, roots: Sequence[Path] = ()) -> None:
        self.folder, self.roots = folder, tuple(root.resolve() for root in roots)
        self.accepted = Accepted(folder)
        _ = self.accepted.learner  # a damaged one is refused now
        self.desk = Desk(folder.resolve(), home_of(folder.resolve()))
        self._pictures: tuple[ContinualLearner, dict[tuple[str, str], str]] | None = None

    @property
    def tasks(self) -> list[dict[str, Any]]:
        """What the learner knows."""
        learner = self.accepted.learner
        measured = {
            name: of for lesson in (learner.history if learner else ()) for name, of in lesson.accuracies.items()
        }
        return [
            {
                "name": task.name,
                "classes": list(task.classes),
                "taught": task.taught,
                "images": task.images,
                "accuracy": measured.get(task.name),
            }
            for task in (learner.tasks if learner else ())
        ]

    def ask(self, files: Sequence[str], task: str | None, unknown: bool) -> list[Answer]:
        """Answers about image files."""
        with _files_unnamed(files):
            return self.accepted.ask(list(files), task or None, unknown)

    def pictured(self, task: str, label: str) -> str | None:
        """The picture of a class's prototype, today."""
        learner = self.accepted.learner
        if learner is None:
            return None
        if self._pictures is None or self._pictures[0] is not learner:
            shown = gallery.portraits(learner, self.desk.prototypes)
            self._pictures = learner, {(of.task, of.label): views.data_uri(of.today) for of in shown}
        return self._pictures[1].get((task, label))

    def understood(self, archive: str | None, folder: str) -> str:
        """What a zip holds, or a folder on this machine, as HTML; nothing of it is kept."""
        with tempfile.TemporaryDirectory(dir=self.desk.home) as place:
            found = uploads.understand(self._images(archive, folder, Path(place) / "images"))
            samples: dict[str, list[Image.Image]] = {}
            for name, file in found.samples:
                samples.setdefault(name, []).append(thumbnail(str(file)))
            return views.understood(found, samples)

    def _images(self, archive: str | None, folder: str, place: Path) -> Path:
        """The folder of a zip's images, which are unpacked to `place`, or one on this machine."""
        if archive is None:
            return uploads.allowed(folder, self.roots)
        return uploads.unpack(Path(archive), place)

    def teach(
        self, name: str, archive: str | None, folder: str, epochs: int, image_size: int, keep_check: bool
    ) -> dict[str, Any]:
        """Queue a lesson from a zip, or from a folder on this machine."""
        for what, value, (least, most) in (("epochs", epochs, EPOCHS), ("image size", image_size, SIZES)):
            if not least <= value <= most:
                raise InputError(f"{what}: expected {least} to {most}, got {value}")

        def put(place: Path) -> Path:
            found = self._images(archive, folder, place)
            uploads.understand(found)
            return found

        if archive is None and not folder.strip():
            raise InputError("images: expected a zip of class folders, got none")
        options = {"epochs": int(epochs), "image_size": int(image_size), "keep_check": keep_check}
        return self.desk.teach(name, put, **options).shown()

    @property
    def next_digits(self) -> str | None:
        """The name of the tour's next lesson; None where it is over, or the learner is none of digits."""
        learner = self.accepted.learner
        if learner is not None and learner.taught.record.image_shape != (1, 8, 8):
            return None
        taken = {task["name"] for task in self.tasks} | {lesson.name for lesson in self.desk.lessons}
        return next((name for name, _ in TOUR if f"digits {name}" not in taken), None)

    def teach_digits(self) -> dict[str, Any]:
        """Queue the tour's next lesson."""
        name = self.next_digits
        if name is None:
            raise InputError("digits: expected a lesson that is left, got the end of the tour")
        classes = tuple(dict(TOUR)[name])
        lesson = self.desk.teach(f"digits {name}", lambda _: None, classes=classes, epochs=TOUR_EPOCHS, keep_check=True)
        return lesson.shown()

    def lessons(self) -> list[dict[str, Any]]:
        """All lessons that are not decided."""
        return [lesson.shown() for lesson in self.desk.lessons]

    def look(self) -> str:
        """Tasks, lessons and prototypes, as HTML."""
        learner = self.accepted.learner
        if learner is None:
            return views.note("Nothing was taught yet: the first lesson makes the learner.")
        shown = gallery.portraits(learner, self.desk.prototypes)
        return views.looked(learner, shown, gallery.size_on_disk(self.folder))

    def download(self, kind: str) -> tuple[str, bytes]:
        """A file to take away, its name and content: the learner (a zip), an ONNX graph (onnx) or a page (report)."""
        name, learner = self.folder.resolve().name, self.accepted.learner
        if learner is None:
            raise InputError("learner: expected one that was taught a lesson, got a new one")
        if kind == "learner":
            return f"{name}.zip", gallery.packed(self.folder)
        if kind == "report":
            return f"{name}.html", views.whole_page(name, self.look()).encode()
        with tempfile.TemporaryDirectory(dir=self.desk.home) as place:
            export(ContinualLearner.load(self.folder), Path(place) / "learner.onnx")
            return f"{name}.onnx", (Path(place) / "learner.onnx").read_bytes()

    def close(self) -> None:
        """End what goes on."""
        self.desk.close()


def thumbnail(file: str) -> Image.Image:
    """An image file, small and square."""
    with uploads.DECODING, without_warnings():
        return Image.fromarray(decode_image({"path": file, "bytes": None}, "image", "RGB", (SHOWN_SIDE, SHOWN_SIDE)))


@contextmanager
def _files_unnamed(files: Sequence[str]) -> Iterator[None]:
    """Inside, an error names uploaded files by their last part."""
    try:
        yield
    except InputError as error:
        said = str(error)
        for file in filter(None, files):
            said = said.replace(file, Path(file).name)
        raise InputError(said) from None
