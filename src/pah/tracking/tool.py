"""What a tracker is: a run in a tool, told of by a few calls."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from PIL.Image import Image


@dataclass(frozen=True)
class Subject:
    """A run as a tool is told of it.

    Args:
        name: The run's.
        group: That of the study whose cell it is, or of the benchmark.
        store: The folder of the tool's files, unless its environment variables name another place.
        config: Options by dotted name.
    """

    name: str
    group: str
    store: Path
    config: Mapping[str, Any]


class Tool(ABC):
    """One run in one tool. Whatever it raises, the run goes on without it."""

    packages: ClassVar[tuple[str, ...]]  # that it imports
    extra: ClassVar[str] = "track"  # that brings them
    environment: ClassVar[Mapping[str, str]] = {}  # the tool's own variables, where they are not set

    key: str  # by which the tool finds the run again
    kept = True  # whether what a run sent before it was cut is still there; if not, it is sent again

    @abstractmethod
    def __init__(self, run: Subject, known: str | None, after: int) -> None:
        """Begin a run, or go on with the one `known`, which was sent up to the step `after`."""

    @abstractmethod
    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Numbers by name, at a step."""

    @abstractmethod
    def picture(self, name: str, picture: Image, step: int) -> None:
        """A picture, RGB."""

    def flush(self) -> None:  # noqa: B027 - not every tool holds numbers back
        """See to it that what was sent outlives this process."""

    @abstractmethod
    def close(self, finished: bool) -> None:
        """The run is over, or it was cut and may go on later."""
