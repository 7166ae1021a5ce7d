"""The statistics, table and figure of a comparison, checked against naive versions and by hand."""

import json
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pah.core.config import InputError
from pah.report import figures
from pah.study.bootstrap import Interval, Pair, paired_bootstrap
from pah.study.table import PERCENT_COLUMNS, as_markdown, format_count, format_mean_std, summarise

Seeds = list[list[Pair]]


def answers(rng: np.random.Generator, images: int, better: float = 0.05, base: float = 0.6) -> Pair:
    """Return correlated answers: images have a difficulty, and the method solves slightly harder ones."""
    difficulty = rng.random(images)
    luck = rng.random(images) < 0.2  # images on which the method is independent of the reference
    alone = rng.random(images) < base + better
    return np.where(luck, alone, difficulty < base + better), difficulty < base


def simulated(rng: np.random.Generator, sizes: Sequence[int], betters: Sequence[float] = (0.05,)) -> Seeds:
    """Return one seed for each entry of `betters`, which is the method's true lead in that seed."""
    return [[answers(rng, size, better) for size in sizes] for better in betters]


def naive_bootstrap(pairs: Seeds, resamples: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Compute the bootstrap by its definition: draw seeds, then images by their index."""
    values = []
    for _ in range(resamples):
        accuracies = []
        for s in rng.integers(len(pairs), size=len(pairs)):
            for method, reference in pairs[s]:
                pick = rng.integers(len(method), size=len(method))
                accuracies.append(100 * (method[pick].mean() - reference[pick].mean()))
        values.append(statistics.fmean(accuracies))
    return np.array(values)


@pytest.mark.parametrize("betters", [(0.05,), (0.0, 0.1, 0.3)])
def test_the_interval_is_that_of_the_naive_bootstrap(betters: tuple[float, ...]) -> None:
    pairs = simulated(np.random.default_rng(1), (40, 25), betters)
    found = paired_bootstrap(pairs, resamples=20_000, level=0.9)
    naive = naive_bootstrap(pairs, 4000, np.random.default_rng(2))
    assert (found.low, found.high) == pytest.approx(np.quantile(naive, (0.05, 0.95)), abs=0.08 * np.ptp(naive) / 2)
    by_hand = [100 * (method.mean() - reference.mean()) for tasks in pairs for method, reference in tasks]
    assert found.difference == pytest.approx(statistics.fmean(by_hand))
    assert (found.level, found.seeds) == (0.9, len(betters))


def test_identical_answers_have_no_difference() -> None:
    reference = answers(np.random.default_rng(0), 50)[1]
    found = paired_bootstrap([[(reference, reference)] * 3] * 2)
    assert (found.difference, found.low, found.high) == (0, 0, 0)


def test_a_clear_difference_excludes_zero_in_both_directions() -> None:
    pairs = simulated(np.random.default_rng(0), (200, 200), (0.2, 0.2))
    assert paired_bootstrap(pairs).low > 5
    assert paired_bootstrap([[(reference, method) for method, reference in tasks] for tasks in pairs]).high < -5


def coverage(betters: Callable[[np.random.Generator], Sequence[float]], repetitions: int, truth: float) -> float:
    rng = np.random.default_rng(3)
    intervals = [paired_bootstrap(simulated(rng, (150, 150), betters(rng)), 600, seed=k) for k in range(repetitions)]
    return statistics.fmean(i.low <= truth <= i.high for i in intervals)


def test_coverage_over_images_is_nominal() -> None:
    assert coverage(lambda rng: [0.05], 500, truth=5) == pytest.approx(0.95, abs=0.03)


def test_seeds_are_resampled_too() -> None:
    """Use ten seeds whose true lead varies far more than images do; resampling images alone would fail."""
    assert 0.85 < coverage(lambda rng: list(rng.normal(0.05, 0.1, 10)), 300, truth=5) < 0.98


def test_pairing_narrows_the_interval_of_correlated_answers() -> None:
    rng = np.random.default_rng(0)
    pairs = simulated(rng, (500, 500))
    apart = [[(method, rng.permutation(reference)) for method, reference in tasks] for tasks in pairs]
    paired, unpaired = paired_bootstrap(pairs), paired_bootstrap(apart)
    assert paired.difference == pytest.approx(unpaired.difference)
    assert paired.high - paired.low < 0.7 * (unpaired.high - unpaired.low)


def test_tasks_have_equal_weight_for_any_number_of_images() -> None:
    right, wrong = np.ones(10, bool), np.zeros(10, bool)
    many = np.ones(1000, bool)
    assert paired_bootstrap([[(right, wrong), (many, many)]]).difference == pytest.approx(50)


def test_the_interval_depends_on_the_seed_only() -> None:
    pairs = simulated(np.random.default_rng(0), (101, 97), (0.1, 0.0))
    assert paired_bootstrap(pairs, seed=1) == paired_bootstrap(pairs, seed=1) != paired_bootstrap(pairs, seed=2)


YES = np.ones(4, bool)


@pytest.mark.parametrize(
    ("pairs", "line"),
    [
        ([], "expected one number of tasks in all seeds, at least 1, got []"),
        ([[]], "got [0]"),
        ([[(YES, YES)], [(YES, YES)] * 2], "got [1, 2]"),
        ([[(YES, YES), (YES, YES[:3])]], "seed 0, task 1: expected two boolean arrays (N,) over the same images"),
        ([[(YES.astype(int), YES)]], "got int64 (4,) and bool (4,)"),
        ([[(YES[None], YES[None])]], "got bool (1, 4) and bool (1, 4)"),
        ([[(YES[:0], YES[:0])]], "got bool (0,) and bool (0,)"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(pairs: Seeds, line: str) -> None:
    with pytest.raises(InputError) as caught:
        paired_bootstrap(pairs)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("options", [{"resamples": 0}, {"level": 1.0}, {"level": 0.0}])
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        paired_bootstrap([[(YES, YES)]], **options)


def a_run(method: str, seed: int, accuracy: float, **changes: Any) -> dict[str, Any]:
    """Return the part of metrics.json that a comparison reads."""
    return {
        "benchmark": "split-digits",
        "method": method,
        "seed": seed,
        "evaluated_on": "test",
        "accuracy_matrix": [[100.0], [accuracy, accuracy]],
        "average_accuracy": accuracy,
        "forgetting": 100 - accuracy,
        "backward_transfer": accuracy - 100,
        "learning_accuracy": 99.125,
        "class_incremental_accuracy": accuracy / 2,
        "parameters": {"backbone": 129_888, "hypernetwork": 0, "per_task": [258, 516], "total": 130_662},
        "stored_samples": 0,
        "seconds": 10.0,
        **changes,
    }


def some_runs() -> list[dict[str, Any]]:
    grown = {"backbone": 0, "hypernetwork": 0, "per_task": [1_500_000, 1_500_000], "total": 3_000_000}
    return [
        a_run("joint", 0, 99.5, seconds=40.0),
        a_run("pah", 1, 92.0, seconds=16.0),
        a_run("pah", 0, 95.0, seconds=12.0),
        a_run("finetune", 0, 60.5),
        a_run("finetune", 1, 70.25, seconds=8.0),
        a_run("er", 0, 97.0, stored_samples=200),
        a_run("er", 1, 96.0, stored_samples=200),
        a_run("columns", 2, 90.123, parameters=grown),
    ]


FAMILIES = ["bound", "without stored samples", "bound", "with stored samples", "grows its network"]  # of these runs
INTERVALS = {"finetune": Interval(-28.125, -33.0, -21.5, seeds=2), "er": Interval(3.0, -0.001, 6.0, seeds=2)}
MISSING = [{"method": "columns", "seed": 0, "reason": "loss term L_hm\nbecame nan"}]


def some_summary() -> dict[str, Any]:
    return summarise(some_runs(), INTERVALS, MISSING)


def row(markdown: str, method: str) -> dict[str, str]:
    """Return a method's cells by column."""
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in markdown.splitlines() if line[:1] == "|"]
    return next(dict(zip(lines[0], line, strict=True)) for line in lines if line[0] == method)


