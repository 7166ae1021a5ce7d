"""Print errors and warnings as one line on stderr."""

import re
import sys

from pah.cli.printing import one_line, say
from pah.core import distributed
from pah.core.config import InputError, RecoveryWarning


def user_message(error: Exception, command: str) -> str | None:
    """Return an error's message in one line; None if the error is a fault of the program."""
    reason = " ".join(str(error).split())
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, OSError):  # for example a path that is too long, or a folder without permission
        return f"{error.filename or command}: expected to read or write, got: {error.strerror or reason}"
    # torch says "can't allocate memory", "out of memory" or "storage size calculation overflowed"
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and re.search("memory|overflowed", reason)):
        return f"{command}: expected enough memory, got: {reason or 'too little'}"
    return None


def show_warning(message: Warning | str, kind: type[Warning], *_: object) -> None:
    """Print a warning; it replaces `warnings.showwarning`, which would also print a line of code."""
    text = one_line(str(message))
    print(f"pah: {text}" if kind is RecoveryWarning else f"{kind.__name__}: {text}", file=sys.stderr)


def end_with(message: str, status: int) -> int:
    """Print why the command ends, once for all processes of the command, and return its exit status."""
    if distributed.claim_error_report():
        say(message)
    return status
