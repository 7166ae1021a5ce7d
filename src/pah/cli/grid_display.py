"""The display of a grid of runs: a live table on a terminal, plain lines elsewhere."""

from collections import Counter
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pah.cli.display import time_left
from pah.runs.progress import Progress
from pah.study.grid import Cell, Event, Outcome, Waiting

WAITING, RUNNING, DONE, FAILED = "waiting", "running", "done", "failed"
COLOURS = {RUNNING: "bold", DONE: "green", FAILED: "red"}


class GridDisplay:
    """Shows the states of the runs of a grid and the time left; a context manager that is called with each event.

    Args:
        console: Where to print.
        cells: The runs of the grid.
        kind: What the runs are called, such as "runs" or "trials".
    """

    def __init__(self, console: Console, cells: Sequence[Cell], kind: str) -> None:
        self.console = console
        self.kind = kind
        self.states = {cell.folder.name: WAITING for cell in cells}
        self.details = {cell.folder.name: "" for cell in cells}
        self.seconds: list[float] = []  # of the runs that are done
        self.seconds_left: dict[str, float] = {}  # of the runs that are running
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

    def __call__(self, cell: Cell, event: Event) -> None:
        """Show one event of a run."""
        name = cell.folder.name
        if isinstance(event, Outcome):
            self._show_outcome(name, event)
        elif isinstance(event, Waiting):
            self._show_waiting(name, event.reason)
        elif isinstance(event, Progress):
            self._show_running(name, event.state.task, len(event.stream.tasks), event.seconds_left)
        else:
            self._show_running(name, event.task, event.tasks, event.seconds_left, f" on {event.where}")
        if self.live:
            self.live.update(self.table())

    def _show_waiting(self, name: str, reason: str) -> None:
        self.seconds_left.pop(name, None)
        self.states[name], self.details[name] = WAITING, reason
        self._print(f"{name}  waits: {reason}")

    def _show_running(self, name: str, task: int, tasks: int, seconds_left: float, node: str = "") -> None:
        if self.states[name] != RUNNING:
            self._print(f"{name}  started{node}")
        self.states[name], self.seconds_left[name] = RUNNING, seconds_left
        self.details[name] = f"task {min(task + 1, tasks)}/{tasks}{node}"

    def _show_outcome(self, name: str, outcome: Outcome) -> None:
        self.seconds_left.pop(name, None)
        if outcome.metrics is None:
            self.states[name], self.details[name] = FAILED, ""
            self._print(f"{name}  failed: {outcome.reason}")
            return
        self.seconds.append(outcome.metrics["seconds"])
        self.states[name] = DONE
        self.details[name] = "AA {average_accuracy:.2f}  FM {forgetting:.2f}".format(**outcome.metrics)
        self._print(f"{name}  done  {self.details[name]}  {self.summary()}")

    def _print(self, line: str) -> None:
        if not self.live:
            self.console.print(line, highlight=False, soft_wrap=True, markup=False)

    def summary(self) -> str:
        """Return the number of runs that are done and failed, and the time left by the mean duration so far."""
        count = Counter(self.states.values())
        left = "time left not known yet"
        if self.seconds:
            rest = sum(self.seconds_left.values()) + count[WAITING] * sum(self.seconds) / len(self.seconds)
            left = f"about {time_left(rest / max(1, len(self.seconds_left)))} left"
        return f"{count[DONE]}/{len(self.states)} {self.kind} done, {count[FAILED]} failed, {left}"

    def table(self) -> Table:
        """Return a table with a row for each method and a column for each seed or trial."""
        columns = list(dict.fromkeys(name.rpartition("-")[2] for name in self.states))
        table = Table(caption=self.summary())
        for title in ("method", *columns):
            table.add_column(title)
        for method in dict.fromkeys(name.rpartition("-")[0] for name in self.states):
            names = [f"{method}-{column}" for column in columns]
            table.add_row(method, *(self._cell_text(name) if name in self.states else "" for name in names))
        return table

    def _cell_text(self, name: str) -> Text:
        """Return a run's state in colour, or its results once it is done."""
        state, detail = self.states[name], self.details[name]
        return Text(detail if state == DONE else f"{state} {detail}".strip(), COLOURS.get(state, ""))
