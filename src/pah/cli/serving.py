"""`pah app`: a page to ask and to teach a learner."""

import os
import queue
import signal
from collections.abc import Sequence
from pathlib import Path

import torch
from jsonargparse import ArgumentError, ArgumentParser, Namespace
from rich.console import Console

from pah.app.open_learner import Rooms
from pah.app.server import Door, serving
from pah.cli.arguments import bare_and_named
from pah.cli.parser import readable
from pah.core.config import InputError

PASSWORD = "PAH_PASSWORD"  # environment variable: a command line can be read by everybody on the machine


def app(console: Console, words: list[str]) -> int:
    """`pah app`: serve the page until Ctrl-C or SIGTERM; a lesson that goes on is interrupted."""
    bare, named = bare_and_named(words)
    options = _options(named)
    if len(bare) > 1 or not all(word.strip() for word in bare):
        raise InputError(f"app: expected one learner folder or none, got {' '.join(bare) or 'an empty name'}")
    roots = [Path(root) for root in options.roots.split(",") if root]
    for root in roots:
        if not root.is_dir():
            raise InputError(f"roots: expected folders, got {root}")
    door = Door(options.host, options.port, options.user, _password(options.password_file))
    torch.set_num_threads(1)  # an answer needs no more, and a lesson takes the other cores
    received: queue.SimpleQueue[int] = queue.SimpleQueue()
    with serving(Rooms(Path(bare[0]) if bare else None, Path(options.learners), roots), door) as address:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, _: received.put(number))
        console.print(f"{address} (Ctrl-C ends it)", highlight=False, soft_wrap=True)
        return 128 + received.get()  # what a shell expects of a process that a signal ended


def _password(file: str | None) -> str | None:
    """That of the file, or of the environment, from which it is taken away: a lesson's process has no use for it."""
    said = os.environ.pop(PASSWORD, None)
    if file is None:
        return said
    try:
        return Path(file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: expected a file with a password, got: {error}") from None


def _options(named: Sequence[str]) -> Namespace:
    parser = ArgumentParser(
        prog="pah app",
        exit_on_error=False,
        usage="pah app [LEARNER] [--host ADDRESS] [--port N] [--user NAME] [--password_file FILE] [--roots DIR,...]",
        description="A page to ask a learner, to teach it and to look at it; made by the first lesson if there is none "
        f"in the folder. The password is read from --password_file, or from the environment variable {PASSWORD}.",
    )
    add = parser.add_argument
    add("--host", type=str, default=Door.host, help="address to listen at; another needs a user and a password")
    add("--port", type=int, default=Door.port, help="port to listen at; 0: a free one")
    add("--user", type=str | None, default=None, help="who may come in")
    add("--password_file", type=str | None, default=None, help=f"its password (otherwise: {PASSWORD})")
    add("--roots", type=str, default="", help="DIR,...: folders on this machine whose images may be taught")
    add("--learners", type=str, default="learners", help="where learners are that the page makes, if none is named")
    try:
        return parser.parse_args(list(named))
    except ArgumentError as error:
        raise readable(str(error), parser) from None
