"""Files that are written whole or not at all, JSON and YAML files, and the lock of a folder.

Everything is stored as JSON, YAML or safetensors: reading such a file never runs code.
"""

import contextlib
import json
import os
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from pah.core.config import InputError

MAX_YAML_CHARACTERS = 2**15  # the largest configuration that pah writes has a tenth of it
LOCK = ".lock"
CAN_FLUSH_FOLDERS = hasattr(os, "O_DIRECTORY")  # Windows cannot open a folder


def write_file(path: Path, data: bytes, *, backup: Path | None = None) -> None:
    """Write `data` so that at any moment, even in a power cut, `path` is the whole old file or the whole new file.

    Args:
        path: The file. Its folder is created if it is missing, but not the folder above. If that one has been
            removed in the meantime, nobody would look for the file.
        data: The new content.
        backup: A path in the same folder under which the old file is kept.

    Raises:
        InputError: the disk is full, or the folder has been removed or cannot be written; the old file is unchanged.
    """
    temporary = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if backup is not None and path.exists():
            _link_backup(path, backup)
        temporary.replace(path)
        _flush_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise InputError(f"{path}: expected to write {len(data)} bytes, got: {error.strerror or error}") from None


def _link_backup(path: Path, backup: Path) -> None:
    """Make `backup` a second name of a file, in place of an older backup; the file keeps its own name throughout."""
    temporary = backup.with_name(f".{backup.name}.new")
    temporary.unlink(missing_ok=True)
    try:
        os.link(path, temporary)
    except OSError:  # a file system without links, such as FAT: for a moment the file has only its second name
        path.replace(backup)
        return
    temporary.replace(backup)
    temporary.unlink(missing_ok=True)  # if both were names of the same file, replacing did nothing


def write_json(path: Path, content: object) -> None:
    """Write `content` as indented JSON, whole or not at all."""
    write_file(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """Return the content of a JSON file; InputError if it is missing or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: expected a JSON file, got: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: expected JSON, got: {error}") from None


class _RepeatedKeyError(Exception):
    """A key stands twice in one group."""


class _Loader(yaml.SafeLoader):
    """A YAML loader that refuses aliases and repeated keys.

    Options need no aliases, and a few lines of them can expand beyond any memory. Of repeated keys YAML would use the
    last value only.
    """

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("an alias (*)")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[Any, int] = {}
        for key_node, _ in node.value:
            key, line = self.construct_object(key_node, deep=True), key_node.start_mark.line + 1
            if not isinstance(key, Hashable):
                continue  # the constructor refuses it
            if key in lines:
                raise _RepeatedKeyError(f"line {line}: {key}: expected once, got it in line {lines[key]} as well")
            lines[key] = line
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[Any, Any]:
    """Return the options in a YAML file.

    Raises:
        InputError: it is missing, too long, not YAML or not a mapping, or a key stands twice in one group.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: expected a configuration file, got: {error.strerror}") from None
    except ValueError as error:
        raise InputError(f"{path}: expected YAML, got: {error}") from None
    if len(text) > MAX_YAML_CHARACTERS:
        raise InputError(
            f"{path}: expected a configuration of at most {MAX_YAML_CHARACTERS} characters, got {len(text)}"
        )
    try:
        content = yaml.load(text, _Loader)
    except _RepeatedKeyError as error:
        raise InputError(f"{path}, {error}") from None
    except Exception as error:  # yaml's constructors of dates, numbers and booleans raise many kinds of errors
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: expected YAML, got: {reason}") from None
    if not isinstance(content, dict):
        kind = "an empty file" if content is None else type(content).__name__
        raise InputError(f"{path}: expected options by name, got {kind}")
    return content


class FolderBusyError(InputError):
    """The folder is in use by another process."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a folder, which is created if it is missing; the system releases the lock even if the process is killed.

    Raises:
        FolderBusyError: another process has locked it.
        InputError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK)
        lock.acquire(timeout=0)
    except Timeout:
        raise FolderBusyError(f"{folder}: expected a free folder, got one in use by another process") from None
    except OSError as error:
        raise InputError(f"{folder}: expected a folder to write in, got: {error.strerror}") from None
    try:
        yield
    finally:
        lock.release()


def _flush_folder(folder: Path) -> None:
    """Write a rename in `folder` to the disk, so that it survives a power cut."""
    if not CAN_FLUSH_FOLDERS:
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