def test_a_summary_by_hand() -> None:
    summary = some_summary()
    assert list(summary["methods"]) == ["joint", "pah", "finetune", "er", "columns"]  # as asked, not by result
    assert (summary["benchmark"], summary["tasks"], summary["reference"]) == ("split-digits", 2, "pah")
    pah = summary["methods"]["pah"]
    assert (pah["n"], pah["seeds"]) == (2, [1, 0])
    assert pah["average_accuracy"] == {
        "mean": 93.5,
        "std": pytest.approx(3 / 2**0.5),
        "by_seed": {"1": 92.0, "0": 95.0},
    }
    assert (pah["parameters"], pah["parameters_per_new_task"], pah["seconds"]) == (130_662, 387, 14)
    assert pah["relative_seconds"] == pytest.approx((12 / 10 + 16 / 8) / 2)  # seed by seed
    assert pah["minus_reference"] is None
    assert summary["methods"]["er"]["minus_reference"]["high"] == 6.0
    assert summary["methods"]["er"]["stored_samples"] == 200


def test_unknown_values_are_none() -> None:
    columns = some_summary()["methods"]["columns"]
    assert columns["forgetting"]["std"] is None  # of one seed
    assert columns["relative_seconds"] is None  # finetune lacks its seed
    assert columns["minus_reference"] is None


