"""Time a training step as tasks accumulate: finetuning, PAH, and PAH with a backbone pass per old head.

    python benchmarks/step_cost.py --json step_cost.json

A row "after t tasks" times steps on task t + 1, so t old heads are protected. The three variants get the same batch
and take turns step by step, so that other work of the machine slows all of them. The targets on resnet18-slim and
resnet18 with batches of 64 and 128 and 32x32 pixels are: PAH takes at most 1.5 times as long as finetuning after 10
tasks and 1.6 times after 20 (the teacher's forward pass alone makes it 1.33), and is at least 8 times faster than a
pass per head.
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from pah.core.config import derived_seed, generator
from pah.data.augment import AugmentOptions
from pah.data.task import Batch, Examples, Normalization, Step, Task
from pah.methods.base import Method, MethodOptions, OptimizerOptions, Terms
from pah.methods.bounds import Finetune
from pah.methods.losses import distillation, stack_logits
from pah.methods.pah import PAH
from pah.methods.pah_options import PAHOptions
from pah.models.backbones import BACKBONES
from pah.training.loop import begin

CHANNELS = 3
WARM_UP = 3  # untimed steps of each variant
SEED = 0


class PassPerHead(PAH):
    """PAH with its losses computed as in the published code: 2t + 1 backbone passes over a batch of images.

    The student and the teacher run again for every old head, and old prototypes pass through the network task by task.
    Otherwise this variant is faster than the published code: the teacher's heads and its answers to prototypes are
    computed once per task, and the alignment of prototypes computes no gradients of weights.
    """

    def _image_terms(self, batch: Batch, old: Sequence[int]) -> Terms:
        """Return L_hm from one pass, and L_sm from a student pass and a teacher pass for each old head."""
        terms = {"L_hm": F.cross_entropy(self.network(batch.x, [self.task]), batch.y)}
        if self.teacher is not None:
            options = self.options
            logits = torch.cat([self.network(batch.x, [k], detach=[k]) for k in old], dim=1)  # (B, ΣC_j)
            student = stack_logits(logits, self.network.sizes(old))  # (B, J, C)
            teacher = torch.cat([self.teacher(batch.x, [k]) for k in old], dim=1)  # (B, J, C)
            terms["L_sm"] = distillation(teacher, student, options.temperature, options.direction, options.over_tasks)
        return terms

    def _prototype_logits(self, tasks: Sequence[int]) -> Tensor:
        """f(p | its own task), a backbone pass for each task's prototypes: (P, C), all tasks being of one size."""
        answers = super()._prototype_logits
        return torch.cat([answers([k]) for k in tasks])


FORMS: dict[str, tuple[type[Method], MethodOptions]] = {
    "finetune_ms": (Finetune, MethodOptions()),
    "pah_ms": (PAH, PAHOptions()),
    "per_head_ms": (PassPerHead, PAHOptions()),
}


@dataclass(frozen=True)
class Row:
    """Median milliseconds of a step of each variant after `tasks` learned tasks."""

    tasks: int
    finetune_ms: float
    pah_ms: float
    per_head_ms: float | None  # None if it was not timed


@dataclass(frozen=True)
class Setting:
    """What is timed: a backbone by name, images per step, their side in pixels, classes per task, timed steps."""

    backbone: str
    batch: int
    image: int
    classes: int
    repeats: int
    forms: tuple[str, ...] = tuple(FORMS)


def measure(setting: Setting, tasks: Sequence[int]) -> Iterator[Row]:
    """Yield a row for each number of learned tasks, in ascending order: the same methods grow from row to row."""
    methods = {form: build(form, setting) for form in setting.forms}
    for learned in tasks:
        for method in methods.values():
            grow(method, learned, setting)
        medians = median_ms(methods, first_batch(synthetic_task(learned, setting), setting), setting)
        yield Row(learned, medians["finetune_ms"], medians["pah_ms"], medians.get("per_head_ms"))


def build(form: str, setting: Setting) -> Method:
    """Return a variant on a new network; all variants start from the same backbone weights."""
    method, options = FORMS[form]
    torch.manual_seed(derived_seed(SEED, "network"))
    build_backbone = partial(BACKBONES[setting.backbone]().build, CHANNELS)
    network = options.build_network(build_backbone, (CHANNELS, setting.image, setting.image))
    return method(network, OptimizerOptions(), options).to(memory_format=torch.channels_last)


def grow(method: Method, learned: int, setting: Setting) -> None:
    """Start the task that follows `learned` tasks, without training on these."""
    for index in range(method.task + 1, learned + 1):
        method.release()
        begin(method, synthetic_task(index, setting), SEED)
    method.train()


