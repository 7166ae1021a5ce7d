"""The CSV and LaTeX files of a comparison have the numbers of its Markdown table."""

import csv
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_table
from numpy.typing import NDArray

from conftest import TINY
from pah.cli import main
from pah.core import files
from pah.study.bootstrap import Interval
from pah.study.table import (
    NO_VALUE,
    format_count,
    format_interval,
    format_mean_std,
    percent_columns,
    summarise,
    table_rows,
)
from pah.study.table_files import as_csv, as_latex, significantly_best


def a_run(method: str, seed: int, accuracy: float, **changes: Any) -> dict[str, Any]:
    """Return a run of `test_table` that also has the incremental accuracies."""
    more = {
        "class_incremental_accuracy": accuracy / 3,
        "average_incremental_accuracy": (100 + accuracy) / 2,
        "average_class_incremental_accuracy": 50 + accuracy / 6,
    }
    return test_table.a_run(method, seed, accuracy, **{**more, **changes})


def some_summary() -> dict[str, Any]:
    runs = [
        *(a_run("pah", seed, 90 + seed / 3, forward_transfer=seed - 0.5) for seed in (0, 1, 2)),
        *(a_run("finetune", seed, 60 + seed / 7, seconds=4.0) for seed in (0, 1)),
        a_run("er", 0, 91.0, stored_samples=200, average_class_incremental_accuracy=None),
        a_run("a_b & 50 %$#{x}~^\\ [y]", 5, 70.0),
    ]
    summary = summarise(runs, {"finetune": Interval(-29.9, -33.333, -25.0, seeds=2), "er": Interval(0.5, -1, 2)})
    return summary | {"significantly_best": "pah"}


