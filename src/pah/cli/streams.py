"""The standard streams of a command: a character that cannot be written, or a reader that leaves, does not end it."""

import io
import os
import sys
from typing import cast


class _Output(io.FileIO):
    """Writes to an open file descriptor. After the first error it keeps the error and discards all output.

    A command that has taught a learner for an hour must not lose it because nobody reads its output any more.

    Args:
        number: The file descriptor; it stays open when this object is closed.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number, "w", closefd=False)
        self.error: OSError | None = None

    def write(self, data: "memoryview | bytes", /) -> int:  # type: ignore[override]
        """Write the bytes and return how many were written, or how many were discarded."""
        if self.error is None:
            try:
                return super().write(data)
            except BlockingIOError:  # a busy reader, not one that left
                raise
            except OSError as error:
                self.error = error
        return len(data)


def protect_streams() -> None:
    """Make stdout and stderr accept any text, and keep them usable after their reader has left or the disk is full.

    Characters that the encoding lacks are replaced on stdout and escaped on stderr. Streams that the caller has closed
    are opened on the null device, so that no other file gets their number and receives what is printed.
    """
    _open_closed_streams()
    for name, errors in (("stdout", "replace"), ("stderr", "backslashreplace")):
        stream = getattr(sys, name)
        if not isinstance(stream, io.TextIOWrapper):
            continue
        if os.name == "nt":  # a console of Windows is not written to by its descriptor
            stream.reconfigure(errors=errors)
            continue
        stream.flush()
        raw = _Output(stream.fileno())
        setattr(
            sys,
            name,
            io.TextIOWrapper(
                cast("io.BufferedWriter", raw) if stream.write_through else io.BufferedWriter(raw),  # as with python -u
                encoding=stream.encoding,
                errors=errors,
                line_buffering=stream.line_buffering,
                write_through=stream.write_through,
            ),
        )


def _open_closed_streams() -> None:
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115 - stays open


def stdout_error() -> OSError | None:
    """Return the error after which stdout discards its output; None if there was none, or if it is not protected."""
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", getattr(sys.stdout, "buffer", None))
    return raw.error if isinstance(raw, _Output) else None


def reader_has_left() -> bool:
    """Return whether nobody reads stdout any more, as after `| head -1`, so that further output is in vain."""
    return isinstance(stdout_error(), BrokenPipeError)


def finish(status: int) -> int:
    """Flush stdout and return the exit status: 2 if stdout could not be written, unless its reader has left.

    Args:
        status: The exit status of the command.
    """
    sys.stdout.flush()
    error = stdout_error()
    if error is None or isinstance(error, BrokenPipeError):
        return status
    print(f"pah: stdout: expected to write, got: {error.strerror or error}", file=sys.stderr)
    return status or 2
