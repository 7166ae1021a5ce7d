"""The documentation site: its pages are whole, say what the parsers say, and ask nothing of the network."""

import re
import tomllib
from functools import cache
from pathlib import Path

import command_page
import docsite
import pytest

import pah
from pah.cli.main import COMMANDS, main
from pah.methods import METHODS
from pah.models.backbones import BACKBONES


@cache
def sections() -> dict[str, str]:
    """The text of each command's section."""
    return dict(re.findall(r"^## pah (\w+)\n(.*?)(?=^## )", command_page.page(), re.DOTALL | re.MULTILINE))


@cache
def groups() -> dict[str, str]:
    """The text of each group of options, by its anchor."""
    found = re.findall(r"^### [^\n]*\{ #(\S+) \}\n(.*?)(?=^### |\Z)", command_page.page(), re.DOTALL | re.MULTILINE)
    return dict(found)


def with_linked_groups(section: str) -> str:
    """A command's section, and the groups of options that it links to."""
    return section + "".join(groups().get(anchor, "") for anchor in re.findall(r"\(#(\S+?)\)", section))


def printed_help(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as exit_:
        main([*words, "--help"])
    assert exit_.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_the_page_has_every_option_that_a_command_prints(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = printed_help([command], capsys)
    assert said.startswith(f"usage: pah {command}")
    shown = with_linked_groups(sections()[command])
    options = set(re.findall(r"^  (--[\w.]+)", said, re.MULTILINE))
    assert {option for option in options if f"`{option}`" not in shown} == set()
    assert options or command in ("resume", "diagnose")


@pytest.mark.parametrize("words", [*(("--method", n) for n in METHODS), *(("--backbone", n) for n in BACKBONES)])
def test_the_page_has_the_options_of_every_method_and_backbone(
    words: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    kind, name = words[0].removeprefix("--"), words[1]
    shown = groups()[f"{kind}-{name.replace('+', 'p')}"]
    printed = printed_help(["run", *words], capsys).partition(f"\n{kind} {name}:")[2]
    options = set(re.findall(rf"^  (--{kind}\.\w+)", printed, re.MULTILINE))
    assert options >= {f"--{kind}.name"}
    assert {option for option in options if f"`{option}`" not in shown} == set()


def test_an_option_comes_with_type_default_and_help() -> None:
    assert re.search(
        r"`--method.stability` <small>number · default `3.0`</small>\n: +λ_sm, the weight", groups()["method-pah"]
    )
    assert "`--method.over_tasks` <small>`mean` or `sum` · default `mean`</small>" in groups()["method-pah"]
    assert "`--task` <small>text · required</small>" in sections()["forget"]
    assert "&lt;benchmark>" in sections()["run"]


def test_a_command_without_a_parser_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COMMANDS, "mute", lambda *_: 0)
    with pytest.raises(command_page.NoParserError, match="pah mute --help"):
        command_page.page()


def test_the_reference_has_every_public_name() -> None:
    text = (docsite.ROOT / "docs" / "reference.md").read_text()
    assert set(re.findall(r"^::: pah\.(\w+)$", text, re.MULTILINE)) == set(pah.__all__)


@pytest.fixture
def pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the pages are gathered."""
    monkeypatch.setattr(docsite, "PAGES", tmp_path)
    return tmp_path


def test_pages_are_gathered_with_all_that_they_link_to(pages: Path) -> None:
    docsite.Gathering().run()
    assert (pages / "examples" / "three_lessons.py").is_file()
    assert (pages / "iframe-worker.js").is_file()
    missing = []
    for page in pages.rglob("*.md"):
        for target in re.findall(
            r"\]\(([^)#\s]+)", re.sub(r"^```.*?^```|`[^`\n]+`", "", page.read_text(), flags=re.S | re.M)
        ):
            if ":" not in target and not (page.parent / target).is_file():
                missing.append((page.name, target))
    assert missing == []


def test_links_lead_to_the_page_that_shows_what_is_meant(pages: Path) -> None:
    gathering = docsite.Gathering()
    origin = docsite.ROOT / "docs" / "method.md"
    for said, leads in {
        "learner.md#an-answer": "learner.md#an-answer",
        "../README.md#install": "index.md",
        "../README.md": "index.md",
        "../results/ablation/fast": "results/ablation/fast/ablation.md",
    }.items():
        assert gathering.target(said, origin, "method.md") == leads
    assert gathering.relinked("`a](b.md)` [x](learner.md)", origin, "results/x.md") == "`a](b.md)` [x](../learner.md)"
    for wrong in ("nowhere.md", "../../elsewhere.md"):
        with pytest.raises(docsite.SiteError, match="expected a link to a file"):
            gathering.target(wrong, origin, "method.md")


def test_a_list_may_follow_a_line_of_text_as_on_github() -> None:
    text = "# x\ntext:\n- one\n  more\n- two\n\n```sh\na\n- b\n```\nand\n1. c\n"
    assert docsite.with_lists_apart(text) == ("# x\ntext:\n\n- one\n  more\n- two\n\n```sh\na\n- b\n```\nand\n\n1. c\n")


def test_a_page_in_no_nav_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    docsite.refuse_unlisted()
    monkeypatch.setattr(docsite, "DOCS", [*docsite.DOCS, tmp_path / "new.md"])
    with pytest.raises(docsite.SiteError, match=r"docs/new\.md in its nav"):
        docsite.refuse_unlisted()


def test_the_nav_has_the_four_groups_of_pages() -> None:
    nav = tomllib.loads(docsite.CONFIG.read_text())["project"]["nav"]
    assert [name for entry in nav for name in entry] == ["Start", "Tutorials", "How-to", "Reference", "Explanation"]


@pytest.mark.parametrize(
    ("words", "page"),
    [
        ("add a class", "own-data.md"),
        ("few images", "own-data.md"),
        ("confidence", "learner.md"),
        ("webcam", "app.md"),
    ],
)
def test_a_search_for_what_users_ask_finds_a_heading(words: str, page: str) -> None:
    text = (docsite.ROOT / "docs" / page).read_text().lower()
    assert re.search(rf"^#+ .*{words}", text, re.MULTILINE)


def test_formulas_become_mathml() -> None:
    page = '<span class="arithmatex">\\(x_1 &lt; 2\\)</span><div class="arithmatex">\\[\n\\frac{a}{b}\n\\]</div>'
    built = docsite.with_mathml(page)
    assert "arithmatex" not in built
    assert '<math xmlns="http://www.w3.org/1998/Math/MathML" display="inline">' in built
    assert "<mfrac><mrow><mi>a</mi></mrow><mrow><mi>b</mi></mrow></mfrac>" in built
    assert "<mo>&#x0003C;</mo>" in built


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.html", '<script async src="https://example.org/x.js"></script>'),
        ("x.html", '<link href="//example.org/font.css" rel="stylesheet">'),
        ("x.html", '<img alt="x" src="http://example.org/x.png">'),
        ("x.css", "@import url(https://example.org/x.css);"),
        ("x.css", "a { background: url('//example.org/x.png') }"),
    ],
)
def test_a_site_that_asks_the_network_is_refused(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "good.html").write_text('<a href="https://example.org">x</a><script src="a.js"></script>')
    docsite.refuse_outside_loads(tmp_path)
    (tmp_path / name).write_text(text)
    with pytest.raises(docsite.SiteError, match=r"example\.org"):
        docsite.refuse_outside_loads(tmp_path)
