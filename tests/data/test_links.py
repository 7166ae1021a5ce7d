"""Links and paths that lead out of a data set's folder."""

from pathlib import Path

import pytest

from data_sets import NAMES, class_folders, encoded, picture, refused, save, write_parquet
from pah.data.lesson import load_lesson
from pah.data.read_options import ReadOptions
from pah.data.sources import load_source

FOLLOW = ReadOptions(follow_links=True)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    return save(picture(99), tmp_path / "private" / "secret.png").parent


@pytest.mark.parametrize("load", [load_source, lambda data, **choice: load_lesson(data, 6, **choice)])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_links_out_of_a_folder_are_refused_unless_they_are_followed(
    tmp_path: Path, outside: Path, load: object, kind: str
) -> None:
    root = class_folders(tmp_path / "set", {"cat": 4, "dog": 4})
    if kind == "file":
        (root / "cat" / "x.png").symlink_to(outside / "secret.png")
    else:
        save(picture(1), outside / "second.png")
        (root / "eel").symlink_to(outside)
    with refused("a link to a place outside it", "--follow_links"):
        load(str(root))  # type: ignore[operator]
    source = load(str(root), options=FOLLOW)  # type: ignore[operator]
    assert len(source.train) + len(source.test) == (9 if kind == "file" else 10)


def test_a_snapshot_of_the_hub_is_read(tmp_path: Path) -> None:
    home = tmp_path / "datasets--owner--set"
    snapshot = home / "snapshots" / "0a1b" / "data"
    snapshot.mkdir(parents=True)
    for split in ("train", "test"):
        write_parquet(home / "blobs" / split, [0, 1, 2])
        (snapshot / f"{split}-00000-of-00001.parquet").symlink_to(Path("../../../blobs") / split)
    assert len(load_source(str(snapshot.parent)).test) == 3
    (snapshot / "test-00000-of-00001.parquet").unlink()
    (snapshot / "test-00000-of-00001.parquet").symlink_to(write_parquet(tmp_path / "elsewhere", [0, 1, 2]))
    with refused("a link to a place outside it"):
        load_source(str(snapshot.parent))


@pytest.mark.parametrize("path", ["absolute", "upwards"])
def test_paths_in_parquet_files_follow_the_same_rule(tmp_path: Path, outside: Path, path: str) -> None:
    root = tmp_path / "set"
    save(picture(7), root / "images" / "own.png")
    secret = str(outside / "secret.png") if path == "absolute" else "../private/secret.png"
    rows = [encoded(0), {"bytes": None, "path": "images/own.png"}, {"bytes": None, "path": secret}]
    write_parquet(root / "train-0.parquet", [0, 1, 2], images=[encoded(0), encoded(1), rows[1]])
    write_parquet(root / "test-0.parquet", [0, 1, 2], images=rows)
    with refused("split test, row 2", "leads out of it", "--follow_links"):
        load_source(str(root))
    assert len(load_source(str(root), options=FOLLOW).test) == 3
    with refused("split test, row 2", "leads out of it"):  # what was read before does not count
        load_source(str(root))


def test_paths_of_a_data_set_made_in_python_are_allowed(tmp_path: Path) -> None:
    import datasets

    files = [str(save(picture(i), tmp_path / f"{i}.png")) for i in range(6)]
    columns = {"image": files, "label": [i % 2 for i in range(6)]}
    kinds = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES[:2])})
    assert len(load_source(datasets.Dataset.from_dict(columns, features=kinds)).train) == 4
