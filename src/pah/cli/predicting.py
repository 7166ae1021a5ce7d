"""The command `pah predict`: classify any number of images and print each answer as soon as it is known."""

import csv
import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from jsonargparse import ArgumentError, ArgumentParser, Namespace
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pah.cli.arguments import split_arguments
from pah.cli.errors import readable_error
from pah.cli.image_paths import ImagePaths
from pah.cli.parser import add_device
from pah.cli.printing import PlainConsole, json_line, one_line, say
from pah.cli.streams import reader_has_left
from pah.cli.vector_rows import read_rows, vector_suffixes
from pah.core.config import InputError, require
from pah.data.image import IMAGE_SUFFIXES, MAX_MEGAPIXELS, Pixels
from pah.data.vectors import Vectors
from pah.learner.answering import How, decode_each
from pah.learner.learner import ContinualLearner
from pah.learner.prediction import Prediction
from pah.learner.task_inference import DEFAULT_RULE, Rule

BATCHES = 10  # of the network, that are decoded, answered and printed at a time
NONE_OF_THESE = "none of these"
DESCRIPTION = (
    "Classify images. IMAGE is a file, a folder (with all folders in it), a pattern such as 'photos/*.jpg', or - for "
    "paths on stdin, one a line. Names that begin with a dash follow --. An image that cannot be read is reported on "
    "stderr, and the others are answered; the exit status is then 2, or 0 with --skip_unreadable. For a learner of "
    "vectors, IMAGE is a .npz file, or a .parquet file with --column, and each row is answered."
)


def predict(console: Console, arguments: list[str]) -> int:
    """Run `pah predict`: classify images."""
    positional, named = split_arguments(arguments)
    options = _parse_options(named)
    if len(positional) < 2:
        raise InputError(f"predict: expected a learner and images, got {' '.join(positional) or 'none'}")
    learner = ContinualLearner.load(positional[0]).to(options.device)
    _require_options(options, learner)
    numbers = learner.predictor.record.numbers
    paths = ImagePaths(positional[1:], IMAGE_SUFFIXES if numbers is None else vector_suffixes(options.column))
    files = paths.find()
    run = _Run(learner, options)
    total = len(files) if isinstance(files, list) and numbers is None else None
    with ExitStack() as stack:
        writers = _writers(stack, console, learner, options)
        progress = stack.enter_context(_progress(console, total, run.chunk))
        row = progress.add_task("", total=total)
        for count, answers in run.answers(files):
            for writer in writers:
                writer.write(answers)
            progress.advance(row, count)
            if reader_has_left() and options.csv is None:
                return 0
    _say_what_is_missing(run, paths)
    if single := [task.name for task in learner.tasks if task.name in run.tasks and len(task.classes) == 1]:
        say(f"{', '.join(map(one_line, single))}: a single class, so its probability within the task is always 1")
    if options.csv is not None and not options.json:
        console.print(f"{run.answered} answers in {options.csv}", highlight=False, soft_wrap=True)
    return 2 if run.unreadable and not options.skip_unreadable else 0


def _writers(stack: ExitStack, console: Console, learner: ContinualLearner, options: Namespace) -> "list[Writer]":
    """Return what writes the answers: into a file, as JSON, or, without both, as text."""
    writers: list[Writer] = []
    if options.csv is not None:
        writers.append(stack.enter_context(CsvWriter(options.csv, options)))
    if options.json:
        writers.append(JsonWriter())
    return writers or [TextWriter(console, learner, task_given=options.task is not None)]


def _say_what_is_missing(run: "_Run", paths: ImagePaths) -> None:
    """Print how many images or vectors could not be read, and how many files were left out."""
    kind = "images" if run.learner.predictor.record.numbers is None else "vectors"
    if paths.left_out:
        reason = f"their names are not those of {kind}, or they are links to folders"
        say(f"{paths.left_out} left out, as {reason}; the first: {paths.first_left_out}")
    if run.unreadable and run.unreadable + run.answered > 1:
        say(f"{run.unreadable} of {run.unreadable + run.answered} {kind} could not be read")


class Answer(NamedTuple):
    """The answer for a file; `unsure` is None unless there is a threshold."""

    file: str
    prediction: Prediction
    unsure: bool | None

    def as_dict(self) -> dict[str, Any]:
        """Return the answer by the names of its JSON."""
        answer = {"file": self.file, **self.prediction._asdict()}
        if self.unsure is not None:
            answer["unsure"] = self.unsure
        if self.prediction.top:
            answer["top"] = [choice._asdict() for choice in self.prediction.top]
        return answer


