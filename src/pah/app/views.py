"""The content of the page as HTML. Text from visitors is escaped, and every image has an alternative text."""

import base64
import html
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from pah.app.accuracies import HELD_OUT, OWN, last_accuracies, lessons_since
from pah.app.answers import Answer, Refusal
from pah.app.messages import plain, shortened, without_paths
from pah.app.prototype_images import PrototypeImages
from pah.app.uploads import UploadSummary
from pah.core.config import InputError
from pah.learner.learner import ContinualLearner

PROTOTYPE_NOTES = {  # what a learner contains of its training images, by `prototype_start`
    "semantic": "whose prototypes started as thumbnails of training images",
    "mean": "whose prototypes started as the mean images of their classes",
}
STATES = {
    "waiting": "waits for the lesson before it",
    "running": "is being taught",
    "paused": "is paused",
    "interrupted": "was interrupted: the server ended while it was taught",
    "failed": "failed",
    "done": "is done: keep it or roll it back",
}
PrototypeUri = Callable[[str, str], str | None]  # (task, class) -> data URI of the prototype's image


def escape(text: str) -> str:
    """Return a text as HTML: nothing in it is markup, breaks its line or changes the direction of what follows."""
    return html.escape(plain(text))


def shown_name(name: str) -> str:
    """Return a name of a task or class as HTML, shortened, which breaks its line rather than the page."""
    return f'<span class="name">{escape(shortened(name))}</span>'


def data_uri(image: Image.Image) -> str:
    """Return an image as a data URI."""
    data = io.BytesIO()
    image.save(data, "png")
    return f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"


def img(uri: str, text: str, css_class: str = "picture") -> str:
    """Return an image element with its alternative text."""
    return f'<img class="{css_class}" src="{uri}" alt="{escape(text)}">'


def percent(value: float | None) -> str:
    """Return a number as a percentage, or a dash for None."""
    return "–" if value is None else f"{value:.1f}\N{NO-BREAK SPACE}%"


def note(text: str, kind: str = "note") -> str:
    """Return a paragraph of the kind note, error or good. An error also starts with "Not done."."""
    content = f"<strong>Not done.</strong> {escape(text)}" if kind == "error" else escape(text)
    return f'<p class="{kind}" role="{"alert" if kind == "error" else "status"}">{content}</p>'


def refusal(error: InputError, folders: Sequence[Path] = ()) -> str:
    """Return an error's message as a paragraph, without paths of the server, such as those of these folders."""
    return note(without_paths(str(error), *folders, instead="the learner"), "error")


