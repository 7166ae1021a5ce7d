"""Stop a run within seconds after Ctrl-C or SIGTERM, with its state saved."""

import signal
from types import FrameType, TracebackType
from typing import Any, Self

from pah.runs.run import StoppedError

STOPPED = (StoppedError, KeyboardInterrupt)  # the exceptions with which a stopped run ends


class Stop:
    """Tells whether Ctrl-C or SIGTERM was received; a second signal acts at once.

    It is a context manager. A run calls it after every step, and saves and stops if it returns True. If the run does
    not call it for `SECONDS`, for example during a long evaluation, a `KeyboardInterrupt` ends the run: the interrupted
    work is then repeated from the last checkpoint, with the same result.
    """

    SECONDS = 3.0

    def __init__(self) -> None:
        self.received: list[int] = []
        self.previous_handlers: dict[int, Any] = {}

    def __call__(self) -> bool:
        """Return whether to stop. If so, the caller may take any time to save."""
        if self.received:
            signal.setitimer(signal.ITIMER_REAL, 0)
        return bool(self.received)

    @property
    def status(self) -> int:
        """The exit status that a shell expects after the signal. Only another process may have received one."""
        return 128 + (self.received or [signal.SIGINT])[0]

    def __enter__(self) -> Self:
        for number, handler in (
            (signal.SIGINT, self._handle),
            (signal.SIGTERM, self._handle),
            (signal.SIGALRM, signal.default_int_handler),
        ):
            self.previous_handlers[number] = signal.signal(number, handler)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self.previous_handlers.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        self.received.append(number)
        signal.signal(number, self.previous_handlers[number])
        signal.setitimer(signal.ITIMER_REAL, self.SECONDS)
