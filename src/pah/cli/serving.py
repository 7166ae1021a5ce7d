"""The command `pah app`: a web page on which a learner is asked and taught."""

import contextlib
import os
import queue
import signal
from collections.abc import Sequence
from pathlib import Path

import torch
from jsonargparse import ArgumentError, ArgumentParser, Namespace
from rich.console import Console

from pah.app.open_learner import OpenLearner
from pah.app.server import ServerOptions, serving
from pah.cli.arguments import split_arguments
from pah.cli.errors import readable_error
from pah.core.config import InputError

LEARNERS = "learners"  # default folder of the learners to choose from
PASSWORD = "PAH_PASSWORD"  # environment variable: every user of the machine can read a command line


def app(console: Console, arguments: list[str]) -> int:
    """Run `pah app`: serve the page until Ctrl-C or SIGTERM, which also interrupts a running lesson."""
    positional, named = split_arguments(arguments)
    options = _parse_options(named)
    if len(positional) > 1 or not all(folder.strip() for folder in positional):
        raise InputError(f"app: expected one learner folder or none, got {' '.join(positional) or 'an empty name'}")
    roots = [Path(root) for root in options.roots.split(",") if root]
    for root in roots:
        if not root.is_dir():
            raise InputError(f"roots: expected folders, got {root}")
    if positional and options.learners is not None:
        raise InputError(f"learners: expected none beside a learner to open, got {options.learners}")
    server = ServerOptions(options.host, options.port, options.user, _read_password(options.password_file))
    torch.set_num_threads(1)  # enough for answers; the other cores are for the lesson
    received: queue.SimpleQueue[int] = queue.SimpleQueue()
    opened = OpenLearner(Path(positional[0]) if positional else None, Path(options.learners or LEARNERS), roots)
    with serving(opened, server) as address:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, _: received.put(number))
        console.print(f"{address} (Ctrl-C ends it)", highlight=False, soft_wrap=True)
        while True:
            with contextlib.suppress(queue.Empty):  # a wait without an end cannot be interrupted on Windows
                return 128 + received.get(timeout=0.5)  # the exit status that a shell expects after a signal


def _read_password(file: str | None) -> str | None:
    """Return the password, and remove it from the environment, which the processes of lessons inherit."""
    from_environment = os.environ.pop(PASSWORD, None)
    if file is None:
        return from_environment
    try:
        return Path(file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: expected a file with a password, got: {error}") from None


def _parse_options(named: Sequence[str]) -> Namespace:
    parser = ArgumentParser(
        prog="pah app",
        exit_on_error=False,
        usage="pah app [LEARNER] [--host ADDRESS] [--port N] [--user NAME] [--password_file FILE] [--roots DIR,...]",
        description="Serve a web page to ask, teach and inspect a learner. If the folder has no learner, the first "
        f"lesson makes one. The password is read from --password_file, or from the environment variable {PASSWORD}.",
    )
    add = parser.add_argument
    add(
        "--host",
        type=str,
        default=ServerOptions.host,
        help="address to listen at; one that other machines reach needs --user and a password",
    )
    add("--port", type=int, default=ServerOptions.port, help="port to listen at; 0 for a free one")
    add("--user", type=str | None, default=None, help="user name of the login")
    add("--password_file", type=str | None, default=None, help=f"file with the login's password (default: {PASSWORD})")
    add("--roots", type=str, default="", help="DIR,...: folders on this machine from which visitors may teach images")
    learners_help = f"without LEARNER: folder of the learners to choose from (default: {LEARNERS})"
    add("--learners", type=str | None, default=None, help=learners_help)
    try:
        return parser.parse_args(list(named))
    except ArgumentError as error:
        raise readable_error(str(error), parser) from None
