"""Run one cell of a study on a node of a Ray cluster, in a temporary folder.

Nodes share no disk. The files of the run folder arrive as bytes, and changed files are sent back as bytes.
"""

import hashlib
import os
import time
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple, Protocol

import torch

import pah
from pah.core.devices import DeviceName, find_device
from pah.core.files import write_file
from pah.runs.folder import CHECKPOINT, CONFIG, METRICS, run_files
from pah.runs.progress import Progress, StoppedError
from pah.runs.results import versions
from pah.study.grid import ERROR, Cell, Event, first_difference, run_cell
from pah.training import checkpoint
from pah.training.config import RunConfig

RunFiles = dict[str, bytes]  # contents of a run's files, by their path inside the run folder
REPORT_SECONDS = 1.0  # between two progress messages, and between two looks at the stop queue


class MessageQueue(Protocol):
    """The methods of `ray.util.queue.Queue` that a node uses."""

    def put(self, item: Any) -> None: ...

    def empty(self) -> bool: ...


class ProgressMessage(NamedTuple):
    """Progress of a cell; sent as a plain tuple, because the queue's process does not import pah."""

    cell_name: str
    address: str  # of the node
    progress: tuple[int, int, float]  # task, tasks, seconds left
    files: RunFiles  # the files that a resume needs, if there is a new checkpoint


class CellResult(NamedTuple):
    """How a cell ended on a node, and the files that changed since the last progress message."""

    status: Literal["ended", "stopped", "refused"]
    reason: str  # why there are no metrics, or why the node refused the cell
    files: RunFiles


def run_remote_cell(
    name: str,
    config: Mapping[str, Any],
    files: RunFiles,
    *,
    study_folder: str,
    working_directory: str,
    threads: int,
    device: DeviceName,
    study_versions: Mapping[str, str],
    checkpoint_seconds: float,
    progress_queue: MessageQueue,
    stop_queue: MessageQueue,
    data_fingerprint: str | None = None,
) -> CellResult:
    """Run a cell on this node until it is finished, failed or stopped.

    Args:
        name: of the cell.
        config: the configuration, as `RunConfig.as_dict` returns it.
        files: the present files of the cell's folder; empty for a new cell.
        study_folder: path of the study on the driver's machine; used in error messages.
        working_directory: folder from which relative data paths start; used if this node has it.
        threads: of torch; their number decides the order of floating-point sums.
        device: to train on; Ray shows this process only the GPU that it reserved.
        study_versions: what `software_versions` must return here; otherwise the node refuses the cell.
        checkpoint_seconds: time between two checkpoints; each checkpoint is sent.
        progress_queue: receives `ProgressMessage` tuples.
        stop_queue: not empty once the study wants its cells to stop.
        data_fingerprint: that this node's data must have; None for any data.
    """
    from ray.util import get_node_ip_address

    address = get_node_ip_address()
    if (own_versions := software_versions()) != study_versions:
        difference = first_difference(own_versions, study_versions)
        return CellResult("refused", f"node {address}: expected the study's versions, got others: {difference}", {})
    torch.set_num_threads(threads)
    if Path(working_directory).is_dir():
        os.chdir(working_directory)
    with TemporaryDirectory(prefix="pah-") as scratch:
        folder = Path(scratch) / name
        write_run_files(files, folder)
        connection = StudyConnection(folder, address, progress_queue, stop_queue)
        try:
            cell = Cell(RunConfig.from_dict(config), folder, data_fingerprint)
            outcome = run_cell(cell, connection.watch, connection.stop, checkpoint_seconds, find_device(device))
        except StoppedError:
            return CellResult("stopped", "", connection.changed_files())
        reason = outcome.reason.replace(scratch, study_folder) if outcome else "its scratch folder is in use"
        return CellResult("ended", reason and f"{reason} (node {address})", connection.changed_files())


@cache
def software_versions() -> dict[str, str]:
    """Return the versions on which results depend; pah's includes a hash of its source code."""
    own_versions = {name: version for name, version in versions().items() if name != "threads"}
    source = hashlib.sha256()
    root = Path(pah.__file__).parent
    for path in sorted(root.rglob("*.py")):
        source.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes())
    return {**own_versions, "pah": f"{own_versions['pah']} (source {source.hexdigest()[:12]})"}


def read_run_files(folder: Path) -> RunFiles:
    """Return the contents of a run's files, in the order in which they must be written."""
    return {name: (folder / name).read_bytes() for name in _existing_files(folder)}


def write_run_files(contents: RunFiles, folder: Path) -> None:
    """Write files of a run into its folder; InputError if one cannot be written."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        write_file(folder / name, content)


class StudyConnection:
    """The connection of a running cell to its study: sends progress and files, and receives the request to stop."""

    def __init__(self, folder: Path, address: str, progress_queue: MessageQueue, stop_queue: MessageQueue) -> None:
        self.folder = folder
        self.address = address
        self.progress_queue = progress_queue
        self.stop_queue = stop_queue
        self.sent_stamps = {name: _file_stamp(folder / name) for name in _existing_files(folder)}
        self.last_report = self.last_stop_check = -REPORT_SECONDS
        self.stopping = False

    def watch(self, _: Cell, event: Event) -> None:
        """Send the progress every `REPORT_SECONDS`, and the changed files with every new checkpoint."""
        if not isinstance(event, Progress):
            return
        state, name = self.folder / CHECKPOINT / checkpoint.FILE, f"{CHECKPOINT}/{checkpoint.FILE}"
        new_checkpoint = state.is_file() and _file_stamp(state) != self.sent_stamps.get(name)
        if new_checkpoint or time.monotonic() - self.last_report >= REPORT_SECONDS:
            progress = (event.state.task, len(event.stream.tasks), event.seconds_left)
            files = self.changed_files() if new_checkpoint else {}
            self.progress_queue.put((self.folder.name, self.address, progress, files))
            self.last_report = time.monotonic()

    def stop(self) -> bool:
        """Return whether the study asked its cells to stop."""
        if not self.stopping and time.monotonic() - self.last_stop_check >= REPORT_SECONDS:
            self.stopping, self.last_stop_check = not self.stop_queue.empty(), time.monotonic()
        return self.stopping

    def changed_files(self) -> RunFiles:
        """Return the files that changed since the last call."""
        stamps = {name: _file_stamp(self.folder / name) for name in _existing_files(self.folder)}
        changed = [name for name, stamp in stamps.items() if stamp != self.sent_stamps.get(name)]
        self.sent_stamps = stamps
        return {name: (self.folder / name).read_bytes() for name in changed}


def _existing_files(folder: Path) -> Iterator[str]:
    """Yield the names of a run's files, `metrics.json` last: it marks the run as finished."""
    files = [folder / CONFIG, folder / ERROR, *run_files(folder)]
    for path in sorted(files, key=lambda path: path.name == METRICS):
        if path.is_file():
            yield path.relative_to(folder).as_posix()


def _file_stamp(path: Path) -> tuple[int, int]:
    """Return inode and modification time, which change whenever the file is written."""
    status = path.stat()
    return status.st_ino, status.st_mtime_ns
