"""Measure times and sizes after 20 to 1,000 tasks: a step, the start of a task, predictions, saving and loading.

    python benchmarks/many_tasks.py --json results/many-tasks.json --figure docs/many-tasks.svg

A row "after t tasks" times task t + 1 with t old tasks of 10 classes. Steps of PAH and of finetuning get the same
batch and take turns, so that their ratio is valid on a busy machine. The targets are a ratio of at most 1.2 times the
ratio at 20 tasks, and constant or linear growth of the other times.
"""

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from step_cost import CHANNELS, SEED, Setting, ascending, build, first_batch, median_ms, positive, synthetic_task

from pah.data.task import Normalization
from pah.learner import store
from pah.learner.predictor import Predictor
from pah.learner.restore import restore_predictor
from pah.learner.store import LEARNER_FILE, WEIGHTS_FILE, Lesson, Record, TaughtTask
from pah.learner.task_inference import AMONG_ALL, QUANTILE_SHARES, SCORES
from pah.methods.base import Method
from pah.methods.pah_options import PAHOptions
from pah.models.backbones import BACKBONES
from pah.training.config import RunConfig
from pah.training.loop import begin

PREDICTED = 100  # images per prediction call
FORMS = ("finetune_ms", "pah_ms")
CURVES = (  # quantity, label, colour (Okabe and Ito: distinct for all kinds of colour vision)
    ("pah_ms", "step", "#0072B2"),
    ("begin_ms", "start of a task", "#D55E00"),
    ("predict_ms", f"{PREDICTED} predictions", "#009E73"),
    ("save_ms", "saving", "#CC79A7"),
    ("load_ms", "loading", "#E69F00"),
)


@dataclass(frozen=True)
class Row:
    """Measurements after `tasks` tasks.

    Milliseconds are medians for steps, one measurement for the start of a task, and the best of three otherwise. Bytes
    are those of the saved weights (including prototypes), of the record without its history, and of the history.
    """

    tasks: int
    finetune_ms: float
    pah_ms: float
    begin_ms: float
    predict_ms: float
    save_ms: float
    load_ms: float
    weights_bytes: int
    record_bytes: int
    history_bytes: int


def measure(setting: Setting, tasks: int) -> Row:
    """Return the measurements after this many tasks."""
    methods = {form: build(form, setting) for form in FORMS}
    begin_ms = {form: _begin(method, tasks, setting) for form, method in methods.items()}["pah_ms"]
    steps = median_ms(methods, first_batch(synthetic_task(tasks, setting), setting), setting)
    pah = methods["pah_ms"]
    pah.release()
    record = _record(setting, tasks + 1)
    predictor = Predictor(record, pah)
    images = torch.zeros(PREDICTED, CHANNELS, setting.image, setting.image, dtype=torch.uint8)
    with tempfile.TemporaryDirectory() as folder:
        save_ms = _best(lambda: store.save(Path(folder), predictor.record, pah.network))
        load_ms = _best(lambda: restore_predictor(*store.load(Path(folder))))
        weights, whole = ((Path(folder) / name).stat().st_size for name in (WEIGHTS_FILE, LEARNER_FILE))
        store.save(Path(folder), replace(record, history=()), pah.network)
        short = (Path(folder) / LEARNER_FILE).stat().st_size
    predict_ms = _best(lambda: list(predictor.predict_batches(images, [0], "contrast")))
    sizes = weights, short, whole - short
    return Row(tasks, steps["finetune_ms"], steps["pah_ms"], begin_ms, predict_ms, save_ms, load_ms, *sizes)


def _begin(method: Method, tasks: int, setting: Setting) -> float:
    """Start the task that follows `tasks` others; return the milliseconds of this start alone."""
    for _ in range(tasks):
        method.network.grow(setting.classes)
    method.task = tasks - 1
    before = time.perf_counter()
    begin(method, synthetic_task(tasks, setting), SEED)
    milliseconds = 1000 * (time.perf_counter() - before)
    method.train()
    return milliseconds


def _best(action: Callable[[], object], repeats: int = 3) -> float:
    """Return the milliseconds of the fastest of several calls."""
    taken = []
    for _ in range(repeats):
        started = time.perf_counter()
        action()
        taken.append(1000 * (time.perf_counter() - started))
    return min(taken)


