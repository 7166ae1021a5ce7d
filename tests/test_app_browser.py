"""`pah app` in a real Chromium: lessons taught and asked about, a killed server, a phone, the keyboard alone."""

import io
import os
import re
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.browser

PHONE, DESKTOP = 390, 1280  # pixels
WAIT = 120_000  # milliseconds for a lesson, on a busy machine
ENDLESS = 500  # epochs of a lesson that is not to end by itself


Colours = dict[str, tuple[int, int, int]]
FISH: Colours = {"eel": (200, 30, 30), "perch": (30, 200, 30), "carp": (30, 30, 200)}
BIRDS: Colours = {"wren": (220, 220, 20), "stork": (20, 220, 220)}


def pixels(colour: tuple[int, int, int], seed: int) -> np.ndarray[Any, Any]:
    """An image of about that colour, (8, 8, 3) bytes."""
    noise = np.random.default_rng(seed).integers(-30, 30, (8, 8, 3))
    return np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)


def picture(colour: tuple[int, int, int], seed: int) -> bytes:
    """The same as a PNG file."""
    data = io.BytesIO()
    Image.fromarray(pixels(colour, seed)).save(data, "png")
    return data.getvalue()


def zipped(path: Path, classes: Colours, images: int = 16) -> Path:
    """A zip with a folder of images of its colour for each class."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, colour in classes.items():
            for seed in range(images):
                archive.writestr(f"{name}/{seed}.png", picture(colour, seed))
    return path


class Server:
    """`pah app` in a process of its own, at a free port."""

    def __init__(self, learner: Path, *words: str, **environment: str) -> None:
        command = [sys.executable, "-m", "pah", "app", str(learner), "--port", "0", *words]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=os.environ | environment, cwd=learner.parent
        )
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().split()[0]

    def end(self, number: int = signal.SIGTERM) -> None:
        """Send a signal, and wait for the end."""
        self.process.send_signal(number)
        self.process.wait(30)
        assert self.process.stdout is not None
        self.process.stdout.close()


@contextmanager
def serving(learner: Path, *words: str, **environment: str) -> Iterator[Server]:
    server = Server(learner, *words, **environment)
    try:
        yield server
    finally:
        server.end()


@contextmanager
def visiting(chromium: Any, address: str, width: int = DESKTOP, **options: Any) -> Iterator[Any]:
    """The page; at its end it has complained of nothing and asked no other machine."""
    context = chromium.new_context(viewport={"width": width, "height": 800}, **options)
    page = context.new_page()
    page.set_default_timeout(WAIT)
    complaints: list[str] = []
    elsewhere: list[str] = []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))

    def pass_on(route: Any) -> None:
        if urlsplit(route.request.url).netloc == urlsplit(address).netloc:
            route.continue_()
        else:
            elsewhere.append(route.request.url)
            route.abort()

    context.route("**/*", pass_on)
    page.goto(address)
    page.get_by_role("tab", name="Ask").wait_for()
    yield page
    page.unroute_all(behavior="ignoreErrors")
    context.close()
    assert elsewhere == []
    assert complaints == []


def opened(page: Any, tab: str) -> None:
    page.get_by_role("tab", name=tab).click()


def says(page: Any, place: str, text: str) -> None:
    """Wait until that text is there."""
    page.locator(place).get_by_text(re.compile(text)).first.wait_for()


def hand_in(page: Any, classes: Colours) -> None:
    """Give an image of each class, of that name, to be asked about."""
    files = [
        {"name": f"a {name}.png", "mimeType": "image/png", "buffer": picture(colour, 99)}
        for name, colour in classes.items()
    ]
    page.locator("#ask-files input[type=file]").set_input_files(files)
    says(page, "#ask-files", f"a {list(classes)[-1]}")


def choose_task(page: Any, name: str) -> None:
    page.locator("#ask-task input").click()
    page.get_by_role("option", name=name).click()


def begin(page: Any, name: str, archive: Path, epochs: int) -> None:
    """Upload, name and start a lesson."""
    opened(page, "Teach")
    page.locator("#teach-zip input[type=file]").set_input_files(archive)
    says(page, "#teach-understood", "images that can be read")
    page.locator("#teach-name input, #teach-name textarea").fill(name)
    if not page.locator("#teach-epochs input").is_visible():
        page.locator("#teach-options button").first.click()
    page.locator("#teach-epochs input").fill(str(epochs))
    page.locator("#teach-size input").fill("8")
    page.locator("#teach-start").click()
    says(page, "#lesson-progress", f"Lesson {name}")


def decide(page: Any, verb: str, said: str) -> None:
    """Press one of the first lesson's buttons."""
    page.locator(f"#lesson-{verb}").click()
    says(page, "#teach-message", said)


def test_two_lessons_then_the_first_is_asked_about_and_a_third_rolled_back(chromium: Any, tmp_path: Path) -> None:
    fish, birds = zipped(tmp_path / "fish.zip", FISH), zipped(tmp_path / "birds.zip", BIRDS, images=8)
    with serving(tmp_path / "animals") as server, visiting(chromium, server.address) as page:
        begin(page, "fish", fish, epochs=20)
        says(page, "#lesson-progress", "is done")
        decide(page, "keep", "Kept")
        begin(page, "birds", birds, epochs=20)
        says(page, "#lesson-progress", "is done")
        rows = page.locator("#lesson-progress tbody tr")
        assert [row.split("\t")[0] for row in rows.all_inner_texts()] == ["fish", "birds (new)"]
        decide(page, "keep", "Kept")

        opened(page, "Ask")
        hand_in(page, FISH)
        page.locator("#ask-button").click()
        says(page, "#ask-answer", r"Task (fish|birds): \d+ %")
        choose_task(page, "fish")
        page.locator("#ask-button").click()
        says(page, "#ask-answer", "Task fish, as chosen")
        assert page.locator("#ask-answer h3").all_inner_texts() == list(FISH)

        begin(page, "more", zipped(tmp_path / "more.zip", {"grey": (128, 128, 128), "black": (0, 0, 0)}), epochs=1)
        says(page, "#lesson-progress", "is done")
        decide(page, "roll-back", "Rolled back")
        opened(page, "Look")
        tasks = page.locator("#look-view table").first.locator("tbody th")
        assert tasks.all_inner_texts() == ["fish", "birds"]
