"""The images that a command line names: files, folders, patterns that the shell did not expand, and stdin."""

import glob
import io
import os
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from pah.core.config import InputError
from pah.data.image import IMAGE_SUFFIXES

STDIN = "-"


class ImagePaths:
    """The image files that the arguments name, in the order of the arguments and of the names in a folder.

    Args:
        arguments: Files, folders (searched with all folders in them), patterns, and "-" for paths on stdin, one a line.
        suffixes: How the names of files in folders end.

    Attributes:
        left_out: Files and folders that were left out because their names are not those of images, or because they are
            links to folders.
        first_left_out: One of them.
    """

    def __init__(self, arguments: Sequence[str], suffixes: Collection[str] = IMAGE_SUFFIXES) -> None:
        self.arguments = arguments
        self.suffixes = suffixes
        self.left_out = 0
        self.first_left_out = ""

    def find(self) -> list[str] | Iterator[str]:
        """Return the paths as a list, or, if some come from stdin, one after another as they arrive.

        Raises:
            InputError: a folder has no images or cannot be read, or no file matches a pattern.
        """
        return self._find() if STDIN in self.arguments else list(self._find())

    def _find(self) -> Iterator[str]:
        for argument in self.arguments:
            if argument == STDIN:
                for path in _paths_on_stdin():
                    yield from self._images_or_itself(path)
            else:
                for path in _expand(argument):
                    yield from self._images(path) if os.path.isdir(path) else [path]

    def _images_or_itself(self, path: str) -> list[str]:
        """Return the images of a folder; the folder if it has none, which is then reported with the other files."""
        try:
            return list(self._images(path)) if os.path.isdir(path) else [path]
        except InputError:
            return [path]

    def _images(self, folder: str) -> Iterator[str]:
        """Yield the image files of a folder and of all folders in it; hidden ones are not listed, as with `ls`."""
        found = False
        for parent, folders, files in os.walk(folder, onerror=_refuse):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in [name for name in folders if os.path.islink(os.path.join(parent, name))]:
                self._leave_out(os.path.join(parent, name))  # os.walk does not follow it
            for name in sorted(name for name in files if not name.startswith(".")):
                path = os.path.join(parent, name)
                if Path(name).suffix.lower() in self.suffixes:
                    found = True
                    yield path
                else:
                    self._leave_out(path)
        if not found:
            kind = "images" if self.suffixes is IMAGE_SUFFIXES else f"files {' or '.join(sorted(self.suffixes))}"
            raise InputError(f"{folder}: expected {kind} in the folder or in the folders in it, found none")

    def _leave_out(self, path: str) -> None:
        self.left_out += 1
        self.first_left_out = self.first_left_out or path


def _refuse(error: OSError) -> None:
    raise InputError(f"{error.filename}: expected a folder to read, got: {error.strerror or error}")


def _expand(argument: str) -> list[str]:
    """Return the files that match a pattern; an argument that is a file, or no pattern, stands for itself."""
    if not glob.has_magic(argument) or os.path.lexists(argument):
        return [argument]
    if not (paths := sorted(glob.glob(argument, recursive=True))):
        raise InputError(f"{argument}: expected a file, or a pattern of files, found none")
    return paths


def _paths_on_stdin() -> Iterator[str]:
    """Yield the lines of stdin; names that are no text keep their bytes, as those of arguments do."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding=sys.getfilesystemencoding(), errors="surrogateescape", newline="\n")
    for line in sys.stdin:
        if path := line.removesuffix("\n").removesuffix("\r"):
            yield path
