"""A lesson's process as its server sees it: it is told words, and says events (`pah.app.lesson` is the other side)."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any


class LessonProcess:
    """Begins a lesson in its folder.

    Args:
        folder: Of the lesson.
        request: What is to be taught, a `Request` as a dictionary.
        take: Called with this process and each event that it says, from a thread of its own.
        ended: Called with this process when it has ended.
    """

    def __init__(
        self,
        folder: Path,
        request: dict[str, Any],
        take: Callable[["LessonProcess", dict[str, Any]], None],
        ended: Callable[["LessonProcess"], None],
    ) -> None:
        threads = str(max(1, (os.cpu_count() or 1) - 1))
        # decoded images are cached where they are deleted with the lesson
        environment = os.environ | {"OMP_NUM_THREADS": threads, "HF_DATASETS_CACHE": str(folder / "cache")}
        self._child = subprocess.Popen(
            [sys.executable, "-P", "-m", "pah.app.lesson"],  # nothing is imported from where images are
            cwd=folder,  # so that images are named without where they lay
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,  # Ctrl-C at the server is not for the lesson
        )
        self.pid = self._child.pid
        self.tell(json.dumps(request))
        threading.Thread(target=self._listen, args=(take, ended), daemon=True).start()

    def tell(self, line: str) -> None:
        """Say a line to the process, if it is still there."""
        assert self._child.stdin is not None, "it was started with one"
        with suppress(BrokenPipeError, ValueError):  # it ended a moment ago
            self._child.stdin.write(f"{line}\n")
            self._child.stdin.flush()

    def kill(self) -> None:
        """End it at once."""
        self._child.kill()
        self._child.wait()

    def _listen(
        self,
        take: Callable[["LessonProcess", dict[str, Any]], None],
        ended: Callable[["LessonProcess"], None],
    ) -> None:
        with self._child:
            for line in self._child.stdout or ():
                take(self, json.loads(line))
        ended(self)
