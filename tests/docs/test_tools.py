"""Test the programs beside the library: tables, the picture, finding the task, and the cost of a step."""

import importlib.util
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import measurement_tables
import pytest
import run_tables
import tables
import torch
import yaml
from PIL import Image
from torch import Tensor

from conftest import tiny
from pah.data.task import Batch
from pah.methods.base import Method
from pah.methods.pah import PAH
from pah.runs.results import save_predictions
from pah.study.comparison import summarise_folder
from pah.training.config import RunConfig
from pah.training.evaluation import TaskPredictions

ROOT = Path(__file__).resolve().parents[2]


def program(path: str) -> ModuleType:
    """Return a program of the repository as a module; it belongs to no package."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


picture, task_inference = (program(f"tools/{name}.py") for name in ("picture", "task_inference"))
step_cost, many_tasks = (program(f"benchmarks/{name}.py") for name in ("step_cost", "many_tasks"))


def markers(page: str) -> str:
    """Return the text of a page whose tables are still empty."""
    pairs = (f"<!-- {name}:begin -->\n<!-- {name}:end -->" for name in tables.TABLES[page])
    return "# Title\n" + "\nbetween\n".join(pairs) + "\nThe end.\n"


def table_lines(root: Path) -> list[str]:
    """Return the lines of all tables in the pages."""
    texts = [(root / page).read_text() for page in tables.TABLES]
    return [line for text in texts for line in text.splitlines() if line.startswith("|")]


def write_run(root: Path, study: str, method: str, seed: int, **changed: Any) -> Path:
    """Write a committed run of three tasks and return its folder; `changed` overrides its metrics."""
    metrics = {
        "benchmark": "split-digits",
        "method": method,
        "seed": seed,
        "class_order": list(range(10)),
        "task_names": ["a", "b", "c"],
        "accuracy_matrix": [[80.0], [78.0, 82.0], [75.0, 81.0, 84.0]],
        "average_accuracy": 80.0,
        "forgetting": 3.0,
        "backward_transfer": -3.0,
        "learning_accuracy": 82.0,
        "class_incremental_accuracy": 40.0,
        "seconds": 90.0,
        "evaluated_on": "test",
        "parameters": {"per_task": [20, 20, 20], "total": 1060},
        "stored_samples": 0,
    }
    config = {
        "seed": seed,
        "data": f"somewhere/{seed}",
        "backbone": {"name": "resnet18-slim", "width": 32, "stem_stride": 2},
        "training": {"epochs": 12, "evaluate_on": "test", "test_batch_norm": "running"},
    }
    folder = root / "results" / study / f"{method}-seed{seed}"
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(metrics | changed))
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return folder


def write_answers(results: Path) -> None:
    """Write measurements of finding the task, of three lessons and of small lessons."""
    rules = {"energy": {"task_accuracy": 40.0, "class_accuracy": 36.0}}
    found: dict[str, Any] = {
        "tasks": 10,
        "images": 10000,
        "task_given_accuracy": 80.0,
        "default": "energy",
        "rules": rules,
    }
    unknown = {"images": 1000, "classes": 10, "auroc": 61.0, "false_alarm_asked": 5.0, "false_alarm": 6.0}
    found |= {"run": {"seed": 0}, "unknown": unknown | {"detected": 9.0}}
    (results / "task-inference").mkdir()
    (results / "task-inference" / "test.json").write_text(json.dumps(found))
    first, second = ({"task given": given, "task inferred": given - 10} for given in (70.0, 65.0))
    lessons: dict[str, Any] = {"epochs": 3, "classes": {"birds": 7, "fish": 4}, "bytes of the saved learner": 2500000}
    lessons |= {"after birds": {"birds": first}, "after fish": {"birds": second, "fish": first}}
    lessons |= {
        f"bytes of {what}": {"birds": 7 * n, "fish": 4 * n}
        for what, n in (("prototypes a task", 75), ("a stored head", 129))
    }
    lessons["images a second"] = {"predict": 980.0, "backbone": 1000.0}
    (results / "three-lessons.json").write_text(json.dumps(lessons))
    minus = {"difference": -1.25, "low": -3.0, "high": 0.5}
    of = {"n": 3, "average_accuracy": 80.0, "forgetting": 1.5, "minus_pah": minus}
    methods = {name: of for name in ("pah", "lwf", "independent")}
    streams = {"small-marks": {"half": "reported", "methods": methods}}
    (results / "small-lessons").mkdir()
    (results / "small-lessons" / "table.json").write_text(json.dumps({"streams": streams, "all": methods}))
    judged = {"lessons": {"all": 40, "lost": 5}, "flagged": 0.8, "false_alarms": 0.1, "correlation": 0.6}
    of_pah = {"lessons": {"all": 20, "lost": 0}, "flagged": None, "false_alarms": 0.05, "correlation": 0.1}
    (results / "small-lessons" / "gauge.json").write_text(json.dumps({"all": judged, "pah": of_pah}))


def backbones() -> dict[str, Any]:
    """Return what is known of three backbones: one does all, one is not exported, one takes no images."""
    done = dict.fromkeys(("learns", "answers", "saves", "forgets"), "yes")
    what = {"family": "net", "image_size": 64, "features": 512, "parameters": 4_922_488, "none": done}
    records = [
        {"name": "whole", **what, "all": {**done, "exports": "yes"}},
        {
            "name": "half",
            **what,
            "all": {"learns": "yes", "answers": "yes", "exports": "RuntimeError: no such operator"},
        },
        {"name": "bare", "family": "exotic", "why": "it takes no images"},
    ]
    return {"versions": {"timm": "1"}, "images": 6, "backbones": records}


def write_pretrained(folder: Path) -> None:
    """Write what the two programs on pretrained weights measured."""
    folder.mkdir()
    figures = {"average_accuracy": 80.0, "forgetting": 0.5, "class_incremental_accuracy": 40.0}
    runs = [
        {"method": method, "images": 5, "seed": seed, **figures} for method in ("pah", "finetune") for seed in (0, 1)
    ]
    (folder / "few-images.json").write_text(json.dumps({"runs": runs}))
    measured = {figure: {"animals": 10.0, "insects": 20.0, "ten": 30.0} for figure in ("seconds", "accuracy")}
    lessons = {"threads": 2, "photos": 60, "size": [640, 480], "scratch": measured, "pretrained": measured}
    (folder / "photo-lessons.json").write_text(json.dumps(lessons))


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return a folder with two studies, one of them with two seeds of PAH, and pages with empty tables."""
    write_run(tmp_path, "fast", "joint", 0)
    write_run(tmp_path, "fast", "lwf", 0, average_accuracy=71.0)
    write_run(tmp_path, "fast", "finetune", 0, forgetting=51.5)
    write_run(tmp_path, "fast", "pah", 0, average_accuracy=70.0, backward_transfer=-1.5, seconds=60.0)
    write_run(tmp_path, "fast", "pah", 1, average_accuracy=74.0, backward_transfer=1.5, seconds=240.0)
    write_run(tmp_path, "best", "pah", 3, class_order=list(range(9)), seconds=4200.0)
    steps = {"backbone": "convnet", "batch": 64, "image": 32, "classes": 10, "threads": 2, "torch": "2", "repeats": 9}
    row = {"tasks": 5, "finetune_ms": 100.0, "pah_ms": 150.0, "per_head_ms": 1200.0}
    (tmp_path / "results" / "step-cost.json").write_text(json.dumps({"rows": [row], **steps}))
    write_answers(tmp_path / "results")
    compared = [write_run(tmp_path, "comparison/tiny", "er", seed, stored_samples=200) for seed in (0, 1)]
    content = summarise_folder(compared[0].parent, [])
    (compared[0].parent / "comparison.json").write_text(json.dumps(content))
    seconds = {"pah": 5.0, "avalanche, 0 workers": 6.0, "avalanche, 2 workers": 10.0}
    speed = {"seconds_an_epoch": {"lwf": seconds}, "tasks": 3, "batch": 64, "width": 32, "threads": 2, "torch": "2"}
    (tmp_path / "results" / "against-avalanche.json").write_text(json.dumps(speed))
    (tmp_path / "results" / "timm-backbones.json").write_text(json.dumps(backbones()))
    write_pretrained(tmp_path / "results" / "pretrained")
    (tmp_path / "docs").mkdir()
    for page in tables.TABLES:
        (tmp_path / page).write_text(markers(page))
    return tmp_path


