"""Stop a run within seconds after Ctrl-C or SIGTERM, with its state saved."""

import signal
from types import FrameType, TracebackType
from typing import Any, Self

from pah.runs.progress import StoppedError

STOPPED = (StoppedError, KeyboardInterrupt)  # the exceptions with which a stopped run ends


class Stop:
    """Tells whether Ctrl-C or SIGTERM was received; a second signal acts at once.

    It is a context manager. A run calls it after every step, and saves and stops if it returns True. If the run does
    not call it for `SECONDS`, for example during a long evaluation, a `KeyboardInterrupt` ends the run: the interrupted
    work is then repeated from the last checkpoint, with the same result.
    """

    SECONDS = 3.0
    HAS_ALARM = hasattr(signal, "setitimer")  # Windows has none: there only a second signal ends a long evaluation

    def __init__(self) -> None:
        self.received: list[int] = []
        self.previous_handlers: dict[int, Any] = {}

    def __call__(self) -> bool:
        """Return whether to stop. If so, the caller may take any time to save."""
        if self.received:
            self._set_alarm(0)
        return bool(self.received)

    @property
    def status(self) -> int:
        """The exit status that a shell expects after the signal. Only another process may have received one."""
        return 128 + (self.received or [signal.SIGINT])[0]

    def __enter__(self) -> Self:
        handlers: dict[int, Any] = {signal.SIGINT: self._handle, signal.SIGTERM: self._handle}
        if self.HAS_ALARM:
            handlers[signal.SIGALRM] = signal.default_int_handler
        for number, handler in handlers.items():
            self.previous_handlers[number] = signal.signal(number, handler)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._set_alarm(0)
        for number, handler in self.previous_handlers.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        self.received.append(number)
        signal.signal(number, self.previous_handlers[number])
        self._set_alarm(self.SECONDS)

    def _set_alarm(self, seconds: float) -> None:
        """Raise a `KeyboardInterrupt` in `seconds`; 0: never."""
        if self.HAS_ALARM:
            signal.setitimer(signal.ITIMER_REAL, seconds)
