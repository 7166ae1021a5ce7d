"""Cells sent to a Ray cluster, many at once: what comes back is written down, what is lost is sent again.

Ray chooses the nodes. A cell's folder is locked here while the cell is away: whoever else works on the study leaves it
alone.
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
from pah.core.files import BusyError, locked
from pah.runs.folder import METRICS
from pah.runs.run import StoppedError
from pah.study.grid import ERROR, LOOK_AGAIN, Cell, Outcome, Running, Stop, Waiting, Watch
from pah.study.ray_worker import Ended, News, identity, pack, run_away, unpack

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.util.queue import Queue

AUTO, LOCAL = "auto", "local"
PAUSE = 0.2  # seconds between looks at what came back
GRACE = 60.0  # seconds for a cell that is asked to stop to send its state
MB = 2**20
LOST = 5  # times in a row, without a new checkpoint, after which a cell counts as failed
AGAIN = 2.0  # seconds until a cell that was lost is sent again; twice as many each time in a row: Ray needs about 15 to
# notice that a node is dead, and sends it more until then


@dataclass(frozen=True)
class Place:
    """A cluster, and what each cell is given there.

    Args:
        address: HOST:PORT of a Ray cluster, auto for the one that this machine belongs to, local to start one here.
        cpus: Cores, and torch's threads.
        gpus: Share of a GPU, or several.
        memory: In MB (2^20 bytes).
        device: What it computes on, of those that the node has.
    """

    address: str
    cpus: int = 1
    gpus: float = 0.0
    memory: int = 0
    device: DeviceName = "cpu"

    def __post_init__(self) -> None:
        known = self.address in (AUTO, LOCAL) or re.fullmatch(r"[^/]+:\d{1,5}", self.address)
        require(bool(known), "ray", "HOST:PORT, auto or local", self.address)
        require(self.cpus >= 1, "ray_cpus", "at least 1", self.cpus)
        whole = self.gpus <= 1 or self.gpus == int(self.gpus)
        require(self.gpus >= 0 and whole, "ray_gpus", "a share from 0 to 1, or a whole number", self.gpus)
        require(self.memory >= 0, "ray_memory", "at least 0", self.memory)

    @property
    def resources(self) -> dict[str, float]:
        """What a cell needs, by Ray's names."""
        found = {"CPU": self.cpus, "GPU": self.gpus, "memory": self.memory * MB}
        return {name: amount for name, amount in found.items() if amount}

    @property
    def needs(self) -> str:
        """The same in words."""
        return f"{self.cpus} cores, {self.gpus:g} GPU and {self.memory} MB"


def fits(place: Place) -> bool:
    """Whether some node of the cluster has what a cell needs."""
    import ray

    having = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return any(all(of.get(name, 0) >= amount for name, amount in place.resources.items()) for of in having)


@dataclass
class Away:
    """A cell that was sent, and the lock of its folder."""

    cell: Cell
    lock: ExitStack
    begun: bool = False  # it was heard of


