"""The page's actions over HTTP: endpoints of gradio's own API that answer in JSON."""

from collections.abc import Callable
from dataclasses import asdict
from functools import wraps
from typing import Any

import gradio as gr

from pah.app.messages import without_paths
from pah.app.open_learner import OpenLearner
from pah.core import files
from pah.core.config import InputError
from pah.learner.defaults import DEFAULT


def with_plain_errors(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function with its `InputError` shown to visitors as one line, without paths or a traceback."""

    @wraps(function)
    def safe(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except InputError as error:
            raise gr.Error(without_paths(str(error)), print_exception=False) from None

    return safe


def write_download(opened: OpenLearner, kind: str) -> str:
    """Write a download to where gradio serves files from, and return its path; it replaces the last one of its kind."""
    name, content = opened.require_service().download(kind)
    assert opened.upload_folder is not None, "the server sets it before it builds the page"
    path = opened.upload_folder / "downloads" / kind / name
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_file(path, content)
    return str(path)


def add_endpoints(opened: OpenLearner) -> None:
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
        """Return the class of each image, in the order of the images."""
        answers = opened.require_service().ask(images or [], task, unknown)
        return [asdict(answer) | {"shares": [share._asdict() for share in answer.shares]} for answer in answers]

    def teach(archive: str | None, name: str, folder: str, epochs: int, size: int, check: bool) -> dict[str, Any]:
        """Queue a lesson and return it with its id."""
        return opened.require_service().teach(name, archive, folder, epochs, size, check)

    def lessons() -> list[dict[str, Any]]:
        """Return the lessons that are not decided yet, oldest first, with their states."""
        return opened.require_service().lessons()

    def tasks() -> list[dict[str, Any]]:
        """Return the tasks that the learner knows."""
        return opened.require_service().tasks

    def download(kind: str) -> str:
        """Return a file to download: learner, onnx or report."""
        if kind not in ("learner", "onnx", "report"):
            raise InputError("kind: expected learner, onnx or report")
        return write_download(opened, kind)

    _add_endpoint("ask", ask, [files, text["task"], unknown], answer, concurrency_id="ask")
    _add_endpoint("teach", teach, [archive, text["name"], text["folder"], epochs, size, check], answer)
    _add_endpoint("teach_digits", lambda: opened.require_service().teach_digits(), [], answer)
    _add_endpoint("lessons", lessons, [], answer)
    _add_endpoint("tasks", tasks, [], answer)
    _add_endpoint("download", download, [text["kind"]], file, concurrency_limit=1)
    for action in ("pause", "go", "stop", "keep", "roll_back"):
        _add_endpoint(action, _lesson_action(opened, action), [text["lesson"]], answer)


def _add_endpoint(name: str, function: Callable[..., Any], inputs: list[Any], output: Any, **options: Any) -> None:
    gr.Button(visible=False).click(
        with_plain_errors(function), inputs, output, api_name=name, show_progress="hidden", **options
    )


def _lesson_action(opened: OpenLearner, action: str) -> Callable[[str], list[dict[str, Any]]]:
    """Return a function that applies an action of the queue to a lesson's id and returns the remaining lessons."""

    def decide(lesson: str) -> list[dict[str, Any]]:
        getattr(opened.require_service().queue, action)(lesson)
        return opened.require_service().lessons()

    decide.__doc__ = f"{action.replace('_', ' ').capitalize()} a lesson, and return the remaining lessons."
    return decide