class _Run:
    """Answers about many files, of which only some images are in memory at a time; and about rows of vectors.

    Args:
        learner: The learner.
        options: The options of the command.
    """

    def __init__(self, learner: ContinualLearner, options: Namespace) -> None:
        self.learner = learner
        self.options = options
        self.chunk = BATCHES * learner.predictor.batch_size
        self.how = How(rule=options.rule, top=options.top)
        if options.unknown is not None:
            self.how["unknown"] = options.unknown
        self.answered = self.unreadable = 0
        self.tasks: set[str] = set()  # of the answers

    def answers(self, files: Iterable[str]) -> Iterator[tuple[int, list[Answer]]]:
        """Yield the number of files or rows of each chunk, and the answers for those that can be read."""
        remaining = self._read(files)
        while chunk := list(itertools.islice(remaining, self.chunk)):
            readable: list[str] = []
            pixels: list[Pixels | Vectors] = []
            for name, decoded in chunk:
                if isinstance(decoded, InputError):
                    self.unreadable += 1
                    say(str(decoded))
                else:
                    readable.append(name)
                    pixels.append(decoded)
            self.answered += len(readable)
            yield len(chunk), self._answer(readable, pixels)

    def _read(self, files: Iterable[str]) -> Iterator[tuple[str, Pixels | Vectors | InputError]]:
        """Yield the name of each image or row, and its array, or the reason why it cannot be read."""
        record = self.learner.predictor.record
        if record.numbers is not None:
            yield from read_rows(files, record.numbers, self.options.column)
            return
        remaining = iter(files)
        while names := list(itertools.islice(remaining, self.chunk)):
            decoded = decode_each(names, record, self.options.max_megapixels)
            yield from zip(names, decoded, strict=True)

    def _answer(self, files: list[str], pixels: list[Pixels | Vectors]) -> list[Answer]:
        """Return the answers for images (C, H, W) or vectors (D, 1, 1)."""
        if not files:
            return []
        images: Any = np.stack(pixels).transpose(0, 2, 3, 1)
        images = images if self.learner.predictor.record.numbers is None else images[:, 0, 0]
        predictions = self.learner.predict(images, self.options.task, **self.how)
        threshold = self.options.threshold
        self.tasks |= {prediction.task for prediction in predictions}
        return [
            Answer(file, prediction, None if threshold is None else prediction.probability < threshold)
            for file, prediction in zip(files, predictions, strict=True)
        ]


class Writer(Protocol):
    """Writes answers as they come."""

    def write(self, answers: Sequence[Answer]) -> None:
        """Write answers."""


class JsonWriter:
    """Prints a line of JSON for each answer."""

    def write(self, answers: Sequence[Answer]) -> None:
        """Print answers."""
        for answer in answers:
            print(json_line(answer.as_dict()))
        print(end="", flush=True)


class TextWriter:
    """Prints a line of text for each answer, and further lines for further classes.

    Args:
        console: Where to print.
        learner: The learner, whose names decide the widths of the columns.
        task_given: Whether the task was given; otherwise its share is printed.
    """

    def __init__(self, console: Console, learner: ContinualLearner, task_given: bool) -> None:
        self.console = console
        self.task_given = task_given
        classes = [one_line(name) for task in learner.tasks for name in task.classes]
        self.class_width = max(map(cell_len, ("class (unsure)", NONE_OF_THESE, *classes)))
        self.task_width = max(map(cell_len, (*(f"{one_line(task.name)} (0.00)" for task in learner.tasks), "task")))
        self.is_first = True

    def write(self, answers: Sequence[Answer]) -> None:
        """Print answers, the first time with the names of the columns."""
        if answers and self.is_first:
            self._print("class", "probability", "task", "file")
            self.is_first = False
        for answer in answers:
            self._write(answer)

    def _write(self, answer: Answer) -> None:
        file, prediction, unsure = answer
        task = one_line(prediction.task)
        shown = task if self.task_given else f"{task} ({prediction.task_probability:.2f})"
        label = NONE_OF_THESE if prediction.label is None else one_line(prediction.label)
        self._print(f"{label} (unsure)" if unsure else label, f"{prediction.probability:.3f}", shown, one_line(file))
        others = [choice for choice in prediction.top if choice.label != prediction.label]
        for choice in others:
            self._print(f"  {one_line(choice.label)}", f"{choice.probability:.3f}", "", "")

    def _print(self, label: str, probability: str, task: str, file: str) -> None:
        padded = label + " " * (self.class_width - cell_len(label))
        line = "  ".join((padded, f"{probability:>11}", set_cell_size(task, self.task_width), file))
        self.console.print(line.rstrip(), highlight=False, soft_wrap=True)


