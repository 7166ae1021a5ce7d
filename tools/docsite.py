"""Builds the documentation site: README, docs/, results/, the parsers and the docstrings -> site/.

    python tools/docsite.py

Pages are gathered in build/docs, links between files of the repository becoming links of the site; whatever else a page
links to (a recipe, a figure, a table of results) is put beside it. Zensical builds, strictly; equations become MathML;
and the site must load nothing from the network. Whatever is wrong is said in one line, exit status 1.
"""

import html
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import zip_longest
from pathlib import Path

import command_page
from latex2mathml.converter import convert

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "zensical.toml"
PAGES = ROOT / "build" / "docs"
SITE = ROOT / "site"
README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))

CODE_OR_LINK = re.compile(r"(?P<code>^```.*?^```|`[^`\n]+`)|\]\((?P<target>[^)\s]+)\)", re.DOTALL | re.MULTILINE)
TEXT_THEN_LIST = re.compile(
    r"(?P<code>^```.*?^```)|^(?P<text>(?![-*|#>\s]|\d+\. )[^\n]+\n)(?=[-*] |\d+\. )", re.DOTALL | re.MULTILINE
)
INCLUDED = re.compile(r"^<!-- README: (.+?) -->$", re.MULTILINE)
FORMULA = re.compile(r'<(?P<tag>span|div) class="arithmatex">\\(?:\((.*?)\\\)|\[(.*?)\\\])</(?P=tag)>', re.DOTALL)
WITH_SRC = {"script", "img", "iframe", "source", "video", "audio", "embed"}
LINKS_THAT_LOAD = {"stylesheet", "icon", "preload", "prefetch", "preconnect", "dns-prefetch", "modulepreload"}
QUIET = re.compile(r"Build (started|finished)|No issues found|$")  # what a build without a warning says


class SiteError(Exception):
    """What keeps the site from being built, in one line."""


def main() -> int:
    """Gather, build, look it through; the exit status."""
    try:
        Gathering().run()
        build()
        for path in SITE.rglob("*.html"):
            path.write_text(with_mathml(path.read_text(encoding="utf-8")), encoding="utf-8")
        refuse_outside_loads(SITE)
    except (SiteError, command_page.NoParserError) as error:
        print(f"docsite: {error}", file=sys.stderr)
        return 1
    print(f"site in {SITE.name}/: open {SITE.name}/index.html; with the search, `python -m http.server -d {SITE.name}`")
    return 0


class Gathering:
    """Writes the pages to `PAGES`, and whatever they link to."""

    def __init__(self) -> None:
        self.left: list[Path] = []  # files that are linked to and not yet there
        self.known: set[Path] = set()
        self.sections = {  # of the README by anchor, and the page that shows each
            name.lower().replace(" ", "-"): path.name
            for path in DOCS
            for name in INCLUDED.findall(path.read_text(encoding="utf-8"))
        }

    def run(self) -> None:
        """All pages.

        Raises:
            SiteError: a page that is in no nav, or a link to nothing.
        """
        shutil.rmtree(PAGES, ignore_errors=True)
        refuse_unlisted()
        for path in DOCS:
            parts = INCLUDED.split(path.read_text(encoding="utf-8"))  # text, name of a section, text, another name, …
            own = [self.relinked(part, path, path.name) for part in parts[::2]]
            included = [self.relinked(section(name), README, path.name) for name in parts[1::2]]
            write(path.name, "".join(part for pair in zip_longest(own, included, fillvalue="") for part in pair))
        write("commands.md", command_page.page())
        write("site.css", (ROOT / "tools" / "docsite.css").read_text(encoding="utf-8"))
        while self.left:
            path = self.left.pop()
            where = str(path.relative_to(ROOT))
            if path.suffix == ".md":
                write(where, self.relinked(path.read_text(encoding="utf-8"), path, where))
            else:
                (PAGES / where).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, PAGES / where)

    def relinked(self, text: str, origin: Path, page: str) -> str:
        """A file's text with its links as they are on a page of the site."""

        def link(found: re.Match[str]) -> str:
            if found["code"] and not found["code"].startswith("```"):
                return found["code"].replace("\\|", "|")  # in a table, where only GitHub wants it escaped
            if found["code"] or re.match(r"[a-z]+:|#", found["target"]):
                return found[0]
            return f"]({self.target(found['target'], origin, page)})"

        return CODE_OR_LINK.sub(link, with_lists_apart(text))

    def target(self, said: str, origin: Path, page: str) -> str:
        """Where a link of the repository leads on the site; what it leads to will be there."""
        name, hash_, anchor = said.partition("#")
        path = (origin.parent / name).resolve()
        if path.is_dir():
            path = index_of(path)
        if not path.is_file() or not path.is_relative_to(ROOT):
            raise SiteError(f"{origin.relative_to(ROOT)}: expected a link to a file of the repository, got {said}")
        return os.path.relpath(self.place(path, anchor), Path(page).parent) + hash_ + anchor

    def place(self, path: Path, anchor: str) -> str:
        """Where a file of the repository stands on the site."""
        if path == README:
            return self.sections.get(anchor, "index.md")
        where = path.relative_to(ROOT)
        if where.parts[0] == "docs" and path.suffix == ".md":
            return where.name
        if path not in self.known:
            self.known.add(path)
            self.left.append(path)
        return str(where)