def synthetic_task(index: int, setting: Setting) -> Task:
    """Return a task of noise images, enough for one batch and for one image per class."""
    count = max(setting.batch, setting.classes)
    shape = (count, CHANNELS, setting.image, setting.image)
    pixels = torch.randint(256, shape, dtype=torch.uint8, generator=generator(SEED, index, "images"))
    labels = torch.arange(count) % setting.classes
    names = tuple(f"class {label}" for label in range(setting.classes))
    normalization = Normalization((0.5,) * CHANNELS, (0.25,) * CHANNELS)
    train = Examples(pixels, torch.arange(count), labels)
    return Task(index, names, tuple(range(setting.classes)), normalization, train)


def first_batch(task: Task, setting: Setting) -> Batch:
    """Return the task's first images as a batch in the form that a stream gives to a method."""
    pixels = task.train.pixels[task.train.rows[: setting.batch]]
    step = Step(SEED, task.index, 0, 0, AugmentOptions(), task.normalization)
    return Batch(
        step.prepare(pixels), task.train.labels[: setting.batch], torch.full((setting.batch,), task.index), pixels, step
    )


def median_ms(methods: dict[str, Method], batch: Batch, setting: Setting) -> dict[str, float]:
    """Return the median milliseconds of a step of each method; the methods take turns."""
    times: dict[str, list[float]] = {form: [] for form in methods}
    for _ in range(WARM_UP + setting.repeats):
        for form, method in methods.items():
            started = time.perf_counter()
            method.observe(batch)
            times[form].append(1000 * (time.perf_counter() - started))
    return {form: round(statistics.median(values[WARM_UP:]), 3) for form, values in times.items()}


def as_table(rows: Sequence[Row], title: str) -> Table:
    """Return the rows as a table, with the ratios of PAH to finetuning and of a pass per head to PAH."""
    table = Table(title=title, caption="milliseconds, and ratios")
    for column in ("after tasks", "finetune", "PAH", "per head", "PAH / finetune", "per head / PAH"):
        table.add_column(column, justify="right")
    for row in rows:
        milliseconds = ("-" if ms is None else f"{ms:.1f}" for ms in (row.finetune_ms, row.pah_ms, row.per_head_ms))
        speedup = "-" if row.per_head_ms is None else f"{row.per_head_ms / row.pah_ms:.2f}"
        table.add_row(str(row.tasks), *milliseconds, f"{row.pah_ms / row.finetune_ms:.2f}", speedup)
    return table


def positive(text: str) -> int:
    """Parse a whole number above 0."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, got {text}")
    return number


def ascending(text: str) -> list[int]:
    """Parse whole numbers above 0, separated by commas; return them sorted and without repetitions."""
    return sorted({positive(part) for part in text.split(",")})


def parser() -> argparse.ArgumentParser:
    """Return the parser of the options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--backbone", choices=list(BACKBONES), default="resnet18-slim", help="with its default options")
    add("--batch", type=positive, default=64, help="images in a step")
    add("--image", type=positive, default=32, help="side of an image in pixels")
    add("--classes", type=positive, default=10, help="classes of each task")
    add("--tasks", type=ascending, default=[1, 2, 5, 10, 20], help="numbers of learned tasks, e.g. 1,2,5")
    add("--repeats", type=positive, default=20, help=f"timed steps of each variant, after {WARM_UP} untimed ones")
    add("--per-head", action=argparse.BooleanOptionalAction, default=True, help="time a pass per head as well")
    add("--threads", type=positive, default=None, help="threads of torch; by default torch decides")
    add("--json", type=Path, default=None, help="write the rows to this file as well")
    return parser


def main(words: Sequence[str] | None = None) -> int:
    """Measure, print and write; return the exit status."""
    options = parser().parse_args(words)
    if options.json is not None:  # fail now, not after minutes, if it cannot be written
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.touch()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    threads = torch.get_num_threads()
    forms = tuple(form for form in FORMS if options.per_head or form != "per_head_ms")
    setting = Setting(options.backbone, options.batch, options.image, options.classes, options.repeats, forms)
    console = Console()
    rows = []
    with console.status("timing steps"):
        for row in measure(setting, options.tasks):
            rows.append(row)
    side = f"{setting.image}x{setting.image}"
    console.print(as_table(rows, f"median step: {setting.backbone}, batch {setting.batch}, {side}, {threads} threads"))
    if options.json is not None:
        results = {
            "rows": [asdict(row) for row in rows],
            "backbone": setting.backbone,
            "batch": setting.batch,
            "image": setting.image,
            "classes": setting.classes,
            "threads": threads,
            "torch": torch.__version__,
            "repeats": setting.repeats,
        }
        options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
