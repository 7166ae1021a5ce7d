"""Run the cells of a study on a Ray cluster, many at once.

Ray chooses the nodes. While a cell runs on a node, its folder is locked here, so that other processes of the study
leave it alone. Files that nodes send are written into the cell's folder. A cell whose node is lost is sent again with
its last checkpoint.
"""

import os
import re
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pah.core import files
from pah.core.config import InputError, require
from pah.core.devices import DeviceName
from pah.core.files import FolderBusyError, locked
from pah.runs.folder import METRICS
from pah.runs.progress import StoppedError
from pah.study.grid import ERROR, POLL_SECONDS, Cell, Outcome, Running, Stop, Waiting, Watch
from pah.study.ray_worker import (
    CellResult,
    ProgressMessage,
    read_run_files,
    run_remote_cell,
    software_versions,
    write_run_files,
)

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.util.queue import Queue

AUTO, LOCAL = "auto", "local"
RECEIVE_SECONDS = 0.2  # how long one call waits for results and progress
STOP_SECONDS = 60.0  # within which cells that are asked to stop must send their state
MB = 2**20
MAX_LOSSES = 5  # in a row, without a new checkpoint in between; then the cell counts as failed
RESEND_SECONDS = (
    2.0  # before a lost cell is sent again, doubled with each loss in a row: Ray needs about 15 s to notice
)
# that a node is dead, and until then it sends cells to that node


@dataclass(frozen=True)
class ClusterOptions:
    """A cluster, and the resources of each cell on it.

    Args:
        address: HOST:PORT of a Ray cluster, auto for the one that this machine belongs to, local to start one here.
        cpus: Cores, and torch's threads.
        gpus: Share of a GPU, or several.
        memory: In MB (2^20 bytes).
        device: To train on; the node must have it.
    """

    address: str
    cpus: int = 1
    gpus: float = 0.0
    memory: int = 0
    device: DeviceName = "cpu"

    def __post_init__(self) -> None:
        valid = self.address in (AUTO, LOCAL) or re.fullmatch(r"[^/]+:\d{1,5}", self.address)
        require(bool(valid), "ray", "HOST:PORT, auto or local", self.address)
        require(self.cpus >= 1, "ray_cpus", "at least 1", self.cpus)
        divisible = self.gpus <= 1 or self.gpus == int(self.gpus)
        require(self.gpus >= 0 and divisible, "ray_gpus", "a share from 0 to 1, or a whole number", self.gpus)
        require(self.memory >= 0, "ray_memory", "at least 0", self.memory)

    @property
    def resources(self) -> dict[str, float]:
        """Return the resources of a cell by Ray's names."""
        amounts = {"CPU": self.cpus, "GPU": self.gpus, "memory": self.memory * MB}
        return {name: amount for name, amount in amounts.items() if amount}

    @property
    def description(self) -> str:
        """Return the resources of a cell as text."""
        return f"{self.cpus} cores, {self.gpus:g} GPU and {self.memory} MB"


