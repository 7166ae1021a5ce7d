"""`pah app` in a real Chromium: teaching and asking, a killed server, a phone's screen, and use by keyboard alone."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from shutil import copytree
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import urlopen

import numpy as np
import pytest
from PIL import Image

from browsing import CONTRAST, LOWEST_CONTRAST
from pah import ContinualLearner
from pah.app.lesson import Request, new_learner_config
from pah.app.service import app_folder

pytestmark = pytest.mark.browser

PHONE, DESKTOP = 390, 1280  # pixels
WAIT = 300_000  # milliseconds for a lesson, which runs with low priority
ENDLESS = 500  # epochs of a lesson that the test stops


Colours = dict[str, tuple[int, int, int]]
FISH: Colours = {"eel": (200, 30, 30), "perch": (30, 200, 30), "carp": (30, 30, 200)}
BIRDS: Colours = {"wren": (220, 220, 20), "stork": (20, 220, 220)}


def pixels(colour: tuple[int, int, int], seed: int) -> np.ndarray[Any, Any]:
    """Return a noisy image of that colour, uint8 (8, 8, 3)."""
    noise = np.random.default_rng(seed).integers(-30, 30, (8, 8, 3))
    return np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)


def picture(colour: tuple[int, int, int], seed: int) -> bytes:
    """Return such an image as a PNG file."""
    data = io.BytesIO()
    Image.fromarray(pixels(colour, seed)).save(data, "png")
    return data.getvalue()


def make_zip(path: Path, classes: Colours, images: int = 16) -> Path:
    """Write a zip with a folder for each class, whose images have the class's colour."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, colour in classes.items():
            for seed in range(images):
                archive.writestr(f"{name}/{seed}.png", picture(colour, seed))
    return path


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a learner that was taught fish and birds. Tests that teach use a copy."""
    learner = ContinualLearner(config=new_learner_config(Request("", "", "", "images", image_size=8)))
    learner.config = replace(learner.config, training=replace(learner.config.training, epochs=20))
    for name, classes in (("fish", FISH), ("birds", BIRDS)):
        images = np.stack([pixels(colour, seed) for colour in classes.values() for seed in range(16)])
        learner.learn(name, (images, [k for k in range(len(classes)) for _ in range(16)], list(classes)))
    folder = tmp_path_factory.mktemp("taught") / "animals"
    learner.save(folder)
    return folder


@pytest.fixture(scope="module")
def shared(taught: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator["Server"]:
    """A server for that learner, for tests that teach nothing."""
    with serving(copytree(taught, tmp_path_factory.mktemp("shared") / "animals")) as server:
        yield server


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
        """Send a signal to the process, and wait until it has ended."""
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
    """Open the page; at the end, assert that it reported no error and sent no request to another machine."""
    context = chromium.new_context(viewport={"width": width, "height": 800}, **options)
    page = context.new_page()
    page.set_default_timeout(WAIT)
    errors: list[str] = []
    foreign_requests: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))

    def pass_on(route: Any) -> None:
        if urlsplit(route.request.url).netloc == urlsplit(address).netloc:
            route.continue_()
        else:
            foreign_requests.append(route.request.url)
            route.abort()

    context.route("**/*", pass_on)
    page.goto(address)
    page.get_by_role("tab", name="Ask").wait_for()
    yield page
    page.unroute_all(behavior="ignoreErrors")
    context.close()
    assert foreign_requests == []
    assert errors == []


def open_tab(page: Any, tab: str) -> None:
    page.get_by_role("tab", name=tab).click()


def wait_for_text(page: Any, selector: str, text: str) -> None:
    """Wait until the element shows text that matches the regular expression."""
    page.locator(selector).get_by_text(re.compile(text)).first.wait_for()


def upload_images(page: Any, classes: Colours) -> None:
    """Upload an image of each class to be asked about."""
    files = [
        {"name": f"a {name}.png", "mimeType": "image/png", "buffer": picture(colour, 99)}
        for name, colour in classes.items()
    ]
    page.locator("#ask-files input[type=file]").set_input_files(files)
    wait_for_text(page, "#ask-files", f"a {list(classes)[-1]}")


def choose_task(page: Any, name: str) -> None:
    page.locator("#ask-task input").click()
    page.get_by_role("option", name=name).click()


def start_lesson(page: Any, name: str, archive: Path, epochs: int) -> None:
    """Upload a zip, enter the name and options of a lesson, and start it."""
    open_tab(page, "Teach")
    page.locator("#teach-zip input[type=file]").set_input_files(archive)
    wait_for_text(page, "#teach-understood", "images that can be read")
    page.locator("#teach-name input, #teach-name textarea").fill(name)
    if not page.locator("#teach-epochs input").is_visible():
        page.locator("#teach-options button").first.click()
    page.locator("#teach-epochs input").fill(str(epochs))
    if page.locator("#teach-size input").is_editable():  # a learner that was taught has its own size
        page.locator("#teach-size input").fill("8")
    page.locator("#teach-start").click()
    wait_for_text(page, "#lesson-progress", f"Lesson {name}")


def press(page: Any, button: str, message: str) -> None:
    """Press one of the first lesson's buttons, and wait for the message."""
    page.locator(f"#lesson-{button}").click()
    wait_for_text(page, "#teach-message", message)


