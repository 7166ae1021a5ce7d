"""What the page shows, as HTML: words from outside are escaped, pictures have texts, no colour stands alone."""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from pah.app.asking import Answer
from pah.app.gallery import Portrait
from pah.app.messages import without_paths
from pah.app.uploads import Understood
from pah.core.config import InputError
from pah.learner.learner import ContinualLearner

INSIDE = {  # a learner, of its training images, by what its prototypes start as
    "semantic": "whose prototypes started as thumbnails of training images",
    "mean": "whose prototypes started as the mean images of their classes",
}
NAMED = 10  # unreadable files that are named
STATES = {
    "waiting": "waits for the lesson before it",
    "running": "is being taught",
    "paused": "is paused",
    "interrupted": "was interrupted: the server ended while it was taught",
    "failed": "failed",
    "done": "is done: keep it or roll it back",
}
Pictured = Callable[[str, str], str | None]  # task and class -> data URI of the prototype


def data_uri(image: Image.Image) -> str:
    """An image inside a page."""
    data = io.BytesIO()
    image.save(data, "png")
    return f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"


def img(uri: str, text: str, kind: str = "picture") -> str:
    """A picture and its text alternative."""
    return f'<img class="{kind}" src="{uri}" alt="{escape(text)}">'


def percent(value: float | None) -> str:
    """A number in percent, or a dash."""
    return "–" if value is None else f"{value:.1f}\N{NO-BREAK SPACE}%"


def note(text: str, kind: str = "note") -> str:
    """A sentence; `kind` is note, error or good, and an error says so in words."""
    said = f"<strong>Not done.</strong> {escape(text)}" if kind == "error" else escape(text)
    return f'<p class="{kind}" role="{"alert" if kind == "error" else "status"}">{said}</p>'


def refusal(error: InputError) -> str:
    """Why something was not done, without paths of the machine."""
    return note(without_paths(str(error)), "error")