def _record(setting: Setting, tasks: int) -> Record:
    """Return a learner's record of calibrated tasks, each with a measured accuracy after every later lesson."""
    config = RunConfig(
        benchmark="split",
        image_size=setting.image,
        method_options=PAHOptions(),
        backbone=setting.backbone,
        backbone_options=BACKBONES[setting.backbone](),
    )
    draw = random.Random(SEED)
    classes = tuple(f"class {label}" for label in range(setting.classes))
    labels, names = tuple(range(setting.classes)), [f"task {k}" for k in range(tasks)]
    today = "2026-01-01T00:00:00+00:00"
    quantiles = {kind: tuple(round(draw.random(), 4) for _ in QUANTILE_SHARES) for kind in (*SCORES, AMONG_ALL)}
    known = [TaughtTask(name, classes, labels, today, "photos", 500, draw.random(), quantiles) for name in names]
    history = [
        Lesson(
            name,
            today,
            accuracies={measured: round(100 * draw.random(), 2) for measured in names[: k + 1]},
            drift={old: draw.random() for old in names[:k]},
            seconds=60.0,
        )
        for k, name in enumerate(names)
    ]
    statistics = Normalization((0.5,) * CHANNELS, (0.25,) * CHANNELS)
    return Record(config, (CHANNELS, setting.image, setting.image), statistics, tuple(known), tuple(history))


def as_table(rows: Sequence[Row]) -> Table:
    """Return the rows as a table, with the ratio of PAH to finetuning and the bytes of a further task."""
    table = Table(caption=f"milliseconds; predict: {PREDICTED} images, task given")
    titles = (
        "after tasks",
        "finetune",
        "PAH",
        "PAH / finetune",
        "begin",
        "predict",
        "save",
        "load",
        "bytes a task",
        "history",
    )
    for column in titles:
        table.add_column(column, justify="right")
    for before, row in zip([None, *rows[:-1]], rows, strict=True):
        sizes_so_far = [part.weights_bytes + part.record_bytes for part in (before, row) if part]
        added = (sizes_so_far[1] - sizes_so_far[0]) / (row.tasks - before.tasks) if before else None
        milliseconds = (f"{ms:.0f}" for ms in (row.begin_ms, row.predict_ms, row.save_ms, row.load_ms))
        steps = (f"{row.finetune_ms:.0f}", f"{row.pah_ms:.0f}", f"{row.pah_ms / row.finetune_ms:.2f}")
        sizes = "" if added is None else f"{added:,.0f}", f"{row.history_bytes / 1e6:.2f}"
        table.add_row(str(row.tasks), *steps, *milliseconds, *sizes)
    return table


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw times over the number of tasks, both on logarithmic axes."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    from pah.report.figures import STYLE

    with rc_context(STYLE):
        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        axes = figure.subplots()
        for (key, name, colour), marker in zip(CURVES, "osD^v", strict=True):
            costs = [getattr(row, key) for row in rows]
            axes.loglog([row.tasks for row in rows], costs, marker=marker, color=colour, label=name)
        axes.set_xticks([row.tasks for row in rows], [str(row.tasks) for row in rows])
        axes.minorticks_off()
        axes.set(xlabel="tasks of 10 classes learned", ylabel="milliseconds")
        axes.grid(color="#EEEEEE")
        axes.legend(frameon=False, ncols=2)
        figure.savefig(path, metadata={"Date": None})


def main(words: Sequence[str] | None = None) -> int:
    """Measure, print and write; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--backbone", choices=list(BACKBONES), default="resnet18-slim", help="with its default options")
    parser.add_argument("--batch", type=positive, default=64, help="images in a step")
    parser.add_argument("--image", type=positive, default=32, help="side of an image in pixels")
    parser.add_argument("--tasks", type=ascending, default=[20, 100, 300, 1000], help="numbers of learned tasks")
    parser.add_argument("--repeats", type=positive, default=10, help="timed steps")
    parser.add_argument("--json", type=Path, help="write the rows to this file as well")
    parser.add_argument("--figure", type=Path, help="draw them into this file")
    options = parser.parse_args(words)
    setting = Setting(options.backbone, options.batch, options.image, 10, options.repeats)
    console = Console()
    with console.status("timing"):
        rows = [measure(setting, tasks) for tasks in options.tasks]
    console.print(as_table(rows))
    if options.figure:
        draw(rows, options.figure)
    if options.json:
        results = {"rows": [asdict(row) for row in rows], **asdict(setting), "threads": torch.get_num_threads()}
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
