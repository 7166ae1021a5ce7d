"""`pah ablate`: cells differ from the base as requested, are trained once, and appear correctly in the tables."""

import json
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import assert_same_run, contents
from pah.cli import main, options
from pah.core import files
from pah.methods.pah import PAH
from pah.report import ablation as figure
from pah.runs.progress import StoppedError
from pah.runs.results import read_predictions
from pah.study import ablation
from pah.study.grid import run_cells
from pah.study.table import PERCENT_COLUMNS, format_mean_std, format_value

WORDS = ("split-digits", "--epochs", "1", "--training.batch_size", "64", "--backbone.width", "4", "--stream.first", "2")
VARY = ("--vary", "method.prototype_size=4,10", "--vary", "method.stability=0,3.0,9", "--seeds", "0,1")
PICTURES = ("ablation.svg", "ablation.png")


def ablate(folder: Path, *words: str) -> int:
    return main(["ablate", *WORDS, "--out", str(folder), *words])


def asked(*words: str) -> ablation.Ablation:
    return options.ablate_request([*WORDS, *words]).ablation


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = files.read_json(path)
    return found


def cell_names(folder: Path) -> set[str]:
    return {path.parent.name for path in folder.glob("*/metrics.json")}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished study of two factors and two seeds; tests must not change it."""
    folder = tmp_path_factory.mktemp("study") / "digits"
    assert ablate(folder, *VARY) == 0
    return folder


def test_a_cell_for_each_value_and_the_base_is_shared(study: Path) -> None:
    names = ("base", "prototype_size=4", "stability=0", "stability=9")
    assert cell_names(study) == {f"{name}-seed{seed}" for name in names for seed in (0, 1)}
    base = yaml.safe_load((study / "base-seed1" / "config.yaml").read_text())
    for name, option, value in (("prototype_size=4", "prototype_size", 4), ("stability=9", "stability", 9.0)):
        config = yaml.safe_load((study / f"{name}-seed1" / "config.yaml").read_text())
        assert config == {**base, "method": {**base["method"], option: value}}
    assert yaml.safe_load((study / "study.yaml").read_text()) == {k: base[k] for k in base if k not in ("seed", "data")}


def test_the_summary_by_hand(study: Path) -> None:
    summary = json.loads((study / "ablation.json").read_text())
    assert summary["missing"] == []
    assert {name: cell["differs"] for name, cell in summary["cells"].items()} == {
        "base": {},
        "prototype_size=4": {"method.prototype_size": 4},
        "stability=0": {"method.stability": 0.0},
        "stability=9": {"method.stability": 9.0},
    }
    base = [read(study / f"base-seed{seed}" / "metrics.json") for seed in (0, 1)]
    for name, cell in summary["cells"].items():
        runs = [read(study / f"{name}-seed{seed}" / "metrics.json") for seed in (0, 1)]
        assert (cell["n"], cell["seeds"], cell["tasks"]) == (2, [0, 1], 2)
        for key in PERCENT_COLUMNS.values():
            first, second = (run[key] for run in runs)
            assert cell[key]["by_seed"] == {"0": first, "1": second}
            assert cell[key]["mean"] == pytest.approx((first + second) / 2)
            assert cell[key]["std"] == pytest.approx(abs(first - second) / 2**0.5)
        assert cell["parameters"] == runs[0]["parameters"]["total"]
        assert cell["parameters_per_new_task"] == statistics.fmean(runs[0]["parameters"]["per_task"])
        assert cell["seconds"] == pytest.approx(sum(run["seconds"] for run in runs) / 2)
        lead = statistics.fmean(run["average_accuracy"] for run in runs) - statistics.fmean(
            run["average_accuracy"] for run in base
        )
        if name == "base":
            assert cell["minus_reference"] is None
            continue
        assert cell["minus_reference"]["difference"] == pytest.approx(lead)
        assert cell["minus_reference"]["seeds"] == 2
        right = [
            [
                (answers.task_given == answers.labels).double().mean().item()
                for answers in read_predictions(path / "predictions.safetensors")
            ]
            for seed in (0, 1)
            for path in (study / f"{name}-seed{seed}", study / f"base-seed{seed}")
        ]
        by_images = [statistics.fmean(mine) - statistics.fmean(its) for mine, its in (right[:2], right[2:])]
        assert cell["minus_reference"]["difference"] == pytest.approx(100 * statistics.fmean(by_images))


def tables(markdown: str) -> list[list[list[str]]]:
    parts = re.findall(r"(?:^\|.*\n)+", markdown, re.MULTILINE)
    return [[[c.strip() for c in line.split("|")[1:-1]] for line in part.splitlines()] for part in parts]


def test_each_factor_has_a_table(study: Path) -> None:
    markdown = (study / "ablation.md").read_text()
    sizes, stabilities = tables(markdown)
    assert [row[0] for row in sizes] == ["prototype_size", "---", "4", "10 (base)"]
    assert [row[0] for row in stabilities] == ["stability", "---", "0", "3 (base)", "9"]
    assert sizes[3][1:] == stabilities[3][1:]  # the base is one cell
    cells = read(study / "ablation.json")["cells"]
    nine = dict(zip(stabilities[0], stabilities[4], strict=True))
    for title, key in PERCENT_COLUMNS.items():
        assert nine[title] == format_mean_std(list(cells["stability=9"][key]["by_seed"].values()))
    interval = cells["stability=9"]["minus_reference"]
    wanted = "{difference:+z.2f} [{low:+z.2f}, {high:+z.2f}]".format(**interval)
    assert nine["AA minus base [95 % interval]"] == wanted
    assert "split-digits, 2 tasks, measured on test images." in markdown


def test_the_terminal_shows_the_same_tables(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert ablate(study, *VARY) == 0
    said = capsys.readouterr().out
    assert all(part in said for part in ("prototype_size", "10 (base)", "stability", "3 (base)", "ablation.md"))


def lines(axes: Any, series: int) -> Any:
    """Return the artists (0: points, 2: error bars) of a series (0: measured, 1: quoted from the paper)."""
    return axes.containers[series].lines


def test_panels_show_the_measured_values(study: Path) -> None:
    pytest.importorskip("matplotlib")
    assert (study / "ablation.svg").read_text().startswith("<?xml")
    assert (study / "ablation.png").read_bytes().startswith(b"\x89PNG")
    summary = read(study / "ablation.json")
    axes = figure.effects(summary).axes
    panels = [a for a in axes if a.get_xlabel()]
    assert [a.get_xlabel() for a in panels] == ["prototype_size", "stability"]
    ticks = [[text.get_text() for text in a.get_xticklabels()] for a in panels]
    assert ticks == [["4", "10\nbase"], ["0", "3\nbase", "9"]]
    stability = [a for a in axes if len(lines(a, 0)[0].get_ydata()) == 3]
    for one, key in zip(stability, ("average_accuracy", "forgetting"), strict=True):
        entries = [summary["cells"][name][key] for name in ("stability=0", "base", "stability=9")]
        assert list(lines(one, 0)[0].get_ydata()) == [entry["mean"] for entry in entries]
        bars = [bar[1][1] - bar[0][1] for bar in lines(one, 0)[2][0].get_segments()]
        assert bars == pytest.approx([2 * entry["std"] for entry in entries])
        assert len(one.containers) == 1  # the paper says nothing of digits


def test_quoted_values_are_shown_on_the_benchmark_of_the_paper(study: Path) -> None:
    pytest.importorskip("matplotlib")
    summary = {**read(study / "ablation.json"), "benchmark": "split-cifar100"}
    drawn = figure.effects(summary)
    left, right = (a for a in drawn.axes if len(a.containers) == 2)
    assert [text.get_text() for text in left.get_xticklabels()] == ["4", "5", "10\nbase", "16", "20"]
    assert list(lines(left, 1)[0].get_ydata()) == [73.72, 74.46, 73.52, 71.95]
    assert list(lines(right, 1)[0].get_ydata()) == [1.89, 1.71, 1.76, 2.66]
    assert [round(x) for x in lines(left, 1)[0].get_xdata()] == [1, 2, 3, 4]
    assert [round(x) for x in lines(left, 0)[0].get_xdata()] == [0, 2]  # ours: 4 and 10
    labels = {text.get_text() for text in drawn.legends[0].get_texts()}
    assert labels == {"AA, left axis", "FM, right axis", "AA: paper, quoted", "FM: paper, quoted"}
    panel = {"factors": ["method.prototype_start"], "short": ["prototype_start"]}
    row = {"values": ["semantic"], "cell": "base"}
    left, right = figure.effects({**summary, "panels": [{**panel, "rows": [row]}]}).axes
    assert [text.get_text() for text in left.get_xticklabels()] == ["semantic\nbase", "random"]
    assert sorted(lines(left, 1)[0].get_ydata()) == [72.54, 74.46]
    assert sorted(lines(right, 1)[0].get_ydata()) == [1.71, 2.32]


def test_a_second_factor_extends_a_study_without_training_cells_again(study: Path, tmp_path: Path) -> None:
    folder = tmp_path / "s"
    assert ablate(folder, "--vary", "method.stability=9", "--seeds", "0") == 0
    assert cell_names(folder) == {"base-seed0", "stability=9-seed0"}  # the base always: others are compared with it
    before = {path: path.stat().st_mtime_ns for cell in cell_names(folder) for path in (folder / cell).rglob("*")}
    assert ablate(folder, "--vary", "method.prototype_size=4", "--seeds", "0") == 0
    assert set(read(folder / "ablation.json")["cells"]) == {"base", "prototype_size=4"}
    assert ablate(folder, *VARY) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert [entry["n"] for entry in read(folder / "ablation.json")["cells"].values()] == [2] * 4
    for name in cell_names(study):
        assert_same_run(folder / name, study / name)
    done = contents(folder, ignore=(".lock", *PICTURES))
    assert ablate(folder, *VARY) == 0
    assert contents(folder, ignore=(".lock", *PICTURES)) == done


def test_an_interrupted_cell_is_resumed(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    request = asked(*VARY, "--out", str(tmp_path / "s"))
    ablation.prepare(request)
    left = iter(range(5))
    with pytest.raises(StoppedError):
        run_cells(request.cells(), lambda *_: None, lambda: next(left, None) is None, 0.0)
    assert [path.name for path in (tmp_path / "s").glob("*-seed*")] == ["base-seed0"]
    assert ablate(tmp_path / "s", *VARY) == 0
    assert "8/8 runs done" in capsys.readouterr().out
    for name in cell_names(study):
        assert_same_run(tmp_path / "s" / name, study / name)


def test_a_failed_cell_is_reported_and_the_others_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    observe = PAH.observe

    def broken(self: PAH, batch: Any) -> Any:
        if self.options.stability == 9:
            raise RuntimeError("out of luck")
        return observe(self, batch)

    monkeypatch.setattr(PAH, "observe", broken)
    assert ablate(tmp_path / "s", "--vary", "method.stability=0,9") == 1
    assert capsys.readouterr().err.startswith("pah: stability=9-seed0 failed: RuntimeError: out of luck")
    summary = read(tmp_path / "s" / "ablation.json")
    assert set(summary["cells"]) == {"base", "stability=0"}
    assert [(cell["cell"], cell["seed"]) for cell in summary["missing"]] == [("stability=9", 0)]
    assert "- stability=9, seed 0: RuntimeError: out of luck" in (tmp_path / "s" / "ablation.md").read_text()
    words = ("--method.stability", "9", "--vary", "method.stability=0", "--vary", "method.alignment=0")
    assert ablate(tmp_path / "t", *words) == 1  # of the second factor no cell is finished: it has no table
    assert [panel["short"] for panel in read(tmp_path / "t" / "ablation.json")["panels"]] == [["stability"]]
    assert ablate(tmp_path / "u", "--grid", "method.stability=9") == 1  # nothing to show
    assert not (tmp_path / "u" / "ablation.json").exists()


def test_a_grid_contains_all_combinations(tmp_path: Path) -> None:
    words = ("--grid", "method.prototype_size=4,10", "--grid", "method.stability=0,9")
    assert ablate(tmp_path / "s", *words) == 0
    names = ["prototype_size=4,stability=0", "prototype_size=4,stability=9", "stability=0", "stability=9"]
    assert cell_names(tmp_path / "s") == {f"{name}-seed0" for name in names}
    summary = read(tmp_path / "s" / "ablation.json")
    assert list(summary["cells"]) == names
    assert all(entry["minus_reference"] is None for entry in summary["cells"].values())  # no base to compare with
    (table,) = tables((tmp_path / "s" / "ablation.md").read_text())
    assert [row[:2] for row in table] == [
        ["prototype_size", "stability"],
        ["---", "---:"],
        ["4", "0"],
        ["4", "9"],
        ["10", "0"],
        ["10", "9"],
    ]
    if axes := figure.effects(summary).axes:
        assert [text.get_text() for text in axes[0].get_xticklabels()] == ["4, 0", "4, 9", "10, 0", "10, 9"]
    whole = asked("--grid", "method.stability=3,9", "--grid", "epochs=1,2")
    assert list(whole.configs_by_name()) == ["base", "epochs=2", "stability=9", "epochs=2,stability=9"]


def test_another_method_keeps_the_options_that_it_shares(tmp_path: Path) -> None:
    given = tmp_path / "base.yaml"  # with an option that LwF lacks
    given.write_text("method: {alignment: 0.5, stability: 7}\noptimizer: {lr: 1.0e-05}\n")
    found = asked("--config", str(given), "--vary", "method=pah,lwf").configs_by_name()
    assert list(found) == ["base", "method=lwf"]
    lwf, base = found["method=lwf"], found["base"]
    alone = ["--method", "lwf", "--method.stability", "7", "--optimizer.lr", "1e-5"]
    assert lwf == options.run_request([*WORDS, *alone]).config
    assert base == options.run_request([*WORDS, "--config", str(given)]).config
    assert asked("--vary", "method=lwf").configs_by_name()["method=lwf"].method_options.stability == 3.0  # type: ignore[attr-defined]
    backbones = asked("--vary", "backbone=convnet,resnet18-slim").configs_by_name()
    assert backbones["backbone=resnet18-slim"].backbone_options.width == 4  # type: ignore[attr-defined]
    assert ablate(tmp_path / "s", "--vary", "method=pah,lwf") == 0
    assert [row[0] for row in tables((tmp_path / "s" / "ablation.md").read_text())[0]][2:] == ["pah (base)", "lwf"]


def test_cells_on_other_images_have_no_difference(tmp_path: Path) -> None:
    assert ablate(tmp_path / "s", "--vary", "stream.first=2,1") == 0
    cells = read(tmp_path / "s" / "ablation.json")["cells"]
    assert [(cell["tasks"], cell["minus_reference"]) for cell in cells.values()] == [(2, None), (1, None)]


def test_the_default_ablation_is_that_of_the_paper() -> None:
    found = asked()
    assert [panel.factors for panel in found.panels] == [
        (f"method.{name}",) for name in ("prototype_size", "stability", "alignment", "prototype_start")
    ]
    assert len(found.cells()) == 1 + 3 + 5 + 1 + 1
    assert found.folder == Path("runs/ablate-split-digits")


def test_equal_values_give_equal_cell_names() -> None:
    names = list(
        asked("--vary", "method.hidden=[8,4];[256];[16]", "--vary", "optimizer.lr=1e-5,0.001").configs_by_name()
    )
    assert names == ["base", "hidden=8x4", "hidden=16", "lr=1e-05"]
    (one,) = [name for name in asked("--vary", "method.direction=student||teacher").configs_by_name() if name != "base"]
    assert one == "direction=student%7C%7Cteacher"  # a folder's name on any system
    assert list(asked("--vary", "optimizer.name=sgd").configs_by_name()) == ["base", "optimizer.name=sgd"]
    assert [format_value(value) for value in (3.0, 0.5, None, True, [], [1, 2.0])] == [
        "3",
        "0.5",
        "none",
        "true",
        "empty",
        "1x2",
    ]


Refused = Callable[..., str]


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Return a function that expects a command to fail with status 2 and no changed file; it returns the error line."""
    monkeypatch.chdir(tmp_path)

    def run(command: str, *words: str) -> str:
        capsys.readouterr()
        before = contents(tmp_path)
        assert main([command, *WORDS, *words]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert contents(tmp_path) == before
        return err

    return run


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("--vary method.stability=1,-1", ("method.stability: expected at least 0, got -1",)),
        ("--vary method.prototype_size=4,x", ("method.prototype_size", "int", "x")),
        ("--vary method.prototype_start=noise", ("method.prototype_start", "noise")),
        ("--vary method.hidden=[4,4]", ("method.hidden: expected lists, as in [64];[64,64]", "'method.hidden=[4,4]'")),
        ("--grid method.hidden=4,8", ("method.hidden: expected lists",)),
        ("--grid training=1,2", ("unknown option 'training'",)),
        ("--vary method.stablity=1", ("unknown option 'method.stablity'", "'method.stability'")),
        ("--vary stability=1", ("unknown option 'stability'", "'method.stability'")),
        ("--vary method.buffer=100,200", ("unknown option 'method.buffer'",)),
        ("--vary method=pah,lwff", ("unknown method 'lwff'", "'lwf'")),
        ("--vary method.stability=", ("expected NAME=V1,V2,..., got 'method.stability='",)),
        ("--vary method.stability", ("expected NAME=V1,V2,..., got 'method.stability'",)),
        ("--vary", ("option --vary: expected a value",)),
        ("--vary epochs=1 --vary training.epochs=2", ("training.epochs: expected each option once",)),
        ("--vary epochs=1 --grid epochs=2", ("expected --vary or --grid, got both",)),
        ("--grid method=pah,lwf --grid method.alignment=0,1", ("unknown option 'method.alignment'",)),
        ("--vary stream.tasks=5,7", ("stream.tasks",)),
        ("--method lwf", ("expected what to vary", "lwf")),
        ("--seeds none", ("seeds: expected at least one",)),
        ("--seed 1", ("option 'seed'", "'seeds'")),
        ("--overwrite", ("unknown option 'overwrite'",)),
    ],
)
def test_invalid_arguments_are_refused_before_training(words: str, parts: tuple[str, ...], refused: Refused) -> None:
    line = refused("ablate", "--out", "s", *words.split())
    assert all(part in line for part in parts), line


def test_the_folder_of_another_study_is_refused(study: Path, tmp_path: Path, refused: Refused) -> None:
    more = ("--out", str(study), "--vary", "method.temperature=1", "--seeds", "7")
    line = refused("ablate", *more, "--method.stability", "9")
    assert f"{study}: expected a folder of this study, got another's: method.stability is 3.0, not 9.0" in line
    assert "another's: method.name is pah, not lwf" in refused("ablate", *more, "--method", "lwf")
    assert "another's: training.epochs is 1, not 2" in refused("ablate", *more, "--epochs", "2")
    line = refused("ablate", *VARY, "--out", str(study), "--epochs", "2")
    assert f"{study}/base-seed0: expected this study's run, got another: training.epochs is 1, not 2" in line
    line = refused("compare", "--methods", "pah", "--out", str(study))
    assert line == f"pah: {study}: expected a folder of this study, got that of an ablation\n"
    assert main(["compare", *WORDS, "--methods", "finetune", "--out", str(tmp_path / "c")]) == 0
    assert "got that of a comparison" in refused("ablate", *VARY, "--out", str(tmp_path / "c"))