def test_the_tables_show_every_study_and_method(project: Path) -> None:
    assert tables.main(["--root", str(project)]) == 0
    text = (project / "docs" / "results.md").read_text()
    assert text.startswith("# Title\n<!-- results:begin -->\n")
    assert text.endswith("<!-- inference:end -->\nThe end.\n")
    assert "rejects 6.0 % of them and 9.0 % of the images of unknown classes" in text
    assert "525 of birds (a stored head: 903)" in text
    assert "98 % of the speed of the bare backbone" in text
    setting = "12 epochs a task, resnet18-slim (width 32, stem stride 2)"
    assert table_lines(project) == [
        "| PAH on | seeds | AA, % | FM, points | what it shows |",
        "| --- | ---: | ---: | ---: | --- |",
        "| Split-CIFAR100, recipe `best` | 1 | 80.00 | 3.00 "
        "| This is the most accurate recipe; one run takes 70 minutes on one CPU thread. |",
        "| Split-CIFAR100, recipe `fast` | 2 | 72.00 ± 2.83 | 3.00 ± 0.00 | LwF, which stores a head for each task, "
        "reaches 71.00. |",
        "| 1 streams of small lessons | 3 | 80.0 | 1.5 | This is the mean over streams that resemble one's own photos; "
        "others reach: LwF 80.0, a separate network for each lesson 80.0. |",
        "| study | method | seeds | AA | FM | BWT | LA | task not given | AA minus PAH [95 % interval] "
        "| AA without flip | per new task | minutes |",
        "| --- | --- |" + " ---: |" * 10,
        f"| **best**: 3 tasks of 3 classes, {setting} | pah | 1 | 80.00 | 3.00 | -3.00 | 82.00 | 40.00 | – "
        "| – | 20 | 70.0 |",
        # the standard deviation of 70 and 74 is √(2² + 2²) = 2.83, that of -1.5 and 1.5 is √(2 · 1.5²) = 2.12
        f"| **fast**: 3 tasks of 3 to 4 classes, {setting} | pah | 2 | 72.00 ± 2.83 | 3.00 ± 0.00 | 0.00 ± 2.12 "
        "| 82.00 ± 0.00 | 40.00 ± 0.00 | – | – | 20 | 2.5 |",
        "|  | finetune | 1 | 80.00 | 51.50 | -3.00 | 82.00 | 40.00 | – | – | 20 | 1.5 |",
        "|  | joint | 1 | 80.00 | 3.00 | -3.00 | 82.00 | 40.00 | – | – | 20 | 1.5 |",
        "|  | lwf | 1 | 71.00 | 3.00 | -3.00 | 82.00 | 40.00 | – | – | 20 | 1.5 |",
        "| method | n | AA | FM | BWT | LA | task not given | AA minus PAH [95 % interval] | stored samples "
        "| parameters | per new task | time / finetune |",
        "| --- |" + " ---: |" * 11,
        "| er | 2 | 80.00 ± 0.00 | 3.00 ± 0.00 | -3.00 ± 0.00 | 82.00 ± 0.00 | 40.00 ± 0.00 "
        "| – | 200 | 1.1 k | 20 | – |",
        "| images a class | PAH | a linear head for each task (`finetune`) | forgetting of PAH, points "
        "| PAH, task not given |",
        "| ---: | ---: | ---: | ---: | ---: |",
        "| 5 | 80.00 ± 0.00 | 80.00 ± 0.00 | 0.50 ± 0.00 | 40.00 ± 0.00 |",
        "| stream | settings | pah, AA / FM | lwf, AA / FM | finetune, AA / FM | independent, AA / FM "
        "| joint, AA / FM | LwF minus PAH [95 % interval] |",
        "| --- | --- |" + " ---: |" * 6,
        "| `small-marks` | reported | 80.0 / 1.5 | 80.0 / 1.5 | – | 80.0 / 1.5 | – | -1.2 [-3.0, +0.5] |",
        "| **mean of all** |  | 80.0 / 1.5 | 80.0 / 1.5 | – | 80.0 / 1.5 | – |  |",
        "| lessons of | lessons | cost an old task over 10 points | of these flagged | others flagged |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| pah | 20 | 0 | – | 5 % |",
        "| all | 40 | 5 | 80 % | 10 % |",
        "| lesson | classes | after birds | after fish |",
        "| --- | ---: | ---: | ---: |",
        "| birds | 7 | 70.0 / 60.0 | 65.0 / 55.0 |",
        "| fish | 4 |  | 70.0 / 60.0 |",
        "| rule | task found, % | class right, % |",
        "| --- | ---: | ---: |",
        "| `energy` (default) | 40.0 | 36.0 |",
        "| by chance | 10.0 | 8.0 |",
        "| task given | – | 80.0 |",
        "| start | 3 classes: seconds / accuracy, % | then 2 classes: seconds / accuracy, % "
        "| 10 classes: seconds / accuracy, % |",
        "| --- | ---: | ---: | ---: |",
        "| from scratch (`--backbone resnet18-slim`) | 10 / 10 | 20 / 20 | 30 / 30 |",
        "| from ImageNet weights (the default) | 10 / 10 | 20 / 20 | 30 / 30 |",
        "| tasks learned | finetune, ms | PAH, ms | PAH, a pass per old head, ms | PAH / finetune | per head / PAH |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
        "| 5 | 100 | 150 | 1200 | 1.50 | 8.0 |",
        "| backbone | batch size | after 5 tasks |",
        "| --- | ---: | ---: |",
        "| `convnet` | 64 | 1.50 |",
        "| seconds an epoch | `pah` | Avalanche, 0 workers | Avalanche, 2 workers | times faster |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| `lwf` | 5.00 | 6.00 | 10.00 | 1.20 |",
        "| timm name | family | image size | features | million parameters | two lessons | answers | saved and loaded "
        "| forgets | exported |",
        "| --- | --- | ---: | ---: | ---: | --- | --- | --- | --- | --- |",
        "| `bare` | exotic | – | – | – | no | no | no | no | no |",
        "| `half` | net | 64 | 512 | 4.9 | yes | yes | frozen only | frozen only | no |",
        "| `whole` | net | 64 | 512 | 4.9 | yes | yes | yes | yes | yes |",
    ]
    text = (project / "docs" / "backbones.md").read_text()
    assert "3 models of 2 families, of which 1 do all of it" in text
    assert "\n* `bare`: it takes no images\n* `half`: RuntimeError: no such operator\n" in text


