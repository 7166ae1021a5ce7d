"""The README's Python is run as it stands there, with fewer epochs."""

import re
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

import pah
from pah.cli import main
from pah.learner import DEFAULT
from pah.methods import METHODS, Entry

README = Path(__file__).resolve().parent.parent / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def test_the_learner_example_learns_two_folders_and_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder, classes in (("birds", ("crow", "duck", "wren")), ("fish", ("cod", "ray"))):
        for level, name in enumerate(classes):
            Path(folder, name).mkdir(parents=True)
            for i in range(10):
                pixels = np.random.default_rng(i).integers(60 * level, 60 * level + 60, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(Path(folder, name, f"{i}.png"))
    Image.fromarray(pixels).save("photo.jpg")
    names: dict[str, Any] = {"quick": replace(DEFAULT, training=replace(DEFAULT.training, epochs=1))}
    exec(BLOCKS[0].replace('backbone="resnet18-slim"', '"convnet", quick'), names)
    assert [task.name for task in pah.ContinualLearner.load("animals").tasks] == ["birds", "fish"]


def test_the_library_example_learns_and_answers(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    exec(BLOCKS[1].replace("epochs=20", "epochs=1"), names)
    assert capsys.readouterr().out.count("accuracy on each task so far") == 5
    assert names["learner"](names["stream"].normalization(names["stream"].tasks[0].test.pixels[:3]), task=0).shape == (
        3,
        2,
    )


def test_the_method_that_is_added_gets_its_options_log_and_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("readme")  # a dataclass looks its module up
    monkeypatch.setitem(sys.modules, "readme", module)
    names: dict[str, Any] = module.__dict__ | {"METHODS": dict(METHODS), "Entry": Entry}
    exec(BLOCKS[2], names)
    exec(BLOCKS[3], names)
    monkeypatch.setitem(METHODS, "stay-near", names["METHODS"]["stay-near"])
    words = ["run", "--method", "stay-near", "--method.pull", "0.1", "--epochs", "1", "--backbone.width", "4"]
    assert main([*words, "--out", str(tmp_path / "run")]) == 0
    assert '"moved"' in (tmp_path / "run" / "log.jsonl").read_text()
    assert "pull: 0.1" in (tmp_path / "run" / "config.yaml").read_text()