def test_keep_two_lessons_then_ask_then_roll_back_a_third(chromium: Any, tmp_path: Path) -> None:
    fish, birds = make_zip(tmp_path / "fish.zip", FISH), make_zip(tmp_path / "birds.zip", BIRDS, images=8)
    with serving(tmp_path / "animals") as server, visiting(chromium, server.address) as page:
        start_lesson(page, "fish", fish, epochs=20)
        wait_for_text(page, "#lesson-progress", "is done")
        press(page, "keep", "Kept")
        start_lesson(page, "birds", birds, epochs=20)
        wait_for_text(page, "#lesson-progress", "is done")
        rows = page.locator("#lesson-progress tbody tr")
        assert [row.split("\t")[0] for row in rows.all_inner_texts()] == ["fish", "birds (new)"]
        press(page, "keep", "Kept")

        open_tab(page, "Ask")
        upload_images(page, FISH)
        page.locator("#ask-button").click()
        wait_for_text(page, "#ask-answer", r"Task (fish|birds): \d+ %")
        choose_task(page, "fish")
        page.locator("#ask-button").click()
        wait_for_text(page, "#ask-answer", "Task fish, as chosen")
        assert page.locator("#ask-answer h3").all_inner_texts() == list(FISH)

        start_lesson(
            page, "more", make_zip(tmp_path / "more.zip", {"grey": (128, 128, 128), "black": (0, 0, 0)}), epochs=1
        )
        wait_for_text(page, "#lesson-progress", "is done")
        press(page, "roll-back", "Rolled back")
        assert tasks_of(page) == ["fish", "birds"]


def tasks_of(page: Any) -> list[str]:
    """Return the names of the tasks that the tab Look shows."""
    open_tab(page, "Look")
    page.locator("#look-view table").first.wait_for()
    names: list[str] = page.locator("#look-view table").first.locator("tbody th").all_inner_texts()
    return names


def test_a_lesson_continues_while_the_page_is_closed(chromium: Any, taught: Path, tmp_path: Path) -> None:
    learner = copytree(taught, tmp_path / "animals")
    long = make_zip(tmp_path / "long.zip", {"grey": (128, 128, 128), "black": (0, 0, 0)}, images=100)
    with serving(learner) as server, visiting(chromium, server.address) as page:
        start_lesson(page, "long", long, epochs=ENDLESS)
        wait_for_text(page, "#lesson-progress", "epoch")
        page.reload()
        open_tab(page, "Teach")
        wait_for_text(page, "#lesson-progress", f"epoch .* of {ENDLESS}, accuracy on validation images .* left")
        page.locator("#lesson-pause").click()
        wait_for_text(page, "#lesson-progress", "is paused")
        page.goto("about:blank")
        page.goto(server.address)
        open_tab(page, "Teach")
        wait_for_text(page, "#lesson-progress", "is paused")
        page.locator("#lesson-go").click()
        wait_for_text(page, "#lesson-progress", "is being taught")

        open_tab(page, "Ask")
        upload_images(page, FISH)
        page.locator("#ask-button").click()
        wait_for_text(page, "#ask-answer", r"Task (fish|birds): \d+ %")
        open_tab(page, "Teach")
        press(page, "stop", "Stopped")
        wait_for_text(page, "#lesson-progress", "No lesson is running")