@pytest.mark.parametrize(("right_of_lwf", "words"), [(61, "not significant"), (90, "significant")])
def test_the_summary_says_whether_the_difference_to_lwf_is_significant(
    project: Path, right_of_lwf: int, words: str
) -> None:
    for method, right in (("pah", 60), ("lwf", right_of_lwf)):
        write_predictions(project / "results" / "fast" / f"{method}-seed0", right)
    _, fast = run_tables.summary_rows(run_tables.read_runs(project / "results"))
    assert f"; over 1 seed this difference is {words}." in fast[-1]


def write_predictions(run: Path, right: int) -> None:
    """Write the answers to 100 images of the only task, the first `right` of them correct."""
    labels = torch.zeros(100, dtype=torch.long)
    wrong = (torch.arange(100) >= right).long()
    save_predictions(run / "predictions.safetensors", [TaskPredictions(labels, wrong, wrong)])


def test_the_table_compares_methods_whose_predictions_are_committed(tmp_path: Path) -> None:
    runs = []
    for method, right in (("pah", 60), ("lwf", 70)):
        for seed in (0, 1):
            folder = write_run(tmp_path, "digits", method, seed)
            write_predictions(folder, right)
            runs.append(run_tables.read_run(folder))
    *_, of_pah, of_lwf = run_tables.runs_table(runs).splitlines()
    assert of_pah.split(" | ")[-4] == "–"
    difference, low, high = (
        float(x) for x in of_lwf.split(" | ")[-4].replace("[", "").replace(",", "").rstrip("]").split()
    )
    assert difference == 10
    assert 0 < low < 10 < high
    write_run(tmp_path, "others", "lwf", 0)  # without predictions, and PAH is missing
    alone = run_tables.runs_table([run_tables.read_run(tmp_path / "results" / "others" / "lwf-seed0")])
    assert alone.splitlines()[-1].split(" | ")[-4] == "–"