def test_a_summary_is_the_same_when_read_again() -> None:
    summary = some_summary()
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_the_table_shows_every_number() -> None:
    summary = some_summary()
    markdown = as_markdown(summary)
    for method, entry in summary["methods"].items():
        cells = row(markdown, method)
        assert cells["n"] == str(entry["n"])
        for title, name in PERCENT_COLUMNS.items():
            std = entry[name]["std"]
            wanted = f"{entry[name]['mean']:.2f}" + ("" if std is None else f" ± {std:.2f}")
            assert cells[title].strip("*") == wanted
    assert row(markdown, "columns")["AA"] == "90.12"
    assert row(markdown, "er")["AA minus PAH [95 % interval]"] == "+3.00 [+0.00, +6.00]"
    assert row(markdown, "finetune")["AA minus PAH [95 % interval]"] == "-28.12 [-33.00, -21.50]"
    assert row(markdown, "pah")["AA minus PAH [95 % interval]"] == "–"
    assert row(markdown, "er")["stored samples"] == "200"
    assert (row(markdown, "columns")["parameters"], row(markdown, "pah")["per new task"]) == ("3.00 M", "387")
    assert (row(markdown, "joint")["time / finetune"], row(markdown, "columns")["time / finetune"]) == ("4.00", "–")


def test_bold_is_the_best_that_stores_no_samples_and_is_no_bound() -> None:
    markdown = as_markdown(some_summary())
    assert [line.split("|")[1].strip() for line in markdown.splitlines() if "**" in line] == ["pah"]
    assert "bounds (finetune, joint, independent) do not compete" in markdown


def test_missing_cells_are_listed_one_per_line() -> None:
    assert as_markdown(some_summary()).endswith("\n- columns, seed 0: loss term L_hm became nan\n")
    assert "missing" not in as_markdown(summarise(some_runs(), {}))


def test_the_column_title_shows_the_interval_level() -> None:
    markdown = as_markdown(summarise(some_runs(), {"er": Interval(3, 0, 6, level=0.9)}))
    assert "AA minus PAH [90 % interval]" in markdown
    assert "90 % interval from a paired bootstrap" in " ".join(markdown.split())


def test_numbers_are_formatted_in_short_form() -> None:
    assert [format_mean_std([1.0, 2.0]), format_mean_std([3.456]), format_mean_std([-1e-9])] == [
        "1.50 ± 0.71",
        "3.46",
        "0.00",
    ]
    assert [format_count(n) for n in (0, 258, 999.4, 999.6, 999_949, 999_950)] == [
        "0",
        "258",
        "999",
        "1.0 k",
        "999.9 k",
        "1.00 M",
    ]


