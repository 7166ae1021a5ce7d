"""Errors and warnings as one line on stderr."""

import re
import sys

from pah.core import distributed
from pah.core.config import InputError, RecoveryWarning


def in_a_line(error: Exception, command: str) -> str | None:
    """What to say of an error that is no fault of the program; None if it is one."""
    reason = " ".join(str(error).split())
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, OSError):  # what nobody foresaw: a path too long, a folder that may not be entered
        return f"{error.filename or command}: expected to read or write, got: {error.strerror or reason}"
    # torch says "can't allocate memory", "out of memory" or "storage size calculation overflowed"
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and re.search("memory|overflowed", reason)):
        return f"{command}: expected enough memory, got: {reason or 'too little'}"
    return None


def show_warning(message: Warning | str, kind: type[Warning], *_: object) -> None:
    """Say what was damaged and made good in a line; what else a person asked Python to show, as it is."""
    print(f"pah: {message}" if kind is RecoveryWarning else f"{kind.__name__}: {message}", file=sys.stderr)


def say(line: str, status: int) -> int:
    """Tell why the command ends, once for all processes that work on it; returns its exit status."""
    if distributed.first_to_speak():
        print(f"pah: {line}", file=sys.stderr, flush=True)
    return status
