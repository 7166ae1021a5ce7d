"""The server's side of a lesson's process: it sends commands and receives events (see `pah.app.lesson`)."""

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
    """A running process that teaches one lesson.

    Args:
        folder: Folder of the lesson.
        request: A `Request` as a dictionary.
        on_event: Called with this process and each event that it sends, from a thread of its own.
        on_end: Called with this process when it has ended.
    """

    def __init__(
        self,
        folder: Path,
        request: dict[str, Any],
        on_event: Callable[["LessonProcess", dict[str, Any]], None],
        on_end: Callable[["LessonProcess"], None],
    ) -> None:
        threads = str(max(1, (os.cpu_count() or 1) - 1))
        # the cache of decoded images is deleted together with the lesson
        environment = os.environ | {"OMP_NUM_THREADS": threads, "HF_DATASETS_CACHE": str(folder / "cache")}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "pah.app.lesson"],  # -P: do not import modules from the images' folder
            cwd=folder,  # the learner records image paths relative to it, not the server's paths
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,  # Ctrl-C in the server's terminal must not reach the lesson
        )
        self.pid = self._process.pid
        self.send(json.dumps(request))
        threading.Thread(target=self._listen, args=(on_event, on_end), daemon=True).start()

    def send(self, line: str) -> None:
        """Send a line to the process, if it is still running."""
        assert self._process.stdin is not None, "it was started with a pipe"
        with suppress(BrokenPipeError, ValueError):  # it has just ended
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()
        self._process.wait()

    def _listen(
        self,
        on_event: Callable[["LessonProcess", dict[str, Any]], None],
        on_end: Callable[["LessonProcess"], None],
    ) -> None:
        with self._process:
            for line in self._process.stdout or ():
                on_event(self, json.loads(line))
        on_end(self)
