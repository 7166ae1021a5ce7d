"""Names that visitors choose cannot change the page: no markup, no line breaks, no change of direction."""

from pathlib import Path

import pytest
from PIL import Image

from pah.app import views
from pah.app.answers import Answer, ClassProbability, Refusal
from pah.app.messages import plain
from pah.app.uploads import UploadSummary

HOSTILE = {
    "markup": ("<img src=x onerror=alert(1)>\"'&", "&lt;img src=x onerror=alert(1)&gt;&quot;&#x27;&amp;"),
    "line breaks": ("a\nb\r\u2028c", r"a\nb\r\u2028c"),
    "control characters": ("\x07\x1b[2J\x00", r"\x07\x1b[2J\x00"),
    "another direction": ("\u202egnp.txet\u2066", r"\u202egnp.txet\u2066"),
    "half a character": ("a\ud800", r"a\ud800"),
    "pipes and templates": ("a|b ${7*7} {{7}}", "a|b ${7*7} {{7}}"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_names_are_shown_as_they_are_written(kind: str) -> None:
    name, shown = HOSTILE[kind]
    answer = Answer(name, name, 0.5, 0.5, (ClassProbability(name, 0.5),))
    asked = [views.AskedImage(name, answer, Image.new("RGB", (2, 2))), views.AskedImage(name, Refusal(name), None)]
    lesson = {
        "name": name,
        "state": "done",
        "progress": {},
        "result": {"before": {}, "after": {name: 1.0}, "drift": {}, "notes": [name]},
    }
    for html in (
        views.answer_cards(asked, False, lambda task, label: None),
        views.lesson_section(lesson),
        views.upload_summary(UploadSummary(Path(), {name: 1}, "", (), (name,), (f"a.{name}",)), {name: []}),
        views.note(name, "error"),
        views.table([name], [[views.shown_name(name)]], name),
    ):
        assert shown in html
        assert name not in html or name == shown
        html.encode()  # no half a character


def test_letters_of_any_script_are_kept() -> None:
    for name in ("عربي", "日本", "e\u0301", "👩\u200d🔬", "naïve"):
        assert plain(name) == name


def test_long_names_are_shortened() -> None:
    assert len(views.shown_name("W" * 300)) < 120


def test_an_unreadable_image_is_named_beside_the_answers_for_the_others() -> None:
    answer = Answer("wren", "birds", 0.9, 0.9, (ClassProbability("wren", 0.9),))
    asked = [
        views.AskedImage("bad.png", Refusal("bad.png: expected an image, got: nothing"), None),
        views.AskedImage("good.png", answer, Image.new("RGB", (2, 2))),
    ]
    html = views.answer_cards(asked, False, lambda task, label: None)
    assert html.count("<article") == 1
    assert "bad.png: expected an image" in html
    assert "good.png" in html
