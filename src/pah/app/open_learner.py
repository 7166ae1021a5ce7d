"""The learner that the page shows: the one of the command line, or the one that the first visitor chooses."""

import secrets
import shutil
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from pah.app.service import NAME, Service
from pah.core import files
from pah.core.config import InputError
from pah.learner.store import LEARNER_FILE

TOUR_NAME = "digits-tour"
DOWNLOAD_SECONDS = 60  # after which a download that was written may be deleted


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
        if not NAME.fullmatch(name):
            raise InputError("name: expected 1 to 40 letters, digits, - and _, the first a letter or digit")
        with self._lock:
            if self.service is not None:
                raise InputError("learner: expected none to be chosen yet, got one that is open")
            self.service = Service(self.learners / name, self.roots)
            return self.service

    @property
    def private_folders(self) -> list[Path]:
        """The server's folders whose paths visitors must not see."""
        named = [self.learners, *self.roots]
        if self.service is not None:
            named += [self.service.folder, self.service.queue.home]
        if self.upload_folder is not None:
            named.append(self.upload_folder)
        folders = {folder for one in named for folder in (one, one.absolute(), one.resolve())}
        return [folder for folder in folders if len(folder.parts) > 1]  # a single name occurs in other words

    def require_service(self) -> Service:
        """Return the service.

        Raises:
            InputError: no learner was chosen yet.
        """
        if self.service is None:
            raise InputError("learner: expected one that is chosen, got none")
        return self.service

    def write_download(self, kind: str) -> Path:
        """Write a download of the learner as it is now, in a folder of its own, and return its path.

        Downloads that are older than a minute are deleted: each visitor fetches a download at once.
        """
        name, content = self.require_service().download(kind)
        assert self.upload_folder is not None, "the server sets it before it builds the page"
        home = self.upload_folder / "downloads"
        home.mkdir(exist_ok=True)
        for old in home.iterdir():
            with suppress(OSError):  # another call may be deleting it, too
                if time.time() - old.stat().st_mtime > DOWNLOAD_SECONDS:
                    shutil.rmtree(old, ignore_errors=True)
        path = home / secrets.token_urlsafe(16) / name
        files.write_file(path, content)
        return path

    def discard_upload(self, file: str | None) -> None:
        """Delete an uploaded file that is not needed any more. Files elsewhere stay."""
        if file is not None and self.upload_folder is not None:
            path = Path(file).resolve()
            if path.is_relative_to(self.upload_folder.resolve()):
                path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the service, which ends a running lesson."""
        if self.service is not None:
            self.service.close()
