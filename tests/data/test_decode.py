"""The cache of decoded images: files that rows name, who may read it, and how it is cleared."""

import os
import stat
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from filelock import FileLock
from PIL import Image

from pah.cli import main
from pah.data import decode
from pah.data.decode_cache import cache_folder, clear_cache
from pah.data.read_options import ReadOptions
from pah.data.sources import load_source

FEATURES = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Use a separate cache for each test."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    assert cache_folder() == tmp_path / "cache" / "pah"
    return tmp_path / "cache" / "pah"


def write_images(folder: Path, level: int) -> list[str]:
    """Write four grey images, and return their names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{i}.png" for i in range(4)]
    for name in names:
        Image.new("L", (4, 4), level).save(folder / name)
    return names


def in_memory(paths: list[str]) -> datasets.DatasetDict:
    data = datasets.Dataset.from_dict({"image": paths, "label": [0, 1, 0, 1]}, features=FEATURES)
    return datasets.DatasetDict(train=data, test=data)


def parquet(folder: Path, paths: list[str]) -> str:
    """Write Parquet files whose rows have paths only."""
    rows = [{"bytes": None, "path": path} for path in paths]
    table = pyarrow.table({"image": rows, "label": [0, 1, 0, 1]}, schema=FEATURES.arrow_schema)
    folder.mkdir(exist_ok=True)
    for split in ("train", "test"):
        pyarrow.parquet.write_table(table, folder / f"{split}-00000-of-00001.parquet")
    return str(folder)


def levels(data: str | datasets.DatasetDict) -> set[int]:
    source = load_source(data, options=ReadOptions(follow_links=True))  # the rows' files are outside the folder
    return set(np.unique(source.train.pixels.numpy()).tolist())


@pytest.mark.parametrize("kind", ["memory", "parquet"])
def test_replaced_files_of_rows_are_decoded_again(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [str(tmp_path / "images" / name) for name in write_images(tmp_path / "images", 10)]
    data = in_memory(paths) if kind == "memory" else parquet(tmp_path / "set", paths)
    assert levels(data) == {10}
    write_images(tmp_path / "images", 200)
    for path in paths:
        os.utime(path, ns=(0, 0))  # older than before, as files of an archive are
    assert levels(data) == {200}
    with monkeypatch.context() as patched:
        patched.setattr(decode, "decode_image", None)
        assert levels(data) == {200}  # from the cache
    Image.new("L", (4, 4), 30).save(paths[3])
    assert levels(data) == {200, 30}


@pytest.mark.parametrize("kind", ["memory", "parquet"])
def test_relative_paths_are_those_of_the_working_directory(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = []
    for level in (10, 200):
        names = write_images(tmp_path / str(level), level)
        for name in names:  # nothing but the folder differs
            os.utime(tmp_path / str(level) / name, ns=(10**18, 10**18))
    data = in_memory(names) if kind == "memory" else parquet(tmp_path / "set", names)
    for level in (10, 200, 10):
        monkeypatch.chdir(tmp_path / str(level))
        assert levels(data) == {level}


def class_folders(root: Path) -> str:
    for split in ("train", "test"):
        for name in ("a", "b"):
            write_images(root / split / name, 10)
    return str(root)


def test_files_of_a_folder_are_not_recorded_twice(tmp_path: Path, cache: Path) -> None:
    load_source(class_folders(tmp_path / "set"))
    (described,) = cache.glob("*/set.json")
    assert '"row_files": {}' in described.read_text()


# Who may read it


def modes(folder: Path) -> set[str]:
    return {f"{stat.S_IMODE(path.stat().st_mode):o} {path.is_dir()}" for path in (folder, *folder.rglob("*"))}


@pytest.mark.skipif(os.name != "posix", reason="other systems have other permissions")
def test_only_the_user_can_read_the_cache(tmp_path: Path, cache: Path) -> None:
    data = class_folders(tmp_path / "set")
    load_source(data)
    private = {"700 True", "600 False"}
    assert modes(cache) == private
    for path in (cache, *cache.rglob("*")):  # as earlier versions left it
        path.chmod(0o755 if path.is_dir() else 0o644)
    assert len(load_source(data).train) == 8
    assert modes(cache) == private


# Clearing


def test_the_cache_can_be_cleared(tmp_path: Path, cache: Path) -> None:
    assert clear_cache() == 0  # there is none yet
    data = class_folders(tmp_path / "set")
    source = load_source(data)
    (key,) = [path.name for path in cache.glob("*/")]
    (cache / f"{key}.killed" / "set").mkdir(parents=True)
    (cache / f"{key}.killed" / "set" / "train_pixels.npy").write_bytes(bytes(1000))
    size = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file())
    with FileLock(f"{cache / key}.lock"):  # as a process that decodes this data set
        assert clear_cache() == 0
    assert clear_cache() == size > 1000
    assert not list(cache.glob("*/"))
    assert source.train.pixels.unique().tolist() == [10]  # what is open can be read on
    assert len(load_source(data).train) == 8


def test_a_link_in_the_cache_is_not_followed(tmp_path: Path, cache: Path) -> None:
    write_images(tmp_path / "photos", 10)
    cache.mkdir(parents=True)
    (cache / "link").symlink_to(tmp_path / "photos")
    assert clear_cache() == 0
    assert len(list((tmp_path / "photos").iterdir())) == 4


def test_the_command_clears_the_cache(tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load_source(class_folders(tmp_path / "set"))
    (key,) = [path.name for path in cache.glob("*/")]
    with FileLock(f"{cache / key}.lock"):
        assert main(["data", "--clear_cache"]) == 0
    assert capsys.readouterr().out == f"freed 0.0 MB in {cache}; data sets that a process is decoding were left\n"
    (cache / key / "train_pixels.npy").write_bytes(bytes(2_000_000))
    assert main(["data", "--clear-cache"]) == 0
    assert capsys.readouterr().out == f"freed 2.0 MB in {cache}\n"
    assert main(["data", "split", "--clear_cache"]) == 2
    assert capsys.readouterr().err == "pah: clear_cache: expected no other argument, got split --clear_cache\n"
