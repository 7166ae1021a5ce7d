"""The command `pah`, and `python -m pah`."""

import gc
import sys

from pah.cli import streams


def main() -> int:
    """Run the command and return its exit status."""
    streams.protect_streams()
    gc.disable()  # imports create no garbage, and collections would take a fifth of their time
    try:
        from pah.cli import main as command
        from pah.core import distributed
    except KeyboardInterrupt:
        return 130

    gc.freeze()  # imported objects never become garbage
    gc.enable()
    status = streams.finish(command())
    if distributed.is_distributed():
        distributed.exit_process(status)
    return status


if __name__ == "__main__":
    sys.exit(main())
