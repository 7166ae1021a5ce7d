"""Every block of code in the README and in docs/ is run as it stands there, with fewer epochs and on small images."""

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
import pytest
from PIL import Image

import pah
from conftest import TINY
from fenced_blocks import SERVED, Block, blocks
from pah.cli.main import main
from pah.data.benchmarks import BENCHMARKS
from pah.learner.learner import DEFAULT
from pah.methods import METHODS, Entry
from pah.models.backbones import BACKBONES
from pah.study.grid import run_cells

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted(page for page in (ROOT / "docs").glob("*.md") if page.name != SERVED)]
NO_CODE = {"", "text", "bibtex"}  # languages of blocks that are not run

QUICK_PYTHON = {  # what a block says -> the same, made quick
    'backbone="resnet18-slim"': '"convnet", quick',
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
QUICK_COMMANDS = {  # how a command begins -> words that make it quick; of an option that is said twice the last counts
    "pah run": A_RUN,
    "pah run split-cifar100": (*A_RUN, "--data", "PATH"),  # not from the hub
    "pah run split-digits --backbone patches": ("--epochs", "1"),
    "pah run split --data photos/ --image_size 64 --backbone timm:resnet18": ("--epochs", "1", "--stream.first", "1"),
    "pah compare": (*A_STUDY, "--methods", "pah,finetune"),
    "pah ablate": A_STUDY,
    "pah learn": ("--epochs", "1", "--backbone", "convnet", "--backbone.width", "4", "--image_size", "8"),
    "pah learn animals --name fish": ("--epochs", "1", "--max_drift", "1"),  # after one epoch there is drift
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that the pages speak of: class folders, an image, a run with snapshots, the recipes."""
    folder = tmp_path_factory.mktemp("world")
    class_folders(folder / "PATH", [f"class{i:02}" for i in range(20)])
    class_folders(folder / "photos", ["crow", "duck", "wren", "cod", "ray", "eel"])
    for name in ("birds", "checks"):
        class_folders(folder / name, ["crow", "duck", "wren"])
    class_folders(folder / "fish", ["cod", "ray"])
    shutil.copy(folder / "birds" / "crow" / "0.png", folder / "photo.jpg")
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    assert main(["run", *TINY, "--snapshots", "true", "--out", str(folder / "RUN")]) == 0
    return folder


def class_folders(folder: Path, classes: Sequence[str]) -> None:
    """Six images of 16x16 of each class; the classes differ in brightness.

    In bf16, 8x8 are too small: PyTorch 2.14 leaves some weight gradients of a strided convolution on 1x1 unset.
    """
    for level, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(6):
            pixels = np.random.default_rng(i).integers(12 * level, 12 * level + 12, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")


@pytest.fixture(autouse=True)
def _tables_as_they_were() -> Iterator[None]:
    """What blocks add to the tables of names is gone after a test."""
    tables: list[dict[str, Any]] = [METHODS, BENCHMARKS, BACKBONES]
    before = [dict(table) for table in tables]
    yield
    for table, entries in zip(tables, before, strict=True):
        table.clear()
        table.update(entries)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_of_code_runs(page: Path, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = namespace(page.stem, monkeypatch)
    monkeypatch.setattr(
        sys.modules["pah.cli.main"], "engine", lambda *_: nullcontext(run_cells)
    )  # tests of Ray stand elsewhere
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
    """Where all Python of a page runs: a module, for a dataclass looks its own up."""
    module = ModuleType(f"page_{name}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    quick = replace(DEFAULT, training=replace(DEFAULT.training, epochs=1))
    module.__dict__.update(METHODS=METHODS, Entry=Entry, quick=quick)  # a block may be a line of methods/__init__.py
    return module.__dict__


def run_python(block: Block, names: dict[str, object]) -> None:
    text = block.text
    for said, quick in QUICK_PYTHON.items():
        text = text.replace(said, quick)
    exec(compile(text, block.where, "exec"), names)


def run_line(line: str, where: str) -> None:
    """Run a line of shell up to a pipe, made quick; of programs but pah, whether what they are asked exists."""
    words = shlex.split(line, comments=True)
    if not words:
        return
    words = words[: words.index("|")] if "|" in words else words
    program = words[0].removeprefix(".venv/bin/")
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
    """What torchrun starts, in one process; tests of several stand elsewhere."""
    assert words[0] == "--nproc-per-node", where
    assert words[2:4] == ["-m", "pah"], where
    run_pah(words[4:], where)


def check_make(words: Sequence[str], where: str) -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(words) <= set(targets), where


def check_pip(words: Sequence[str], where: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = re.fullmatch(r"install (?:-e \.|pah)(?:\[([\w,]+)\])?", " ".join(words))
    assert asked, where
    assert set((asked[1] or "dev").split(",")) <= set(project["optional-dependencies"]), where


def check_ray(words: Sequence[str], where: str) -> None:
    from ray.scripts.scripts import cli

    known = {name for parameter in cli.commands[words[0]].params for name in parameter.opts}
    assert {word.partition("=")[0] for word in words[1:]} <= known, where


PROGRAMS: dict[str, Callable[[Sequence[str], str], None]] = {
    "pah": run_pah,
    "make": check_make,
    "pip": check_pip,
    "ray": check_ray,
    "torchrun": run_as_one,
}


def test_the_blocks_that_are_made_quick_are_there() -> None:
    said = "\n".join(block.text for page in PAGES for block in blocks(page))
    assert [begin for begin in (*QUICK_PYTHON, *QUICK_COMMANDS) if begin not in said] == []


@pytest.mark.parametrize(
    "line", ["pah run --epoch 1", "pah runs", "curl example.org", "make tests", "pip install pah[x]"]
)
def test_a_line_that_cannot_run_is_noticed(line: str, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world)
    with pytest.raises(AssertionError, match="here"):
        run_line(line, "here")


def test_the_readme_says_what_its_examples_do(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(world, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    names = namespace("README", monkeypatch)
    lifelong, library, *method = (block for block in blocks(ROOT / "README.md") if block.language == "python")
    run_python(lifelong, names)
    assert [task.name for task in pah.ContinualLearner.load("animals").tasks] == ["birds", "fish"]
    run_python(library, names)
    assert capsys.readouterr().out.count("accuracy on each task so far") == 5
    for block in method:
        run_python(block, names)
    assert main(["run", "--method", "stay-near", "--method.pull", "0.1", *TINY, "--out", "run"]) == 0
    assert '"moved"' in Path("run/log.jsonl").read_text()
    assert "pull: 0.1" in Path("run/config.yaml").read_text()
