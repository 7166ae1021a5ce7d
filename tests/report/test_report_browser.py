"""Reports in a real Chromium: no requests, no errors, sortable tables, two themes, and a layout that fits."""

import re
from collections.abc import Iterator
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest

from browsing import CONTRAST, LOWEST_CONTRAST
from conftest import TINY
from pah.cli import main
from pah.report.write import write_report

RESULTS = Path(__file__).resolve().parents[2] / "results"
PHONE, DESKTOP = 360, 1280  # pixels

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a report of one run with all sections, and a report of several runs."""
    folder = tmp_path_factory.mktemp("pages")
    run = folder / "run"
    words = ("--method.prototype_size", "6", "--snapshots", "true", "--beside", "finetune")
    assert main(["run", *TINY, *words, "--out", str(run)]) == 0
    assert main(["diagnose", str(run)]) == 0
    names = ("pah-seed0", "pah-seed1", "lwf-seed0", "finetune-seed0")
    several = [copytree(RESULTS / "fast" / name, folder / name) for name in names]
    return {"one": write_report([run]), "several": write_report(several, folder / "several")}


@pytest.fixture(params=["one", "several"])
def page(request: pytest.FixtureRequest, chromium: Any, pages: dict[str, Path]) -> Iterator[Any]:
    """Open a page at desktop width in the light theme; afterwards check that it had no errors and no requests."""
    context = chromium.new_context(viewport={"width": DESKTOP, "height": 800}, color_scheme="light")
    opened = context.new_page()
    errors: list[str] = []
    requests: list[str] = []
    opened.on("console", lambda message: errors.append(message.text))
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.on("request", lambda request: requests.append(request.url))
    address = pages[request.param].as_uri()
    opened.goto(address)
    yield opened
    opened.wait_for_load_state("networkidle")
    assert errors == []
    assert [url for url in requests if not url.startswith("data:")] == [address]
    context.close()


def column(table: Any, index: int) -> list[str]:
    found: list[str] = table.locator(f"tbody tr td:nth-child({index + 1})").all_inner_texts()
    return found


def test_every_table_sorts_by_every_column(page: Any) -> None:
    page.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    for table in page.locator("table").all():
        before = column(table, 0)
        for index, title in enumerate(table.locator("th").all()):
            title.locator("button").click()
            assert title.get_attribute("aria-sort") == "ascending"
            up = [text for text in column(table, index) if text]
            title.locator("button").click()
            assert title.get_attribute("aria-sort") == "descending"
            down = [text for text in column(table, index) if text]
            numbers = [number(text) for text in up]
            keys: list[Any] = [natural(text) for text in up] if None in numbers else numbers
            assert keys == sorted(keys)
            assert sorted(up) == sorted(down)
            last = natural(down[0]) if None in numbers else number(down[0])
            assert last == keys[-1]
        assert table.locator("th[aria-sort=descending]").count() == 1
        assert sorted(column(table, 0)) == sorted(before)


def number(text: str) -> float | None:
    """Return the number that a cell is sorted by; None for words."""
    first = text.replace(",", "").partition(" ")[0]
    try:
        return float(first)
    except ValueError:
        return None


def natural(text: str) -> list[tuple[bool, int, str]]:
    """Return a sort key by which 2 comes before 10, also inside words."""
    parts = re.findall(r"\d+|[^\d\W]+", text.casefold().replace(",", ""))
    return [(not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]


def test_the_keyboard_sorts_and_switches(page: Any) -> None:
    page.locator("th button:visible").first.focus()
    page.keyboard.press("Enter")
    assert page.locator("th:visible").first.get_attribute("aria-sort") == "ascending"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid", "focus is visible"
    page.locator("#theme").focus()
    page.keyboard.press("Space")
    assert page.locator("#theme").get_attribute("aria-pressed") == "true"


def background(page: Any) -> str:
    found: str = page.evaluate("getComputedStyle(document.body).backgroundColor")
    return found


def test_the_theme_follows_the_system_until_it_is_switched(page: Any) -> None:
    light = background(page)
    page.emulate_media(color_scheme="dark")
    dark = background(page)
    assert light != dark
    page.locator("#theme").click()
    assert background(page) == light
    page.locator("#theme").click()
    assert background(page) == dark
    page.emulate_media(color_scheme="light")
    assert background(page) == dark, "the choice stays"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_has_enough_contrast(page: Any, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    lowest, where = page.evaluate(LOWEST_CONTRAST)
    assert lowest >= CONTRAST, where


@pytest.mark.parametrize("width", [PHONE, 768, DESKTOP])
def test_nothing_is_wider_than_the_screen(page: Any, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    page.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    wide = "[...document.querySelectorAll('main *:not(svg *)')].filter((one) => !one.closest('.scroll, .drawing, pre')"
    assert page.evaluate(f"{wide} && one.getBoundingClientRect().right > {width} + 1).length") == 0
    small = (
        "Math.min(...[...document.querySelectorAll('.drawing svg')].map((one) => one.getBoundingClientRect().width))"
    )
    assert page.evaluate(small) > 300


def test_a_drawing_changes_with_the_theme(page: Any) -> None:
    ink = "getComputedStyle(document.querySelector('.drawing svg text')).fill"
    light = page.evaluate(ink)
    page.emulate_media(color_scheme="dark")
    assert page.evaluate(ink) != light


def test_it_prints_on_white_without_cutting_content(page: Any) -> None:
    page.emulate_media(media="print", color_scheme="dark")
    assert background(page) == "rgb(255, 255, 255)"
    assert not page.locator("#theme").is_visible()
    boxes = "[...document.querySelectorAll('.scroll')].every((one) => getComputedStyle(one).overflowX === 'visible')"
    assert page.evaluate(boxes)
    assert page.pdf(format="A4").startswith(b"%PDF")