def test_small_lessons_have_a_row_for_each_stream_with_a_dash_for_a_missing_method(project: Path) -> None:
    small = project / "results" / "small-lessons"
    lines = measurement_tables.small_lessons_table(small / "table.json").splitlines()
    assert lines[2] == "| `small-marks` | reported | 80.0 / 1.5 | 80.0 / 1.5 | – | 80.0 / 1.5 | – | -1.2 [-3.0, +0.5] |"
    assert lines[-3:] == [
        "* PAH forgets most on `small-marks` (1.5 points).",
        "* LwF is significantly more accurate than PAH on 0 of the 1 streams and significantly less accurate on 0.",
        "* On the streams that were not used to choose settings, AA / FM is 80.0 / 1.5 for PAH and 80.0 / 1.5 for LwF.",
    ]
    lines = measurement_tables.estimate_table(small / "gauge.json").splitlines()
    assert lines[-4:-2] == ["| pah | 20 | 0 | – | 5 % |", "| all | 40 | 5 | 80 % | 10 % |"]
    assert lines[-1].endswith("correlation of estimated and measured cost is 0.60.")


def test_check_notices_a_stale_page(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check = ["--root", str(project), "--check"]
    before = (project / "README.md").read_text()
    assert tables.main(check) == 1
    assert (project / "README.md").read_text() == before
    message = capsys.readouterr().err
    assert len(message.splitlines()) == 1
    assert message.startswith(
        "README.md, docs/results.md, docs/own-data.md, docs/performance.md, docs/backbones.md: expected the tables made"
    )
    tables.main(check[:2])
    assert tables.main(check) == 0
    write_run(project, "others", "pah", 2)
    assert tables.main(check) == 1
    assert capsys.readouterr().err.startswith("docs/results.md: ")


def test_a_comparison_that_disagrees_with_its_runs_is_refused(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(project, "comparison/tiny", "er", 2, average_accuracy=10.0)
    assert tables.main(["--root", str(project)]) == 2
    assert "comparison.json: expected the numbers of its runs" in capsys.readouterr().err


def test_numbers_that_do_not_belong_together_are_refused(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_run(project, "fast", "pah", 2)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["training"]["epochs"] = 1
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    assert tables.main(["--root", str(project)]) == 2
    assert "one configuration for all seeds of pah" in capsys.readouterr().err
    folder.rename(folder.with_name("pah-seed9"))
    assert tables.main(["--root", str(project)]) == 2
    assert "got pah-seed2" in capsys.readouterr().err


def test_a_page_without_markers_is_left_alone(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reversed_markers = "<!-- summary:end --> <!-- summary:begin -->"
    (project / "README.md").write_text(reversed_markers)
    assert tables.main(["--root", str(project)]) == 2
    assert "README.md: expected <!-- summary:begin -->" in capsys.readouterr().err
    assert (project / "README.md").read_text() == reversed_markers


def test_a_special_evaluation_is_described() -> None:
    training = {"epochs": 1, "evaluate_on": "validation", "flip_test": True, "test_batch_norm": "batch"}
    config = {"training": training, "backbone": {"name": "resnet18"}}
    setting = run_tables.describe({"task_names": ["a", "b"], "class_order": [0, 1, 2, 3]}, config)
    assert setting == (
        "2 tasks of 2 classes, 1 epoch a task, resnet18, measured on validation images, "
        "answers averaged over an image and its mirror image, batch norm at test time by batch"
    )


def test_tasks_of_unequal_sizes_are_described() -> None:
    training = {"epochs": 1, "evaluate_on": "test", "test_batch_norm": "running"}
    config = {"training": training, "backbone": {"name": "resnet18"}, "stream": {"sizes": [50, 10, 10]}}
    setting = run_tables.describe({"task_names": ["a", "b", "c"], "class_order": list(range(70))}, config)
    assert setting.startswith("3 tasks of 10 to 50 classes,")


def test_the_accuracy_without_flip_is_shown_for_runs_that_flip(project: Path) -> None:
    tables.main(["--root", str(project)])
    lines = [line for line in table_lines(project) if line.startswith("| **fast**")]
    folder = write_run(project, "flipped", "pah", 0, average_accuracy_without_flip=71.25)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump(config | {"training": config["training"] | {"flip_test": True}}))
    run = run_tables.read_run(folder)
    assert run.figures[run_tables.UNFLIPPED] == 71.25
    assert run_tables.runs_table([run]).splitlines()[-1].split(" | ")[-3] == "71.25"
    assert [line.split(" | ")[-3] for line in lines] == ["–"]


def test_the_pages_show_the_committed_results() -> None:
    assert tables.main(["--check"]) == 0


def test_the_picture_is_drawn_and_the_same_every_time(tmp_path: Path) -> None:
    runs = [str(write_run(tmp_path, "digits", method, 0)) for method in ("pah", "finetune")]
    for name in ("one", "two"):
        assert picture.main([*runs, "--out", str(tmp_path / name)]) == 0
    with Image.open(tmp_path / "one.png") as image:
        assert image.width == pytest.approx(1880, abs=2)
        assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
    assert "<svg" in (tmp_path / "one.svg").read_text()
    for ending in ("svg", "png"):
        assert (tmp_path / f"one.{ending}").read_bytes() == (tmp_path / f"two.{ending}").read_bytes()


def test_the_picture_shows_the_numbers(tmp_path: Path) -> None:
    kept = picture.read_result(write_run(tmp_path, "digits", "pah", 0))
    lost = picture.read_result(write_run(tmp_path, "digits", "finetune", 0, forgetting=51.5))
    assert (kept.title, lost.title) == ("PAH keeps what it learned", "finetuning forgets")
    figure = picture.draw((kept, lost))
    cells = [text.get_text() for text in figure.axes[0].texts]
    assert cells == ["80", "78", "82", "75", "81", "84", "80.0 % at the end,\n3.0 points forgotten"]
    lines = [list(line.get_ydata()) for line in figure.axes[2].lines]
    assert lines == [[80.0, 80.0, 80.0]] * 2


def test_the_picture_names_options_of_the_network_that_differ(tmp_path: Path) -> None:
    wide = picture.read_result(write_run(tmp_path, "digits", "pah", 0))
    narrow = replace(wide, network=wide.network | {"width": 16})
    assert picture.differing_options((wide, narrow), narrow) == "\nwidth 16"
    assert picture.differing_options((wide, wide), wide) == ""


def test_a_picture_of_two_streams_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = write_run(tmp_path, "digits", "pah", 0)
    other = write_run(tmp_path, "digits", "finetune", 0, class_order=list(reversed(range(10))))
    assert picture.main([str(one), str(other), "--out", str(tmp_path / "picture")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "picture.png").exists()


def tiny_step(form: str, learned: int) -> tuple[Method, Batch]:
    """A method of the benchmark at task `learned` + 1 on a small network, and a batch of that task."""
    setting = step_cost.Setting(backbone="convnet", batch=6, image=8, classes=3, repeats=1)
    method: Method = step_cost.build(form, setting)
    step_cost.grow(method, learned, setting)
    batch: Batch = step_cost.first_batch(step_cost.synthetic_task(learned, setting), setting)
    return method, batch


@pytest.mark.parametrize("term", ["L_hm", "L_sm", "L_sp"])
def test_a_pass_per_head_computes_the_losses_and_gradients_of_pah(term: str) -> None:
    (ours, batch), (theirs, _) = tiny_step("pah_ms", 2), tiny_step("per_head_ms", 2)
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():  # so that student and teacher differ, as they do inside a task
        for parameter in ours.network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=noise))
    theirs.load_state_dict(ours.state_dict(), strict=True)
    (loss, gradients), (same_loss, same_gradients) = (descent(method, term, batch) for method in (ours, theirs))
    torch.testing.assert_close(loss, same_loss)
    assert any(gradient.any() for gradient in gradients.values())
    torch.testing.assert_close(gradients, same_gradients, rtol=1e-6, atol=1e-9)


def descent(method: Method, term: str, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """A loss term and its gradient by every parameter, zero where it has none; in float64, so as to compare closely."""
    assert isinstance(method, PAH)
    method.double()
    batch = replace(batch, x=batch.x.double())
    loss = (
        method.alignment_loss(method.old_tasks)
        if term == "L_sp"
        else method._image_terms(batch, method.old_tasks)[term]
    )
    named = dict(method.network.named_parameters())
    found = torch.autograd.grad(loss, list(named.values()), materialize_grads=True)
    return loss, dict(zip(named, found, strict=True))


@pytest.mark.parametrize("learned", [1, 2, 4])
def test_pah_makes_two_passes_over_a_batch_and_the_published_form_2t_plus_1(learned: int) -> None:
    for form, of_images, of_prototypes in (("pah_ms", 2, 1), ("per_head_ms", 2 * learned + 1, learned)):
        method, batch = tiny_step(form, learned)
        assert isinstance(method, PAH)
        assert backbone_passes(method, partial(method._image_terms, batch, method.old_tasks)) == of_images
        assert backbone_passes(method, partial(method.alignment_loss, method.old_tasks)) == of_prototypes


def backbone_passes(method: PAH, compute: Callable[[], object]) -> int:
    """How often the student's and the teacher's backbone run in `compute`."""
    assert method.teacher is not None
    passes: list[None] = []
    backbones = (method.network.backbone, method.teacher.backbone)
    handles = [backbone.register_forward_hook(lambda *_: passes.append(None)) for backbone in backbones]
    compute()
    for handle in handles:
        handle.remove()
    return len(passes)


def test_the_step_cost_is_shown_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--backbone=convnet", "--batch=4", "--image=8", "--classes=2", "--tasks=3,1", "--repeats=2"]
    file, threads = tmp_path / "new" / "cost.json", torch.get_num_threads()
    assert step_cost.main([*words, f"--threads={threads}", f"--json={file}"]) == 0
    found = json.loads(file.read_text())
    assert [row.pop("tasks") for row in found["rows"]] == [1, 3]
    assert all(row.keys() == {"finetune_ms", "pah_ms", "per_head_ms"} for row in found["rows"])
    assert all(ms > 0 for row in found.pop("rows") for ms in row.values())
    assert found == {
        "backbone": "convnet",
        "batch": 4,
        "image": 8,
        "classes": 2,
        "threads": threads,
        "torch": torch.__version__,
        "repeats": 2,
    }
    assert "per head / PAH" in capsys.readouterr().out


@pytest.mark.parametrize("word", ["0", "1,-2", "two"])
def test_a_number_of_tasks_has_to_be_one(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        step_cost.main(["--tasks", word])
    assert stopped.value.code == 2
    assert "--tasks" in capsys.readouterr().err


def test_costs_are_measured_after_few_and_after_many_tasks(tmp_path: Path) -> None:
    words = ["--tasks", "2,4", "--backbone", "convnet", "--image", "8", "--batch", "16", "--repeats", "1"]
    assert many_tasks.main([*words, "--json", str(tmp_path / "a.json"), "--figure", str(tmp_path / "a.svg")]) == 0
    few, many = json.loads((tmp_path / "a.json").read_text())["rows"]
    assert (few["tasks"], many["tasks"]) == (2, 4)
    added = (many["weights_bytes"] - few["weights_bytes"]) / 2
    assert 10 * 3 * 10 * 10 * 4 <= added < 10 * 3 * 10 * 10 * 4 + 200  # the prototypes, and their entry in the header
    assert "learned" in (tmp_path / "a.svg").read_text()


def test_task_inference_is_measured_on_the_test_images(
    uninterrupted: Callable[[RunConfig], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = uninterrupted(tiny("--stream.validation", "0.2", "--stream.first", "2", "--epochs", "8"))
    assert task_inference.main([str(run), "--json", str(tmp_path / "found.json")]) == 0
    assert "contrast" in capsys.readouterr().out
    found, metrics = json.loads((tmp_path / "found.json").read_text()), json.loads((run / "metrics.json").read_text())
    images = found["images"]  # the digits' tasks differ in size by an image or two
    assert found["task_given_accuracy"] == pytest.approx(metrics["average_accuracy"], abs=100 * 2 / images)
    assert set(found["rules"]) == {"softmax", "energy", "contrast", "prototypes", "combined"}
    for of in found["rules"].values():
        assert 0 < of["class_accuracy"] <= min(of["task_accuracy"], found["task_given_accuracy"])
    assert found["unknown"]["classes"] == 2  # of six in three tasks, four were taught
    assert 0 <= found["unknown"]["auroc"] <= 100
    assert task_inference.main([str(uninterrupted(tiny()))]) == 2
    assert "--stream.validation above 0" in capsys.readouterr().err
