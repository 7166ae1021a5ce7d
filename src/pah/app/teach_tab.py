"""The tab Teach: the upload of a new lesson, the progress of the current one, and its buttons."""

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import gradio as gr

from pah.app import views
from pah.app.open_learner import OpenLearner
from pah.app.service import EPOCHS
from pah.app.zip_upload import LIMITS
from pah.core.config import InputError
from pah.learner.defaults import DEFAULT, DEFAULT_SIZE

REFRESH_SECONDS = 1.5  # between two updates of the lessons
CONFIRMATIONS = {  # by action
    "pause": "The lesson pauses after its next step.",
    "go": "The lesson continues.",
    "keep": "Kept: from now on answers come from what was learned.",
    "roll_back": "Rolled back: the learner is as it was.",
    "stop": "Stopped: the lesson and its images are deleted, the learner is as it was.",
}
ACTIONS = tuple(CONFIRMATIONS)
FREE_SIZE = "Pixels a side of the new learner"
FIXED_SIZE = "Pixels a side (those of this learner, which cannot change)"
ACTIONS_OF_STATE = {  # which actions are offered, by the state of the first lesson
    "running": ("pause", "stop"),
    "paused": ("go", "stop"),
    "interrupted": ("go", "stop"),
    "failed": ("go", "stop"),
    "done": ("keep", "roll_back"),
    "waiting": ("stop",),
}
QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}


class LessonWidgets(NamedTuple):
    """The parts of the page that show the lessons."""

    lessons: gr.HTML
    message: gr.HTML
    lesson_id: gr.State  # of the first lesson
    buttons: dict[str, gr.Button]  # by action
    digits: gr.Button
    size: gr.Number  # pixels a side of a new learner; rendered in the form of a new lesson

    @property
    def outputs(self) -> list[Any]:
        """The parts that `lesson_updates` updates, in its order."""
        return [self.lessons, self.lesson_id, *self.buttons.values(), self.digits, self.size]


def build(opened: OpenLearner, page: gr.Blocks) -> gr.State:
    """Add the tab's content to the page, and return a state that changes with the learner."""
    changed = gr.State(0)
    widgets = _lesson_widgets()
    for action, button in widgets.buttons.items():
        button.click(
            partial(_apply_action, opened, action),
            [widgets.lesson_id, changed],
            [widgets.message, changed, *widgets.outputs],
            **QUIET,
        )
    widgets.digits.click(partial(_teach_digits, opened), None, [widgets.message, *widgets.outputs], **QUIET)
    timer = gr.Timer(REFRESH_SECONDS)
    gr.on([page.load, timer.tick], partial(lesson_updates, opened), None, widgets.outputs, queue=False, **QUIET)
    _new_lesson(opened, widgets)
    return changed


def _lesson_widgets() -> LessonWidgets:
    """Add the lessons and their buttons."""
    labels = {"pause": "Pause", "go": "Go on", "keep": "Keep", "roll_back": "Roll back", "stop": "Stop and delete"}
    variants: dict[str, Literal["primary", "stop"]] = {"keep": "primary", "stop": "stop"}
    gr.HTML("<h2>Lessons</h2>")
    lessons = gr.HTML(elem_id="lesson-progress")
    with gr.Row():
        buttons = {
            action: gr.Button(
                labels[action],
                visible=False,
                variant=variants.get(action, "secondary"),
                elem_id=f"lesson-{action.replace('_', '-')}",
            )
            for action in ACTIONS
        }
        digits = gr.Button("Teach the next digits (no data needed)", visible=False, elem_id="teach-digits")
    size = gr.Number(DEFAULT_SIZE, label=FREE_SIZE, elem_id="teach-size", render=False)
    return LessonWidgets(lessons, gr.HTML(elem_id="teach-message"), gr.State(""), buttons, digits, size)


