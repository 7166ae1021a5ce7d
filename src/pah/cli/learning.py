"""The commands on a learner: teach it, export it, list what it knows, forget a task."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from jsonargparse import ArgumentError, ArgumentParser, Namespace
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Column, Table

from pah.cli import json_progress
from pah.cli.arguments import merge_repeated, split_arguments
from pah.cli.display import IMAGES_READ, time_left
from pah.cli.errors import readable_error
from pah.cli.parser import config_of, parse
from pah.cli.printing import json_line, say
from pah.core.config import InputError, require
from pah.core.files import locked
from pah.data.read_options import ReadOptions
from pah.learner.export import export as write_onnx
from pah.learner.held_out import DriftError, plural
from pah.learner.hub import refuse_to_replace
from pah.learner.learner import ContinualLearner
from pah.learner.measurements import Comparison, compare
from pah.learner.store import LEARNER_FILE, TaughtTask
from pah.study.ablation import flat_options
from pah.training.state import EpochDone, Event, ImagesRead, StepDone


def learn(console: Console, arguments: list[str]) -> int:
    """Run `pah learn`: teach a learner a task; its folder changes only at the end of the lesson."""
    positional, named = split_arguments(arguments)
    if {"-h", "--help", "--print_config"} & {option.partition("=")[0] for option in named}:
        parse(named, "learn")
    folder = _learner_folder("learn", positional)
    refuse_to_replace(folder)
    with locked(folder):  # no other process may teach it meanwhile
        existing = ContinualLearner.load(folder) if (folder / LEARNER_FILE).is_file() else None
        merged = merge_repeated(merge_repeated(named, "--held_out"), "--only")
        options = parse(merged, "learn", _own_options(existing, named) if existing else None)
        config = dataclasses.replace(config_of(options), benchmark="split")
        learner = (existing or ContinualLearner(config=config)).to(options.device)
        learner.config = config
        json_progress.require_progress(options.progress)
        for name in ("name", "data"):
            if not options[name]:
                raise InputError(f"{name}: expected --{name} with a value, got none")
        display: LessonDisplay | json_progress.LessonEvents = LessonDisplay(console, options.name, learner)
        if options.progress == "json":
            display = json_progress.LessonEvents(folder, options.name, display.epochs)
        with display:
            try:
                learner.learn(options.name, options.data, watch=display, **_lesson_keywords(options, learner))
            except DriftError as error:
                display.rolled_back(error)
                return 1
        learner.write(folder)
    display.done(learner, folder)
    return 0


def _lesson_keywords(options: Namespace, learner: ContinualLearner) -> dict[str, Any]:
    """Return the options of a lesson as arguments of `ContinualLearner.learn`."""
    for limit in ("max_drift", "max_loss"):
        if options[limit] is not None and not learner.tasks:
            say(f"{limit}: without effect in the first lesson, as there are no old tasks")
    reading = {field.name: options[field.name] for field in dataclasses.fields(ReadOptions)}
    return reading | {
        "classes": ([options.only] if isinstance(options.only, str) else options.only) or None,
        "held_out": _held_out(options.held_out, [task.name for task in learner.tasks]),
        "max_drift": options.max_drift,
        "max_loss": options.max_loss,
    }


def export(console: Console, arguments: list[str]) -> int:
    """Run `pah export`: write the backbone with one head, or with all heads, as an ONNX file."""
    positional, named = split_arguments(arguments)
    parser = ArgumentParser(
        prog="pah export", exit_on_error=False, usage="pah export LEARNER (--task NAME | --all) [--out FILE]"
    )
    parser.add_argument("--task", type=str | None, default=None, help="export the head of this task")
    parser.add_argument("--all", action="store_true", help="export all heads in one file")
    parser.add_argument("--out", type=str | None, default=None, help="the file (default: LEARNER-TASK.onnx)")
    options = _parse(parser, named)
    folder = _learner_folder("export", positional)
    if (options.task is None) != options.all:
        raise InputError("export: expected either --task NAME or --all, got " + ("both" if options.all else "neither"))
    out = Path(options.out or f"{folder.name}-{options.task or 'all'}.onnx")
    write_onnx(ContinualLearner.load(folder), out, options.task)
    console.print(f"{out}: {out.stat().st_size / 2**20:.1f} MB", highlight=False, soft_wrap=True, markup=False)
    return 0


def forget(console: Console, arguments: list[str]) -> int:
    """Run `pah forget`: remove a task from a learner."""
    positional, named = split_arguments(arguments)
    parser = ArgumentParser(prog="pah forget", exit_on_error=False, usage="pah forget LEARNER --task NAME")
    parser.add_argument(
        "--task", type=str, required=True, help="task to remove; the other tasks' answers do not change"
    )
    options = _parse(parser, named)
    folder = _learner_folder("forget", positional)
    with locked(folder):
        learner = ContinualLearner.load(folder)
        learner.forget(options.task)
        learner.write(folder)
    console.print(f"{options.task}: forgotten; left: {', '.join(task.name for task in learner.tasks)}", markup=False)
    return 0


def show_learner(console: Console, folder: Path) -> None:
    """Print what a learner knows: tasks, classes, accuracies, sizes and dates."""
    learner = ContinualLearner.load(folder)
    config = learner.config
    console.print(
        f"{folder}: {config.method} on {config.backbone}, images of {config.image_size}x{config.image_size}, "
        f"{(folder / 'model.safetensors').stat().st_size / 2**20:.1f} MB",
        highlight=False,
        soft_wrap=True,
        markup=False,
    )
    table = Table()
    for title in ("task", "classes", "images", "taught", "then, %", "last, %", "n", "from"):
        table.add_column(title, justify="left" if title in ("task", "classes", "taught", "from") else "right")
    for task in learner.tasks:
        table.add_row(*_task_row(task, learner))
    console.print(table)
    legend = "then and last: the first and the last accuracy measured on the same images; n: their number"
    console.print(legend, highlight=False, soft_wrap=True)


def print_learner(folder: Path) -> None:
    """Print what `show_learner` shows as a line of JSON."""
    learner = ContinualLearner.load(folder)
    channels, height, width = learner.predictor.record.image_shape
    tasks = [
        {
            "name": task.name,
            "classes": list(task.classes),
            "images": task.images,
            "taught": task.taught,
            "data": task.data,
            "accuracies": [
                {
                    "lesson": lesson.name,
                    "before": lesson.before.get(task.name),
                    "after": lesson.accuracies[task.name],
                    "images": lesson.images.get(task.name),
                    "fingerprint": lesson.fingerprints.get(task.name),
                }
                for lesson in learner.history
                if task.name in lesson.accuracies
            ],
        }
        for task in learner.tasks
    ]
    learner_fields = {
        "learner": str(folder),
        "method": learner.config.method,
        "backbone": learner.config.backbone,
        "image_shape": [channels, height, width],
        "bytes": (folder / "model.safetensors").stat().st_size,
        "tasks": tasks,
    }
    print(json_line(learner_fields))


def _task_row(task: TaughtTask, learner: ContinualLearner) -> list[str]:
    """Return a task's row in the list of what a learner knows."""
    accuracy = compare(learner.history, task.name) or Comparison(None, None, None)
    shown = ["-" if value is None else f"{value:.1f}" for value in (accuracy.then, accuracy.last)]
    counts = ["-" if count is None else str(count) for count in (task.images, accuracy.images)]
    taught = (task.taught or "-")[:10]
    return [task.name, ", ".join(task.classes), counts[0], taught, *shown, counts[1], task.data or "-"]


