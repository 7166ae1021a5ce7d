"""The command `pah`: the only package that parses arguments or prints."""

from pah.cli.main import main

__all__ = ["main"]
