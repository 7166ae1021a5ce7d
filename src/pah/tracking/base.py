"""The interface of a tracker: one run in one experiment tracking tool."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from PIL.Image import Image


@dataclass(frozen=True)
class TrackedRun:
    """The description of a run for a tracker.

    Args:
        name: Name of the run.
        group: Name of its study, or of the benchmark if it belongs to no study.
        store: Folder for the tool's files, unless its environment variables name another place.
        config: Options by dotted name.
    """

    name: str
    group: str
    store: Path
    config: Mapping[str, Any]


class Tracker(ABC):
    """One run in one tool. An exception in a tracker does not stop the run."""

    packages: ClassVar[tuple[str, ...]]  # that the tracker imports
    extra: ClassVar[str] = "track"  # of pah, which installs the packages
    environment: ClassVar[Mapping[str, str]] = {}  # defaults of the tool's environment variables

    key: str  # by which the tool identifies the run
    resumable = True  # whether the tool keeps what an interrupted run has sent; otherwise all is sent again

    @abstractmethod
    def __init__(self, run: TrackedRun, key: str | None, last_step: int) -> None:
        """Start a run, or continue an earlier one.

        Args:
            run: the run.
            key: of the earlier run to continue; None to start a new one.
            last_step: the step up to which the earlier run was sent.
        """

    @abstractmethod
    def log_scalars(self, values: Mapping[str, float], step: int) -> None:
        """Send numbers by name, at a step."""

    @abstractmethod
    def log_picture(self, name: str, picture: Image, step: int) -> None:
        """Send an RGB picture."""

    def flush(self) -> None:  # noqa: B027 - not every tool buffers
        """Write buffered numbers, so that they are not lost if this process is killed."""

    @abstractmethod
    def close(self, finished: bool) -> None:
        """Close the run: `finished` is false if it was interrupted and may be continued later."""
