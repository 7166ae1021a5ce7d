"""The command `pah`, and `python -m pah`."""

import gc
import sys


def main() -> int:
    """Run the command and return its exit status."""
    gc.disable()  # imports create no garbage, and collections would take a fifth of their time
    from pah.cli import main as command
    from pah.core import distributed

    gc.freeze()  # imported objects never become garbage
    gc.enable()
    status = command()
    if distributed.is_distributed():
        distributed.exit_process(status)
    return status


if __name__ == "__main__":
    sys.exit(main())
