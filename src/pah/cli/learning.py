"""The commands on a learner: teach it, ask it, list what it knows, forget."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from jsonargparse import ArgumentError, ArgumentParser, Namespace
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Column, Table

from pah.cli import json_progress
from pah.cli.arguments import bare_and_named, joined
from pah.cli.display import time_left
from pah.cli.parser import add_device, config_of, parse, readable
from pah.core.config import InputError, require
from pah.core.files import locked
from pah.learner.export import export as write_onnx
from pah.learner.hub import refuse_to_replace
from pah.learner.learner import ContinualLearner, DriftError
from pah.learner.predictor import Prediction
from pah.learner.store import LEARNER, TaughtTask
from pah.learner.task_inference import RULE, Rule
from pah.study.ablation import flat
from pah.training.state import EpochDone, Event, StepDone


def learn(console: Console, words: list[str]) -> int:
    """`pah learn`: teach a task; the learner on disk is the old one until the lesson is over."""
    bare, named = bare_and_named(words)
    if {"-h", "--help", "--print_config"} & {word.partition("=")[0] for word in named}:
        parse(named, "learn")
    folder = _one("learn", bare)
    refuse_to_replace(folder)
    with locked(folder):  # nobody else teaches it meanwhile
        known = ContinualLearner.load(folder) if (folder / LEARNER).is_file() else None
        options = parse(joined(named, "--held_out"), "learn", _usual_of(known, named) if known else None)
        config = dataclasses.replace(config_of(options), benchmark="split")
        learner = (known or ContinualLearner(config=config)).to(options.device)
        learner.config = config
        json_progress.require_progress(options.progress)
        for name in ("name", "data"):
            if not options[name]:
                raise InputError(f"{name}: expected --{name} with a value, got none")
        view = LessonView(console, options.name, learner)
        shown = json_progress.LessonLines(folder, options.name, view.epochs) if options.progress == "json" else view
        with shown:
            try:
                learner.learn(
                    options.name,
                    options.data,
                    classes=[name.strip() for name in options.only.split(",")] if options.only else None,
                    label_column=options.label_column,
                    skip_unreadable=options.skip_unreadable,
                    held_out=dict(_pair(text) for text in options.held_out),
                    max_drift=options.max_drift,
                    watch=shown,
                )
            except DriftError as error:
                shown.rolled_back(error)
                return 1
        learner.write(folder)
    shown.done(learner, folder)
    return 0


def predict(console: Console, words: list[str]) -> int:
    """`pah predict`: what is on images."""
    bare, named = bare_and_named(words)
    options = _predict_options(named)
    if len(bare) < 2:
        raise InputError(f"predict: expected a learner and images, got {' '.join(bare) or 'none'}")
    learner = ContinualLearner.load(bare[0]).to(options.device)
    asked: dict[str, Any] = {"task": options.task, "rule": options.rule}
    if options.unknown is not None:
        asked["unknown"] = options.unknown
    answers = learner.predict(bare[1:], **asked)
    if options.json:
        for file, answer in zip(bare[1:], answers, strict=True):
            print(json.dumps({"file": file, **answer._asdict()}, ensure_ascii=False))
        return 0
    console.print(_answers_table(bare[1:], answers, given=options.task is not None))
    return 0


def export(console: Console, words: list[str]) -> int:
    """`pah export`: a task's head, or all heads, with the backbone, as an ONNX file."""
    bare, named = bare_and_named(words)
    parser = ArgumentParser(
        prog="pah export", exit_on_error=False, usage="pah export LEARNER (--task NAME | --all) [--out FILE]"
    )
    parser.add_argument("--task", type=str | None, default=None, help="whose head the graph holds")
    parser.add_argument("--all", action="store_true", help="one graph with every head")
    parser.add_argument("--out", type=str | None, default=None, help="the file (default: LEARNER-TASK.onnx)")
    options = _parsed(parser, named)
    folder = _one("export", bare)
    if (options.task is None) != options.all:
        raise InputError("export: expected either --task NAME or --all, got " + ("both" if options.all else "neither"))
    out = Path(options.out or f"{folder.name}-{options.task or 'all'}.onnx")
    write_onnx(ContinualLearner.load(folder), out, options.task)
    console.print(f"{out}: {out.stat().st_size / 2**20:.1f} MB", highlight=False, soft_wrap=True, markup=False)
    return 0


def forget(console: Console, words: list[str]) -> int:
    """`pah forget`: remove a task from a learner."""
    bare, named = bare_and_named(words)
    parser = ArgumentParser(prog="pah forget", exit_on_error=False, usage="pah forget LEARNER --task NAME")
    parser.add_argument("--task", type=str, required=True, help="which task; what remains answers as before")
    options = _parsed(parser, named)
    folder = _one("forget", bare)
    with locked(folder):
        learner = ContinualLearner.load(folder)
        learner.forget(options.task)
        learner.write(folder)
    console.print(f"{options.task}: forgotten; left: {', '.join(task.name for task in learner.tasks)}", markup=False)
    return 0


def show(console: Console, folder: Path) -> None:
    """What a learner knows: tasks, classes, accuracies, sizes, dates."""
    learner = ContinualLearner.load(folder)
    record = learner.config
    console.print(
        f"{folder}: {record.method} on {record.backbone}, images of {record.image_size}x{record.image_size}, "
        f"{(folder / 'model.safetensors').stat().st_size / 2**20:.1f} MB",
        highlight=False,
        soft_wrap=True,
        markup=False,
    )
    table = Table()
    for title in ("task", "classes", "images", "taught", "then, %", "last, %", "from"):
        table.add_column(title, justify="right" if title.endswith("%") or title == "images" else "left")
    for task in learner.tasks:
        table.add_row(*_described(task, learner))
    console.print(table)
    console.print("then: accuracy right after the lesson; last: when it was last measured", highlight=False)


