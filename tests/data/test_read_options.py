"""The options of reading a data set, from a command and from Python to what is read."""

import dataclasses
from pathlib import Path

import pytest

from data_sets import NAMES, class_folders, picture, refused, save
from pah import ContinualLearner
from pah.cli import main
from pah.cli.parser import config_of, parse
from pah.data.read_options import ReadOptions
from pah.learner.defaults import defaults
from pah.models.backbones import ConvNetOptions
from pah.training.config import RunConfig, load_stream

GIVEN = ("--test_split=odd", "--skip_unreadable=true", "--follow_links=true", "--max_megapixels=70")


def test_values_out_of_range_are_refused() -> None:
    with refused("max_megapixels: expected 1 to 10000, got 0"):
        ReadOptions(max_megapixels=0)
    with refused("max_megapixels: expected 1 to 10000, got 20000"):
        RunConfig(max_megapixels=20_000)


def test_commands_have_the_options() -> None:
    for command in ("run", "compare", "ablate", "data", "learn"):
        config = config_of(parse([*GIVEN], command))
        assert config.read_options == ReadOptions(None, "odd", True, True, 70)
        assert RunConfig.from_dict(config.as_dict()) == config
    assert RunConfig().read_options == ReadOptions()


def test_a_run_leaves_out_unreadable_images_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = class_folders(tmp_path / "set", {"cat": 5, "dog": 5})
    (root / "cat" / "bad.png").write_bytes(b"text")
    assert main(["data", "split", "--data", str(root), "--tasks", "1"]) == 2
    assert "bad.png: expected an image" in capsys.readouterr().err
    assert main(["data", "split", "--data", str(root), "--tasks", "1", "--skip_unreadable"]) == 0
    assert "left out, unreadable: cat/bad.png" in capsys.readouterr().out
    config = RunConfig(benchmark="split", data=str(root), skip_unreadable=True)
    assert len(load_stream(config).tasks[0].train) == 8


def test_images_of_several_sizes_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = class_folders(tmp_path / "set", {"cat": 5, "dog": 5})
    save(picture(0, (9, 7)), root / "cat" / "inner" / "other.png")
    (root / "notes.txt").write_text("x")
    assert main(["data", "split", "--data", f"{root}/", "--tasks", "1"]) == 0
    out = capsys.readouterr().out
    assert "images of several sizes (`--image_size N` makes them N x N for a run)" in out.replace("\n", " ")
    assert "left out: 1 .txt" in out
    assert "│    1 │ cat, dog │        9 │          0 │    2 │" in out


def quick_config(size: int) -> RunConfig:
    config = defaults(size)
    training = dataclasses.replace(config.training, epochs=1, min_steps=1)
    return dataclasses.replace(config, backbone="convnet", backbone_options=ConvNetOptions(width=4), training=training)


def test_a_learner_takes_one_class_and_one_image_a_class(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "set", {"bird": 4, "cat": 4, "dog": 1})
    learner = ContinualLearner(config=quick_config(8))
    lesson = learner.learn("animals", root)
    assert "measured without dog: these classes have a single image" in " ".join(lesson.notes)
    assert learner.evaluate(class_folders(tmp_path / "one", {"cat": 3}), "animals").images == 3
    assert learner.evaluate(([picture(0)], [2], NAMES), "animals").images == 1
    held_out = class_folders(tmp_path / "few", dict.fromkeys(NAMES, 1))
    (held_out / "cat" / "bad.png").write_bytes(b"text")
    with refused("bad.png"):
        learner.evaluate(held_out, "animals")
    assert learner.evaluate(held_out, "animals", skip_unreadable=True).images == 3
    second = learner.learn("single", ([picture(0), picture(1)], ["eel", "fox"]), held_out={"animals": root})
    assert "single" not in second.accuracies  # no image is left to measure it on
    assert "animals" in second.accuracies
