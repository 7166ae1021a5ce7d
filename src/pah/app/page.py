"""The page: three tabs, Ask, Teach and Look, on a learner's `Service`."""

from collections.abc import Callable
from typing import Any

import gradio as gr

from pah.app import api, teach_tab, views
from pah.app.open_learner import TOUR_NAME, Rooms
from pah.app.service import thumbnail
from pah.core.config import InputError

FIND_OUT = "find out"
QUESTIONS = 64  # that may wait
CLEANED = (600, 3600)  # seconds: how often uploads are looked through, and how old they may become


def build(rooms: Rooms) -> gr.Blocks:
    """The page, not launched yet."""
    with gr.Blocks(title="pah", analytics_enabled=False, delete_cache=CLEANED) as page:
        gr.HTML("<h1>A classifier that goes on learning</h1>", elem_id="title")
        with gr.Column(visible=rooms.service is None, elem_id="chooser") as chooser:
            chosen = _choose(rooms)
        with gr.Column(visible=rooms.service is not None, elem_id="room") as room, gr.Tabs(elem_id="tabs"):
            with gr.Tab("Ask", id="ask", elem_id="tab-ask"):
                task = _ask(rooms)
            with gr.Tab("Teach", id="teach", elem_id="tab-teach"):
                changed = teach_tab.build(rooms, page)
            with gr.Tab("Look", id="look", elem_id="tab-look") as look:
                view = _look(rooms)
        look.select(lambda: _looked(rooms), outputs=view, api_visibility="private", show_progress="hidden")

        def arrived() -> list[Any]:
            there = rooms.service is not None
            return [
                gr.update(visible=not there),
                gr.update(visible=there),
                gr.update(choices=_tasks(rooms)),
                _looked(rooms),
            ]

        gr.on(
            [page.load, chosen.change, changed.change],
            arrived,
            outputs=[chooser, room, task, view],
            api_visibility="private",
            show_progress="hidden",
        )
        api.verbs(rooms)
    page.queue(max_size=QUESTIONS, default_concurrency_limit=4)
    built: gr.Blocks = page
    return built


def look() -> Any:
    """A theme with the reader's own fonts, and colours that stand out from each other by at least 4.5 to 1."""
    return gr.themes.Default(
        primary_hue="blue",
        neutral_hue="slate",
        font=("system-ui", "sans-serif"),
        font_mono=("ui-monospace", "monospace"),
    ).set(
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_cancel_background_fill="#b91c1c",
        button_cancel_text_color="white",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        block_label_text_color="*neutral_700",
        block_title_text_color="*neutral_700",
        input_placeholder_color="*neutral_500",
        link_text_color_dark="*primary_300",
        link_text_color_hover_dark="*primary_200",
        color_accent="*primary_700",
    )


def _choose(rooms: Rooms) -> gr.State:
    """No learner was named: a new one, one that is there, or the tour. The state changes when one is chosen."""
    chosen = gr.State("")
    gr.Markdown("Choose a learner. It stays open, for everybody who visits this page, until the server ends.")
    with gr.Row():
        tour = gr.Button("Take the tour: handwritten digits, no data needed", variant="primary", elem_id="choose-tour")
    name = gr.Textbox(
        label="Name of a new learner", info="letters, digits, - and _", elem_id="choose-name", max_length=40
    )
    make = gr.Button("Make a new learner", elem_id="choose-new")
    known = gr.Dropdown(rooms.names, label="Or one that is there", elem_id="choose-known", visible=bool(rooms.names))
    opened = gr.Button("Open it", elem_id="choose-open", visible=bool(rooms.names))
    message = gr.HTML(elem_id="choose-message")

    def choose(name: str | None) -> tuple[str, str]:
        try:
            rooms.choose(name or "")
        except InputError as error:
            return "", views.refusal(error)
        return str(name), ""

    for button, given in ((make, name), (opened, known)):
        button.click(choose, given, [chosen, message], api_visibility="private")
    tour.click(lambda: choose(TOUR_NAME), None, [chosen, message], api_visibility="private")
    return chosen


def _ask(rooms: Rooms) -> gr.Dropdown:
    """The tab that asks; returns its list of tasks."""
    files = gr.Files(label="Images", file_types=["image"], elem_id="ask-files", height=160)
    task = gr.Dropdown(_tasks(rooms), value=FIND_OUT, label="Task", elem_id="ask-task")
    unknown = gr.Checkbox(label='"None of these" is an answer too', elem_id="ask-unknown")
    button = gr.Button("Ask", variant="primary", elem_id="ask-button")
    answer = gr.HTML(elem_id="ask-answer")

    def shown_answer(files: list[str] | None, task: str, unknown: bool) -> str:
        try:
            given = None if task == FIND_OUT else task
            service = rooms.open
            found = service.ask(files or [], given, unknown)
            return views.answers(found, [thumbnail(f) for f in files or []], given is not None, service.pictured)
        except InputError as error:
            return views.refusal(error)

    button.click(shown_answer, [files, task, unknown], answer, api_visibility="private", concurrency_id="ask")
    return task


def _tasks(rooms: Rooms) -> list[str]:
    return [FIND_OUT, *(task["name"] for task in (rooms.service.tasks if rooms.service else ()))]


def _look(rooms: Rooms) -> gr.HTML:
    """The tab that looks, and its downloads."""
    view = gr.HTML(elem_id="look-view")
    with gr.Row():
        for kind, label in (("learner", "Learner (zip)"), ("onnx", "ONNX file"), ("report", "Report (HTML)")):
            make = gr.Button(f"Prepare: {label}", elem_id=f"prepare-{kind}")
            file = gr.DownloadButton(f"Download: {label}", visible=False, elem_id=f"download-{kind}")
            make.click(_download(rooms, kind), None, file, api_visibility="private")
    return view


def _download(rooms: Rooms, kind: str) -> Callable[[], Any]:
    def prepare() -> Any:
        return gr.update(value=api.as_file(rooms, kind), visible=True)

    return api.said(prepare)


def _looked(rooms: Rooms) -> str:
    try:
        return rooms.service.look() if rooms.service else ""
    except InputError as error:
        return views.refusal(error)
