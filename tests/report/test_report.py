"""Reports show the content of the run folder, name missing files, and escape text from the data."""

import base64
import functools
import io
import itertools
import json
import re
import shutil
import statistics
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from conftest import TINY, run_until_death, tiny
from helpers import DIGITS
from pah.cli import main
from pah.core.config import InputError
from pah.report import classes, comparison_page, run_page
from pah.report.run_data import read_run
from pah.report.write import write_report
from pah.runs.results import read_predictions, read_prototypes
from pah.runs.run import start_run

RESULTS = Path(__file__).resolve().parents[2] / "results"
SMALL = (*TINY, "--method.prototype_size", "6", "--snapshots", "true")
NASTY = ["<script>alert(1)", "a & b \"c\" 'd'", "$x_{", "日本語", "-->", "{{ 7 * 7 }}"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a diagnosed run of PAH with finetuning beside it and a report of both; tests must not change it."""
    pytest.importorskip("matplotlib")
    run = tmp_path_factory.mktemp("report") / "run"
    assert main(["run", *SMALL, "--out", str(run), "--beside", "finetune"]) == 0
    assert main(["diagnose", str(run)]) == 0
    assert main(["report", str(run)]) == 0
    return run


@dataclass
class Page(HTMLParser):
    """A parsed report page: its tags, its tables by caption, and its text."""

    text: str
    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    tables: dict[str, list[list[str]]] = field(default_factory=dict)  # by caption
    words: str = ""

    def __post_init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.inside = ""
        self.feed(self.text)

    @classmethod
    def of(cls, path: Path) -> "Page":
        return cls(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("caption", "th", "td", "script", "style"):
            self.inside, self.cell = tag, ""
        if tag == "tr":
            self.rows.append([])

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.cell += data
        if self.inside not in ("script", "style"):
            self.words += data

    def handle_endtag(self, tag: str) -> None:
        if tag == "caption":
            self.rows = self.tables[self.cell] = []
        elif tag in ("th", "td"):
            self.rows[-1].append(self.cell.strip())
        if tag == self.inside:
            self.inside = ""

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_a_run_ends_with_a_report_that_shows_everything(folder: Path) -> None:
    page = Page.of(folder / "report.html")
    headings = [attributes["id"] for attributes in page.all("section") if "id" in attributes]
    assert headings == ["accuracy", "training", "prototypes", "diagnosis", "classes", "origin"]
    assert "Missing from the run folder" not in page.words
    assert "without protection (finetune) reaches" in page.words
    of_finetune = Page.of(folder.with_name("run-finetune") / "report.html")
    assert "without protection" not in of_finetune.words
    assert "diagnosis.json" in of_finetune.words, "missing files are named"


def test_the_page_loads_no_other_files(folder: Path) -> None:
    page = Page.of(folder / "report.html")
    assert len(page.text) < 3_000_000
    assert not page.all("link")[1:]
    linked = [a[key] or "" for _, a in page.tags for key in ("src", "href", "xlink:href") if key in a]
    own = {figure.name for figure in (folder / "figures").iterdir()}
    assert all(x.startswith(("data:", "#")) or x.removeprefix("figures/") in own for x in linked)
    assert not re.search(r"url\((?!#)|@import", page.text)
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    assert {x[1:] for x in linked if x.startswith("#")} <= {*ids}


def test_every_figure_has_words_numbers_and_files(folder: Path) -> None:
    page = Page.of(folder / "report.html")
    drawings = [a for a in page.all("div") if a.get("role") == "img"]
    names = [a["id"] for a in page.all("figure")]
    assert len(drawings) == len(names) == len(page.all("svg")) >= 9
    assert all(len(a["aria-label"] or "") > 40 for a in drawings)
    assert len(page.all("details")) == len(names) + 1, "the prototypes are no drawing, but have numbers"
    assert all(a.get("alt") for a in page.all("img"))
    assert all(a.get("scope") == "col" and a.get("aria-sort") == "none" for a in page.all("th"))
    for name in [*names, "prototypes"]:
        assert ET.parse(folder / "figures" / f"{name}.svg").getroot().tag.endswith("svg")
        assert (folder / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF")


def test_headings_skip_no_level(folder: Path) -> None:
    levels = [int(tag[1]) for tag, _ in Page.of(folder / "report.html").tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_the_numbers_are_those_of_the_run(folder: Path) -> None:
    page, known = Page.of(folder / "report.html"), json.loads((folder / "metrics.json").read_text())
    learned = known["accuracy_matrix"]
    shown = [[cell for cell in row[1:] if cell] for row in page.tables["Accuracy in %"][1:]]
    assert shown == [[f"{accuracy:.2f}" for accuracy in row] for row in learned]
    kept = [row[1:3] for row in page.tables["Accuracy in %, just learned and at the end"][1:]]
    assert kept == [[f"{learned[k][k]:.2f}", f"{learned[-1][k]:.2f}"] for k in range(3)]
    strong = re.findall(r"<strong>(.*?)</strong>", page.text)
    keys = ("average_accuracy", "forgetting", "backward_transfer", "learning_accuracy")
    assert strong == [f"{known[key]:.2f}" for key in keys]
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    effort = page.tables["Training alone, without evaluation; memory of the whole process"]
    assert len(effort) == 4
    seconds = sum(line["seconds"] for line in log if line["task"] == 1)
    assert float(effort[2][1]) == pytest.approx(seconds, abs=0.01)
    assert float(effort[3][3].replace(",", "")) == pytest.approx(log[-1]["peak_memory_mb"], abs=1)


def test_classes_and_confusions_are_counted_right(folder: Path) -> None:
    run = read_run(folder)
    assert run.answers is not None
    assert run.names is not None
    results = classes.class_results(run.answers, run.names)
    for k, accuracy in enumerate(run.matrix[-1]):
        own = [result for result in results if result.task == k]
        right = sum((result.accuracy or 0) * result.images for result in own)
        assert right / sum(result.images for result in own) == pytest.approx(accuracy)
    names = [name for of_task in run.names for name in of_task]
    expected: dict[tuple[str, str], int] = {}
    for k, task in enumerate(read_predictions(folder / "predictions.safetensors")):
        for label, answer in zip(task.labels.tolist(), task.task_not_given.tolist(), strict=True):
            truth = run.names[k][label]
            if names[answer] != truth:
                expected[truth, names[answer]] = expected.get((truth, names[answer]), 0) + 1
    given, not_given = classes.confusions(run.answers, run.names)
    assert {(row[0], row[1]): int(str(row[2])) for row in not_given.rows}.items() <= expected.items()
    assert max(expected.values()) in [int(str(row[2])) for row in not_given.rows]
    assert all(any({row[0], row[1]} <= {*of_task} for of_task in run.names) for row in given.rows)


def pictures(folder: Path) -> dict[str, np.ndarray]:
    """Return the pictures of a page by their alternative text."""
    found = {}
    for attributes in Page.of(folder / "report.html").all("img"):
        data = base64.b64decode((attributes["src"] or "").partition(",")[2])
        found[attributes["alt"] or ""] = np.asarray(Image.open(io.BytesIO(data)))
    return found


def test_prototypes_are_shown_as_recorded(folder: Path) -> None:
    shown, names = pictures(folder), read_run(folder).names
    assert names is not None
    assert len(shown) == 6 * 4
    weights = load_file(folder / "model" / "model.safetensors")
    for k, of_task in enumerate(names):
        recorded = read_prototypes(folder / "prototypes" / f"{k}.safetensors")
        assert recorded.images is not None
        mean, std = torch.tensor(recorded.normalization.mean), torch.tensor(recorded.normalization.std)
        for c, name in enumerate(of_task):
            assert (shown[f"{name}, image"] == recorded.images[c].permute(1, 2, 0).numpy()).all()
            now = (weights[f"heads.prototypes.tasks.{k}"][c] * std + mean).clamp(0, 1) * 255
            difference = np.abs(shown[f"{name}, now"].astype(float) - now.permute(1, 2, 0).numpy())
            assert difference.max() <= 0.5 + 1e-3
            moved = shown[f"{name}, learned"].astype(int) - shown[f"{name}, start"].astype(int)
            assert 0 < np.abs(moved).mean() < 60


def test_the_same_run_gives_the_same_report(folder: Path, tmp_path: Path) -> None:
    write_report([folder], tmp_path / "again")
    assert (tmp_path / "again" / "report.html").read_bytes() == (folder / "report.html").read_bytes()
    for figure in (folder / "figures").iterdir():
        assert (tmp_path / "again" / "figures" / figure.name).read_bytes() == figure.read_bytes()


def test_names_from_the_data_are_escaped(tmp_path: Path) -> None:
    data = tmp_path / "data"
    pixels = DIGITS.train.pixels[:, 0].numpy()
    for label, name in enumerate(NASTY):
        (data / name).mkdir(parents=True)
        for i, row in enumerate((DIGITS.train.labels == label).nonzero().flatten()[:15].tolist()):
            Image.fromarray(pixels[row]).save(data / name / f"{i}.png")
    words = (
        "split",
        "--data",
        str(data),
        "--tasks",
        "3",
        "--epochs",
        "1",
        "--backbone",
        "convnet",
        "--augment.crop",
        "0",
    )
    assert main(["run", *words, "--out", str(tmp_path / "run")]) == 0
    page = Page.of(tmp_path / "run" / "report.html")
    assert len(page.all("script")) == 1
    rows = [row[0] for row in page.tables["At the end, task given"][1:]]
    assert sorted(rows) == sorted(NASTY)
    alts = {(a["alt"] or "").rpartition(", ")[0] for a in page.all("img")}
    assert alts == {*NASTY}


def test_without_the_extra_a_run_succeeds_and_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["run", *TINY, "--epochs", "1", "--out", str(tmp_path / "run")]) == 0
    message = "pah: no report: figures need the extra: in a clone of pah, run pip install -e '.[report]'\n"
    assert capsys.readouterr().err == message
    assert (tmp_path / "run" / "metrics.json").is_file()
    assert not (tmp_path / "run" / "report.html").exists()
    assert main(["report", str(tmp_path / "run")]) == 2
    monkeypatch.undo()
    assert main(["resume", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "report.html").is_file(), "resuming writes the report"
    before = (tmp_path / "run" / "report.html").stat().st_mtime_ns
    assert main(["resume", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "report.html").stat().st_mtime_ns == before


def test_overwriting_a_run_removes_its_report(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "run")
    run_until_death(
        tiny("--method", "finetune"), tmp_path / "run", 3, 0, run=functools.partial(start_run, overwrite=True)
    )
    assert not any((tmp_path / "run" / name).exists() for name in ("report.html", "diagnosis.json"))
    assert not list((tmp_path / "run" / "prototypes").iterdir())
    assert not list((tmp_path / "run" / "figures").iterdir())


def test_an_unfinished_run_is_reported_up_to_its_last_task(unfinished: Path, tmp_path: Path) -> None:
    shutil.copytree(unfinished, tmp_path / "run")
    page = Page.of(write_report([tmp_path / "run"]))
    assert "it has learned 1 of 3 tasks" in page.words
    assert len(pictures(tmp_path / "run")) == 2 * 4
    assert "predictions.safetensors" in page.words
    with pytest.raises(InputError, match="expected finished runs to compare, got one that has learned 1 of 3 tasks"):
        write_report([tmp_path / "run", tmp_path / "run"])


@pytest.mark.parametrize(
    ("events", "seconds", "where"),
    [
        (3, 0, "in task 1 (epochs done: 0, steps of the next: 2)"),
        (3, 1e9, "only begun"),
        (9, 0, "in task 1 (epochs done: 1, steps of the next: 2)"),
    ],
)
def test_a_run_without_a_learned_task_is_refused_with_its_progress(
    events: int, seconds: float, where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_until_death(tiny(), tmp_path / "run", events, seconds)
    assert main(["report", str(tmp_path / "run")]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"pah: {tmp_path / 'run'}: expected a run that has learned a task, got one that ")
    assert where in err
    assert err.count("\n") == 1
    assert not (tmp_path / "run" / "report.html").exists()


def with_damaged(file: str, content: str) -> Callable[[Path], Sequence[Path]]:
    """Return a function that damages a file of a run and returns the run folders to report."""

    def prepare(run: Path) -> Sequence[Path]:
        (run / file).write_text(content)
        return [run]

    return prepare


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda run: [run.parent / "nothing"], "expected a run folder, which holds config.yaml, found none"),
        (lambda run: [run.parent], "expected a run folder, which holds config.yaml, found none"),
        (lambda run: [run / "model"], "expected a run folder, which holds config.yaml, found none"),
        (lambda run: [run, run], "pah, seed 0: expected one run, got 2"),
        (
            lambda run: [run, RESULTS / "fast" / "pah-seed0"],
            "expected --out DIR for runs that lie in different folders",
        ),
        (lambda _: [], "expected one run folder or several, got none"),
        (lambda run: [run, Path("--fast")], "unknown option 'fast'; expected one of: out"),
        (with_damaged("metrics.json", "{"), "expected JSON, got"),
        (with_damaged("metrics.json", "[]"), "expected a run's metrics"),
        (with_damaged("config.yaml", "a: ["), "expected YAML, got"),
        (with_damaged("predictions.safetensors", "torn"), "expected a run's predictions, got"),
        (with_damaged("prototypes/1.safetensors", "torn"), "expected a task's prototypes, got"),
        (with_damaged("model/model.safetensors", "torn"), "expected weights, got"),
        (with_damaged("model/learner.json", "{}"), "expected a learner, got"),
        (with_damaged("diagnosis.json", '{"tasks": [{}]}'), "expected what pah diagnose writes, got"),
    ],
)
def test_what_cannot_be_reported_is_refused_in_one_line(
    prepare: Callable[[Path], Sequence[Path]],
    message: str,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(folder, tmp_path / "run")
    (tmp_path / "run" / "report.html").unlink()
    assert main(["report", *map(str, prepare(tmp_path / "run"))]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "run" / "report.html").exists()


def test_metrics_without_a_valid_matrix_are_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "run")
    known = json.loads((tmp_path / "run" / "metrics.json").read_text())
    for matrix in ([], [[1.0, 2.0]], [["x"]], [[float("nan")]], None):
        (tmp_path / "run" / "metrics.json").write_text(json.dumps(known | {"accuracy_matrix": matrix}))
        with pytest.raises(InputError, match="expected an accuracy matrix"):
            write_report([tmp_path / "run"])


def test_an_incomplete_last_line_of_the_log_is_ignored(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "run")
    with (tmp_path / "run" / "log.jsonl").open("a") as file:
        file.write('{"task": 1, "ep')
    assert read_run(tmp_path / "run").log == read_run(folder).log


def test_finetuning_on_another_stream_is_not_compared(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "run")
    beside = folder.with_name("run-finetune")
    assert run_page.matching_finetune_run(read_run(tmp_path / "run")) is None
    shutil.copytree(beside, tmp_path / "other")
    found = run_page.matching_finetune_run(read_run(tmp_path / "run"))
    assert found is not None
    assert run_page.different_options(read_run(tmp_path / "run"), found) == []
    known = json.loads((beside / "metrics.json").read_text())
    for change in ({"seed": 1}, {"class_order": known["class_order"][::-1]}, {"evaluated_on": "validation"}):
        (tmp_path / "other" / "metrics.json").write_text(json.dumps(known | change))
        assert run_page.matching_finetune_run(read_run(tmp_path / "run")) is None


def committed(tmp_path: Path, *names: str) -> list[Path]:
    """Copy committed results, which hold metrics, configuration and some of them predictions; return the copies."""
    for name in names:
        shutil.copytree(RESULTS / name, tmp_path / name)
    return [tmp_path / name for name in names]


def test_a_report_of_a_committed_result_names_the_missing_files(tmp_path: Path) -> None:
    page = Page.of(write_report(committed(tmp_path, "fast/pah-seed0")))
    assert [a["id"] for a in page.all("section") if "id" in a] == ["accuracy", "classes", "origin"]
    for name in ("log.jsonl", "learner.json", "model.safetensors", "prototypes/", "diagnosis.json"):
        assert name in page.words.partition("therefore not shown")[2]
    assert "class 64" in page.words, "its label in the data set, as its name is not known"


def test_several_runs_are_compared_over_their_seeds(tmp_path: Path) -> None:
    folders = committed(tmp_path, *(f"fast/{name}" for name in ("pah-seed0", "pah-seed1", "lwf-seed0", "lwf-seed1")))
    page = Page.of(write_report([*folders, *committed(tmp_path, "fast/finetune-seed0")]))
    known = [json.loads((folder / "metrics.json").read_text())["average_accuracy"] for folder in folders]
    [rows] = [table for caption, table in page.tables.items() if caption.startswith("Percent;")]
    by_name = {row[0]: row for row in rows[1:]}
    assert [*by_name] == ["pah", "lwf", "finetune"]
    assert by_name["pah"][2] == f"{statistics.fmean(known[:2]):.2f} ± {statistics.stdev(known[:2]):.2f}"
    assert re.fullmatch(r"[+-]\d\.\d\d \[[+-]\d\.\d\d, [+-]\d\.\d\d\]", by_name["lwf"][7])
    assert by_name["finetune"][1:3] == ["1", "24.19"]
    names = {"measures", "accuracy-against-forgetting", "averages", "side-by-side"}
    assert {a["id"] for a in page.all("figure")} == names
    assert {file.name for file in (tmp_path / "fast" / "figures").iterdir()} == {
        f"{n}.{k}" for n in names for k in ("svg", "pdf")
    }


def test_one_method_with_other_options_is_another_row(tmp_path: Path) -> None:
    names = (
        "base-seed0",
        "stability=3-seed0",
        "prototype_size=16-seed0",
        "prototype_size=16-seed1",
        "method=lwf-seed0",
    )
    runs = [read_run(RESULTS / "ablation" / "fast" / name) for name in names]
    groups = comparison_page.group_by_options(runs)
    assert [len(group.runs) for group in groups] == [1, 1, 2, 1]
    assert groups[1].label == "pah (stability 3, prototype_size 10)"
    assert groups[2].label == "pah (stability 1, prototype_size 16)"
    assert groups[3].label == "lwf"
    assert comparison_page.mean_matrix([[[1.0], [2.0, 3.0]], [[3.0], [4.0, 5.0]]]) == [[2.0], [3.0, 4.0]]


def test_a_comparison_lists_other_different_options(tmp_path: Path) -> None:
    one, other = committed(tmp_path, "fast/pah-seed0", "fast/lwf-seed0")
    assert len(comparison_page.page_of([read_run(one), read_run(other)]).summary) == 1
    written = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(written.replace("epochs: 24", "epochs: 3"))
    summary = comparison_page.page_of([read_run(one), read_run(other)]).summary
    assert summary[1] == "The runs differ in more than method and seed: training.epochs."


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ("comparison/split-digits/pah-seed0", "got another: benchmark is split-digits, not split-cifar100"),
        ("comparison/pah-lwf-stability-3.0/pah-seed2", "got another: tasks is 5, not 10"),
        ("tiny-imagenet-50/pah-seed0", "got another: benchmark is split-tinyimagenet, not split-cifar100"),
    ],
)
def test_runs_of_other_streams_are_refused(
    other: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("report", str(RESULTS / "fast" / "pah-seed0"), str(RESULTS / other), "--out", str(tmp_path / "out"))
    assert main(words) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_runs_of_one_seed_with_other_class_orders_are_refused(tmp_path: Path) -> None:
    one, other = committed(tmp_path, "fast/pah-seed0", "fast/lwf-seed0")
    known = json.loads((other / "metrics.json").read_text())
    (other / "metrics.json").write_text(json.dumps(known | {"class_order": known["class_order"][::-1]}))
    with pytest.raises(InputError, match=r"expected the class order of .*, got another at one seed"):
        write_report([one, other])


def test_every_committed_result_can_be_reported() -> None:
    for path in sorted(RESULTS.glob("**/metrics.json")):
        run = read_run(path.parent)
        assert len(run.matrix) > 1
