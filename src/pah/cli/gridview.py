"""What a person sees of a grid of runs: a live table on a terminal, plain lines elsewhere."""

from collections import Counter
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pah.cli.display import time_left
from pah.runs.run import Progress
from pah.study.grid import Cell, Event, Outcome, Waiting

WAITING, RUNNING, DONE, FAILED = "waiting", "running", "done", "failed"
COLOURS = {RUNNING: "bold", DONE: "green", FAILED: "red"}


class GridWatcher:
    """Shows a grid of runs as it goes: what is done, running, failed, and the time left."""

    def __init__(self, console: Console, cells: Sequence[Cell], what: str) -> None:
        self.console = console
        self.what = what
        self.states = {cell.folder.name: WAITING for cell in cells}
        self.details = {cell.folder.name: "" for cell in cells}
        self.seconds: list[float] = []  # of the cells that are done
        self.left: dict[str, float] = {}  # seconds, of the cells that run
        self.live = Live(console=console, refresh_per_second=2, transient=True) if console.is_terminal else None

    def __enter__(self) -> Self:
        if self.live:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.live.stop()

    def __call__(self, cell: Cell, happened: Event) -> None:
        """Note one event of a cell."""
        name = cell.folder.name
        if isinstance(happened, Outcome):
            self._ended(name, happened)
        elif isinstance(happened, Waiting):
            self._waiting(name, happened.reason)
        elif isinstance(happened, Progress):
            self._running(name, happened.state.task, len(happened.stream.tasks), happened.seconds_left)
        else:
            self._running(name, happened.task, happened.tasks, happened.seconds_left, f" on {happened.where}")
        if self.live:
            self.live.update(self.table())

    def _waiting(self, name: str, reason: str) -> None:
        self.left.pop(name, None)
        self.states[name], self.details[name] = WAITING, reason
        self._say(f"{name}  waits: {reason}")

    def _running(self, name: str, task: int, tasks: int, left: float, where: str = "") -> None:
        if self.states[name] != RUNNING:
            self._say(f"{name}  started{where}")
        self.states[name], self.left[name] = RUNNING, left
        self.details[name] = f"task {min(task + 1, tasks)}/{tasks}{where}"

    def _ended(self, name: str, outcome: Outcome) -> None:
        self.left.pop(name, None)
        if outcome.metrics is None:
            self.states[name], self.details[name] = FAILED, ""
            self._say(f"{name}  failed: {outcome.reason}")
            return
        self.seconds.append(outcome.metrics["seconds"])
        self.states[name] = DONE
        self.details[name] = "AA {average_accuracy:.2f}  FM {forgetting:.2f}".format(**outcome.metrics)
        self._say(f"{name}  done  {self.details[name]}  {self.summary()}")

    def _say(self, line: str) -> None:
        if not self.live:
            self.console.print(line, highlight=False, soft_wrap=True, markup=False)

    def summary(self) -> str:
        """How many cells are in which state, and the time that the rest would take at the mean pace so far."""
        count = Counter(self.states.values())
        left = "time left not known yet"
        if self.seconds:
            rest = sum(self.left.values()) + count[WAITING] * sum(self.seconds) / len(self.seconds)
            left = f"about {time_left(rest / max(1, len(self.left)))} left"
        return f"{count[DONE]}/{len(self.states)} {self.what} done, {count[FAILED]} failed, {left}"

    def table(self) -> Table:
        """A row a method, a column a seed or trial."""
        columns = list(dict.fromkeys(name.rpartition("-")[2] for name in self.states))
        table = Table(caption=self.summary())
        for title in ("method", *columns):
            table.add_column(title)
        for method in dict.fromkeys(name.rpartition("-")[0] for name in self.states):
            names = [f"{method}-{column}" for column in columns]
            table.add_row(method, *(self._shown(name) if name in self.states else "" for name in names))
        return table

    def _shown(self, name: str) -> Text:
        """A cell in colour: its state, or when it is done its figures."""
        state, detail = self.states[name], self.details[name]
        return Text(detail if state == DONE else f"{state} {detail}".strip(), COLOURS.get(state, ""))