def test_a_lesson_of_a_killed_server_can_be_started_again_or_deleted(
    chromium: Any, taught: Path, tmp_path: Path
) -> None:
    learner = copytree(taught, tmp_path / "animals")
    grey = make_zip(tmp_path / "grey.zip", {"grey": (128, 128, 128), "black": (0, 0, 0)})
    server = Server(learner)
    try:
        with visiting(chromium, server.address) as page:
            start_lesson(page, "grey", grey, epochs=5)
            page.locator("#lesson-pause").click()
            wait_for_text(page, "#lesson-progress", "is paused")
        server = kill_and_restart(server, learner)
        with visiting(chromium, server.address) as page:
            open_tab(page, "Teach")
            wait_for_text(page, "#lesson-progress", "was interrupted")
            page.get_by_role("button", name="Start again").click()
            wait_for_text(page, "#lesson-progress", "is done")
            press(page, "keep", "Kept")
            start_lesson(page, "again", grey, epochs=ENDLESS)
            wait_for_text(page, "#lesson-progress", "epoch")
        server = kill_and_restart(server, learner)
        with visiting(chromium, server.address) as page:
            open_tab(page, "Teach")
            wait_for_text(page, "#lesson-progress", "was interrupted")
            press(page, "stop", "Stopped")
            wait_for_text(page, "#lesson-progress", "No lesson is running")
            assert list((app_folder(learner) / "lessons").iterdir()) == []
            assert tasks_of(page) == ["fish", "birds", "grey"]
    finally:
        server.end()


def kill_and_restart(server: Server, learner: Path) -> Server:
    server.end(signal.SIGKILL)
    return Server(learner)


def fill_tabs(page: Any, archive: Path) -> Iterator[str]:
    """Open each tab with as much content as it can show, and yield its name."""
    upload_images(page, FISH)
    page.locator("#ask-button").click()
    wait_for_text(page, "#ask-answer", "Task ")
    yield "Ask"
    open_tab(page, "Teach")
    page.locator("#teach-zip input[type=file]").set_input_files(archive)
    wait_for_text(page, "#teach-understood", "images that can be read")
    page.locator("#teach-options button").first.click()
    page.locator("#teach-epochs").wait_for()
    yield "Teach"
    open_tab(page, "Look")
    wait_for_text(page, "#look-view", "Prototypes")
    yield "Look"


# elements that reach beyond the screen, except in a box that scrolls, and text that its box cuts off
CUT_ELEMENTS = """(width) => [...document.querySelectorAll("body *:not(svg *)")].filter((one) => {
  if (!one.checkVisibility({visibilityProperty: true, opacityProperty: true}) || one.closest(".scroll *")) return false;
  const box = one.getBoundingClientRect();
  if (box.width <= 1) return false;  // for screen readers only
  if ((box.right > width + 1 || box.left < -1)) return true;
  const text = [...one.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
  const hides = ["overflowX", "overflowY"].some((of) => getComputedStyle(one)[of] !== "visible");
  return text && hides && (one.scrollWidth > one.clientWidth + 1 || one.scrollHeight > one.clientHeight + 1);
}).map((one) => one.outerHTML.slice(0, 200))"""


# texts and buttons that overlap, except those inside each other or in a box that scrolls
OVERLAPPING = """() => {
  const seen = {opacityProperty: true, visibilityProperty: true};
  const shown = [...document.querySelectorAll("body *:not(svg *)")].filter((one) => one.checkVisibility(seen) &&
    !one.closest(".scroll") && (one.matches("button") ||
    [...one.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim())));
  const boxes = shown.map((one) => [one, one.getBoundingClientRect()]).filter(([, box]) => box.width > 1);
  return boxes.flatMap(([a, one], i) => boxes.slice(i + 1)
    .filter(([b, other]) => !a.contains(b) && !b.contains(a) &&
      Math.min(one.right, other.right) - Math.max(one.left, other.left) > 2 &&
      Math.min(one.bottom, other.bottom) - Math.max(one.top, other.top) > 2)
    .map(([b]) => [a.outerHTML.slice(0, 150), b.outerHTML.slice(0, 150)]));
}"""


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_nothing_is_cut_off_and_every_image_has_an_alternative_text(
    chromium: Any, shared: Server, tmp_path: Path, width: int
) -> None:
    with visiting(chromium, shared.address, width) as page:
        for tab in fill_tabs(page, make_zip(tmp_path / "fish.zip", FISH)):
            take_screenshot(page, f"{tab}-{width}")
            assert page.evaluate(CUT_ELEMENTS, width) == [], tab
            assert page.evaluate(OVERLAPPING) == [], tab
            assert page.evaluate("document.documentElement.scrollWidth") <= width, tab
            pictures = page.locator("img:visible")
            assert pictures.count() >= 1, tab
            assert all((picture.get_attribute("alt") or "").strip() for picture in pictures.all()), tab