def table(titles: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    """Return a table, which scrolls in its own box on a narrow screen. The cells must be HTML already."""
    head = "".join(f'<th scope="col">{shown_name(title)}</th>' for title in titles)
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>' + "".join(f"<td>{cell}</td>" for cell in row[1:]) + "</tr>" for row in rows
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table>'
        f"<caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


class AskedImage(NamedTuple):
    """An image of a question: its file's name, the answer or what is wrong with it, and its thumbnail."""

    name: str
    result: Answer | Refusal
    thumbnail: Image.Image | None


def answer_cards(asked: Sequence[AskedImage], task_given: bool, prototype_uri: PrototypeUri) -> str:
    """Return a line for each unreadable image and a card for each other one.

    A card has the image's class, the probabilities, and the prototypes of the most probable classes.
    """
    refusals = "".join(note(result.reason, "error") for _, result, _ in asked if isinstance(result, Refusal))
    cards = "".join(
        _answer_card(i, name, result, image, task_given, prototype_uri)
        for i, (name, result, image) in enumerate(asked, start=1)
        if not isinstance(result, Refusal) and image is not None
    )
    return refusals + f'<div class="cards">{cards}</div>'


def _answer_card(
    number: int, name: str, answer: Answer, image: Image.Image, task_given: bool, prototype_uri: PrototypeUri
) -> str:
    label = "None of these" if answer.label is None else answer.label
    probability = f"Task {shortened(answer.task)}: {100 * answer.task_probability:.0f} %"
    task = f"Task {shortened(answer.task)}, as chosen" if task_given else probability
    nearest = f"Nearest known class: {shortened(answer.shares[0].label)}. " if answer.label is None else ""
    bars = "".join(
        f'<li><span class="bar-name">{_prototype(share.label, answer.task, prototype_uri)}'
        f"{shown_name(share.label)}</span>"
        f'<meter min="0" max="1" value="{share.probability:.4f}" aria-label="probability of {escape(share.label)}">'
        f'</meter><span class="bar-value">{100 * share.probability:.1f} %</span></li>'
        for share in answer.shares
    )
    shown = img(data_uri(image), f"Image {number} that you asked about", "asked")
    return (
        f'<article class="card" aria-label="Answer {number}">{shown}<div><h3>{shown_name(label)}</h3>'
        f'<p class="file">{escape(shortened(name))}</p>'
        f'<p class="task">{escape(nearest + task)}</p><ul class="bars">{bars}</ul></div></article>'
    )


def _prototype(label: str, task: str, prototype_uri: PrototypeUri) -> str:
    uri = prototype_uri(task, label)
    return "" if uri is None else img(uri, f"Prototype of {label}", "prototype")


def upload_summary(summary: UploadSummary, samples: Mapping[str, Sequence[Image.Image]]) -> str:
    """Return what an upload holds, with sample images by class."""
    rows = [
        [
            shown_name(name),
            str(count),
            "".join(img(data_uri(s), f"{name}, sample {i}") for i, s in enumerate(samples.get(name, ()), start=1)),
        ]
        for name, count in summary.counts.items()
    ]
    total = sum(summary.counts.values())
    sentences = [f"{len(summary.counts)} classes, {total} images that can be read, of {summary.sizes}."]
    return note(" ".join([*sentences, *summary.notes])) + table(
        ["class", "images", "samples"], rows, "What was understood"
    )


def lesson_section(lesson: Mapping[str, Any]) -> str:
    """Return a lesson's state and progress, or its result."""
    name, state, progress = lesson["name"], lesson["state"], lesson["progress"]
    head = f"<h3>{shown_name(name)}</h3><p role='status'>Lesson <b>{shown_name(name)}</b> {STATES[state]}.</p>"
    if state == "done":
        return f'<section class="lesson done">{head}{_result(name, lesson["result"])}</section>'
    if state == "failed":
        head += note(lesson["reason"], "error")
    if state in ("running", "paused") and progress:
        head += _progress(progress)
    elif state == "running":
        head += "<p>The images are being read.</p>"
    return f'<section class="lesson">{head}</section>'


def _progress(progress: Mapping[str, Any]) -> str:
    """Return the progress of a lesson as a bar and a line of text."""
    if "share" not in progress and "images_read" in progress:
        read, images = progress["images_read"], progress["images"]
        return (
            f'<progress max="{images}" value="{read}" aria-label="Progress of the lesson"></progress>'
            f"<p>The backbone has seen {read} of {images} images.</p>"
        )
    share = progress.get("share", 0.0)
    seconds, accuracy = progress["seconds_left"], progress["accuracy"]
    left = "" if seconds is None else f", about {duration(seconds)} left"
    measured = "" if accuracy is None else f", accuracy on validation images {accuracy:.1f} %"
    return (
        f'<progress max="1" value="{share}" aria-label="Progress of the lesson"></progress>'
        f"<p>{100 * share:.0f} %, epoch {min(progress['epoch'] + 1, progress['epochs'])} of {progress['epochs']}"
        f"{measured}{left}.</p>"
    )


def duration(seconds: float) -> str:
    """Return a duration as text, in seconds or minutes."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _result(new_task: str, result: Mapping[str, Any]) -> str:
    """Return the accuracies before and after a lesson, its estimated losses, and its notes."""
    names = [*dict.fromkeys([*result["drift"], *result["after"]])]
    rows = [
        [
            shown_name(name) + (" (new)" if name == new_task else ""),
            "not known before" if name == new_task else percent(result["before"].get(name)),
            percent(result["after"].get(name)),
            "–" if name not in result["after"] else OWN if name == new_task else "its check images",
            "–" if name not in result["drift"] else f"{100 * result['drift'][name]:.1f} %",
        ]
        for name in names
    ]
    notes = "".join(note(text) for text in result["notes"])
    unmeasured = [name for name in names if name not in result["after"]]
    if unmeasured:
        notes += note(f"No check images of {', '.join(unmeasured)} were kept, so their loss is only estimated.")
    titles = ["task", "accuracy before", "accuracy after", "measured on", "lost (estimate)"]
    return table(titles, rows, "Every task before and after the lesson") + notes


def learner_overview(learner: ContinualLearner, prototypes: Sequence[PrototypeImages], size: int) -> str:
    """Return the tasks, lessons and prototypes of a learner.

    Args:
        learner: The learner.
        prototypes: Its prototypes as images.
        size: Size of its files in bytes.
    """
    config, (channels, height, width) = learner.config, learner.predictor.record.image_shape
    start = getattr(config.method_options, "prototype_start", "")
    head = note(
        f"{config.method} on {config.backbone}, {'grey' if channels == 1 else 'colour'} images of {height}x{width}, "
        f"{size / 2**20:.1f} MB on disk, {PROTOTYPE_NOTES.get(start, 'no training images inside')}."
    )
    return head + _tasks(learner) + _history(learner) + _prototypes(prototypes)


def _tasks(learner: ContinualLearner) -> str:
    last = last_accuracies(learner.history, learner.tasks)
    rows = [
        [
            shown_name(task.name),
            ", ".join(map(shown_name, task.classes)),
            "–" if task.images is None else str(task.images),
            escape((task.taught or "–")[:10]),
            escape(str(last.get(task.name, "–"))),
        ]
        for task in learner.tasks
    ]
    return table(["task", "classes", "images", "taught", "accuracy, measured last"], rows, "Tasks")


def _history(learner: ContinualLearner) -> str:
    names = [task.name for task in learner.tasks]
    since = {task.name: lessons_since(learner.history, task) for task in learner.tasks}
    rows = [
        [
            shown_name(lesson.name),
            *(percent(lesson.accuracies.get(name) if lesson in since[name] else None) for name in names),
            f"{100 * max(lesson.drift.values()):.1f} %" if lesson.drift else "–",
        ]
        for lesson in learner.history
    ]
    meaning = f"The accuracy of a lesson's own task was measured on {OWN}, that of earlier tasks on {HELD_OUT}."
    titles = ["after lesson", *names, "largest loss (estimate)"]
    return table(titles, rows, "Accuracy of each task after each lesson") + note(meaning)


def _prototypes(prototypes: Sequence[PrototypeImages]) -> str:
    if not prototypes:
        return note("This learner has no prototypes to show.")
    rows = [
        [
            shown_name(prototype.label),
            shown_name(prototype.task),
            _saved_prototype(prototype.start, f"{prototype.label} at its start"),
            _saved_prototype(prototype.learned, f"{prototype.label} after its own lesson"),
            img(data_uri(prototype.today), f"{prototype.label} today", "prototype"),
            "–" if prototype.moved is None else f"{100 * prototype.moved:.1f} %",
        ]
        for prototype in prototypes
    ]
    return table(["class", "task", "start", "after own lesson", "today", "moved since"], rows, "Prototypes")


def _saved_prototype(image: Image.Image | None, text: str) -> str:
    return "not kept" if image is None else img(data_uri(image), text, "prototype")


def whole_page(title: str, body: str) -> str:
    """Return a complete HTML document that needs no other file."""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>body{{font-family:system-ui;max-width:60rem;margin:2rem auto;padding:0 1rem}}{STYLE}</style>"
        f"</head><body><h1>{escape(title)}</h1>{body}</body></html>"
    )


STYLE = (Path(__file__).parent / "style.css").read_text(encoding="utf-8")