class LessonDisplay:
    """Shows the progress of a lesson: a bar on a terminal, a line for each epoch elsewhere."""

    def __init__(self, console: Console, name: str, learner: ContinualLearner) -> None:
        self.console = console
        self.name = name
        self.epochs = learner.config.training.epochs_of(len(learner.tasks))
        self.live = console.is_terminal
        self.seconds = 0.0  # of all steps so far
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
        elif isinstance(event, ImagesRead):
            self.bar.update(self.row, total=event.total, completed=event.done, detail=IMAGES_READ)
        elif isinstance(event, EpochDone) and not self.live:
            terms = "  ".join(f"{name} {value:.4f}" for name, value in event.terms.items())
            self._print(f"{self.name}  epoch {event.epoch + 1}/{self.epochs}  {terms}  {self.left} left")

    def rolled_back(self, error: DriftError) -> None:
        """Print why the learner stays as it was."""
        self._print(str(error))

    def done(self, learner: ContinualLearner, folder: Path) -> None:
        """Print the notes and the accuracies of the finished lesson, and the learner's folder."""
        for note in learner.history[-1].notes:
            self._print(note)
        self.console.print(_lesson_table(learner))
        self._print(f"learner in {folder}")

    def _print(self, line: str) -> None:
        self.console.print(line, highlight=False, soft_wrap=True, markup=False)


