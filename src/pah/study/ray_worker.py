"""A cell away from its study: what a node of a cluster does with it, in a scratch folder of its own.

No disk is shared: the run folder comes as bytes, and what changes in it goes back as bytes.
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
from pah.runs.results import versions
from pah.runs.run import Progress, StoppedError
from pah.study.grid import ERROR, Cell, Event, difference, run_cell
from pah.training import checkpoint
from pah.training.config import RunConfig

Files = dict[str, bytes]  # of a run folder, by their path in it
TELL = 1.0  # seconds: how often a node tells how far a cell is, and asks whether to stop


class Mail(Protocol):
    """What is used of a `ray.util.queue.Queue`."""

    def put(self, item: Any) -> None: ...

    def empty(self) -> bool: ...


class News(NamedTuple):
    """What a node tells of a cell that it runs; travels as a plain tuple, which a queue holds without knowing pah."""

    name: str  # of the cell
    where: str  # the node's address
    progress: tuple[int, int, float]  # task, tasks, seconds left
    files: Files  # that a resume needs, of a new checkpoint


class Ended(NamedTuple):
    """How a cell's stay on a node ended, and the files that changed since the last news."""

    how: Literal["ended", "stopped", "refused"]
    reason: str  # why there are no metrics, or why the node will not do
    files: Files


def run_away(
    name: str,
    config: Mapping[str, Any],
    files: Files,
    *,
    study: str,
    home: str,
    threads: int,
    device: DeviceName,
    same: Mapping[str, str],
    checkpoint_seconds: float,
    news: Mail,
    halt: Mail,
) -> Ended:
    """Bring a cell to its end on this node.

    Args:
        name: Of the cell.
        config: The configuration, as `RunConfig.as_dict` gives it.
        files: The cell's folder as it stands; empty to begin.
        study: The study's folder, as it is called where the study is.
        home: The folder that a relative path of the data starts from, if this node has it.
        threads: Of torch: their number decides the order of sums.
        device: To compute on; a GPU is the one that Ray lets this process see.
        same: What `identity` must find here for the results to be the study's.
        checkpoint_seconds: Time between checkpoints, each of which is sent.
        news: Where `News` go.
        halt: No longer empty when the study wants its cells back.
    """
    from ray.util import get_node_ip_address

    where = get_node_ip_address()
    if (found := identity()) != same:
        return Ended(
            "refused", f"node {where}: expected the study's versions, got others: {difference(found, same)}", {}
        )
    torch.set_num_threads(threads)
    if Path(home).is_dir():
        os.chdir(home)
    with TemporaryDirectory(prefix="pah-") as scratch:
        folder = Path(scratch) / name
        unpack(files, folder)
        post = Post(folder, where, news, halt)
        try:
            cell = Cell(RunConfig.from_dict(config), folder)
            outcome = run_cell(cell, post.watch, post.stop, checkpoint_seconds, find_device(device))
        except StoppedError:
            return Ended("stopped", "", post.changed())
        reason = outcome.reason.replace(scratch, study) if outcome else "its scratch folder is in use"
        return Ended("ended", reason and f"{reason} (node {where})", post.changed())


@cache
def identity() -> dict[str, str]:
    """The versions that a result depends on, here; pah's with a hash of its source, which changes more often."""
    found = {name: version for name, version in versions().items() if name != "threads"}
    source = hashlib.sha256()
    root = Path(pah.__file__).parent
    for path in sorted(root.rglob("*.py")):
        source.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes())
    return {**found, "pah": f"{found['pah']} (source {source.hexdigest()[:12]})"}


def pack(folder: Path) -> Files:
    """The files of a run, in the order in which they are to be written."""
    return {name: (folder / name).read_bytes() for name in _present(folder)}


def unpack(contents: Files, folder: Path) -> None:
    """Write files of a run into its folder; InputError if one cannot be written."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        write_file(folder / name, content)


class Post:
    """What goes back and forth while a cell runs: files and progress to the study, the word to stop from it."""

    def __init__(self, folder: Path, where: str, news: Mail, halt: Mail) -> None:
        self.folder = folder
        self.where = where
        self.news = news
        self.halt = halt
        self.sent = {name: _stamp(folder / name) for name in _present(folder)}
        self.told = self.asked = -TELL
        self.stopping = False

    def watch(self, _: Cell, happened: Event) -> None:
        """Tell how far the cell is, now and then; and with every new checkpoint, what a resume needs."""
        if not isinstance(happened, Progress):
            return
        state, name = self.folder / CHECKPOINT / checkpoint.FILE, f"{CHECKPOINT}/{checkpoint.FILE}"
        saved = state.is_file() and _stamp(state) != self.sent.get(name)
        if saved or time.monotonic() - self.told >= TELL:
            progress = (happened.state.task, len(happened.stream.tasks), happened.seconds_left)
            self.news.put((self.folder.name, self.where, progress, self.changed() if saved else {}))
            self.told = time.monotonic()

    def stop(self) -> bool:
        """Whether the study wants the cell back."""
        if not self.stopping and time.monotonic() - self.asked >= TELL:
            self.stopping, self.asked = not self.halt.empty(), time.monotonic()
        return self.stopping

    def changed(self) -> Files:
        """The files that are new since the last time."""
        stamps = {name: _stamp(self.folder / name) for name in _present(self.folder)}
        new = [name for name, stamp in stamps.items() if stamp != self.sent.get(name)]
        self.sent = stamps
        return {name: (self.folder / name).read_bytes() for name in new}


def _present(folder: Path) -> Iterator[str]:
    """The names of a run's files, in the order in which they may be written: that it is finished is said last."""
    files = [folder / CONFIG, folder / ERROR, *run_files(folder)]
    for path in sorted(files, key=lambda path: path.name == METRICS):
        if path.is_file():
            yield path.relative_to(folder).as_posix()


def _stamp(path: Path) -> tuple[int, int]:
    """What is another one after each time that a file is written."""
    status = path.stat()
    return status.st_ino, status.st_mtime_ns
