"""Takes the README's picture of `pah app` at the end of a real lesson: docs/app.png.

    python tools/app_picture.py tiny-imagenet-50/train-00000-of-00001.parquet

The file is a split of TinyImageNet as Hugging Face keeps it. Two lessons are taught in a headless Chromium, and a third
zip is handed in. Needs the extras `app` and `browser`, and Debian's `chromium`.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from shutil import which
from typing import Any

from datasets import ClassLabel, Image, load_dataset
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parent.parent
LESSONS = {
    "mammals": {"n02123045": "cat", "n02504458": "elephant", "n02480495": "orangutan"},
    "small animals": {"n02165456": "ladybird", "n01774750": "tarantula"},
    "birds": {"n01855672": "goose", "n02058221": "albatross"},
}
IMAGES, EPOCHS, SIDE = 120, 12, 32  # images of each class, passes, pixels
WAIT = 600_000  # milliseconds for a lesson
SIZE = {"width": 900, "height": 920}  # pixels


def zips(parquet: Path, place: Path) -> dict[str, Path]:
    """A zip of class folders for each lesson."""
    data = load_dataset("parquet", data_files=str(parquet), split="train", cache_dir=str(place / "cache"))
    label = data.features["label"]
    assert isinstance(label, ClassLabel)
    data = data.cast_column("image", Image(decode=False))
    found = {}
    for lesson, classes in LESSONS.items():
        found[lesson] = place / f"{lesson}.zip"
        with zipfile.ZipFile(found[lesson], "w") as archive:
            for code, name in classes.items():
                rows = [i for i, k in enumerate(data["label"]) if k == label.str2int(code)][:IMAGES]
                for i, row in enumerate(data.select(rows)):
                    archive.writestr(f"{name}/{i}.jpg", row["image"]["bytes"])
    return found


def hand_in(page: Any, archive: Path) -> None:
    """Upload a zip, and wait until the page has understood it."""
    page.locator("#teach-zip input[type=file]").set_input_files(archive)
    page.locator("#teach-understood").get_by_text("images that can be read").wait_for()


def teach(page: Any, name: str, archive: Path) -> None:
    """Teach a lesson to its end."""
    hand_in(page, archive)
    page.locator("#teach-name textarea, #teach-name input").fill(name)
    if not page.locator("#teach-epochs input").is_visible():
        page.locator("#teach-options button").first.click()
    page.locator("#teach-epochs input").fill(str(EPOCHS))
    page.locator("#teach-size input").fill(str(SIDE))
    page.locator("#teach-start").click()
    page.locator("#lesson-progress").get_by_text(re.compile(f"Lesson {name} is done")).wait_for()


def take(address: str, archives: dict[str, Path], out: Path) -> None:
    """Teach by the page, and take its picture."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=which("chromium"), args=["--no-sandbox"])
        page: Any = browser.new_page(viewport={"width": SIZE["width"], "height": SIZE["height"]})
        page.set_default_timeout(WAIT)
        page.goto(address)
        page.get_by_role("tab", name="Teach").click()
        first, second, third = LESSONS
        teach(page, first, archives[first])
        page.locator("#lesson-keep").click()
        page.locator("#teach-message").get_by_text("Kept").wait_for()
        teach(page, second, archives[second])
        hand_in(page, archives[third])
        page.locator("#teach-name textarea, #teach-name input").fill(third)
        page.locator("#teach-options button").first.click()
        page.evaluate("window.scrollTo(0, 0); document.activeElement.blur()")
        page.wait_for_timeout(1000)  # until what folds and fades has done so
        page.screenshot(path=out)
        browser.close()


def main() -> None:
    """Serve a new learner and take the picture."""
    parser = argparse.ArgumentParser(description="takes the README's picture of pah app")
    parser.add_argument("parquet", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "app.png")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        archives = zips(options.parquet.resolve(), Path(place))
        command = [sys.executable, "-m", "pah", "app", "animals", "--port", "0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=place) as server:
            try:
                assert server.stdout is not None
                take(server.stdout.readline().split()[0], archives, options.out.resolve())
            finally:
                server.terminate()


if __name__ == "__main__":
    main()
