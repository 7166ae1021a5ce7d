"""The files that the page stores about tasks: check images and prototypes. Those of forgotten tasks are deleted.

Each file is a safetensors file whose metadata name the task and the time of its lesson, so that a task that was
forgotten and taught again by another program is not taken for the earlier one.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open

from pah.learner import store
from pah.learner.store import TaughtTask

CHECKS, PROTOTYPES = "checks", "prototypes"  # folders in the page's folder of a learner
TEMPORARY = "tmp"  # how the names of temporary folders in the page's folder begin


def metadata_of(task: TaughtTask) -> dict[str, str]:
    """Return the metadata of a file that belongs to a task."""
    return {"task": task.name} | ({"taught": task.taught} if task.taught else {})


def belongs_to(file: Path, task: TaughtTask) -> bool:
    """Return whether a file belongs to this task, and not to a forgotten one of the same name."""
    metadata = _read_metadata(file)
    return metadata.get("task") == task.name and metadata.get("taught", task.taught) == task.taught


def delete_forgotten(home: Path, tasks: Sequence[TaughtTask]) -> list[str]:
    """Delete the check images and prototypes of all tasks but these.

    A damaged file stays, because it does not tell its task.

    Args:
        home: The page's folder of a learner.
        tasks: The tasks that the learner knows.

    Returns:
        The names of the tasks whose files were deleted.
    """
    deleted = set()
    for file in _stored_files(home):
        name = _read_metadata(file).get("task")
        if name is not None and not any(belongs_to(file, task) for task in tasks):
            file.unlink(missing_ok=True)
            deleted.add(name)
    return sorted(deleted)


def keep(file: Path, target: Path, task: str) -> None:
    """Move a lesson's file to its place. It replaces what was stored about an earlier task of the same name."""
    for old in target.parent.glob("*.safetensors"):
        if _read_metadata(old).get("task") == task:
            old.unlink()
    target.parent.mkdir(exist_ok=True)
    os.replace(file, target)


def knows_forgotten(model: Path, tasks: Sequence[TaughtTask]) -> bool:
    """Return whether the learner in `model`, which a lesson taught, knows a task that is none of these.

    The last task is the new one, which does not count.
    """
    known = {(task.name, task.taught) for task in tasks}
    return any((task.name, task.taught) not in known for task in store.load(model)[0].tasks[:-1])


def delete_temporary(home: Path) -> None:
    """Delete the temporary folders that a killed server left behind. No other server may use `home`."""
    for folder in home.glob(f"{TEMPORARY}*"):
        if folder.is_dir() and not folder.is_symlink():
            shutil.rmtree(folder, ignore_errors=True)


def _stored_files(home: Path) -> Iterator[Path]:
    for folder in (CHECKS, PROTOTYPES):
        yield from sorted((home / folder).glob("*.safetensors"))


def _read_metadata(file: Path) -> dict[str, str]:
    """Return the metadata of a file; empty if it is damaged or gone."""
    try:
        with safe_open(file, "pt") as opened:
            return dict(opened.metadata() or {})
    except (OSError, SafetensorError):
        return {}
