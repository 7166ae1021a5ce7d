"""Where the files of a data set are, and how its tables are made: Parquet, image files, the hub, data in memory."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from pah.core.config import InputError
from pah.core.hub import hub_is_reachable
from pah.data.columns import FilePaths, SplitTables
from pah.data.image import first_line
from pah.data.labelled_splits import TableReading
from pah.data.links import refuse_outward_links
from pah.data.listing import (
    IMAGE_PLACE,
    TEST_SPLITS,
    FolderListing,
    count_left_out,
    describe_left_out,
    list_class_folders,
    list_tiny_imagenet,
    missing_train_error,
    unknown_split_error,
)
from pah.data.metadata_files import list_metadata
from pah.data.parquet_files import other_splits, parquet_files, require_all_shards
from pah.data.read_options import DEFAULT_READING, ReadOptions

if TYPE_CHECKING:
    import datasets  # imported inside functions, as pyarrow.dataset is: a run from the cache saves this second
    import pyarrow.dataset

HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")  # name or owner/name


@dataclass(frozen=True)
class LocatedSource:
    """A data set that has been located but not decoded.

    Args:
        tables: The splits, the training split first; not made if the cache has the data set.
        files: All files of the data set: while these are unchanged, so is the data set.
        how: How the tables are read.
        fingerprint: That of a data set in memory, which has no files.
        notes: What is left out of a folder, and where the data come from, in words.
        missing: Files that the data set names and that do not exist; they are left out.
    """

    tables: SplitTables
    files: list[Path]
    how: TableReading
    fingerprint: str | None = None
    notes: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


def locate(data: str, options: ReadOptions) -> LocatedSource:
    """Return the data set of a path or a hub id."""
    path = Path(os.path.expanduser(data))  # Path's own method raises an error for an unknown user
    if data and path.is_dir():
        return _locate_in_folder(path.resolve(), data, options)
    if path.suffix.lower() == ".parquet" and path.is_file():
        return _one_file(path.resolve(), options)
    if path.exists() or not HUB_ID.fullmatch(data):
        kind = "a file" if path.is_file() else "a path that does not exist"
        raise InputError(f"{data!r}: expected a folder of images or Parquet files or a hub id, got {kind}")
    return _locate_on_hub(data, options)


def _one_file(file: Path, options: ReadOptions) -> LocatedSource:
    """Return a Parquet file as a data set of one split."""
    how = TableReading(options, FilePaths(file.parent, options.follow_links), has_splits=False)
    return LocatedSource({"train": cache(partial(_parquet_table, [file]))}, [file], how)


def list_folder(folder: Path, data: str, options: ReadOptions = DEFAULT_READING) -> FolderListing:
    """Return the image files of a folder without opening them; InputError, with the name `data`, if there are none."""
    listing = list_tiny_imagenet(folder, data, options.test_split, skip_missing=options.skip_unreadable)
    if listing is not None and any(listing.files.values()):
        return listing
    listing = list_metadata(folder, data, options, only_beside=True)
    class_folders = None
    if listing is None:
        class_folders = list_class_folders(folder, data, options.test_split)
        if class_folders is None or len(class_folders.class_names) < 2:  # otherwise the metadata are about these
            listing = list_metadata(folder, data, options, only_beside=False)
    listing = listing or class_folders
    if listing is None or not any(listing.files.values()):
        raise InputError(
            f"{data}: expected train-*.parquet, train/<class>/ folders or <class>/ folders with images, found no images"
        )
    return listing


def list_images(folder: Path, data: str) -> FolderListing:
    """Return the image files that `load_source` would use of a folder, without opening them.

    Args:
        folder: The data set's folder.
        data: Its name, for messages.

    Raises:
        InputError: the folder contains Parquet files, or no image files, or lacks a training split.
    """
    if parquet_files(folder):
        raise InputError(f"{data}: expected folders of image files, got Parquet files")
    return list_folder(folder, data)


def locate_in_memory(data: datasets.Dataset | datasets.DatasetDict, options: ReadOptions) -> LocatedSource:
    """Return a data set in memory; of a single split, a fixed fifth of each class becomes the test split."""
    import datasets

    has_splits = isinstance(data, datasets.DatasetDict)
    splits = {str(split): part for split, part in data.items()} if has_splits else {"train": data}
    tables = _split_tables(splits, "data set", options)
    fingerprint = "/".join(
        f"{name}={splits[name]._fingerprint}" if has_splits else data._fingerprint for name in tables
    )
    return LocatedSource(tables, [], TableReading(options, has_splits=has_splits), fingerprint)


def _locate_in_folder(folder: Path, data: str, options: ReadOptions) -> LocatedSource:
    if not options.follow_links:
        refuse_outward_links(folder, data)
    parquet = _locate_parquet(folder, data, options)
    return parquet or _locate_images(folder, list_folder(folder, data, options), options)


def _locate_parquet(folder: Path, data: str, options: ReadOptions) -> LocatedSource | None:
    """Return the Parquet files of a folder; None if there are none."""
    files_by_split = parquet_files(folder, options.test_split)
    if not files_by_split:
        return None
    others = other_splits(files_by_split)
    if options.test_split is not None and options.test_split not in files_by_split:
        raise unknown_split_error(data, options.test_split, [*files_by_split, *others])
    if "train" not in files_by_split:
        raise missing_train_error(data, files_by_split)
    for files in files_by_split.values():
        require_all_shards(files, data)
    tables = {split: cache(partial(_parquet_table, files)) for split, files in files_by_split.items()}
    all_files = [file for files in files_by_split.values() for file in files]
    notes: tuple[str, ...] = (f"not used: the Parquet files of {', '.join(others)}",) if others else ()
    images = sum(count for kind, count in count_left_out(folder, ()).items() if kind.endswith(IMAGE_PLACE))
    notes += (f"left out: {images} image files, as the Parquet files are used",) if images else ()
    how = TableReading(options, FilePaths(folder, options.follow_links))
    return LocatedSource(tables, all_files, how, notes=notes)


def _parquet_table(files: Sequence[Path]) -> pyarrow.dataset.Dataset:
    import pyarrow.dataset

    return pyarrow.dataset.dataset(files)


def _locate_images(folder: Path, listing: FolderListing, options: ReadOptions) -> LocatedSource:
    image_files = [file for split in listing.files.values() for file, _ in split]
    # with `skip_unreadable`, a link to nothing is left out, but it has no size and time
    present = [file for file in image_files if not options.skip_unreadable or file.exists()]
    tables = {split: cache(partial(_image_table, listing.class_names, files)) for split, files in listing.files.items()}
    paths = FilePaths(folder, options.follow_links, checked=True)
    asked = replace(options, label_column=None) if listing.from_metadata else options
    how = TableReading(asked, paths, keep_all_names=True, divide_by_name=True, has_splits=False)
    return LocatedSource(
        tables,
        [*listing.annotation_files, *listing.class_folders, *present],
        how,
        notes=listing.notes + describe_left_out(folder, {*image_files, *listing.annotation_files}),
        missing=listing.missing,
    )


def _image_table(names: Sequence[str], files: Sequence[tuple[Path, str]]) -> pyarrow.dataset.Dataset:
    """Return the image files of a split as an Arrow table."""
    import datasets
    import pyarrow.dataset

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(names))})
    label_of = {name: y for y, name in enumerate(names)}
    images = [{"bytes": None, "path": str(file)} for file, _ in files]
    labels = [label_of[name] for _, name in files]
    table = pyarrow.table({"image": images, "label": labels}, schema=features.arrow_schema)
    return pyarrow.dataset.dataset(table)


def _locate_on_hub(data: str, options: ReadOptions) -> LocatedSource:
    """Return the data set of a hub id; it is downloaded unless it is in the cache of `datasets`."""
    import datasets

    online = hub_is_reachable()
    try:
        with _hub_settings(online):
            loaded = datasets.load_dataset(data)
    except Exception as error:  # the hub, its client and the builders of data sets raise many kinds of errors
        reason = first_line(error) if online else "a hub that cannot be reached, and no copy in its cache"
        raise InputError(
            f"{data!r}: expected a folder or a data set of the Hugging Face hub, got no folder {data} here, "
            f"and no data set {data} on the hub ({reason}); "
            "use --data PATH with a folder of Parquet files or of class folders"
        ) from error
    splits = {str(split): part for split, part in loaded.items()}
    tables = _split_tables(splits, data, options)
    files = [Path(file["filename"]) for split in tables for file in splits[split].cache_files]
    note = f"images of {data} on the Hugging Face hub, as there is no folder of this name here"
    return LocatedSource(tables, files, TableReading(options), notes=(note,))


def _split_tables(splits: Mapping[str, datasets.Dataset], data: str, options: ReadOptions) -> SplitTables:
    """Return the tables of splits, the training split first.

    Raises:
        InputError: there is no training split, or no split of the name that is asked for.
    """
    if "train" not in splits:
        raise missing_train_error(data, splits)
    if options.test_split is not None and options.test_split not in splits:
        raise unknown_split_error(data, options.test_split, splits)
    candidates = [name for name in (options.test_split, *TEST_SPLITS) if name in splits]
    names = dict.fromkeys(["train", *candidates, *splits])
    return {str(name): cache(partial(_dataset_table, splits[str(name)])) for name in names}


def _dataset_table(part: datasets.Dataset) -> pyarrow.dataset.Dataset:
    """Return a split as an Arrow table whose schema contains the features."""
    import pyarrow.dataset

    flat = part.flatten_indices() if part._indices is not None else part
    return pyarrow.dataset.dataset(flat.data.table.replace_schema_metadata(flat.features.arrow_schema.metadata))


@contextmanager
def _hub_settings(online: bool) -> Iterator[None]:
    """Let `datasets` show no progress and, unless `online`, use only its cache; the settings are global."""
    import datasets

    offline = datasets.config.HF_HUB_OFFLINE
    bars = datasets.config.HF_DATASETS_DISABLE_PROGRESS_BARS is None and not datasets.are_progress_bars_disabled()
    try:
        datasets.config.HF_HUB_OFFLINE = offline or not online
        if bars:
            datasets.disable_progress_bars()
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = offline
        if bars:
            datasets.enable_progress_bars()
