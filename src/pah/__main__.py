"""The command `pah`, and `python -m pah`."""

import gc
import sys


def main() -> int:
    """Run the command; returns its exit status."""
    gc.disable()  # what imports make is no garbage: looking for some would take a fifth of their time
    from pah import ranks
    from pah.cli import main as command

    gc.freeze()  # nor will it be
    gc.enable()
    status = command()
    if ranks.launched():
        ranks.leave(status)
    return status


if __name__ == "__main__":
    sys.exit(main())