def parsed(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def number(text: str) -> float | None:
    return float(text) if text else None


def markdown_cells(row: dict[str, str], keys: list[str]) -> list[str]:
    """Return the cells of the Markdown table, formatted from a row of the CSV file."""
    percent = []
    for key in keys:
        mean, std = number(row[key]), number(row[f"{key}_std"])
        percent.append(NO_VALUE if mean is None else f"{mean:z.2f}" + ("" if std is None else f" ± {std:.2f}"))
    parts = {"difference": "minus_reference", "low": "minus_reference_low", "high": "minus_reference_high"}
    interval = {part: float(row[title]) for part, title in parts.items() if row[title]}
    ratio = number(row["relative_seconds"])
    counts = [format_count(float(row[key])) for key in ("parameters", "parameters_per_new_task")]
    samples, time = f"{float(row['stored_samples']):.0f}", NO_VALUE if ratio is None else f"{ratio:.2f}"
    return [row["method"], row["n"], *percent, format_interval(interval or None), samples, *counts, time]


def test_the_csv_file_has_the_numbers_of_the_markdown_table() -> None:
    summary = some_summary()
    titles, *rows = table_rows(summary)
    keys = list(percent_columns(summary["methods"]).values())
    assert [markdown_cells(row, keys) for row in parsed(as_csv(summary))] == [
        [cell.replace("**", "") for cell in row] for row in rows
    ]
    assert len(titles) == len(rows[0])
    assert parsed(as_csv(summary))[0]["average_accuracy"] == repr(summary["methods"]["pah"]["average_accuracy"]["mean"])


def test_columns_are_shown_if_some_method_has_the_number() -> None:
    titles, *rows = table_rows(some_summary())
    columns = dict(zip(titles, zip(*rows, strict=True), strict=True))
    assert titles[6:11] == ["task not given", "AIA", "AIA, task not given", "FWT", "AA minus PAH [95 % interval]"]
    assert columns["AIA"][0] == format_mean_std([95, 95 + 1 / 6, 95 + 1 / 3])
    assert columns["AIA, task not given"][2] == NO_VALUE  # of the runs that lack it
    assert columns["FWT"] == ("0.50 ± 1.00", NO_VALUE, NO_VALUE, NO_VALUE)
    old = [
        {k: v for k, v in a_run("pah", 0, 90).items() if "incremental" not in k or k == "class_incremental_accuracy"}
    ]
    assert table_rows(summarise(old, {}))[0][6:8] == ["task not given", "AA minus PAH [95 % interval]"]


def latex_rows(text: str) -> list[list[str]]:
    """Return the cells of each row of a LaTeX table."""
    lines = [line for line in text.splitlines() if line.endswith(r"\\")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)&", line.removesuffix(r"\\"))] for line in lines]


def test_the_latex_table_is_balanced_and_escaped() -> None:
    text = as_latex(some_summary())
    body = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    columns = re.findall(r"\\begin\{tabular\}\{(l?r+)\}", body)
    rows = latex_rows(body)
    assert [len(row) for row in rows] == [len(columns[0])] * 5
    assert [body.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule", r"\end{tabular}")] == [1, 1, 1, 1]
    assert rows[-1][0] == r"a\_b \& 50 \%\$\#\{x\}\textasciitilde{}\textasciicircum{}\textbackslash{} {[}y]"
    assert not re.search(r"(?<!\\)%", body)
    unescaped = re.sub(r"\\[{}]", "", body)
    assert unescaped.count("{") == unescaped.count("}")
    assert "±" not in body
    assert NO_VALUE not in body


def test_the_latex_table_has_the_numbers_of_the_markdown_table() -> None:
    plain = {r"$\pm$": "±", "$-$": "-", "{[}": "[", "--": NO_VALUE, r"\%": "%", r"\_": "_"}
    texts = as_latex(some_summary())
    for latex, character in plain.items():
        texts = texts.replace(latex, character)
    wanted = [[cell.replace("**", "") for cell in row] for row in table_rows(some_summary())[1:4]]
    assert [[re.sub(r"\\textbf\{(.*)\}", r"\1", cell) for cell in row] for row in latex_rows(texts)[1:4]] == wanted


def test_only_a_significant_best_is_bold_in_latex() -> None:
    summary = some_summary()
    assert [row[0] for row in latex_rows(as_latex(summary)) if "textbf" in row[2]] == ["pah"]
    assert "textbf{" not in as_latex(summary | {"significantly_best": None})
    without_key = {key: value for key, value in summary.items() if key != "significantly_best"}
    assert "textbf{" not in as_latex(without_key), "an older comparison.json"


def correct(name: str, share: float, seed: int) -> list[NDArray[np.bool_]]:
    return [np.random.default_rng((*map(ord, name), seed, task)).random(300) < share for task in (0, 1)]


@pytest.mark.parametrize(
    ("shares", "seeds", "best"),
    [
        ({"pah": 0.9, "lwf": 0.7, "ewc": 0.6}, (0, 1), "pah"),
        ({"pah": 0.7, "lwf": 0.9, "ewc": 0.6}, (0, 1), "lwf"),
        ({"pah": 0.7, "lwf": 0.71, "ewc": 0.6}, (0, 1), None),  # lwf is not significantly better than pah
        ({"pah": 0.9, "lwf": 0.7}, (0,), None),  # one seed shows nothing about others
        ({"pah": 0.9}, (0, 1), None),
        ({"pah": 0.8, "joint": 0.99, "er": 0.99, "lwf": 0.5}, (0, 1), "pah"),  # neither bounds nor stored samples
    ],
)
def test_the_best_is_significant_if_it_beats_every_competitor(
    shares: dict[str, float], seeds: tuple[int, ...], best: str | None
) -> None:
    answers = {name: {seed: correct(name, share, seed) for seed in seeds} for name, share in shares.items()}
    runs = [
        a_run(name, seed, 100 * float(np.mean(masks)), stored_samples=200 if name == "er" else 0)
        for name, by_seed in answers.items()
        for seed, masks in by_seed.items()
    ]
    assert significantly_best(summarise(runs, {})["methods"], answers) == best


def test_compare_and_report_write_the_files(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    study = tmp_path / "s"
    words = [*TINY, "--epochs", "1", "--methods", "pah,finetune", "--seeds", "0,1"]
    assert main(["compare", "split-digits", *words, "--out", str(study)]) == 0
    summary = files.read_json(study / "comparison.json")
    assert (study / "table.csv").read_text() == as_csv(summary)
    assert (study / "table.tex").read_text() == as_latex(summary)
    assert [row["method"] for row in parsed((study / "table.csv").read_text())] == ["pah", "finetune"]
    assert main(["report", *map(str, sorted(study.glob("*-seed*")))]) == 0
    reported = {row["method"]: row for row in parsed((study / "report.csv").read_text())}
    for row in parsed((study / "table.csv").read_text()):
        assert reported[row["method"]] == row
    assert (study / "report.tex").read_text().count(r"\\") == 3
