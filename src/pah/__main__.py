"""The command `pah`, and `python -m pah`."""

import gc
import sys


def main() -> int:
    """Run the command; returns its exit status."""
    gc.disable()  # what imports make is no garbage: looking for some would take a fifth of their time
    from pah.cli import main as command
    from pah.core import distributed

    gc.freeze()  # nor will it be
    gc.enable()
    status = command()
    if distributed.launched():
        distributed.leave(status)
    return status


if __name__ == "__main__":
    sys.exit(main())
