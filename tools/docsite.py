"""Builds the documentation site from docs/, results/, the parsers and the docstrings, in site/.

    python tools/docsite.py

The pages are gathered in build/docs. Links to files of the repository become links of the site, and every other file
that a page links to (a recipe, a figure, a table of results) is copied beside the pages. Zensical builds the site in
strict mode, equations become MathML, and a site that loads anything from the network is refused. Errors are printed in
one line, with exit status 1.
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
from pathlib import Path

import command_page
from latex2mathml.converter import convert

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "zensical.toml"
PAGES = ROOT / "build" / "docs"
SITE = ROOT / "site"
README = ROOT / "README.md"
HOME = "index.md"  # the page that stands for the README
DOCS = sorted((ROOT / "docs").glob("*.md"))
ASSETS = {"docsite.css": "site.css", "iframe-worker.js": "iframe-worker.js"}  # file in tools/ -> file of the site

CODE_OR_LINK = re.compile(r"(?P<code>^```.*?^```|`[^`\n]+`)|\]\((?P<target>[^)\s]+)\)", re.DOTALL | re.MULTILINE)
TEXT_THEN_LIST = re.compile(
    r"(?P<code>^```.*?^```)|^(?P<text>(?![-*|#>\s]|\d+\. )[^\n]+\n)(?=[-*] |\d+\. )", re.DOTALL | re.MULTILINE
)
FORMULA = re.compile(r'<(?P<tag>span|div) class="arithmatex">\\(?:\((.*?)\\\)|\[(.*?)\\\])</(?P=tag)>', re.DOTALL)
WITH_SRC = {"script", "img", "iframe", "source", "video", "audio", "embed"}
LOADING_RELATIONS = {"stylesheet", "icon", "preload", "prefetch", "preconnect", "dns-prefetch", "modulepreload"}
NOT_A_WARNING = re.compile(r"Build (started|finished)|No issues found|$")  # lines of a build without warnings


class SiteError(Exception):
    """A reason, in one line, why the site cannot be built."""


def main() -> int:
    """Gather the pages, build the site and check it; return the exit status."""
    try:
        Gathering().run()
        build()
        for path in SITE.rglob("*.html"):
            path.write_text(with_mathml(path.read_text(encoding="utf-8")), encoding="utf-8")
        refuse_outside_loads(SITE)
    except (SiteError, command_page.NoParserError) as error:
        print(f"docsite: {error}", file=sys.stderr)
        return 1
    print(f"site in {SITE.name}/: open {SITE.name}/index.html in a browser")
    return 0


class Gathering:
    """Writes the pages to `PAGES`, and the files that they link to."""

    def __init__(self) -> None:
        self.waiting: list[Path] = []  # linked files that are not copied yet
        self.linked: set[Path] = set()

    def run(self) -> None:
        """Write all pages and linked files.

        Raises:
            SiteError: a page is not in the nav, or a link leads to no file.
        """
        shutil.rmtree(PAGES, ignore_errors=True)
        refuse_unlisted()
        for path in DOCS:
            write(path.name, self.relinked(path.read_text(encoding="utf-8"), path, path.name))
        write("commands.md", command_page.page())
        for source, name in ASSETS.items():
            write(name, (ROOT / "tools" / source).read_text(encoding="utf-8"))
        while self.waiting:
            path = self.waiting.pop()
            name = str(path.relative_to(ROOT))
            if path.suffix == ".md":
                write(name, self.relinked(path.read_text(encoding="utf-8"), path, name))
            else:
                (PAGES / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, PAGES / name)

    def relinked(self, text: str, origin: Path, page: str) -> str:
        """Return the text of the file `origin` with its links as they are on the page `page` of the site."""

        def link(match: re.Match[str]) -> str:
            if match["code"] and not match["code"].startswith("```"):
                return match["code"].replace("\\|", "|")  # in a table, where only GitHub needs the escape
            if match["code"] or re.match(r"[a-z]+:|#", match["target"]):
                return match[0]
            return f"]({self.target(match['target'], origin, page)})"

        return CODE_OR_LINK.sub(link, with_lists_apart(text))

    def target(self, link: str, origin: Path, page: str) -> str:
        """Return a link of the repository as a link of the site, and note the file for copying."""
        name, hash_, anchor = link.partition("#")
        path = (origin.parent / name).resolve()
        if path == README:
            return os.path.relpath(HOME, Path(page).parent)
        if path.is_dir():
            path = index_of(path)
        if not path.is_file() or not path.is_relative_to(ROOT):
            raise SiteError(f"{origin.relative_to(ROOT)}: expected a link to a file of the repository, got {link}")
        return os.path.relpath(self.place(path), Path(page).parent) + hash_ + anchor

    def place(self, path: Path) -> str:
        """Return where a file of the repository is on the site."""
        name = path.relative_to(ROOT)
        if name.parts[0] == "docs" and path.suffix == ".md":
            return name.name
        if path not in self.linked:
            self.linked.add(path)
            self.waiting.append(path)
        return str(name)


def refuse_unlisted() -> None:
    """Raise SiteError for a page of docs/ that is not in the nav, where nobody would find it."""
    listed = {page for entry in tomllib.loads(CONFIG.read_text())["project"]["nav"] for page in pages_of(entry)}
    for path in DOCS:
        if path.name not in listed:
            raise SiteError(f"{CONFIG.name}: expected docs/{path.name} in its nav, got a nav without it")


def pages_of(entry: object) -> Iterator[str]:
    """Yield the pages of an entry of the nav, including nested ones."""
    if isinstance(entry, str):
        yield entry
    elif isinstance(entry, dict):
        yield from (page for part in entry.values() for page in pages_of(part))
    elif isinstance(entry, list):
        yield from (page for part in entry for page in pages_of(part))


def with_lists_apart(text: str) -> str:
    """Return Markdown with an empty line before each list: GitHub does not need it, other renderers do."""
    return TEXT_THEN_LIST.sub(lambda match: match["code"] or match["text"] + "\n", text)


def index_of(folder: Path) -> Path:
    """Return the page that a link to a folder means: its README, or its only Markdown file."""
    readme = folder / "README.md"
    pages = [readme] if readme.is_file() else list(folder.glob("*.md"))
    if len(pages) != 1:
        raise SiteError(f"{folder.relative_to(ROOT)}: expected a README.md or one page in it, got {len(pages)}")
    return pages[0]


def write(page: str, text: str) -> None:
    """Write a file of the site."""
    (PAGES / page).parent.mkdir(parents=True, exist_ok=True)
    (PAGES / page).write_text(text, encoding="utf-8")


def build() -> None:
    """Build the site with Zensical; raise SiteError with its output if there is a warning."""
    shutil.rmtree(SITE, ignore_errors=True)
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean", "--config-file", str(CONFIG)]
    process = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    output = re.sub(r"\x1b\[[\d;]*m", "", process.stdout + process.stderr).partition("Traceback")[0]
    warnings = [line for line in output.splitlines() if not NOT_A_WARNING.match(line)]
    if process.returncode or warnings:
        raise SiteError("\n".join(["expected a build without a warning, got:", *warnings]))


def with_mathml(page: str) -> str:
    """Return a built page with its formulas as MathML, which browsers display without scripts."""

    def formula(match: re.Match[str]) -> str:
        inline, block = match[2], match[3]
        source = html.unescape(inline if inline is not None else block).strip()
        return convert(source, display="inline" if inline is not None else "block")

    return FORMULA.sub(formula, page)


def refuse_outside_loads(site: Path) -> None:
    """Raise SiteError if a page, a style or a picture would load anything from another machine."""
    for path in sorted(site.rglob("*.html")):
        parser = OutsideLoads()
        parser.feed(path.read_text(encoding="utf-8"))
        for address in parser.addresses:
            raise SiteError(f"{path.relative_to(site)}: expected to load files of the site, got {address}")
    for path in sorted([*site.rglob("*.css"), *site.rglob("*.svg")]):
        for address in re.findall(
            r"(?:url\(|@import\s+|xlink:href=)[\"']?((?:https?:)?//[^\"')\s]+)", path.read_text("utf-8")
        ):
            raise SiteError(f"{path.relative_to(site)}: expected to load files of the site, got {address}")


class OutsideLoads(HTMLParser):
    """Collects the addresses of other machines from which a page loads something."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an address of another machine."""
        attributes = dict(attrs)
        address = attributes.get("src") if tag in WITH_SRC else None
        if tag == "link" and LOADING_RELATIONS & set((attributes.get("rel") or "").split()):
            address = attributes.get("href")
        if address and re.match(r"(https?:)?//", address):
            self.addresses.append(address)


if __name__ == "__main__":
    sys.exit(main())
