"""Errors and warnings as one line."""

import re
import sys
from typing import TYPE_CHECKING

from pah.cli.arguments import NUMBER_LISTS
from pah.cli.printing import one_line, say
from pah.core import distributed
from pah.core.config import InputError, RecoveryWarning, unknown_name_error

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser  # its import takes time, which other commands save

NOT_IN_YAML = {"help", "print_config", "print_shtab"}  # options of the parser that a YAML file cannot set


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


def readable_error(message: str, parser: "ArgumentParser") -> InputError:
    """Return jsonargparse's message as one line in the style of this program, with the nearest name if unknown."""
    line = " ".join(message.split())
    list_option = re.search(r"(stream\.\w+)\W*: Does not validate .*Given value: (.*)", line)
    if list_option and f"--{list_option[1]}" in NUMBER_LISTS:
        return InputError(f"{list_option[1]}: expected {NUMBER_LISTS[f'--{list_option[1]}'][1]}, got {list_option[2]}")
    unknown = re.search(r"unrecognized arguments: --([\w.]+)", line, re.I) or re.search(
        r"Option '([\w.]+)' is not accepted", line
    )
    if unknown:
        known = [action.dest for action in parser._actions if action.dest not in NOT_IN_YAML]
        return unknown_name_error("option", unknown[1], known)
    if short := re.search(r"unrecognized arguments: (-[^-].*)", line, re.I):
        return InputError(f"{short[1]}: expected an option, which begins with --; a file of that name follows --")
    line = re.sub(
        r"argument (--[\w.]+)(?:/--[\w.]+\+)?: expected one argument", r"option \1: expected a value, got none", line
    )
    line = re.sub(r'Parser key "([\w.]+)": ', r"\1: ", line)
    line = re.sub(r"<class '(\w+)'>|typing\.(?=Literal)", r"\1", line)
    line = re.sub(r"Expected a Literal\[(.*?)\]\. Got value: ", r"expected one of \1, got ", line)
    return InputError(re.sub(r"Expected an? (.*?)\. Got value: ", r"expected \1, got ", line))