class CsvWriter(AbstractContextManager["CsvWriter"]):
    """Writes a row for each answer into a CSV file.

    Args:
        path: The file; an older one is replaced.
        options: The options of the command, which decide the columns.
    """

    def __init__(self, path: str, options: Namespace) -> None:
        self.path = Path(path)
        self.top: int = options.top
        self.columns = ["file", "label", "task", "probability", "task_probability"]
        self.columns += ["unsure"] if options.threshold is not None else []
        for rank in range(1, self.top + 1):
            self.columns += [f"label_{rank}", f"probability_{rank}"]

    def __enter__(self) -> "CsvWriter":
        try:
            self.file = self.path.open("w", encoding="utf-8", errors="backslashreplace", newline="")
        except OSError as error:
            raise InputError(f"{self.path}: expected a file to write, got: {error.strerror or error}") from None
        self.rows = csv.DictWriter(self.file, self.columns, lineterminator="\n")
        self.rows.writeheader()
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def write(self, answers: Sequence[Answer]) -> None:
        """Write a row for each answer."""
        for answer in answers:
            row = answer.as_dict()
            for rank, choice in enumerate(row.pop("top", []), 1):
                row[f"label_{rank}"], row[f"probability_{rank}"] = choice["label"], choice["probability"]
            self.rows.writerow(row)
        self.file.flush()


def _progress(console: Console, total: int | None, chunk: int) -> Progress:
    """Return a bar on stderr, which is shown on a terminal if there is more than one chunk of files."""
    stderr = PlainConsole(stderr=True)
    return Progress(
        TextColumn("images"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=stderr,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=True,
        disable=not stderr.is_terminal or console.quiet or (total is not None and total <= chunk),
    )


def _require_options(options: Namespace, learner: ContinualLearner) -> None:
    """Raise InputError unless all options are in range and have an effect on this learner."""
    require(options.top >= 0, "top", "a number of classes, at least 0", options.top)
    in_range = options.threshold is None or 0 <= options.threshold <= 1
    require(in_range, "threshold", "a probability from 0 to 1", options.threshold)
    require(options.max_megapixels >= 1, "max_megapixels", "at least 1", options.max_megapixels)
    in_range = options.unknown is None or 0 < options.unknown <= 0.5
    require(in_range, "unknown", "a share above 0 and up to 0.5", options.unknown)
    images = learner.predictor.record.numbers is None
    require(options.column is None or not images, "column", "none, as this learner takes images", options.column)
    if options.task is not None:
        learner.predictor.index(options.task)
        require(options.rule is None, "rule", "none beside --task, as a rule infers the task", options.rule)
    elif options.rule is not None and len(learner.tasks) == 1:
        say("rule: without effect, as the learner has a single task")
    options.rule = options.rule or DEFAULT_RULE


def _parse_options(named: Sequence[str]) -> Namespace:
    usage = "pah predict LEARNER IMAGE... [--task NAME] [--top N] [--threshold P] [--json] [--csv FILE]"
    parser = ArgumentParser(prog="pah predict", exit_on_error=False, usage=usage, description=DESCRIPTION)
    add = parser.add_argument
    add("--task", type=str | None, default=None, help="answer with classes of this task (default: infer the task)")
    rule_help = f"rule by which the task is inferred (default: {DEFAULT_RULE})"
    add("--rule", type=Rule, default=None, help=rule_help)
    unknown_help = "also answer 'none of these'; the value is the share of known images for which that may happen"
    add("--unknown", type=float | None, default=None, help=unknown_help)
    add("--top", type=int, default=0, help="also give the N most likely classes of the task with their probabilities")
    threshold_help = "call an answer unsure if the probability of its class is below this, 0 to 1"
    add("--threshold", type=float | None, default=None, help=threshold_help)
    add("--json", action="store_true", help="print a line of JSON for each image")
    add("--csv", type=str | None, default=None, metavar="FILE", help="write a row for each image into this file")
    add("--skip_unreadable", type=bool, default=False, help="end with status 0 although some images cannot be read")
    megapixels_help = "an image with more megapixels is not read"
    add("--max_megapixels", type=int, default=MAX_MEGAPIXELS, help=megapixels_help)
    add("--column", type=str | None, default=None, help="column with the vectors of .parquet files")
    add_device(parser)
    try:
        return parser.parse_args(list(named))
    except ArgumentError as error:
        raise readable_error(str(error), parser) from None
