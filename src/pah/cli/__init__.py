"""The command `pah`. Only this package parses arguments and prints."""

from pah.cli.main import main

__all__ = ["main"]
