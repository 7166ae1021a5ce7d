"""Runs, sent to trackers: whatever a run's folder holds that they have not been sent yet.

<run>/track/<tool>/sent.json says how far that was, so that a run that is resumed, or tracked only once it is over, is
sent whole and nothing twice.
"""

import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from operator import itemgetter
from pathlib import Path
from typing import Any

from PIL import Image

from pah.core import files
from pah.core.files import BusyError, locked
from pah.report.curves import heat_map
from pah.runs.folder import LOG, SENT, TRACK
from pah.study.ablation import flat
from pah.tracking import tools
from pah.tracking.tool import Subject
from pah.training import metrics
from pah.training.config import RunConfig
from pah.training.metrics import Matrix

Point = tuple[int, dict[str, float]]  # a step, the number of epochs up to it; and numbers by name
DPI = 150


@dataclass
class Sent:
    """How much of a run a tool has, by which key it knows it, and where: in the folder `root` of a run's folder."""

    root: str
    key: str | None = None
    epochs: int = 0
    tasks: int = 0
    end: bool = False  # whether it has what is known only at the end
    closed: bool = False


class Sender:
    """One run on its way to one tool; holds the run against other processes that would send it there."""

    def __init__(self, tool: str, folder: Path, config: RunConfig, root: Path) -> None:
        self.folder, self.config = folder, config
        self.note = folder / TRACK / tool / SENT
        with ExitStack() as held:
            held.enter_context(locked(self.note.parent))
            new = Sent(os.path.relpath(root, folder))
            self.sent = Sent(**files.read_json(self.note)) if self.note.is_file() else new
            own = folder.resolve()  # a study's run that is resumed alone still belongs to the study
            root = (own / self.sent.root).resolve()
            group = config.benchmark if root == own else root.name
            run = Subject(own.name, group, root / TRACK / tool, flat(config))
            self.tool = tools.begin(tool, run, self.sent.key, self.sent.epochs)
            self.held = held.pop_all()
        self.sent = replace(self.sent if self.tool.kept else new, key=self.tool.key)
        self._note()

    def send(self, matrix: Matrix) -> None:
        """The epochs in the log, and the rows of the accuracy matrix, that are new."""
        lines = [json.loads(line) for line in (self.folder / LOG).read_text(encoding="utf-8").splitlines()]
        points = [self._of_epoch(line) for line in lines[self.sent.epochs :]]
        points += [self._of_task(matrix[: k + 1]) for k in range(self.sent.tasks, len(matrix))]
        for step, values in sorted(points, key=itemgetter(0)):
            self.tool.scalars(values, step)
        self.tool.flush()
        self.sent.epochs, self.sent.tasks = max(self.sent.epochs, len(lines)), max(self.sent.tasks, len(matrix))
        self._note()

    def finish(self, found: Mapping[str, Any]) -> None:
        """What is still to be sent, and what `metrics.json` holds."""
        matrix = found["accuracy_matrix"]
        self.send(matrix)
        if not self.sent.end:
            step = self._epochs(len(matrix))
            self.tool.picture("accuracy", picture_of(matrix), step)
            self.tool.scalars({f"final/{name}": value for name, value in numbers(found).items()}, step)
            self.tool.flush()
            self.sent.end = True
            self._note()
        self.tool.close(finished=True)
        self.sent.closed = True
        self._note()
        self.held.close()

    def close(self) -> None:
        """The run was cut."""
        self.tool.close(finished=False)
        self.held.close()

    def _note(self) -> None:
        files.write_json(self.note, asdict(self.sent))

    def _epochs(self, tasks: int) -> int:
        """The epochs of the first tasks together."""
        return sum(map(self.config.training.epochs_of, range(tasks)))

    def _of_epoch(self, line: Mapping[str, Any]) -> Point:
        step = self._epochs(line["task"]) + line["epoch"] + 1
        plain = {name: line[name] for name in ("lr", "images_per_second")}
        return step, {"task": line["task"] + 1, **plain, **{f"terms/{k}": v for k, v in line["terms"].items()}}

    def _of_task(self, matrix: Matrix) -> Point:
        accuracies = {f"accuracy/task_{k:02}": accuracy for k, accuracy in enumerate(matrix[-1], start=1)}
        return self._epochs(len(matrix)), accuracies | metrics.summary(matrix)


class Tracking:
    """The trackers of a command. One that fails is named in a warning, and left out from there on."""

    def __init__(self, names: Sequence[str], root: Path, warn: Callable[[str], None]) -> None:
        self.names = list(names)
        self.root = root
        self.warn = warn
        self.senders: dict[tuple[str, Path], Sender] = {}

    def update(self, folder: Path, config: RunConfig, matrix: Matrix) -> None:
        """An epoch or a task of the run in `folder` is over; `matrix` holds the accuracies so far."""
        self._each(lambda name: self._sender(name, folder, config).send(matrix))

    def finish(self, folder: Path, config: RunConfig, found: Mapping[str, Any]) -> None:
        """The run in `folder` is over, now or since long; `found` is what its `metrics.json` holds."""
        self._each(lambda name: self._finish(name, folder, config, found))

    def leave(self, folder: Path) -> None:
        """The run in `folder` was cut; it may be resumed."""
        self._each(lambda name: self._leave(name, folder))

    def close(self) -> None:
        """Leave every run that is not over."""
        for folder in {folder for _, folder in self.senders}:
            self.leave(folder)

    def _sender(self, name: str, folder: Path, config: RunConfig) -> Sender:
        if (name, folder) not in self.senders:
            self.senders[name, folder] = Sender(name, folder, config, self.root)
        return self.senders[name, folder]

    def _finish(self, name: str, folder: Path, config: RunConfig, found: Mapping[str, Any]) -> None:
        note = folder / TRACK / name / SENT
        if note.is_file() and files.read_json(note)["closed"]:
            return
        self._sender(name, folder, config).finish(found)
        del self.senders[name, folder]

    def _leave(self, name: str, folder: Path) -> None:
        if sender := self.senders.pop((name, folder), None):
            sender.close()

    def _each(self, act: Callable[[str], None]) -> None:
        """Let every tracker act; the one that fails is out."""
        for name in tuple(self.names):
            try:
                act(name)
            except BusyError:
                pass  # another process of the study sends this run
            except Exception as error:  # whatever it is, it is the tracker's
                self._drop(name, " ".join(str(error).split()) or type(error).__name__)

    def _drop(self, name: str, reason: str) -> None:
        self.names.remove(name)
        self.warn(f"track {name}: expected it to take the run's numbers, got: {reason}; going on without it")
        for key in [key for key in self.senders if key[0] == name]:
            self.senders.pop(key).held.close()


def tracked(folder: Path) -> list[str]:
    """The tools that the run in `folder` was sent to."""
    return [name for name in tools.TOOLS if (folder / TRACK / name / SENT).is_file()]


def numbers(found: Mapping[str, Any]) -> dict[str, float]:
    """The single numbers among a run's metrics, by name."""
    flat_ = dict(found) | {f"parameters_{part}": value for part, value in found["parameters"].items()}
    return {name: float(value) for name, value in flat_.items() if isinstance(value, (int, float)) and name != "seed"}


def picture_of(matrix: Matrix) -> Image.Image:
    """The accuracy matrix as a picture, RGB."""
    data = io.BytesIO()
    heat_map(matrix).savefig(data, format="png", dpi=DPI)
    return Image.open(data).convert("RGB")
