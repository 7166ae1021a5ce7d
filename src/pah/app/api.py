"""The verbs of the page over HTTP, as endpoints of gradio's own API, which answer JSON."""

from collections.abc import Callable
from dataclasses import asdict
from functools import wraps
from typing import Any

import gradio as gr

from pah.app.messages import without_paths
from pah.app.open_learner import Rooms
from pah.core import files
from pah.core.config import InputError
from pah.learner.learner import DEFAULT


def said(verb: Callable[..., Any]) -> Callable[..., Any]:
    """The verb as users meet it: what was wrong in one line, without paths, and nothing of what else happened."""

    @wraps(verb)
    def safe(*given: Any) -> Any:
        try:
            return verb(*given)
        except InputError as error:
            raise gr.Error(without_paths(str(error)), print_exception=False) from None

    return safe


def as_file(rooms: Rooms, kind: str) -> str:
    """A download as a file where gradio serves files from; the next one of its kind takes its place."""
    name, content = rooms.open.download(kind)
    assert rooms.uploads is not None, "the server says where, before it builds the page"
    path = rooms.uploads / "downloads" / kind / name
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_file(path, content)
    return str(path)


def verbs(rooms: Rooms) -> None:
    """Add the endpoints to the page that is being built."""
    files = gr.Files(visible=False, label="images")
    archive = gr.File(visible=False, label="archive", file_types=[".zip"])
    text = {
        label: gr.Textbox(value="", visible=False, label=label)
        for label in ("task", "name", "folder", "lesson", "kind")
    }
    unknown = gr.Checkbox(False, visible=False, label="unknown")
    check = gr.Checkbox(True, visible=False, label="keep_check")
    epochs = gr.Number(DEFAULT.training.epochs, visible=False, label="epochs", precision=0)
    size = gr.Number(DEFAULT.image_size, visible=False, label="image_size", precision=0)
    answer, file = gr.JSON(visible=False, label="answer"), gr.File(visible=False, label="file")

    def ask(images: list[str] | None, task: str, unknown: bool) -> list[dict[str, Any]]:
        """What is on each image, in the order of the images."""
        found = rooms.open.ask(images or [], task, unknown)
        return [asdict(one) | {"shares": [share._asdict() for share in one.shares]} for one in found]

    def teach(archive: str | None, name: str, folder: str, epochs: int, size: int, check: bool) -> dict[str, Any]:
        """Queue a lesson; answers with its id."""
        return rooms.open.teach(name, archive, folder, epochs, size, check)

    def lessons() -> list[dict[str, Any]]:
        """The lessons that are not decided yet, the first one first, and how they stand."""
        return rooms.open.lessons()

    def tasks() -> list[dict[str, Any]]:
        """What the learner knows."""
        return rooms.open.tasks

    def download(kind: str) -> str:
        """A file to take away: learner, onnx or report."""
        if kind not in ("learner", "onnx", "report"):
            raise InputError("kind: expected learner, onnx or report")
        return as_file(rooms, kind)

    _endpoint("ask", ask, [files, text["task"], unknown], answer, concurrency_id="ask")
    _endpoint("teach", teach, [archive, text["name"], text["folder"], epochs, size, check], answer)
    _endpoint("teach_digits", lambda: rooms.open.teach_digits(), [], answer)
    _endpoint("lessons", lessons, [], answer)
    _endpoint("tasks", tasks, [], answer)
    _endpoint("download", download, [text["kind"]], file, concurrency_limit=1)
    for verb in ("pause", "go", "stop", "keep", "roll_back"):
        _endpoint(verb, _deciding(rooms, verb), [text["lesson"]], answer)


def _endpoint(name: str, verb: Callable[..., Any], inputs: list[Any], output: Any, **options: Any) -> None:
    gr.Button(visible=False).click(said(verb), inputs, output, api_name=name, show_progress="hidden", **options)


def _deciding(rooms: Rooms, verb: str) -> Callable[[str], list[dict[str, Any]]]:
    """A verb about a lesson by its id, which answers with the lessons that are left."""

    def decide(lesson: str) -> list[dict[str, Any]]:
        getattr(rooms.open.desk, verb)(lesson)
        return rooms.open.lessons()

    decide.__doc__ = f"{verb.replace('_', ' ').capitalize()} a lesson; answers with those that are left."
    return decide
