"""Files that are either whole or not there, in JSON and YAML as well, and the lock of a folder.

Everything is JSON, YAML or safetensors: reading a file never runs code.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from pah.core.config import InputError

YAML_BYTES = 2**15  # of a configuration, at most: the largest of ours has a tenth of that
LOCK = ".lock"


def write_file(path: Path, data: bytes, *, keep: Path | None = None) -> None:
    """Write `data` so that at any moment, even a power cut, `path` holds all of the old file or all of the new.

    Args:
        path: Of the file; its folder is made if it is missing, but not that folder's own: who writes into a folder that
            has vanished meanwhile writes into nothing that anybody will look for.
        data: What it will hold.
        keep: A name under which the old file stays.

    Raises:
        InputError: the disk is full, or the folder cannot be written or has vanished; the old file is untouched.
    """
    new = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(exist_ok=True)
        with new.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if keep is not None and path.exists():
            _keep(path, keep)
        new.replace(path)
        _flush_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)
        raise InputError(f"{path}: expected to write {len(data)} bytes, got: {error.strerror or error}") from None


def _keep(path: Path, keep: Path) -> None:
    """Give a file a second name in its folder, in place of what has it now; the file keeps its own throughout."""
    second = keep.with_name(f".{keep.name}.new")
    second.unlink(missing_ok=True)
    try:
        os.link(path, second)
    except OSError:  # a file system without links, as FAT is: for a moment the file has its second name alone
        path.replace(keep)
        return
    second.replace(keep)
    second.unlink(missing_ok=True)  # both were names of one file: then replacing does nothing


def write_json(path: Path, content: object) -> None:
    """`content` as indented JSON, written whole or not at all."""
    write_file(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """The content of a JSON file; InputError if it is missing or no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: expected a JSON file, got: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: expected JSON, got: {error}") from None


class _Loader(yaml.SafeLoader):
    """YAML without aliases: a few lines of them stand for more than fits any memory, and options need none."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("an alias (*)")
        return super().compose_node(parent, index)


def read_yaml(path: Path) -> dict[Any, Any]:
    """The content of a YAML file; InputError if it is missing, no YAML, or holds no options."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: expected a configuration file, got: {error.strerror}") from None
    except ValueError as error:
        raise InputError(f"{path}: expected YAML, got: {error}") from None
    if len(text) > YAML_BYTES:
        raise InputError(f"{path}: expected a configuration of at most {YAML_BYTES} characters, got {len(text)}")
    try:
        content = yaml.load(text, _Loader)
    except Exception as error:  # its constructors of dates, numbers and truth values raise what they like
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: expected YAML, got: {reason}") from None
    if not isinstance(content, dict):
        came = "an empty file" if content is None else type(content).__name__
        raise InputError(f"{path}: expected options by name, got {came}")
    return content


class BusyError(InputError):
    """The folder is in use by another process."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder: a second process is refused. The system lets go of the lock even if the process is killed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK)
        lock.acquire(timeout=0)
    except Timeout:
        raise BusyError(f"{folder}: expected a free folder, got one in use by another process") from None
    except OSError as error:
        raise InputError(f"{folder}: expected a folder to write in, got: {error.strerror}") from None
    try:
        yield
    finally:
        lock.release()


def _flush_folder(folder: Path) -> None:
    """Make a rename in `folder` last through a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