@pytest.mark.parametrize(
    ("runs", "line"),
    [
        ([], "at least one finished run, got none"),
        ([a_run("pah", 0, 90), a_run("pah", 0, 91)], "pah, seed 0: expected one run, got 2"),
        ([a_run("pah", 0, 90), a_run("er", 0, 91, benchmark="split-cifar100")], "er, seed 0: expected a run on"),
        ([a_run("pah", 0, 90), a_run("er", 0, 91, evaluated_on="validation")], "er, seed 0: expected a run on"),
        ([{"method": "pah", "seed": 0, **dict.fromkeys(["benchmark"])}], "pah, seed 0: expected accuracy_matrix, aver"),
    ],
)
def test_runs_that_cannot_form_a_table_are_refused(runs: list[dict[str, Any]], line: str) -> None:
    with pytest.raises(InputError) as caught:
        summarise(runs, {})
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def drawn(summary: dict[str, Any]) -> Any:
    """Return the axes of the figure; skip the test without matplotlib."""
    pytest.importorskip("matplotlib")
    return figures.accuracy_against_forgetting(summary).axes[0]


def test_each_method_is_drawn_at_its_values() -> None:
    summary = json.loads(json.dumps(some_summary()))  # as comparison.json holds it
    axes = drawn(summary)
    labels = [text for text in axes.texts if text.get_text()]
    assert [text.get_text() for text in labels] == list(summary["methods"])
    for text, entry in zip(labels, summary["methods"].values(), strict=True):
        assert text.xy == (entry["forgetting"]["mean"], entry["average_accuracy"]["mean"])
    assert "%" in axes.get_xlabel()
    assert "%" in axes.get_ylabel()


def test_error_bars_are_the_sample_standard_deviation() -> None:
    summary = some_summary()
    for container, entry in zip(drawn(summary).containers, summary["methods"].values(), strict=True):
        stds = [entry[name]["std"] for name in ("forgetting", "average_accuracy")]
        lengths = [np.ptp(bar.get_segments()[0], axis=0).max() for bar in container.lines[2]]
        assert lengths == pytest.approx([2 * std for std in stds if std is not None])


def test_markers_show_the_families() -> None:
    axes = drawn(some_summary())
    markers = [container.lines[0].get_marker() for container in axes.containers]
    assert markers == [figures.FAMILIES[family][0] for family in FAMILIES]
    legend = axes.figure.legends[0]
    assert {text.get_text() for text in legend.get_texts()} == set(FAMILIES)


def test_names_overlap_neither_each_other_nor_markers() -> None:
    near = [a_run(f"method-{k}", s, 75 + k % 4 + s, forgetting=2 + k / 3 + s) for k in range(12) for s in (0, 1)]
    axes = drawn(summarise([*near, a_run("finetune", 0, 30)], {}))
    names = [text.get_window_extent() for text in axes.texts if text.get_text()]
    frame = axes.get_window_extent()
    markers = axes.transData.transform([text.xy for text in axes.texts if text.get_text()])
    for k, name in enumerate(names):
        assert name.count_overlaps(names) == 1  # itself
        assert not any(name.contains(*marker) for marker in markers), k
        assert frame.contains(*name.min)
        assert frame.contains(*name.max)


def test_a_figure_is_saved_with_the_same_bytes(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for name in ("one.v1", "two.v1"):
        figures.save(figures.accuracy_against_forgetting(some_summary()), tmp_path / name)
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{n}.v1.{kind}" for n in ("one", "two") for kind in ("svg", "png")
    }
    for kind in ("svg", "png"):
        assert (tmp_path / f"one.v1.{kind}").read_bytes() == (tmp_path / f"two.v1.{kind}").read_bytes()
    assert b"<dc:date>" not in (tmp_path / "one.v1.svg").read_bytes()


def test_without_matplotlib_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    figure: Any = None
    for draw in (
        lambda: figures.accuracy_against_forgetting(some_summary()),
        lambda: figures.save(figure, tmp_path / "figure"),
    ):
        with pytest.raises(InputError) as caught:
            draw()
        assert str(caught.value) == "figures need the extra: in a clone of pah, run pip install -e '.[report]'"
