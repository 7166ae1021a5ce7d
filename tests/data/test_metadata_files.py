"""Flat images whose classes are in a metadata.csv or metadata.jsonl file."""

import json
from pathlib import Path

from data_sets import counts, picture, refused, save
from pah.data.lesson import load_lesson
from pah.data.read_options import ReadOptions
from pah.data.sources import load_source


def flat_images(root: Path, count: int, file: str = "metadata.csv", prefix: str = "") -> Path:
    rows = [(f"{prefix}{i}.png", ("dog", "cat")[i % 2]) for i in range(count)]
    for i, (name, _) in enumerate(rows):
        save(picture(i), root / name)
    text = "file_name,label\n" + "".join(f"{name},{label}\n" for name, label in rows)
    if file.endswith("jsonl"):
        text = "".join(json.dumps({"file_name": name, "label": label}) + "\n" for name, label in rows)
    (root / file).write_text(text)
    return root


def test_flat_images_have_the_classes_of_the_metadata(tmp_path: Path) -> None:
    for file in ("metadata.csv", "metadata.jsonl"):
        root = flat_images(tmp_path / file, 10, file)
        save(picture(99), root / "unlisted.png")
        for source in (load_source(str(root)), load_lesson(root, 6)):
            assert counts(source) == ({"cat": 4, "dog": 4}, {"cat": 1, "dog": 1})
            assert source.test_from_train
            assert source.notes == ("left out: 1 .png outside the class folders",)


def flat_without_text(root: Path) -> Path:
    (flat_images(root, 4) / "metadata.csv").write_bytes(b"file_name,label\n\xe9.png,cat\n")
    return root


def test_splits_have_their_own_metadata(tmp_path: Path) -> None:
    flat_images(tmp_path / "train", 6)
    flat_images(tmp_path / "test", 4)
    assert counts(load_source(str(tmp_path))) == ({"cat": 3, "dog": 3}, {"cat": 2, "dog": 2})


def test_one_metadata_file_may_name_the_images_of_both_splits(tmp_path: Path) -> None:
    lines = ["file_name,label"]
    for split in ("train", "test"):
        for i in range(4):
            save(picture(i), tmp_path / split / f"{i}.png")
            lines.append(f"{split}/{i}.png,{i % 2 + 9}")
    (tmp_path / "metadata.csv").write_text("\n".join(lines))
    source = load_source(str(tmp_path))
    assert source.class_names == ("9", "10")  # in the order of the numbers
    assert len(source.test) == 4


def test_class_folders_are_preferred_to_a_metadata_file_about_them(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        for i in range(5):
            save(picture(i), tmp_path / name / f"{i}.png")
    for text in ("file_name,label\ncat/0.png,big\n", "file_name,label\n0.png,big\n", "file_name\n\udce9.png\n"):
        (tmp_path / "metadata.csv").write_bytes(text.encode(errors="surrogateescape"))
        source = load_source(str(tmp_path))
        assert source.class_names == ("cat", "dog")
        assert source.conversions == ("left out: 1 .csv",)
    with refused("metadata.csv: expected a table in UTF-8"):
        load_source(str(flat_without_text(tmp_path / "flat")))


def test_bad_metadata_is_refused(tmp_path: Path) -> None:
    root = flat_images(tmp_path / "set", 6)
    save(picture(0), tmp_path / "secret.png")
    table = root / "metadata.csv"
    good = table.read_text()
    for row, message in (
        ("../secret.png,cat", "leads out of it"),
        (f"{tmp_path}/secret.png,cat", "leads out of it"),
        ("lost.png,cat", "row 7: expected an image file, got 'lost.png', which does not exist"),
        ("0.png,", "row 7: expected a file and a label"),
    ):
        table.write_text(f"{good}{row}\n")
        with refused("metadata.csv, row 7", message):
            load_source(str(root))
    table.write_text(f"{good}lost.png,cat\n")
    source = load_source(str(root), options=ReadOptions(skip_unreadable=True))
    assert source.skipped == ("lost.png",)
    table.write_text(f"{good}../secret.png,cat\n")
    assert len(load_source(str(root), options=ReadOptions(follow_links=True)).train) == 5
    table.write_text("file_name,colour,size\n0.png,red,big\n1.png,blue,small\n")
    with refused("expected one column of labels beside file_name, got colour, size"):
        load_source(str(root))
    source = load_lesson(root, 6, options=ReadOptions(label_column="colour"))
    assert source.class_names == ("blue", "red")
