"""The Parquet files of a folder by split, in the layout of the Hugging Face hub; missing files are found."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from pah.core.config import InputError
from pah.data.listing import TEST_SPLITS

SHARD = re.compile(r"-(\d+)-of-(\d+)(?:\D.*)?$")  # the end of a file's name without its suffix
SPLIT = re.compile(r"(.+?)-\d")


def parquet_files(folder: Path, test_split: str | None = None) -> dict[str, list[Path]]:
    """Return the Parquet files of each split: in the folder or in its `data` folder.

    Args:
        folder: The data set's folder.
        test_split: Name of the test split, if it is none of the usual ones.
    """
    names = ("train", *TEST_SPLITS) if test_split is None else ("train", test_split)
    for base in (folder, folder / "data"):
        splits = {name: sorted(base.glob(f"{name}-*.parquet")) or _single_file(base, name) for name in names}
        if any(splits.values()):
            return {name: files for name, files in splits.items() if files}
    return {}


def other_splits(files_by_split: Mapping[str, Sequence[Path]]) -> list[str]:
    """Return the names of other splits in the folder of these Parquet files."""
    base = next(file.parent for files in files_by_split.values() for file in files)
    stems = (file.stem for file in sorted(base.glob("*.parquet")))
    names = (((found := SPLIT.match(stem)) and found[1]) or stem for stem in stems)
    return [name for name in dict.fromkeys(names) if name not in files_by_split]


def require_all_shards(files: Sequence[Path], data: str) -> None:
    """Raise InputError unless the files of a split are complete, as their names `train-00001-of-00003` say.

    Args:
        files: The files of the split.
        data: The data set's name, for messages.
    """
    numbers = [(int(found[1]), int(found[2]), file.name) for file in files if (found := SHARD.search(file.stem))]
    totals = {total: name for _, total, name in reversed(numbers)}
    if len(totals) > 1:
        first, second = list(totals.values())[:2]
        raise InputError(f"{data}: expected shards of one total in a split, got {second} and {first}")
    by_number: dict[int, str] = {}
    for number, _, name in numbers:
        if number in by_number:
            raise InputError(f"{data}: expected each shard once, got {by_number[number]} and {name}")
        by_number[number] = name
    for total, name in totals.items():
        first_number = 1 if total in by_number and 0 not in by_number else 0  # some programs count from 1
        if missing := [k for k in range(first_number, first_number + total) if k not in by_number]:
            found = SHARD.search(Path(name).stem)
            assert found is not None
            lacking = f"{Path(name).stem[: found.start()]}-{missing[0]:0{len(found[1])}}-of-{found[2]}"
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise InputError(f"{data}: expected {total} shards, got {len(by_number)}: {lacking}*.parquet{more} missing")


def _single_file(base: Path, name: str) -> list[Path]:
    return [file] if (file := base / f"{name}.parquet").is_file() else []