ODD_NAMES = ("<img src=x onerror=alert(1)>", "${7*7} {{7*7}} | pipe", "W" * 300, "عربي")


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_odd_names_change_neither_the_page_nor_its_layout(
    chromium: Any, taught: Path, tmp_path: Path, width: int
) -> None:
    learner = ContinualLearner.load(taught)
    learner.config = replace(learner.config, training=replace(learner.config.training, epochs=1))
    images = np.stack([pixels((20 * k, 0, 0), seed) for k in range(len(ODD_NAMES)) for seed in range(8)])
    learner.learn("T" * 120, (images, [k for k in range(len(ODD_NAMES)) for _ in range(8)], ODD_NAMES))
    learner.learn("<b>bold</b>", (images[:16], [0] * 8 + [1] * 8, ODD_NAMES[:2]))
    learner.save(tmp_path / "animals")
    bad = {"name": "b" * 180 + ".png", "mimeType": "image/png", "buffer": b"no image"}
    good = {"name": "good.png", "mimeType": "image/png", "buffer": picture((60, 0, 0), 99)}
    with serving(tmp_path / "animals") as server, visiting(chromium, server.address, width) as page:
        page.locator("#ask-files input[type=file]").set_input_files([bad, good])
        wait_for_text(page, "#ask-files", "png")
        choose_task(page, "TTTT")
        page.locator("#ask-button").click()
        wait_for_text(page, "#ask-answer", "bbb.png: expected an image")
        wait_for_text(page, "#ask-answer", "Task TTTT")
        for tab, selector in (("Ask", "#ask-answer"), ("Look", "#look-view")):
            open_tab(page, tab)
            wait_for_text(page, selector, "img src=x")
            take_screenshot(page, f"odd-{tab}-{width}")
            assert page.locator(f"{selector} b, {selector} [onerror]").count() == 0
            assert page.evaluate("document.documentElement.scrollWidth") <= width, tab
            assert page.evaluate(OVERLAPPING) == [], tab


def test_a_download_is_the_learner_as_it_is_at_the_click(chromium: Any, taught: Path, tmp_path: Path) -> None:
    folder = copytree(taught, tmp_path / "animals")
    with serving(folder) as server, visiting(chromium, server.address) as page:
        open_tab(page, "Look")
        assert downloaded_tasks(page) == ["fish", "birds"]
        learner = ContinualLearner.load(folder)
        learner.forget("fish")
        learner.save(folder)
        assert downloaded_tasks(page) == ["birds"]
        page.reload()
        open_tab(page, "Look")
        assert downloaded_tasks(page) == ["birds"]


def downloaded_tasks(page: Any) -> list[str]:
    """Download the learner, and return the names of its tasks."""
    with page.expect_download() as download:
        page.locator("#download-learner").click()
    with zipfile.ZipFile(download.value.path()) as archive:
        record = next(name for name in archive.namelist() if name.endswith("learner.json"))
        return [task["name"] for task in json.loads(archive.read(record))["tasks"]]


def test_the_image_size_of_a_taught_learner_is_shown_and_fixed(chromium: Any, shared: Server) -> None:
    with visiting(chromium, shared.address) as page:
        open_tab(page, "Teach")
        page.locator("#teach-options button").first.click()
        page.get_by_label("those of this learner, which cannot change").wait_for()
        assert page.locator("#teach-size input").input_value() == "8"
        assert not page.locator("#teach-size input").is_editable()


def take_screenshot(page: Any, name: str) -> None:
    """Save a screenshot for inspection if PAH_SHOTS names a folder."""
    if folder := os.environ.get("PAH_SHOTS"):
        page.screenshot(path=f"{folder}/{name}.png", full_page=True)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_has_enough_contrast(chromium: Any, shared: Server, tmp_path: Path, scheme: str) -> None:
    with visiting(chromium, shared.address, color_scheme=scheme) as page:
        for tab in fill_tabs(page, make_zip(tmp_path / "fish.zip", FISH)):
            take_screenshot(page, f"{tab}-{scheme}")
            lowest, element = page.evaluate(LOWEST_CONTRAST)
            assert lowest >= CONTRAST, f"{tab}: {element}"


