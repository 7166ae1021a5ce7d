"""Send runs to trackers: everything in a run folder that they have not received yet.

<run>/track/<tool>/sent.json records what was sent. A run that is resumed, or tracked only after its end, is therefore
sent completely, and nothing is sent twice.
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
from pah.core.files import FolderBusyError, locked
from pah.report.curves import heat_map
from pah.runs.folder import LOG, SENT, TRACK
from pah.study.ablation import flat_options
from pah.tracking.base import TrackedRun
from pah.tracking.trackers import TRACKERS, open_tracker
from pah.training import metrics
from pah.training.config import RunConfig
from pah.training.metrics import Matrix

Point = tuple[int, dict[str, float]]  # a step (epochs since the start of the run), and numbers by name
DPI = 150


@dataclass
class SentState:
    """What a tool has received of a run: the content of `sent.json`.

    Args:
        root: Folder that holds the tool's files, relative to the run folder.
        key: By which the tool identifies the run.
        epochs: Number of epochs that were sent.
        tasks: Number of tasks whose accuracies were sent.
        end: Whether the final metrics were sent.
        closed: Whether the run was closed as finished.
    """

    root: str
    key: str | None = None
    epochs: int = 0
    tasks: int = 0
    end: bool = False
    closed: bool = False


class Sender:
    """Sends one run to one tool; a lock keeps other processes from sending it to the same tool."""

    def __init__(self, tool: str, folder: Path, config: RunConfig, root: Path) -> None:
        self.folder, self.config = folder, config
        self.state_path = folder / TRACK / tool / SENT
        with ExitStack() as stack:
            stack.enter_context(locked(self.state_path.parent))
            new = SentState(os.path.relpath(root, folder))
            self.sent = SentState(**files.read_json(self.state_path)) if self.state_path.is_file() else new
            run_folder = folder.resolve()
            root = (run_folder / self.sent.root).resolve()  # a study's run that is resumed alone stays in the study
            group = config.benchmark if root == run_folder else root.name
            run = TrackedRun(run_folder.name, group, root / TRACK / tool, flat_options(config))
            self.tracker = open_tracker(tool, run, self.sent.key, self.sent.epochs)
            self.lock = stack.pop_all()
        self.sent = replace(self.sent if self.tracker.resumable else new, key=self.tracker.key)
        self._save_state()

    def send(self, matrix: Matrix) -> None:
        """Send the new epochs of the log and the new rows of the accuracy matrix."""
        lines = [json.loads(line) for line in (self.folder / LOG).read_text(encoding="utf-8").splitlines()]
        points = [self._epoch_point(line) for line in lines[self.sent.epochs :]]
        points += [self._task_point(matrix[: k + 1]) for k in range(self.sent.tasks, len(matrix))]
        for step, values in sorted(points, key=itemgetter(0)):
            self.tracker.log_scalars(values, step)
        self.tracker.flush()
        self.sent.epochs, self.sent.tasks = max(self.sent.epochs, len(lines)), max(self.sent.tasks, len(matrix))
        self._save_state()

    def finish(self, run_metrics: Mapping[str, Any]) -> None:
        """Send the rest and the content of `metrics.json`, and close the run as finished."""
        matrix = run_metrics["accuracy_matrix"]
        self.send(matrix)
        if not self.sent.end:
            step = self._epochs_of_tasks(len(matrix))
            self.tracker.log_picture("accuracy", matrix_picture(matrix), step)
            self.tracker.log_scalars({f"final/{name}": value for name, value in numbers(run_metrics).items()}, step)
            self.tracker.flush()
            self.sent.end = True
            self._save_state()
        self.tracker.close(finished=True)
        self.sent.closed = True
        self._save_state()
        self.lock.close()

    def close(self) -> None:
        """Close the run as interrupted."""
        self.tracker.close(finished=False)
        self.lock.close()

    def _save_state(self) -> None:
        files.write_json(self.state_path, asdict(self.sent))

    def _epochs_of_tasks(self, tasks: int) -> int:
        """Return the total number of epochs of the first tasks."""
        return sum(map(self.config.training.epochs_of, range(tasks)))

    def _epoch_point(self, line: Mapping[str, Any]) -> Point:
        """Return the numbers of one epoch, from a line of the log."""
        step = self._epochs_of_tasks(line["task"]) + line["epoch"] + 1
        names = ("lr", "images_per_second", "validation_accuracy")  # the last one only if it was measured
        plain = {name: line[name] for name in names if name in line}
        return step, {"task": line["task"] + 1, **plain, **{f"terms/{k}": v for k, v in line["terms"].items()}}

    def _task_point(self, matrix: Matrix) -> Point:
        """Return the accuracies and metrics after a task; the last row of `matrix` belongs to it."""
        named = {f"accuracy/task_{k:02}": accuracy for k, accuracy in enumerate(matrix[-1], start=1)}
        accuracies = {name: accuracy for name, accuracy in named.items() if accuracy is not None}
        return self._epochs_of_tasks(len(matrix)), accuracies | metrics.summary(matrix)


class Tracking:
    """The trackers of a command. A tracker that fails is named in a warning and no longer used."""

    def __init__(self, names: Sequence[str], root: Path, warn: Callable[[str], None]) -> None:
        self.names = list(names)
        self.root = root
        self.warn = warn
        self.senders: dict[tuple[str, Path], Sender] = {}

    def update(self, folder: Path, config: RunConfig, matrix: Matrix) -> None:
        """Send the latest epoch or task of the run in `folder`; `matrix` holds the accuracies so far."""
        self._for_each(lambda name: self._sender(name, folder, config).send(matrix))

    def finish(self, folder: Path, config: RunConfig, run_metrics: Mapping[str, Any]) -> None:
        """Send the finished run in `folder`; `run_metrics` is the content of its `metrics.json`."""
        self._for_each(lambda name: self._finish(name, folder, config, run_metrics))

    def leave(self, folder: Path) -> None:
        """Close the interrupted run in `folder`; it may be resumed later."""
        self._for_each(lambda name: self._leave(name, folder))

    def close(self) -> None:
        """Close every run that is not finished."""
        for folder in {folder for _, folder in self.senders}:
            self.leave(folder)

    def _sender(self, name: str, folder: Path, config: RunConfig) -> Sender:
        if (name, folder) not in self.senders:
            self.senders[name, folder] = Sender(name, folder, config, self.root)
        return self.senders[name, folder]

    def _finish(self, name: str, folder: Path, config: RunConfig, run_metrics: Mapping[str, Any]) -> None:
        state_path = folder / TRACK / name / SENT
        if state_path.is_file() and files.read_json(state_path)["closed"]:
            return
        self._sender(name, folder, config).finish(run_metrics)
        del self.senders[name, folder]

    def _leave(self, name: str, folder: Path) -> None:
        if sender := self.senders.pop((name, folder), None):
            sender.close()

    def _for_each(self, action: Callable[[str], None]) -> None:
        """Call `action` with each tracker's name; drop a tracker that fails."""
        for name in tuple(self.names):
            try:
                action(name)
            except FolderBusyError:
                pass  # another process of the study sends this run
            except Exception as error:  # a tracker must never stop a run
                self._drop(name, " ".join(str(error).split()) or type(error).__name__)

    def _drop(self, name: str, reason: str) -> None:
        self.names.remove(name)
        self.warn(f"track {name}: expected it to take the run's numbers, got: {reason}; going on without it")
        for key in [key for key in self.senders if key[0] == name]:
            self.senders.pop(key).lock.close()


def tools_of_run(folder: Path) -> list[str]:
    """Return the tools to which the run in `folder` was sent."""
    return [name for name in TRACKERS if (folder / TRACK / name / SENT).is_file()]


def numbers(run_metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the scalar metrics of a run, by name."""
    parameters = {f"parameters_{part}": value for part, value in run_metrics["parameters"].items()}
    values = dict(run_metrics) | parameters
    return {name: float(value) for name, value in values.items() if isinstance(value, (int, float)) and name != "seed"}


def matrix_picture(matrix: Matrix) -> Image.Image:
    """Return the accuracy matrix as an RGB picture."""
    data = io.BytesIO()
    heat_map(matrix).savefig(data, format="png", dpi=DPI)
    return Image.open(data).convert("RGB")
