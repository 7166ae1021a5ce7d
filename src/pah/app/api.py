"""The page's actions over HTTP: endpoints of gradio's own API that answer in JSON."""

from collections.abc import Callable
from dataclasses import asdict
from functools import wraps
from pathlib import Path
from typing import Any

import gradio as gr

from pah.app.answers import Answer, Refusal
from pah.app.messages import plain, without_paths
from pah.app.open_learner import OpenLearner
from pah.core.config import InputError
from pah.learner.defaults import DEFAULT


def with_plain_errors(opened: OpenLearner, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function with its `InputError` shown to visitors as one line, without paths or a traceback."""

    @wraps(function)
    def safe(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except InputError as error:
            message = without_paths(str(error), *opened.private_folders, instead="the learner")
            raise gr.Error(plain(message), print_exception=False) from None

    return safe


def add_endpoints(opened: OpenLearner) -> None:
    """Add the endpoints to the page that is being built."""
    _add_questions(opened)
    archive = gr.File(visible=False, label="archive", file_types=[".zip"])
    text = {label: gr.Textbox(value="", visible=False, label=label) for label in ("name", "folder", "lesson", "kind")}
    check = gr.Checkbox(True, visible=False, label="keep_check")
    epochs = gr.Number(DEFAULT.training.epochs, visible=False, label="epochs")
    size = gr.Number(0, visible=False, label="image_size")  # 0: the learner's, or the default of a new one
    answer, file = gr.JSON(visible=False, label="answer"), gr.File(visible=False, label="file")

    def teach(
        archive: str | None, name: str, folder: str, epochs: float | None, size: float | None, check: bool
    ) -> dict[str, Any]:
        """Queue a lesson and return it with its id."""
        lesson = opened.require_service().teach(name, archive, folder, epochs, size, check)
        opened.discard_upload(archive)
        return lesson

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
        return str(opened.write_download(kind))

    _add_endpoint(opened, "teach", teach, [archive, text["name"], text["folder"], epochs, size, check], answer)
    _add_endpoint(opened, "teach_digits", lambda: opened.require_service().teach_digits(), [], answer)
    _add_endpoint(opened, "lessons", lessons, [], answer)
    _add_endpoint(opened, "tasks", tasks, [], answer)
    _add_endpoint(opened, "download", download, [text["kind"]], file, concurrency_limit=1)
    for action in ("pause", "go", "stop", "keep", "roll_back"):
        _add_endpoint(opened, action, _lesson_action(opened, action), [text["lesson"]], answer)


def _add_questions(opened: OpenLearner) -> None:
    """Add the endpoints that answer questions about images."""
    files = gr.Files(visible=False, label="images")
    task = gr.Textbox(value="", visible=False, label="task")
    unknown = gr.Checkbox(False, visible=False, label="unknown")
    answer = gr.JSON(visible=False, label="answer")

    def ask(images: list[str] | None, task: str, unknown: bool) -> list[dict[str, Any]]:
        """Return the class of each image, in the order of the images."""
        answers = opened.require_service().ask(images or [], task, unknown)
        return [_answer_fields(answer) for answer in answers]

    def ask_each(images: list[str] | None, task: str, unknown: bool) -> list[dict[str, Any]]:
        """Return the class of each image that can be read, and an error for each other one, in their order."""
        results = opened.require_service().ask_each(images or [], task, unknown)
        return [
            {"file": Path(image).name}
            | ({"error": result.reason} if isinstance(result, Refusal) else _answer_fields(result))
            for image, result in zip(images or [], results, strict=True)
        ]

    _add_endpoint(opened, "ask", ask, [files, task, unknown], answer, concurrency_id="ask")
    _add_endpoint(opened, "ask_each", ask_each, [files, task, unknown], answer, concurrency_id="ask")


def _answer_fields(answer: Answer) -> dict[str, Any]:
    return asdict(answer) | {"shares": [share._asdict() for share in answer.shares]}


def _add_endpoint(
    opened: OpenLearner, name: str, function: Callable[..., Any], inputs: list[Any], output: Any, **options: Any
) -> None:
    gr.Button(visible=False).click(
        with_plain_errors(opened, function), inputs, output, api_name=name, show_progress="hidden", **options
    )


def _lesson_action(opened: OpenLearner, action: str) -> Callable[[str], list[dict[str, Any]]]:
    """Return a function that applies an action of the queue to a lesson's id and returns the remaining lessons."""

    def decide(lesson: str) -> list[dict[str, Any]]:
        getattr(opened.require_service().queue, action)(lesson)
        return opened.require_service().lessons()

    decide.__doc__ = f"{action.replace('_', ' ').capitalize()} a lesson, and return the remaining lessons."
    return decide