def refuse_unlisted() -> None:
    """Raise SiteError for a page of docs/ that is in no nav: nobody would find it."""
    listed = {page for entry in tomllib.loads(CONFIG.read_text())["project"]["nav"] for page in pages_of(entry)}
    for path in DOCS:
        if path.name not in listed:
            raise SiteError(f"{CONFIG.name}: expected docs/{path.name} in its nav, found it nowhere")


def pages_of(entry: object) -> Iterator[str]:
    """The pages of an entry of the nav, nested ones too."""
    if isinstance(entry, str):
        yield entry
    elif isinstance(entry, dict):
        yield from (page for part in entry.values() for page in pages_of(part))
    elif isinstance(entry, list):
        yield from (page for part in entry for page in pages_of(part))


def with_lists_apart(text: str) -> str:
    """Markdown as GitHub reads it, where a list may follow a line of text, with the empty line that others need."""
    return TEXT_THEN_LIST.sub(lambda found: found["code"] or found["text"] + "\n", text)


def section(name: str) -> str:
    """A section of the README, with its heading."""
    found = re.search(
        rf"^## {re.escape(name)}\n.*?(?=^## |\Z)", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    if found is None:
        raise SiteError(f"README.md: expected a section {name!r}, found none")
    return found[0]


def index_of(folder: Path) -> Path:
    """The page that a link to a folder means: its README, or its only Markdown file."""
    readme = folder / "README.md"
    pages = [readme] if readme.is_file() else list(folder.glob("*.md"))
    if len(pages) != 1:
        raise SiteError(f"{folder.relative_to(ROOT)}: expected a README.md or one page in it, found {len(pages)}")
    return pages[0]


def write(page: str, text: str) -> None:
    """A page of the site."""
    (PAGES / page).parent.mkdir(parents=True, exist_ok=True)
    (PAGES / page).write_text(text, encoding="utf-8")


def build() -> None:
    """Zensical over the pages; SiteError, with what it said, for a warning."""
    shutil.rmtree(SITE, ignore_errors=True)
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean", "--config-file", str(CONFIG)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    said = re.sub(r"\x1b\[[\d;]*m", "", done.stdout + done.stderr).partition("Traceback")[0]
    complaints = [line for line in said.splitlines() if not QUIET.match(line)]
    if done.returncode or complaints:
        raise SiteError("\n".join(["expected a build without a warning, got:", *complaints]))


def with_mathml(page: str) -> str:
    """A built page with its formulas as MathML, which browsers draw by themselves."""

    def formula(found: re.Match[str]) -> str:
        inline, block = found[2], found[3]
        source = html.unescape(inline if inline is not None else block).strip()
        return convert(source, display="inline" if inline is not None else "block")

    return FORMULA.sub(formula, page)


def refuse_outside_loads(site: Path) -> None:
    """Raise SiteError if a page, a style or a picture would have the browser ask another machine for something."""
    for path in sorted(site.rglob("*.html")):
        parser = Loads()
        parser.feed(path.read_text(encoding="utf-8"))
        for address in parser.found:
            raise SiteError(f"{path.relative_to(site)}: expected to load files of the site, got {address}")
    for path in sorted([*site.rglob("*.css"), *site.rglob("*.svg")]):
        for address in re.findall(
            r"(?:url\(|@import\s+|xlink:href=)[\"']?((?:https?:)?//[^\"')\s]+)", path.read_text("utf-8")
        ):
            raise SiteError(f"{path.relative_to(site)}: expected to load files of the site, got {address}")


class Loads(HTMLParser):
    """Collects what a page has the browser load from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an address of another machine."""
        given = dict(attrs)
        address = given.get("src") if tag in WITH_SRC else None
        if tag == "link" and LINKS_THAT_LOAD & set((given.get("rel") or "").split()):
            address = given.get("href")
        if address and re.match(r"(https?:)?//", address):
            self.found.append(address)


if __name__ == "__main__":
    sys.exit(main())
