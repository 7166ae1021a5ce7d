"""The learner that the page shows: the one of the command line, or the one that the first visitor chooses."""

import threading
from collections.abc import Sequence
from pathlib import Path

from pah.app.service import NAME, Service
from pah.core.config import InputError
from pah.learner.store import LEARNER_FILE

TOUR_NAME = "digits-tour"


class OpenLearner:
    """Holds the service of the learner that is open; it is None until a visitor chooses one.

    Args:
        folder: Folder of the learner to open; None lets a visitor choose.
        learners: Folder of the learners that visitors can choose, in which new ones are made.
        roots: Folders on this machine below which lessons may lie.
    """

    def __init__(self, folder: Path | None, learners: Path, roots: Sequence[Path] = ()) -> None:
        self.learners, self.roots = learners, roots
        self.upload_folder: Path | None = None  # set by the server: its folder for uploads and downloads
        self._lock = threading.Lock()
        self.service = Service(folder, roots) if folder is not None else None

    @property
    def names(self) -> list[str]:
        """The names of the learners that can be chosen."""
        return sorted(
            path.parent.name for path in self.learners.glob(f"*/{LEARNER_FILE}") if NAME.fullmatch(path.parent.name)
        )

    def choose(self, name: str) -> Service:
        """Open the learner of that name, or a new one, for all visitors until the server ends.

        Raises:
            InputError: the name is not allowed for a folder, or a learner is already open.
        """
        if not NAME.fullmatch(name.strip()):
            raise InputError("name: expected 1 to 40 letters, digits, - and _, the first a letter or digit")
        with self._lock:
            if self.service is not None:
                raise InputError("learner: expected none to be chosen yet, got one that is open")
            self.service = Service(self.learners / name.strip(), self.roots)
            return self.service

    def require_service(self) -> Service:
        """Return the service.

        Raises:
            InputError: no learner was chosen yet.
        """
        if self.service is None:
            raise InputError("learner: expected one that is chosen, got none")
        return self.service

    def close(self) -> None:
        """Close the service, which ends a running lesson."""
        if self.service is not None:
            self.service.close()
