"""Ctrl-C and SIGTERM: a run saves and stops within seconds, wherever it is."""

import signal
from types import FrameType, TracebackType
from typing import Any, Self

from pah.runs.run import StoppedError

STOPPED = (StoppedError, KeyboardInterrupt)  # how a run ends that was asked to


class Stop:
    """Whether Ctrl-C or SIGTERM came. A second one acts at once.

    Who asks is at the end of a step, and saves. Where nobody asks for so many seconds, as in the evaluation of many
    tasks, what goes on is cut off by a `KeyboardInterrupt`: it would be done again, and not otherwise, from the last
    checkpoint.
    """

    SECONDS = 3.0

    def __init__(self) -> None:
        self.received: list[int] = []
        self.before: dict[int, Any] = {}

    def __call__(self) -> bool:
        """Whether to stop; who asks will, and may take the time to save."""
        if self.received:
            signal.setitimer(signal.ITIMER_REAL, 0)
        return bool(self.received)

    @property
    def status(self) -> int:
        """What a shell expects of a process that was stopped by the signal, which may have come to another process."""
        return 128 + (self.received or [signal.SIGINT])[0]

    def __enter__(self) -> Self:
        for number, handler in (
            (signal.SIGINT, self._note),
            (signal.SIGTERM, self._note),
            (signal.SIGALRM, signal.default_int_handler),
        ):
            self.before[number] = signal.signal(number, handler)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.received.append(number)
        signal.signal(number, self.before[number])
        signal.setitimer(signal.ITIMER_REAL, self.SECONDS)
