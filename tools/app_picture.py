"""Take the README's screenshot of `pah app` at the end of a real lesson: docs/app.png.

    python tools/app_picture.py tiny-imagenet-50/train-00000-of-00001.parquet

The file is a split of TinyImageNet in the format of the Hugging Face hub. Two lessons are taught in headless Chromium,
and a third zip is uploaded. This needs the extras `app` and `browser`, and Debian's `chromium`.
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
IMAGES, EPOCHS, SIDE = 120, 12, 32  # images of each class, passes over them, pixels a side
WAIT = 600_000  # milliseconds for a lesson
SIZE = {"width": 900, "height": 920}  # pixels


def make_zips(parquet: Path, folder: Path) -> dict[str, Path]:
    """Write a zip of class folders for each lesson, and return their paths."""
    data = load_dataset("parquet", data_files=str(parquet), split="train", cache_dir=str(folder / "cache"))
    label = data.features["label"]
    assert isinstance(label, ClassLabel)
    data = data.cast_column("image", Image(decode=False))
    archives = {}
    for lesson, classes in LESSONS.items():
        archives[lesson] = folder / f"{lesson}.zip"
        with zipfile.ZipFile(archives[lesson], "w") as archive:
            for code, name in classes.items():
                rows = [i for i, k in enumerate(data["label"]) if k == label.str2int(code)][:IMAGES]
                for i, row in enumerate(data.select(rows)):
                    archive.writestr(f"{name}/{i}.jpg", row["image"]["bytes"])
    return archives


def upload(page: Any, archive: Path) -> None:
    """Upload a zip, and wait until the page shows what it holds."""
    page.locator("#teach-zip input[type=file]").set_input_files(archive)
    page.locator("#teach-understood").get_by_text("images that can be read").wait_for()


def teach(page: Any, name: str, archive: Path) -> None:
    """Teach a lesson, and wait for its end."""
    upload(page, archive)
    page.locator("#teach-name textarea, #teach-name input").fill(name)
    if not page.locator("#teach-epochs input").is_visible():
        page.locator("#teach-options button").first.click()
    page.locator("#teach-epochs input").fill(str(EPOCHS))
    page.locator("#teach-size input").fill(str(SIDE))
    page.locator("#teach-start").click()
    page.locator("#lesson-progress").get_by_text(re.compile(f"Lesson {name} is done")).wait_for()


def take_screenshot(address: str, archives: dict[str, Path], out: Path) -> None:
    """Teach the lessons on the page, and save a screenshot."""
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
        upload(page, archives[third])
        page.locator("#teach-name textarea, #teach-name input").fill(third)
        page.locator("#teach-options button").first.click()
        page.evaluate("window.scrollTo(0, 0); document.activeElement.blur()")
        page.wait_for_timeout(1000)  # until animations have ended
        page.screenshot(path=out)
        browser.close()


def main() -> None:
    """Serve a new learner, and take the screenshot."""
    parser = argparse.ArgumentParser(description="take the README's screenshot of pah app")
    parser.add_argument("parquet", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "app.png")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        archives = make_zips(options.parquet.resolve(), Path(folder))
        command = [sys.executable, "-m", "pah", "app", "animals", "--port", "0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=folder) as server:
            try:
                assert server.stdout is not None
                take_screenshot(server.stdout.readline().split()[0], archives, options.out.resolve())
            finally:
                server.terminate()


if __name__ == "__main__":
    main()
