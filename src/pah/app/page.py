"""The page: the tabs Ask, Teach and Look, which use a learner's `Service`."""

from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from pah.app import api, teach_tab, views
from pah.app.answers import Refusal
from pah.app.messages import plain, shortened
from pah.app.open_learner import TOUR_NAME, OpenLearner
from pah.app.service import thumbnail
from pah.core.config import InputError
from pah.data.image import IMAGE_SUFFIXES

FIND_OUT = ""  # no task has this name
MAX_QUEUED = 64  # calls that may wait
# the browser saves a file that was written for this click: a link that is kept would hand out an older learner
SAVE_FILE = """(file) => {
  const link = document.createElement("a");
  link.href = file.url;
  link.download = file.orig_name;
  document.body.append(link);
  link.click();
  link.remove();
}"""
DELETE_CACHE = (600, 3600)  # seconds: check uploads every 10 minutes, delete those older than an hour


def build(opened: OpenLearner) -> gr.Blocks:
    """Return the page, which is not launched yet."""
    with gr.Blocks(title="pah", analytics_enabled=False, delete_cache=DELETE_CACHE) as page:
        gr.HTML("<h1>A classifier that goes on learning</h1>", elem_id="title")
        with gr.Column(visible=opened.service is None, elem_id="chooser") as chooser:
            chosen = _chooser(opened)
        with gr.Column(visible=opened.service is not None, elem_id="room") as tabs, gr.Tabs(elem_id="tabs"):
            with gr.Tab("Ask", id="ask", elem_id="tab-ask"):
                task = _ask_tab(opened)
            with gr.Tab("Teach", id="teach", elem_id="tab-teach"):
                changed = teach_tab.build(opened, page)
            with gr.Tab("Look", id="look", elem_id="tab-look") as look:
                view = _look_tab(opened)
        look.select(lambda: _learner_html(opened), outputs=view, api_visibility="private", show_progress="hidden")

        def refresh() -> list[Any]:
            is_open = opened.service is not None
            return [
                gr.update(visible=not is_open),
                gr.update(visible=is_open),
                gr.update(choices=_task_choices(opened)),
                _learner_html(opened),
            ]

        gr.on(
            [page.load, chosen.change, changed.change],
            refresh,
            outputs=[chooser, tabs, task, view],
            api_visibility="private",
            show_progress="hidden",
        )
        api.add_endpoints(opened)
    page.queue(max_size=MAX_QUEUED, default_concurrency_limit=4)
    built: gr.Blocks = page
    return built


def theme() -> Any:
    """Return a theme with system fonts and with colours of a contrast of at least 4.5 to 1."""
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


def _chooser(opened: OpenLearner) -> gr.State:
    """Add the choice of a learner: the tour, a new one or an existing one. The returned state changes with a choice."""
    chosen = gr.State("")
    gr.Markdown("Choose a learner. It stays open, for everybody who visits this page, until the server ends.")
    with gr.Row():
        tour = gr.Button("Take the tour: handwritten digits, no data needed", variant="primary", elem_id="choose-tour")
    name = gr.Textbox(
        label="Name of a new learner", info="letters, digits, - and _", elem_id="choose-name", max_length=40
    )
    make_button = gr.Button("Make a new learner", elem_id="choose-new")
    has_learners = bool(opened.names)
    existing = gr.Dropdown(opened.names, label="Or an existing one", elem_id="choose-known", visible=has_learners)
    open_button = gr.Button("Open it", elem_id="choose-open", visible=has_learners)
    message = gr.HTML(elem_id="choose-message")

    def choose(name: str | None) -> tuple[str, str]:
        try:
            opened.choose(name or "")
        except InputError as error:
            return "", views.refusal(error, opened.private_folders)
        return str(name), ""

    for button, source in ((make_button, name), (open_button, existing)):
        button.click(choose, source, [chosen, message], api_visibility="private")
    tour.click(lambda: choose(TOUR_NAME), None, [chosen, message], api_visibility="private")
    return chosen


def _ask_tab(opened: OpenLearner) -> gr.Dropdown:
    """Add the content of the tab Ask, and return its list of tasks."""
    types = ["image", *sorted(IMAGE_SUFFIXES)]  # gradio does not count every suffix that pah reads as an image
    files = gr.Files(label="Images", file_types=types, elem_id="ask-files", height=160)
    task = gr.Dropdown(_task_choices(opened), value=FIND_OUT, label="Task", elem_id="ask-task")
    unknown = gr.Checkbox(label='"None of these" is an answer too', elem_id="ask-unknown")
    button = gr.Button("Ask", variant="primary", elem_id="ask-button")
    answer = gr.HTML(elem_id="ask-answer")

    def answer_html(files: list[str] | None, task: str, unknown: bool) -> str:
        try:
            service = opened.require_service()
            results = service.ask_each(files or [], task, unknown)
            shown = [
                views.AskedImage(Path(file).name, result, None if isinstance(result, Refusal) else thumbnail(file))
                for file, result in zip(files or [], results, strict=True)
            ]
            return views.answer_cards(shown, task != FIND_OUT, service.prototype_uri)
        except InputError as error:
            return views.refusal(error, opened.private_folders)

    button.click(answer_html, [files, task, unknown], answer, api_visibility="private", concurrency_id="ask")
    return task


def _task_choices(opened: OpenLearner) -> list[tuple[str, str]]:
    """Return label and value of each choice."""
    names = [task["name"] for task in (opened.service.tasks if opened.service else ())]
    return [("find out", FIND_OUT), *((plain(shortened(name)), name) for name in names)]


def _look_tab(opened: OpenLearner) -> gr.HTML:
    """Add the content of the tab Look, with its downloads, and return its view."""
    view = gr.HTML(elem_id="look-view")
    with gr.Row():
        for kind, label in (("learner", "Learner (zip)"), ("onnx", "ONNX file"), ("report", "Report (HTML)")):
            button = gr.Button(f"Download: {label}", elem_id=f"download-{kind}")
            file = gr.File(visible=False)
            write = api.with_plain_errors(opened, partial(_write_download, opened, kind))
            written = button.click(write, None, file, api_visibility="private", concurrency_limit=1)
            written.success(None, file, None, js=SAVE_FILE, api_visibility="private")
    return view


def _write_download(opened: OpenLearner, kind: str) -> str:
    return str(opened.write_download(kind))


def _learner_html(opened: OpenLearner) -> str:
    try:
        return opened.service.learner_html() if opened.service else ""
    except InputError as error:
        return views.refusal(error, opened.private_folders)