def _new_lesson(opened: OpenLearner, widgets: LessonWidgets) -> None:
    """Add the form of a new lesson."""
    gr.HTML("<h2>A new lesson</h2>")
    megabytes = LIMITS.upload_bytes // 2**20
    archive = gr.File(
        label=f"Zip of class folders, up to {megabytes} MB",
        file_types=[".zip"],
        elem_id="teach-zip",
        height=140,
    )
    has_roots = bool(opened.roots)
    folder = gr.Textbox(label="Or a folder on the server's machine", visible=has_roots, elem_id="teach-folder")
    look = gr.Button("See what the folder holds", elem_id="teach-look", visible=has_roots)
    summary = gr.HTML(elem_id="teach-understood")
    name = gr.Textbox(label="Name of the lesson", placeholder="birds", elem_id="teach-name", max_length=80)
    options = _options(widgets.size)
    start = gr.Button("Start the lesson", variant="primary", elem_id="teach-start")
    gr.on(
        [archive.change, look.click],
        partial(_describe_upload, opened),
        [archive, folder],
        summary,
        api_visibility="private",
    )
    start.click(
        partial(_teach, opened),
        [name, archive, folder, *options],
        [name, archive, widgets.message, *widgets.outputs],
        api_visibility="private",
    )


def _options(size: gr.Number) -> list[Any]:
    """Add the fields epochs, image size and check images."""
    with gr.Accordion("Options", open=False, elem_id="teach-options"):
        epochs = gr.Number(
            DEFAULT.training.epochs,
            label="Passes over the images",
            minimum=EPOCHS[0],
            maximum=EPOCHS[1],
            elem_id="teach-epochs",
        )
        size.render()  # type: ignore[no-untyped-call]
    check = gr.Checkbox(
        True,
        label="Keep a fifth of these images on the server, to measure this task after later lessons",
        info="They are never used for training, and the learner does not contain them. Without them, later lessons "
        "only estimate how much accuracy this task loses.",
        elem_id="teach-keep-check",
    )
    return [epochs, size, check]


def _apply_action(opened: OpenLearner, action: str, lesson_id: str, count: int) -> list[Any]:
    """Apply an action to the first lesson."""
    try:
        getattr(opened.require_service().queue, action)(lesson_id)
    except InputError as error:
        return [_refusal(opened, error), count, *lesson_updates(opened)]
    return [views.note(CONFIRMATIONS[action], "good"), count + 1, *lesson_updates(opened)]


def _teach(opened: OpenLearner, name: str, archive: str | None, folder: str, *options: Any) -> list[Any]:
    """Queue a lesson, and clear the fields of its name and zip unless it was refused."""
    try:
        lesson = opened.require_service().teach(name, archive, folder or "", *options)
    except InputError as error:
        return [gr.skip(), gr.skip(), _refusal(opened, error), *lesson_updates(opened)]
    opened.discard_upload(archive)
    return ["", None, _queued_note(lesson), *lesson_updates(opened)]


def _teach_digits(opened: OpenLearner) -> list[Any]:
    try:
        return [_queued_note(opened.require_service().teach_digits()), *lesson_updates(opened)]
    except InputError as error:
        return [_refusal(opened, error), *lesson_updates(opened)]


def _refusal(opened: OpenLearner, error: InputError) -> str:
    return views.refusal(error, opened.private_folders)


def _queued_note(lesson: Mapping[str, Any]) -> str:
    sentences = [f"The lesson {lesson['name']} was added: it is shown above.", *lesson.get("left_out", ())]
    return views.note(" ".join(sentences), "good")


def _describe_upload(opened: OpenLearner, archive: str | None, folder: str) -> str:
    if archive is None and not (folder or "").strip():
        return ""
    try:
        return opened.require_service().describe_upload(archive, folder or "")
    except InputError as error:
        return _refusal(opened, error)


def lesson_updates(opened: OpenLearner) -> list[Any]:
    """Return the lessons as HTML, the first lesson's id, and updates of the buttons and of the image size."""
    service = opened.service
    lessons = service.lessons() if service else []
    first = lessons[0] if lessons else None
    offered = ACTIONS_OF_STATE[first["state"]] if first else ()
    go_label = "Start again" if first and first["state"] in ("interrupted", "failed") else "Go on"
    html = "".join(map(views.lesson_section, lessons)) or views.note("No lesson is running.")
    buttons = [
        gr.update(visible=action in offered, **({"value": go_label} if action == "go" else {})) for action in ACTIONS
    ]
    tour = gr.update(visible=service is not None and service.next_digits is not None)
    fixed = service.fixed_size if service else None
    size = gr.update(label=FREE_SIZE, interactive=True)  # it keeps what the visitor entered
    if fixed is not None:
        size = gr.update(label=FIXED_SIZE, interactive=False, value=fixed)
    return [html, first["id"] if first else "", *buttons, tour, size]