def _lesson_table(learner: ContinualLearner) -> Table:
    """Return the accuracies before and after the last lesson, and the estimated losses of old tasks."""
    lesson = learner.history[-1]
    titles = ("accuracy before, %", "after, %", "measured on", "lost, % (estimate)")
    table = Table("task", *(Column(title, justify="right") for title in titles))
    for task in learner.tasks:
        accuracies = (lesson.before.get(task.name), lesson.accuracies.get(task.name))
        before, after = ("-" if accuracy is None else f"{accuracy:.1f}" for accuracy in accuracies)
        images, drift = lesson.images.get(task.name), lesson.drift.get(task.name)
        measured_on = "-" if images is None else plural(images, "image")
        table.add_row(task.name, before, after, measured_on, "-" if drift is None else f"{100 * drift:.1f}")
    return table


def _parse(parser: ArgumentParser, named: Sequence[str]) -> Namespace:
    try:
        return parser.parse_args(list(named))
    except ArgumentError as error:
        raise readable_error(str(error), parser) from None


def _learner_folder(command: str, positional: Sequence[str]) -> Path:
    """Return the learner's folder, which must be the only positional argument."""
    if len(positional) != 1 or not positional[0].strip():
        raise InputError(f"{command}: expected one learner folder, got {' '.join(positional) or 'none'}")
    return Path(positional[0])


def _held_out(texts: Sequence[str], tasks: Collection[str]) -> dict[str, str]:
    """Return texts such as "birds=photos" as data by task.

    Names and paths may contain "=". So a text is divided where the name of a task stands before it, and, if that is
    possible at several places, where a folder stands after it.
    """
    pairs: dict[str, str] = {}
    for text in texts:
        parts = text.split("=")
        divisions = [("=".join(parts[:n]), "=".join(parts[n:])) for n in range(1, len(parts))]
        known = [pair for pair in divisions if pair[0] in tasks]
        task, data = next((pair for pair in known if Path(pair[1]).exists()), (known or divisions or [("", "")])[0])
        if not (task and data):
            raise InputError(f"held_out: expected TASK=DATA, got {text!r}")
        require(task not in pairs, "held_out", f"the task {task!r} once", text)
        pairs[task] = data
    return pairs


def _own_options(learner: ContinualLearner, named: Sequence[str]) -> Mapping[str, Any]:
    """Return the options of a learner by full name; InputError if the arguments name another method or backbone."""
    values = dict(option.removeprefix("--").partition("=")[::2] for option in named)
    for group, name in (("method", learner.config.method), ("backbone", learner.config.backbone)):
        requested = values.get(f"{group}.name", name)
        require(requested == name, group, f"that of the first lesson, {name}", requested)
    one_lesson = ("test_split", "skip_unreadable", "follow_links", "max_megapixels")  # not those of the lesson before
    return {name: value for name, value in flat_options(learner.config).items() if name not in one_lesson}