def table(titles: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    """Cells are HTML already; it scrolls by itself where the page is narrow."""
    head = "".join(f'<th scope="col">{escape(title)}</th>' for title in titles)
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>' + "".join(f"<td>{cell}</td>" for cell in row[1:]) + "</tr>" for row in rows
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table>'
        f"<caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def answers(found: Sequence[Answer], images: Sequence[Image.Image], given: bool, pictured: Pictured) -> str:
    """A card an image: what it is, how sure, and what the winning classes look like to the learner."""
    return '<div class="cards">' + "".join(
        _answer(i, answer, image, given, pictured)
        for i, (answer, image) in enumerate(zip(found, images, strict=True), start=1)
    ) + "</div>"  # fmt: skip


def _answer(number: int, answer: Answer, image: Image.Image, given: bool, pictured: Pictured) -> str:
    said = "None of these" if answer.label is None else answer.label
    task = f"Task {answer.task}, as chosen" if given else f"Task {answer.task}: {100 * answer.task_probability:.0f} %"
    nearest = f"Nearest known class: {answer.shares[0].label}. " if answer.label is None else ""
    bars = "".join(
        f'<li><span class="bar-name">{_prototype(share.label, answer.task, pictured)}{escape(share.label)}</span>'
        f'<meter min="0" max="1" value="{share.probability:.4f}" aria-label="probability of {escape(share.label)}">'
        f'</meter><span class="bar-value">{100 * share.probability:.1f} %</span></li>'
        for share in answer.shares
    )
    shown = img(data_uri(image), f"Image {number} that you asked about", "asked")
    return (
        f'<article class="card" aria-label="Answer {number}">{shown}<div><h3>{escape(said)}</h3>'
        f'<p class="task">{escape(nearest + task)}</p><ul class="bars">{bars}</ul></div></article>'
    )


def _prototype(label: str, task: str, pictured: Pictured) -> str:
    uri = pictured(task, label)
    return "" if uri is None else img(uri, f"Prototype of {label}", "prototype")


def understood(found: Understood, samples: Mapping[str, Sequence[Image.Image]]) -> str:
    """What an upload holds, with a few images of some classes."""
    rows = [
        [
            escape(name),
            str(count),
            "".join(img(data_uri(s), f"{name}, sample {i}") for i, s in enumerate(samples.get(name, ()), start=1)),
        ]
        for name, count in found.counts.items()
    ]
    said = [f"{len(found.counts)} classes, {sum(found.counts.values())} images that can be read, of {found.sizes}."]
    if found.unreadable:
        more = f" and {len(found.unreadable) - NAMED} more" if len(found.unreadable) > NAMED else ""
        said.append(f"Unreadable, will be left out: {', '.join(found.unreadable[:NAMED])}{more}.")
    return note(" ".join(said)) + table(["class", "images", "samples"], rows, "What was understood")


def lesson(of: Mapping[str, Any]) -> str:
    """How a lesson stands, in words and as a bar."""
    head = (
        f"<h3>{escape(of['name'])}</h3><p role='status'>Lesson <b>{escape(of['name'])}</b> {STATES[of['state']]}.</p>"
    )
    if of["state"] == "done":
        return f'<section class="lesson done">{head}{_result(of)}</section>'
    if of["state"] == "failed":
        head += note(of["reason"], "error")
    progress = of["progress"]
    if of["state"] in ("running", "paused") and progress:
        share = progress.get("share", 0.0)
        left = "" if progress["seconds_left"] is None else f", about {duration(progress['seconds_left'])} left"
        seen = "" if progress["accuracy"] is None else f", accuracy on validation images {progress['accuracy']:.1f} %"
        head += (
            f'<progress max="1" value="{share}" aria-label="Progress of the lesson"></progress>'
            f"<p>{100 * share:.0f} %, epoch {min(progress['epoch'] + 1, progress['epochs'])} of {progress['epochs']}"
            f"{seen}{left}.</p>"
        )
    elif of["state"] == "running":
        head += "<p>The images are being read.</p>"
    return f'<section class="lesson">{head}</section>'


def duration(seconds: float) -> str:
    """Seconds as people say it."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _result(of: Mapping[str, Any]) -> str:
    result = of["result"]
    names = [*dict.fromkeys([*result["drift"], *result["after"]])]
    rows = [
        [
            escape(name) + (" (new)" if name == of["name"] else ""),
            "not known before" if name == of["name"] else percent(result["before"].get(name)),
            percent(result["after"].get(name)),
            "–" if name not in result["drift"] else f"{100 * result['drift'][name]:.1f} %",
        ]
        for name in names
    ]
    said = "".join(note(text) for text in result["notes"])
    missing = [name for name in names if name not in result["after"]]
    if missing:
        said += note(
            f"No images of {', '.join(missing)} were kept for checking: only the estimate tells how they fared."
        )
    titles = ["task", "accuracy before", "accuracy after", "lost (estimate)"]
    return table(titles, rows, "Every task before and after the lesson") + said


def looked(learner: ContinualLearner, shown: Sequence[Portrait], size: int) -> str:
    """Tasks, lessons and prototypes of a learner."""
    config, (channels, height, width) = learner.config, learner.taught.record.image_shape
    start = getattr(config.method_options, "prototype_start", "")
    head = note(
        f"{config.method} on {config.backbone}, {'grey' if channels == 1 else 'colour'} images of {height}x{width}, "
        f"{size / 2**20:.1f} MB on disk, {INSIDE.get(start, 'no training images inside')}."
    )
    return head + _tasks(learner) + _history(learner) + _prototypes(shown)


def _tasks(learner: ContinualLearner) -> str:
    rows = [
        [
            escape(task.name),
            escape(", ".join(task.classes)),
            "–" if task.images is None else str(task.images),
            escape((task.taught or "–")[:10]),
        ]
        for task in learner.tasks
    ]
    return table(["task", "classes", "images", "taught"], rows, "Tasks")


def _history(learner: ContinualLearner) -> str:
    names = [task.name for task in learner.tasks]
    rows = [
        [
            escape(lesson.name),
            *(percent(lesson.accuracies.get(name)) for name in names),
            f"{100 * max(lesson.drift.values()):.1f} %" if lesson.drift else "–",
        ]
        for lesson in learner.history
    ]
    return table(["after lesson", *names, "largest loss (estimate)"], rows, "Accuracy of each task after each lesson")


def _prototypes(shown: Sequence[Portrait]) -> str:
    rows = [
        [
            escape(of.label),
            escape(of.task),
            "not kept" if of.start is None else img(data_uri(of.start), f"{of.label} at its start", "prototype"),
            "not kept" if of.then is None else img(data_uri(of.then), f"{of.label} after its own lesson", "prototype"),
            img(data_uri(of.today), f"{of.label} today", "prototype"),
            "–" if of.moved is None else f"{100 * of.moved:.1f} %",
        ]
        for of in shown
    ]
    if not rows:
        return note("This learner has no prototypes to show.")
    return table(["class", "task", "start", "after own lesson", "today", "moved since"], rows, "Prototypes")


def whole_page(title: str, body: str) -> str:
    """A page of its own, which needs no other file."""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>body{{font-family:system-ui;max-width:60rem;margin:2rem auto;padding:0 1rem}}{STYLE}</style>"
        f"</head><body><h1>{escape(title)}</h1>{body}</body></html>"
    )


STYLE = (Path(__file__).parent / "style.css").read_text(encoding="utf-8")