def has_fitting_node(cluster: ClusterOptions) -> bool:
    """Return whether some node of the cluster has the resources of a cell."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return any(all(node.get(name, 0) >= amount for name, amount in cluster.resources.items()) for node in nodes)


@dataclass
class SentCell:
    """A cell that was sent to the cluster, and the lock of its folder."""

    cell: Cell
    lock: ExitStack
    started: bool = False  # whether a progress message has arrived


class RayDriver:
    """Runs a study's cells on the cluster that this process is connected to."""

    def __init__(
        self, cluster: ClusterOptions, cells: Sequence[Cell], watch: Watch, stop: Stop, checkpoint_seconds: float
    ) -> None:
        import ray

        self.cluster = cluster
        self.cells = cells
        self.watch = watch
        self.stop = stop
        self.checkpoint_seconds = checkpoint_seconds
        remote: Any = ray.remote  # its type annotations lack the keywords
        self.remote_function = remote(
            num_cpus=cluster.cpus,
            num_gpus=cluster.gpus,
            memory=cluster.memory * MB or None,
            max_retries=0,  # this class sends lost cells again, with their last checkpoint
            scheduling_strategy="SPREAD",
        )(run_remote_cell)
        self.progress_queue, self.stop_queue = _local_queue(), _local_queue()
        self.sent_cells: dict[ObjectRef[CellResult], SentCell] = {}
        self.outcomes: dict[Cell, Outcome] = {}
        self.held_elsewhere: set[Cell] = set()  # cells whose folder another process has locked
        self.losses: Counter[Cell] = Counter()  # in a row
        self.resend_times: dict[Cell, float] = {}  # a lost cell is not sent again before this time
        self.stopping = self.shortage_reported = False

    def run(self) -> list[Outcome]:
        """Run all cells and return their outcomes in the order of `cells`.

        Raises:
            InputError: a node cannot run this version of pah or has another, or a file cannot be written here.
            StoppedError: `stop` returned true; the files that the cells sent are saved.
            ray.exceptions.RayError: the connection to the cluster is lost.
        """
        next_poll = 0.0
        try:
            while len(self.outcomes) < len(self.cells):
                if self.stop():
                    self._stop_cells()
                    raise StoppedError
                if time.monotonic() >= next_poll:
                    self._send_open_cells()
                    next_poll = time.monotonic() + POLL_SECONDS
                self._receive()
            return [self.outcomes[cell] for cell in self.cells]
        finally:
            for sent in self.sent_cells.values():
                sent.lock.close()

    def _send_open_cells(self) -> None:
        """Send the cells that are neither finished nor sent, among them lost ones and those others have unlocked."""
        sent_cells = {sent.cell for sent in self.sent_cells.values()}
        for cell in self.cells:
            open_cell = cell not in self.outcomes and cell not in sent_cells
            if open_cell and time.monotonic() >= self.resend_times.get(cell, 0.0):
                self._send(cell)
        if not (self.shortage_reported or has_fitting_node(self.cluster)):
            self.shortage_reported = True
            for sent in list(self.sent_cells.values())[:1]:
                self.watch(sent.cell, Waiting(f"for a node with {self.cluster.description}: the cluster has none"))

    def _send(self, cell: Cell) -> None:
        """Send one cell to the cluster, unless it is finished or another process has locked its folder."""
        if (cell.folder / METRICS).is_file():
            self._finish(cell)
            return
        lock = ExitStack()
        try:
            lock.enter_context(locked(cell.folder))
        except FolderBusyError:
            if cell not in self.held_elsewhere:
                self.watch(cell, Waiting())
            self.held_elsewhere.add(cell)
            return
        except InputError as error:
            self._finish(cell, str(error))
            return
        reference = self.remote_function.options(name=f"pah {cell.folder.name}").remote(
            cell.folder.name,
            cell.config.as_dict(),
            read_run_files(cell.folder),
            study_folder=str(cell.folder.parent),
            working_directory=os.getcwd(),
            threads=self.cluster.cpus,
            device=self.cluster.device,
            study_versions=software_versions(),
            checkpoint_seconds=self.checkpoint_seconds,
            data_fingerprint=cell.data_fingerprint,
            progress_queue=self.progress_queue,
            stop_queue=self.stop_queue,
        )
        self.sent_cells[reference] = SentCell(cell, lock)

    def _receive(self) -> None:
        """Wait up to `RECEIVE_SECONDS`, then handle the progress messages and results that have arrived."""
        import ray

        if not self.sent_cells:
            time.sleep(RECEIVE_SECONDS)
            return
        finished, _ = ray.wait(list(self.sent_cells), timeout=RECEIVE_SECONDS)
        for item in self.progress_queue.get_nowait_batch(self.progress_queue.qsize()):
            self._handle_progress(ProgressMessage(*item))
        for reference in finished:
            self._handle_result(reference)

    def _handle_progress(self, message: ProgressMessage) -> None:
        """Write the files of a progress message and report the progress."""
        matching = (sent for sent in self.sent_cells.values() if sent.cell.folder.name == message.cell_name)
        sent = next(matching, None)
        if sent is None:  # from a node that is already treated as lost
            return
        sent.started = True
        if message.files:
            write_run_files(message.files, sent.cell.folder)
            del self.losses[sent.cell]
        self.watch(sent.cell, Running(*message.progress, message.address))

    def _handle_result(self, reference: "ObjectRef[CellResult]") -> None:
        """Write the last files of a cell that ended on its node, or handle the loss of the node."""
        import ray
        from ray.exceptions import RayError

        sent = self.sent_cells.pop(reference)
        with sent.lock:
            try:
                result = ray.get(reference)
                write_run_files(result.files, sent.cell.folder)
            except RayError as error:
                if not self.stopping:  # while stopping, the cell may have been cancelled
                    self._handle_loss(sent.cell, error)
                return
        if result.status == "refused":
            raise InputError(result.reason)
        if result.status == "ended":
            self._finish(sent.cell, result.reason)

    def _handle_loss(self, cell: Cell, error: Exception) -> None:
        """Schedule a lost cell to be sent again, or let it fail after `MAX_LOSSES` losses in a row."""
        from ray.exceptions import RayTaskError

        if isinstance(error, RayTaskError):  # a node without pah; errors of the cell itself arrive as its reason
            raise InputError(f"ray: expected nodes that can run this pah, got: {last_line(str(error))}")
        self.losses[cell] += 1
        if self.losses[cell] >= MAX_LOSSES:
            self._finish(cell, f"lost {MAX_LOSSES} times without a new checkpoint: {last_line(str(error))}")
        else:
            self.resend_times[cell] = time.monotonic() + RESEND_SECONDS * 2 ** (self.losses[cell] - 1)
            self.watch(cell, Waiting("its node was lost; goes on from its checkpoint"))

    def _finish(self, cell: Cell, reason: str = "") -> None:
        """Record the outcome of a cell: the metrics in its folder, or the reason why there are none."""
        has_metrics = (cell.folder / METRICS).is_file()
        if has_metrics:
            (cell.folder / ERROR).unlink(missing_ok=True)  # of an earlier attempt
        metrics = files.read_json(cell.folder / METRICS) if has_metrics else None
        self.outcomes[cell] = Outcome(cell, metrics, "" if has_metrics else reason)
        self.watch(cell, self.outcomes[cell])

    def _stop_cells(self) -> None:
        """Ask all cells to save, send and stop, and receive their files for up to `STOP_SECONDS`."""
        import ray

        self.stopping = True
        for reference, sent in self.sent_cells.items():
            if not sent.started:
                ray.cancel(reference)
        self.stop_queue.put(True)
        deadline = time.monotonic() + STOP_SECONDS
        while self.sent_cells and time.monotonic() < deadline:
            self._receive()


def _local_queue() -> "Queue":
    """Return a queue whose process runs on this node and ends with this process."""
    import ray
    from ray.util.queue import Queue
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    this_node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return Queue(actor_options={"num_cpus": 0, "scheduling_strategy": this_node})


def last_line(text: str) -> str:
    """Return the last line with text; in Ray's messages it names the cause."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
