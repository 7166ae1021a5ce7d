"""Run every block of code in README.md, CONTRIBUTING.md and docs/, with fewer epochs and on small images."""

import re
import shlex
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

import pah
from conftest import TINY
from fenced_blocks import SERVED, Block, blocks
from pah.cli.main import main
from pah.data.benchmarks import BENCHMARKS
from pah.learner.defaults import FROM_SCRATCH
from pah.methods import METHODS, Entry
from pah.models.backbones import BACKBONES
from pah.study.grid import run_cells

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(page for page in (ROOT / "docs").glob("*.md") if page.name != SERVED),
]
NO_CODE = {"", "text", "bibtex"}  # languages of blocks that are not run

QUICK_PYTHON = {  # text of a block -> text that runs faster
    "ContinualLearner()": 'ContinualLearner("convnet", quick)',
    "epochs=20": "epochs=1",
}
A_RUN = ("--epochs", "1", "--backbone.width", "4", "--training.batch_size", "32", "--overwrite")
A_STUDY = (
    "--epochs",
    "1",
    "--backbone.width",
    "4",
    "--training.batch_size",
    "32",
    "--seeds",
    "0",
    "--stream.first",
    "1",
)
QUICK_COMMANDS = {  # start of a command -> words that make it faster; if an option is given twice, the last one counts
    "pah run": A_RUN,
    "pah run split-cifar100": (*A_RUN, "--data", "PATH"),  # not from the hub
    "pah run split-digits --backbone patches": ("--epochs", "1"),
    "pah run split --data photos/ --image_size 64 --backbone timm:resnet18": ("--epochs", "1", "--stream.first", "1"),
    "pah compare": (*A_STUDY, "--methods", "pah,finetune"),
    "pah ablate": A_STUDY,
    "pah run split --data values.npz": ("--epochs", "1", "--overwrite"),
    "pah learn topics": ("--epochs", "1"),
    "pah learn": ("--epochs", "1", "--backbone", "convnet", "--backbone.width", "4", "--image_size", "8"),
    "pah learn animals --name fish --data fish/ --held_out": (
        "--epochs",
        "1",
        "--max_loss",
        "100",
    ),  # after one epoch there is drift
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with everything that the pages use: class folders, an image, a run with snapshots, recipes."""
    folder = tmp_path_factory.mktemp("world")
    class_folders(folder / "PATH", [f"class{i:02}" for i in range(20)])
    class_folders(folder / "photos", ["crow", "duck", "wren", "cod", "ray", "eel"])
    for name in ("birds", "checks"):
        class_folders(folder / name, ["crow", "duck", "wren"])
    class_folders(folder / "fish", ["cod", "ray"])
    shutil.copy(folder / "birds" / "crow" / "0.png", folder / "photo.jpg")
    vectors(folder)
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    assert main(["run", *TINY, "--snapshots", "true", "--out", str(folder / "RUN")]) == 0
    return folder


def vectors(folder: Path) -> None:
    """Write files of vectors of three classes each."""
    found = np.random.default_rng(0).normal(size=(30, 4))
    labels = [i % 3 for i in range(30)]
    np.savez(folder / "values.npz", vectors=found, labels=labels)
    np.savez(folder / "questions.npz", vectors=found[:3])
    pyarrow.parquet.write_table(pyarrow.table({"embedding": [*found], "label": labels}), folder / "system.parquet")


def class_folders(folder: Path, classes: Sequence[str]) -> None:
    """Write six images of 16x16 pixels for each class; the classes differ in brightness.

    In bf16, 8x8 pixels are too few: PyTorch 2.14 leaves some weight gradients of a strided convolution on 1x1 unset.
    """
    for level, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(6):
            pixels = np.random.default_rng(i).integers(12 * level, 12 * level + 12, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")


@pytest.fixture(autouse=True)
def _restore_tables() -> Iterator[None]:
    """Remove what blocks add to the tables of names after each test."""
    tables: list[dict[str, Any]] = [METHODS, BENCHMARKS, BACKBONES]
    before = [dict(table) for table in tables]
    yield
    for table, entries in zip(tables, before, strict=True):
        table.clear()
        table.update(entries)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_of_code_runs(page: Path, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = namespace(page.stem, monkeypatch)
    # Ray has tests of its own
    monkeypatch.setattr(sys.modules["pah.cli.studies"], "engine", lambda *_: nullcontext(run_cells))
    for number, block in enumerate(blocks(page)):
        if block.language in NO_CODE:
            continue
        shutil.copytree(world, tmp_path / str(number))
        monkeypatch.chdir(tmp_path / str(number))
        if block.language == "python":
            run_python(block, names)
        else:
            assert block.language == "sh", f"{block.where}: no test knows how to run {block.language!r}"
            for line in block.text.splitlines():
                run_line(line, block.where)


def namespace(name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Return the namespace of a module in which all Python of a page runs: a dataclass looks up its module."""
    module = ModuleType(f"page_{name}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    quick = replace(FROM_SCRATCH, training=replace(FROM_SCRATCH.training, epochs=1))
    module.__dict__.update(METHODS=METHODS, Entry=Entry, quick=quick)  # a block may be a line of methods/__init__.py
    return module.__dict__


def run_python(block: Block, names: dict[str, object]) -> None:
    text = block.text
    for said, quick in QUICK_PYTHON.items():
        text = text.replace(said, quick)
    exec(compile(text, block.where, "exec"), names)


def run_line(line: str, where: str) -> None:
    """Run a line of shell up to a pipe: `pah` with faster options, of other programs check that the words are valid."""
    words = shlex.split(line, comments=True)
    if not words:
        return
    words = words[: words.index("|")] if "|" in words else words
    program = words[0]
    assert program in PROGRAMS, f"{where}: no test knows how to run {line!r}"
    PROGRAMS[program](words[1:], f"{where}: {line}")


def run_pah(words: Sequence[str], where: str) -> None:
    said = " ".join(["pah", *words])
    begins = max((begin for begin in QUICK_COMMANDS if said.startswith(begin)), key=len, default=None)
    helps = "--help" in words
    try:
        status = main([*words, *(QUICK_COMMANDS[begins] if begins and not helps else ())])
    except SystemExit as exit_:
        status = int(exit_.code or 0)
    assert status == 0, where


def run_as_one(words: Sequence[str], where: str) -> None:
    """Run what torchrun starts in one process; several processes have tests of their own."""
    assert words[0] == "--nproc-per-node", where
    assert words[2:4] == ["-m", "pah"], where
    run_pah(words[4:], where)


def check_make(words: Sequence[str], where: str) -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(words) <= set(targets), where


def check_pip(words: Sequence[str], where: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    install = re.fullmatch(r"install -e \.(?:\[([\w,]+)\])?", " ".join(words))  # the package is on no index
    assert install, where
    assert set((install[1] or "dev").split(",")) <= set(project["optional-dependencies"]), where


def check_activate(words: Sequence[str], where: str) -> None:
    assert list(words) == [".venv/bin/activate"], where


def check_script(words: Sequence[str], where: str) -> None:
    assert (ROOT / words[0]).is_file(), where


def check_ray(words: Sequence[str], where: str) -> None:
    from ray.scripts.scripts import cli

    known = {name for parameter in cli.commands[words[0]].params for name in parameter.opts}
    assert {word.partition("=")[0] for word in words[1:]} <= known, where


PROGRAMS: dict[str, Callable[[Sequence[str], str], None]] = {
    "pah": run_pah,
    "make": check_make,
    "pip": check_pip,
    "python": check_script,
    "source": check_activate,
    "ray": check_ray,
    "torchrun": run_as_one,
}


def test_the_blocks_that_are_made_faster_exist() -> None:
    code = "\n".join(block.text for page in PAGES for block in blocks(page))
    assert [begin for begin in (*QUICK_PYTHON, *QUICK_COMMANDS) if begin not in code] == []


@pytest.mark.parametrize(
    "line",
    [
        "pah run --epoch 1",
        "pah runs",
        ".venv/bin/pah --version",
        "curl example.org",
        "make tests",
        "pip install 'pah[report]'",
        "python tools/none.py",
        "source venv/bin/activate",
    ],
)
def test_a_line_that_cannot_run_is_noticed(line: str, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world)
    with pytest.raises(AssertionError, match="here"):
        run_line(line, "here")


def python_blocks(page: str) -> list[Block]:
    return [block for block in blocks(ROOT / page) if block.language == "python"]


def test_the_examples_do_what_the_pages_say(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(world, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    names = namespace("README", monkeypatch)
    [photos] = python_blocks("README.md")
    run_python(photos, names)
    label, probability = capsys.readouterr().out.splitlines()[-1].split()
    assert label in ("crow", "duck", "wren")
    assert 0 < float(probability) <= 1
    assert [task.name for task in pah.ContinualLearner.load("animals").tasks] == ["birds", "fish"]
    [benchmark] = python_blocks("docs/first-benchmark.md")
    run_python(benchmark, names)
    assert capsys.readouterr().out.count("accuracy on each task so far") == 5
    for block in python_blocks("docs/extending.md")[:2]:  # the class of a method, and its line in the table
        run_python(block, names)
    assert main(["run", "--method", "stay-near", "--method.pull", "0.1", *TINY, "--out", "run"]) == 0
    assert '"moved"' in Path("run/log.jsonl").read_text()
    assert "pull: 0.1" in Path("run/config.yaml").read_text()


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"], ids=lambda p: p.name
)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text(encoding="utf-8"))
    for target in targets:
        name, _, anchor = target.partition("#")
        path = page.parent / name if name else page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), target


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_is_one_page_and_names_every_package() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 160
    packages = {path.parent.name for path in (ROOT / "src" / "pah").glob("*/__init__.py")}
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == packages