def _described(task: TaughtTask, learner: ContinualLearner) -> list[str]:
    """A task in the list of what a learner knows."""
    measured = [lesson.accuracies[task.name] for lesson in learner.history if task.name in lesson.accuracies]
    shown = [f"{accuracy:.1f}" for accuracy in (measured[:1] + measured[-1:] if measured else ())] or ["-", "-"]
    images = "-" if task.images is None else str(task.images)
    return [task.name, ", ".join(task.classes), images, (task.taught or "-")[:10], *shown, task.data or "-"]


class LessonView:
    """Shows a lesson as it goes: a bar on a terminal, a line an epoch elsewhere."""

    def __init__(self, console: Console, name: str, learner: ContinualLearner) -> None:
        self.console = console
        self.name = name
        self.epochs = learner.config.training.epochs_of(len(learner.tasks))
        self.live = console.is_terminal
        self.seconds = 0.0
        self.left = ""
        self.bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[detail]}"),
            console=console,
            disable=not self.live,
        )
        self.row = self.bar.add_task(escape(name), total=None, detail="")

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        if isinstance(event, StepDone):
            self.seconds += event.seconds
            self.left = time_left(self.seconds / event.steps_done * event.steps_left)
            total = event.steps_done + event.steps_left
            self.bar.update(self.row, total=total, completed=event.steps_done, detail=f"{self.left} left")
        elif isinstance(event, EpochDone) and not self.live:
            terms = "  ".join(f"{name} {value:.4f}" for name, value in event.terms.items())
            self.console.print(
                f"{self.name}  epoch {event.epoch + 1}/{self.epochs}  {terms}  {self.left} left",
                highlight=False,
                soft_wrap=True,
                markup=False,
            )

    def rolled_back(self, error: DriftError) -> None:
        """The learner stays as it was."""
        self.console.print(str(error), highlight=False, soft_wrap=True, markup=False)

    def done(self, learner: ContinualLearner, folder: Path) -> None:
        """The learner in the folder has taken the lesson."""
        for note in learner.history[-1].notes:
            self.console.print(note, highlight=False, soft_wrap=True, markup=False)
        self.console.print(_lesson_table(learner))
        self.console.print(f"learner in {folder}", highlight=False, soft_wrap=True, markup=False)


def _lesson_table(learner: ContinualLearner) -> Table:
    """The last lesson: accuracies measured after it, and what old tasks are estimated to have lost."""
    lesson = learner.history[-1]
    table = Table("task", Column("accuracy, %", justify="right"), Column("lost, % (estimate)", justify="right"))
    for task in learner.tasks:
        accuracy, drift = lesson.accuracies.get(task.name), lesson.drift.get(task.name)
        table.add_row(
            task.name, "-" if accuracy is None else f"{accuracy:.1f}", "-" if drift is None else f"{100 * drift:.1f}"
        )
    return table


def _answers_table(files: Sequence[str], answers: Sequence[Prediction], given: bool) -> Table:
    """A line an image."""
    table = Table("file", "task", "class", Column("probability", justify="right"))
    for file, answer in zip(files, answers, strict=True):
        task = answer.task if given else f"{answer.task} ({answer.task_probability:.2f})"
        label = answer.label if answer.label is not None else "none of these"
        table.add_row(file, task, label, f"{answer.probability:.3f}")
    return table


def _predict_options(named: Sequence[str]) -> Namespace:
    parser = ArgumentParser(
        prog="pah predict", exit_on_error=False, usage="pah predict LEARNER IMAGE... [--task NAME] [--json]"
    )
    add = parser.add_argument
    add("--task", type=str | None, default=None, help="whose classes are asked; inferred unless given")
    add("--rule", type=Rule, default=RULE, help="how the task is inferred")
    add("--unknown", type=float | None, default=None, help="answer 'none of these' too, to this share of known images")
    add("--json", action="store_true", help="a line of JSON for each image")
    add_device(parser)
    return _parsed(parser, named)


def _parsed(parser: ArgumentParser, named: Sequence[str]) -> Namespace:
    try:
        return parser.parse_args(list(named))
    except ArgumentError as error:
        raise readable(str(error), parser) from None


def _one(command: str, bare: Sequence[str]) -> Path:
    """The learner's folder, the only word that belongs to no option."""
    if len(bare) != 1 or not bare[0].strip():
        raise InputError(f"{command}: expected one learner folder, got {' '.join(bare) or 'none'}")
    return Path(bare[0])


def _pair(text: str) -> tuple[str, str]:
    """ "birds=photos" as a task and its data."""
    task, equals, data = text.partition("=")
    if not (task and equals and data):
        raise InputError(f"held_out: expected TASK=DATA, got {text!r}")
    return task, data


def _usual_of(known: ContinualLearner, named: Sequence[str]) -> dict[str, Any]:
    """The options that a learner has, by dotted name; InputError if the words name another network."""
    said = dict(word.removeprefix("--").partition("=")[::2] for word in named)
    for kind, name in (("method", known.config.method), ("backbone", known.config.backbone)):
        asked = said.get(f"{kind}.name", name)
        require(asked == name, kind, f"that of the first lesson, {name}", asked)
    return flat(known.config)
