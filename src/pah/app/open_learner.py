"""Which learner the page shows: the one it was started for, or the one that its first visitor chooses."""

import threading
from collections.abc import Sequence
from pathlib import Path

from pah.app.service import NAME, Service
from pah.core.config import InputError
from pah.learner.store import LEARNER

TOUR_NAME = "digits-tour"


class Rooms:
    """The service of a learner; None until one is chosen among those in `learners`, or made there."""

    def __init__(self, folder: Path | None, learners: Path, roots: Sequence[Path] = ()) -> None:
        self.learners, self.roots = learners, roots
        self.uploads: Path | None = None  # where the server puts what it receives and hands out
        self._lock = threading.Lock()
        self.service = Service(folder, roots) if folder is not None else None

    @property
    def names(self) -> list[str]:
        """The learners that can be chosen."""
        return sorted(
            path.parent.name for path in self.learners.glob(f"*/{LEARNER}") if NAME.fullmatch(path.parent.name)
        )

    def choose(self, name: str) -> Service:
        """Open the learner of that name, a new one if there is none; for all visitors, until the server ends.

        Raises:
            InputError: it is no name of a folder, or another learner was chosen.
        """
        if not NAME.fullmatch(name.strip()):
            raise InputError("name: expected 1 to 40 letters, digits, - and _, the first a letter or digit")
        with self._lock:
            if self.service is not None:
                raise InputError("learner: expected none to be chosen yet, got one that is open")
            self.service = Service(self.learners / name.strip(), self.roots)
            return self.service

    @property
    def open(self) -> Service:
        """The service; InputError if no learner was chosen yet."""
        if self.service is None:
            raise InputError("learner: expected one that is chosen, got none")
        return self.service

    def close(self) -> None:
        """End what goes on."""
        if self.service is not None:
            self.service.close()