def tab_to(page: Any, selector: str) -> None:
    """Press the tab key until the element, or one inside it, has the focus."""
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("(selector) => document.activeElement.closest(selector) !== null", selector):
            return
    raise AssertionError(f"{selector}: expected to be reached by the tab key")


def test_asking_and_teaching_work_by_keyboard_alone(chromium: Any, taught: Path, tmp_path: Path) -> None:
    learner, image = copytree(taught, tmp_path / "animals"), tmp_path / "perch.png"
    image.write_bytes(picture(FISH["perch"], 99))
    with serving(learner) as server, visiting(chromium, server.address) as page:
        tab_to(page, "#ask-files button")
        choose_by_keyboard(page, image)
        wait_for_text(page, "#ask-files", "perch")
        tab_to(page, "#ask-task")
        # the list opens shortly after it gets the focus, and the field gets its value shortly after the key
        page.get_by_role("option", name="birds").wait_for()
        for key in ("ArrowDown", "ArrowDown", "Enter"):
            page.keyboard.press(key)
        page.wait_for_function("document.querySelector('#ask-task input').value === 'birds'")
        tab_to(page, "#ask-button")
        page.keyboard.press("Enter")
        wait_for_text(page, "#ask-answer", "Task birds, as chosen")

        tab_to(page, "#tab-teach-button")
        page.keyboard.press("Enter")
        tab_to(page, "#teach-zip button")
        choose_by_keyboard(page, make_zip(tmp_path / "grey.zip", {"grey": (128, 128, 128), "black": (0, 0, 0)}))
        wait_for_text(page, "#teach-understood", "images that can be read")
        tab_to(page, "#teach-name")
        page.keyboard.type("grey")
        tab_to(page, "#teach-options")
        page.keyboard.press("Enter")
        tab_to(page, "#teach-epochs")
        page.keyboard.press("Control+a")
        page.keyboard.type("2")
        tab_to(page, "#teach-start")
        page.keyboard.press("Enter")
        wait_for_text(page, "#lesson-progress", "is done")
        tab_to(page, "#lesson-keep")
        page.keyboard.press("Enter")
        wait_for_text(page, "#teach-message", "Kept")


def choose_by_keyboard(page: Any, file: Path) -> None:
    """Press enter until the browser asks for a file: a page that just changed may not react at once."""
    choosers: list[Any] = []
    page.once("filechooser", lambda chooser: choosers.append(chooser))
    for _ in range(20):
        page.keyboard.press("Enter")
        page.wait_for_timeout(500)
        if choosers:
            break
    assert choosers, page.evaluate("document.activeElement.outerHTML.slice(0, 200)")
    choosers[0].set_files(file)


def status(url: str) -> int:
    """Return the status code of the server's answer."""
    try:
        with urlopen(url) as answer:
            return int(answer.status)
    except HTTPError as refusal:
        with refusal:
            return refusal.code


def test_no_file_of_the_server_can_be_downloaded(shared: Server, taught: Path) -> None:
    record = next(path for path in taught.iterdir() if path.suffix == ".json")
    for path in ("/etc/passwd", str(record), f"animals/{record.name}", f"{Path(__file__)}"):
        assert status(f"{shared.address}gradio_api/file={path}") in (403, 404), path


def test_a_login_is_needed_if_a_password_is_set(chromium: Any, taught: Path, tmp_path: Path) -> None:
    learner = copytree(taught, tmp_path / "animals")
    with serving(learner, "--user", "ada", PAH_PASSWORD="lovelace") as server:
        for endpoint in ("config", "gradio_api/info", f"gradio_api/file={learner}"):
            assert status(server.address + endpoint) == 401
        page = chromium.new_page()
        page.goto(server.address)
        for password, accepted in (("wrong", False), ("lovelace", True)):
            page.get_by_label("username").fill("ada")
            page.get_by_label("password").fill(password)
            page.get_by_role("button", name="Login").click()
            if accepted:
                page.get_by_role("tab", name="Ask").wait_for()
            else:
                page.get_by_text("Incorrect Credentials").wait_for()
        page.context.close()