class Errands:
    """A study's cells on the cluster that this process is connected to."""

    def __init__(
        self, place: Place, cells: Sequence[Cell], watch: Watch, stop: Stop, checkpoint_seconds: float
    ) -> None:
        import ray

        self.place = place
        self.cells = cells
        self.watch = watch
        self.stop = stop
        self.checkpoint_seconds = checkpoint_seconds
        remote: Any = ray.remote  # whose types know no keywords
        self.task = remote(
            num_cpus=place.cpus,
            num_gpus=place.gpus,
            memory=place.memory * MB or None,
            max_retries=0,  # what is lost is sent again from here, with the checkpoint that it had come to
            scheduling_strategy="SPREAD",
        )(run_away)
        self.news, self.halt = _queue(), _queue()
        self.away: dict[ObjectRef[Ended], Away] = {}
        self.ended: dict[Cell, Outcome] = {}
        self.waiting: set[Cell] = set()  # for another process
        self.losses: Counter[Cell] = Counter()  # in a row
        self.resend: dict[Cell, float] = {}  # not before this time
        self.stopping = self.told = False

    def run(self) -> list[Outcome]:
        """Bring every cell to its end.

        Raises:
            InputError: a node cannot run this pah or has another, or a file cannot be written here.
            StoppedError: `stop` said so; what the cells sent is saved.
            ray.exceptions.RayError: the cluster is lost.
        """
        look = 0.0
        try:
            while len(self.ended) < len(self.cells):
                if self.stop():
                    self._call_back()
                    raise StoppedError
                if time.monotonic() >= look:
                    self._send_all()
                    look = time.monotonic() + LOOK_AGAIN
                self._receive()
            return [self.ended[cell] for cell in self.cells]
        finally:
            for away in self.away.values():
                away.lock.close()

    def _send_all(self) -> None:
        """Send what nobody is at: at first all cells, later those that were lost or let go by another process."""
        sent = {away.cell for away in self.away.values()}
        for cell in self.cells:
            if cell not in self.ended and cell not in sent and time.monotonic() >= self.resend.get(cell, 0.0):
                self._send(cell)
        if not (self.told or fits(self.place)):
            self.told = True
            for away in list(self.away.values())[:1]:
                self.watch(away.cell, Waiting(f"for a node with {self.place.needs}: the cluster has none"))

    def _send(self, cell: Cell) -> None:
        if (cell.folder / METRICS).is_file():
            self._end(cell)
            return
        lock = ExitStack()
        try:
            lock.enter_context(locked(cell.folder))
        except BusyError:
            if cell not in self.waiting:
                self.watch(cell, Waiting())
            self.waiting.add(cell)
            return
        except InputError as error:
            self._end(cell, str(error))
            return
        sent = self.task.options(name=f"pah {cell.folder.name}").remote(
            cell.folder.name,
            cell.config.as_dict(),
            pack(cell.folder),
            study=str(cell.folder.parent),
            home=os.getcwd(),
            threads=self.place.cpus,
            device=self.place.device,
            same=identity(),
            checkpoint_seconds=self.checkpoint_seconds,
            news=self.news,
            halt=self.halt,
        )
        self.away[sent] = Away(cell, lock)

    def _receive(self) -> None:
        """Write down what came back; waits a moment for it."""
        import ray

        if not self.away:
            time.sleep(PAUSE)
            return
        done, _ = ray.wait(list(self.away), timeout=PAUSE)
        for item in self.news.get_nowait_batch(self.news.qsize()):
            self._hear(News(*item))
        for sent in done:
            self._collect(sent)

    def _hear(self, news: News) -> None:
        away = next((of for of in self.away.values() if of.cell.folder.name == news.name), None)
        if away is None:  # from a node that was given up
            return
        away.begun = True
        if news.files:
            unpack(news.files, away.cell.folder)
            del self.losses[away.cell]
        self.watch(away.cell, Running(*news.progress, news.where))

    def _collect(self, sent: "ObjectRef[Ended]") -> None:
        import ray
        from ray.exceptions import RayError

        away = self.away.pop(sent)
        with away.lock:
            try:
                ended = ray.get(sent)
                unpack(ended.files, away.cell.folder)
            except RayError as error:
                if not self.stopping:  # else it was called off, at whatever moment
                    self._lost(away.cell, error)
                return
        if ended.how == "refused":
            raise InputError(ended.reason)
        if ended.how == "ended":
            self._end(away.cell, ended.reason)

    def _lost(self, cell: Cell, error: Exception) -> None:
        """Leave the cell to be sent again, unless nothing comes of it."""
        from ray.exceptions import RayTaskError

        if isinstance(error, RayTaskError):  # not the cell's, whose own errors come back as its reason
            raise InputError(f"ray: expected nodes that can run this pah, got: {last_line(str(error))}")
        self.losses[cell] += 1
        if self.losses[cell] >= LOST:
            self._end(cell, f"lost {LOST} times without a new checkpoint: {last_line(str(error))}")
        else:
            self.resend[cell] = time.monotonic() + AGAIN * 2 ** (self.losses[cell] - 1)
            self.watch(cell, Waiting("its node was lost; goes on from its checkpoint"))

    def _end(self, cell: Cell, reason: str = "") -> None:
        """Note how the cell ended: with metrics in its folder, or for a reason without."""
        found = (cell.folder / METRICS).is_file()
        if found:
            (cell.folder / ERROR).unlink(missing_ok=True)  # of an earlier try
        metrics = files.read_json(cell.folder / METRICS) if found else None
        self.ended[cell] = Outcome(cell, metrics, "" if found else reason)
        self.watch(cell, self.ended[cell])

    def _call_back(self) -> None:
        """Have all cells saved, sent and stopped."""
        import ray

        self.stopping = True
        for sent, away in self.away.items():
            if not away.begun:
                ray.cancel(sent)
        self.halt.put(True)
        until = time.monotonic() + GRACE
        while self.away and time.monotonic() < until:
            self._receive()


def _queue() -> "Queue":
    """A queue that lives where this process does, for as long as it does."""
    import ray
    from ray.util.queue import Queue
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})


def last_line(text: str) -> str:
    """Where Ray's messages say what happened."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
