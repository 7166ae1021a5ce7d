"""The tab that teaches: what was uploaded, the lesson that goes on, and what its owner decides."""

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import gradio as gr

from pah.app import views
from pah.app.open_learner import Rooms
from pah.app.service import EPOCHS, SIZES
from pah.app.zip_upload import LIMITS
from pah.core.config import InputError
from pah.learner.learner import DEFAULT

SECONDS = 1.5  # between looks at the lessons
SAID = {
    "pause": "The lesson pauses after its next step.",
    "go": "The lesson goes on.",
    "keep": "Kept: from now on answers come from what was learned.",
    "roll_back": "Rolled back: the learner is as it was.",
    "stop": "Stopped: the lesson and its images are deleted, the learner is as it was.",
}
VERBS = tuple(SAID)
OFFERED = {  # verbs by the state of the first lesson
    "running": ("pause", "stop"),
    "paused": ("go", "stop"),
    "interrupted": ("go", "stop"),
    "failed": ("go", "stop"),
    "done": ("keep", "roll_back"),
    "waiting": ("stop",),
}
QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}


class Watched(NamedTuple):
    """What shows the lessons, and changes with them."""

    lessons: gr.HTML
    message: gr.HTML
    number: gr.State  # the first lesson's id
    buttons: dict[str, gr.Button]  # by verb
    digits: gr.Button

    @property
    def shown(self) -> list[Any]:
        """What `lessons_now` fills."""
        return [self.lessons, self.number, *self.buttons.values(), self.digits]


def build(rooms: Rooms, page: gr.Blocks) -> gr.State:
    """Add the tab's content to the page; the state that it returns changes when the learner does."""
    changed = gr.State(0)
    watched = _watched()
    for verb, button in watched.buttons.items():
        button.click(
            partial(_act, rooms, verb), [watched.number, changed], [watched.message, changed, *watched.shown], **QUIET
        )
    watched.digits.click(partial(_teach_digits, rooms), None, [watched.message, *watched.shown], **QUIET)
    timer = gr.Timer(SECONDS)
    gr.on([page.load, timer.tick], partial(lessons_now, rooms), None, watched.shown, queue=False, **QUIET)
    _new_lesson(rooms, watched)
    return changed


def _watched() -> Watched:
    """The lessons and their buttons."""
    labels = {"pause": "Pause", "go": "Go on", "keep": "Keep", "roll_back": "Roll back", "stop": "Stop and delete"}
    kinds: dict[str, Literal["primary", "stop"]] = {"keep": "primary", "stop": "stop"}
    gr.HTML("<h2>Lessons</h2>")
    lessons = gr.HTML(elem_id="lesson-progress")
    with gr.Row():
        buttons = {
            verb: gr.Button(
                labels[verb],
                visible=False,
                variant=kinds.get(verb, "secondary"),
                elem_id=f"lesson-{verb.replace('_', '-')}",
            )
            for verb in VERBS
        }
        digits = gr.Button("Teach the next digits (no data needed)", visible=False, elem_id="teach-digits")
    return Watched(lessons, gr.HTML(elem_id="teach-message"), gr.State(""), buttons, digits)


def _new_lesson(rooms: Rooms, watched: Watched) -> None:
    """What a new lesson needs."""
    gr.HTML("<h2>A new lesson</h2>")
    megabytes = LIMITS.upload_bytes // 2**20
    archive = gr.File(
        label=f"Zip of class folders, up to {megabytes} MB",
        file_types=[".zip"],
        elem_id="teach-zip",
        height=140,
    )
    folder = gr.Textbox(label="Or a folder on the server's machine", visible=bool(rooms.roots), elem_id="teach-folder")
    look = gr.Button("See what the folder holds", elem_id="teach-look", visible=bool(rooms.roots))
    seen = gr.HTML(elem_id="teach-understood")
    name = gr.Textbox(label="Name of the lesson", placeholder="birds", elem_id="teach-name", max_length=80)
    options = _options()
    start = gr.Button("Start the lesson", variant="primary", elem_id="teach-start")
    gr.on([archive.change, look.click], partial(_understand, rooms), [archive, folder], seen, api_visibility="private")
    start.click(
        partial(_teach, rooms),
        [name, archive, folder, *options],
        [name, archive, watched.message, *watched.shown],
        api_visibility="private",
    )


def _options() -> list[Any]:
    with gr.Accordion("Options", open=False, elem_id="teach-options"):
        epochs = gr.Number(
            DEFAULT.training.epochs,
            label="Passes over the images",
            precision=0,
            minimum=EPOCHS[0],
            maximum=EPOCHS[1],
            elem_id="teach-epochs",
        )
        size = gr.Number(
            DEFAULT.image_size,
            label="Pixels a side (of a new learner; a learner that was taught has its own)",
            precision=0,
            minimum=SIZES[0],
            maximum=SIZES[1],
            elem_id="teach-size",
        )
    check = gr.Checkbox(
        True,
        label="Keep a fifth of these images on the server, to measure this task after later lessons",
        info="Never taught from, never in the learner. Without them only an estimate tells how the task fares later.",
        elem_id="teach-keep-check",
    )
    return [epochs, size, check]


def _act(rooms: Rooms, verb: str, number: str, count: int) -> list[Any]:
    """One of the verbs about the first lesson."""
    try:
        getattr(rooms.open.desk, verb)(number)
    except InputError as error:
        return [views.refusal(error), count, *lessons_now(rooms)]
    return [views.note(SAID[verb], "good"), count + 1, *lessons_now(rooms)]


def _teach(rooms: Rooms, name: str, archive: str | None, folder: str, *options: Any) -> list[Any]:
    """Queue a lesson; the fields of its name and zip are empty again, unless it was refused."""
    try:
        taught = rooms.open.teach(name, archive, folder or "", *options)
    except InputError as error:
        return [gr.skip(), gr.skip(), views.refusal(error), *lessons_now(rooms)]
    return ["", None, _taken(taught), *lessons_now(rooms)]


def _teach_digits(rooms: Rooms) -> list[Any]:
    try:
        return [_taken(rooms.open.teach_digits()), *lessons_now(rooms)]
    except InputError as error:
        return [views.refusal(error), *lessons_now(rooms)]


def _taken(lesson: Mapping[str, Any]) -> str:
    return views.note(f"The lesson {lesson['name']} was taken: it is shown above.", "good")


def _understand(rooms: Rooms, archive: str | None, folder: str) -> str:
    if archive is None and not (folder or "").strip():
        return ""
    try:
        return rooms.open.understood(archive, folder or "")
    except InputError as error:
        return views.refusal(error)


def lessons_now(rooms: Rooms) -> list[Any]:
    """Lessons as HTML, the first one's id, which of its buttons are shown, and that of the tour."""
    service = rooms.service
    lessons = service.lessons() if service else []
    first = lessons[0] if lessons else None
    offered = OFFERED[first["state"]] if first else ()
    go = "Start again" if first and first["state"] in ("interrupted", "failed") else "Go on"
    html = "".join(map(views.lesson, lessons)) or views.note("No lesson goes on.")
    buttons = [gr.update(visible=verb in offered, **({"value": go} if verb == "go" else {})) for verb in VERBS]
    tour = gr.update(visible=service is not None and service.next_digits is not None)
    return [html, first["id"] if first else "", *buttons, tour]
