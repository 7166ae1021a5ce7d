"""Uploads are accepted or refused in one line without paths of the server, and a refused one leaves no file."""

import io
import os
import shutil
import stat
import struct
import time
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from helpers import DIGITS
from pah.app import uploads
from pah.app.uploads import Limits, allowed_folder, summarize, unpack
from pah.core.config import InputError
from pah.data.lesson import load_lesson
from pah.data.read_options import ReadOptions

Files = Mapping[str, bytes | str]


def encoded(image: Image.Image, form: str = "PNG") -> bytes:
    content = io.BytesIO()
    image.save(content, form)
    return content.getvalue()


def digit(y: int, number: int = 0, side: int = 8) -> bytes:
    """Return a handwritten digit as a PNG file."""
    row = (DIGITS.train.labels == y).nonzero()[number]
    return encoded(Image.fromarray(DIGITS.train.pixels[row].squeeze().numpy()).resize((side, side)))


def digits(*names: str, count: int = 5, around: str = "") -> dict[str, bytes]:
    """Return files of `count` images for each class; the y-th class holds the digit y."""
    return {f"{around}{name}/{i}.png": digit(y, i) for y, name in enumerate(names) for i in range(count)}


def pack(path: Path, files: Files | Iterable[tuple[str | zipfile.ZipInfo, bytes | str]]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items() if isinstance(files, Mapping) else files:
            archive.writestr(name, content)
    return path


def folder_of(root: Path, files: Mapping[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


@pytest.fixture
def unpacked(tmp_path: Path) -> Callable[[Files], Path]:
    """A function that zips and unpacks files, and returns their folder."""
    return lambda files: unpack(pack(tmp_path / "up.zip", files), tmp_path / "into")


@contextmanager
def refused(tmp_path: Path, match: str) -> Iterator[None]:
    """Assert that the code inside is refused in one line without a path, and leaves no file."""
    before = {path.name for path in tmp_path.iterdir()} | {"up.zip"}
    with pytest.raises(InputError, match=match) as caught:
        yield
    message = str(caught.value)
    assert str(tmp_path) not in message
    assert tmp_path.name not in message
    assert len(message.splitlines()) == 1
    assert len(message) < 300
    assert {path.name for path in tmp_path.iterdir()} <= before


LAYOUTS = {
    "classes": digits("one", "two"),
    "one folder around": digits("one", "two", around="photos/"),
    "several folders around": digits("one", "two", around="./my data/photos/"),
    "what macOS adds": {
        **digits("one", "two"),
        "__MACOSX/one/._0.png": b"?",
        "one/.DS_Store": b"?",
        ".hidden/0.png": b"?",
        "one/Thumbs.db": b"?",
    },
    "parts": {**digits("one", "two", count=4, around="train/"), **digits("one", "two", count=1, around="test/")},
    "parts with a folder around": {
        **digits("one", "two", count=4, around="a/train/"),
        **digits("one", "two", count=1, around="a/val/"),
    },
    "a class named train": {**digits("one", "two"), "train/0.png": digit(2), "train/1.png": digit(2, 1)},
    "only a training part": digits("one", "two", around="train/"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_summary_agrees_with_what_a_lesson_uses(layout: str, unpacked: Callable[[Files], Path]) -> None:
    summary = summarize(unpacked(LAYOUTS[layout]))
    assert {name: summary.counts[name] for name in ("one", "two")} == {"one": 5, "two": 5}
    assert summary.sizes == "8x8"
    assert summary.unreadable == ()
    source = load_lesson(summary.folder, 8)
    assert source.class_names == tuple(summary.counts)
    assert len(source.train) + len(source.test) == sum(summary.counts.values())
    for name, file in summary.samples:
        assert file.parent.name == name
        Image.open(file).close()


def test_samples_are_few(unpacked: Callable[[Files], Path]) -> None:
    files = {f"{c:02}/{i}.png": digit(c % 10, i) for c in range(14) for i in range(4)}
    summary = summarize(unpacked(files))
    assert [name for name, _ in summary.samples] == [f"{c:02}" for c in range(12) for _ in range(3)]
    assert len({file for _, file in summary.samples}) == 36
    assert len(summary.counts) == 14


def test_sizes_are_the_smallest_and_the_largest(unpacked: Callable[[Files], Path]) -> None:
    files = {**digits("one", "two"), "one/big.png": encoded(Image.new("RGB", (64, 48))), "two/m.png": digit(1, side=9)}
    assert summarize(unpacked(files)).sizes == "8x8 to 64x48"


def test_unreadable_files_are_listed_and_not_counted(unpacked: Callable[[Files], Path]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    others = {
        "one/cut.png": digit(0)[:-30],
        "one/cut.jpg": encoded(Image.fromarray(noise), "JPEG")[:1500],
        "one/empty.png": b"",
        "one/text.png": b"no image",
        "two/phone.HEIC": b"....ftypheic",
        "two/deep/notes.txt": b"notes",
        "cover.png": digit(3),
    }
    summary = summarize(unpacked({**digits("one", "two"), **others}))
    assert summary.counts == {"one": 5, "two": 5}
    assert summary.left_out == ("cover.png", "two/deep/notes.txt")
    assert summary.unreadable == tuple(sorted({*others} - {*summary.left_out}))
    source = load_lesson(summary.folder, 8, options=ReadOptions(skip_unreadable=True))
    assert len(source.train) + len(source.test) == 10
    assert {Path(name).name for name in source.skipped} == {Path(name).name for name in summary.unreadable}


def test_only_images_are_written(unpacked: Callable[[Files], Path]) -> None:
    """With a Parquet file or TinyImageNet's annotations, a lesson would read other files than the summary."""
    files = {**digits("val", "two"), "train-0.parquet": b"PAR1", "data/train-0.parquet": b"PAR1"}
    with pytest.raises(InputError, match="class 'data': expected readable images to learn from"):
        summarize(unpacked({**files, "val/val_annotations.txt": b"0.png\tn01\n"}))


def test_files_that_no_lesson_uses_are_counted_by_suffix(unpacked: Callable[[Files], Path]) -> None:
    others = {
        "a.txt": b"",
        "one/b.TXT": b"",
        "one/c": b"",
        ".thumbs/one/0.png": digit(1),
        "one/._0.png": b"",
        "d.pdf": b"",
    }
    summary = summarize(unpacked({**digits("one", "two"), **others}))
    assert summary.left_out == (".thumbs/one/0.png", "a.txt", "d.pdf", "one/b.TXT", "one/c")
    counts = "2 .txt, 1 .pdf, 1 without a suffix, 1 .png"
    assert sorted(summary.notes[0].removesuffix(".").partition(": ")[2].split(", ")) == sorted(counts.split(", "))


@pytest.mark.parametrize("around", ["", "train/", "photos/"])
def test_images_in_folders_below_a_class_folder_belong_to_the_class(
    around: str, unpacked: Callable[[Files], Path]
) -> None:
    """As in a lesson of the same folder: what `pah learn --data` counts, the page counts."""
    files = {
        **digits("one", "two", around=around),
        f"{around}one/more/0.png": digit(0, 8),
        f"{around}one/9.png": digit(0, 9),
    }
    if around == "train/":
        files |= digits("one", "two", around="test/")
    folder = unpacked(files)
    assert len([*folder.rglob("*.png")]) == len(files)
    summary, source = summarize(folder), load_lesson(folder, 8)
    assert sum(summary.counts.values()) == len(source.train) + len(source.test)
    assert sum(summary.counts.values()) + len(summary.left_out) == len(files)


def test_letters_with_accents_are_equal_from_every_system(unpacked: Callable[[Files], Path]) -> None:
    decomposed, composed = "e\u0301toile", "\u00e9toile"
    assert list(summarize(unpacked(digits(decomposed, "two"))).counts) == ["two", composed]


def entry(name: str, mode: int = 0, **fields: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("placeholder")
    info.filename = info.orig_filename = name
    info.external_attr = mode << 16
    for field, value in fields.items():
        setattr(info, field, value)
    return info


HOSTILE: dict[str, tuple[str | zipfile.ZipInfo, str]] = {
    "upwards": ("../evil.png", "a path inside the zip"),
    "upwards later": ("one/../../evil.png", "a path inside the zip"),
    "upwards, hidden": ("__MACOSX/../../evil.png", "a path inside the zip"),
    "absolute": ("/tmp/evil.png", "a path inside the zip"),
    "drive": ("C:/evil.png", "a path inside the zip"),
    "backslash": (entry("one\\..\\..\\evil.png"), "no backslash"),
    "link": (entry("one/evil.png", stat.S_IFLNK | 0o777), "no link or device"),
    "device": (entry("one/evil.png", stat.S_IFCHR | 0o777), "no link or device"),
    "long": ("one/" + "x" * 300 + ".png", "at most 255 bytes"),
    "long in bytes": ("one/" + "é" * 130 + ".png", "at most 255 bytes"),
    "line break": ("one/a\nb.png", "no control characters"),
    "escape": ("one/\x1b[2J.png", "no control characters"),
    "line separator": ("one/a\u2028b.png", "no control characters"),
    "twice": ("one/0.png", "each file once"),
    "twice, in other words": ("one/./0.png", "each file once"),
    "LZMA": (entry("one/evil.png", compress_type=zipfile.ZIP_LZMA), "Deflate"),
    "huge image": ("one/evil.png", "at most 50 megapixels"),
}


def png_header(width: int, height: int) -> bytes:
    """Return a PNG file with a header of that size and no pixels."""
    chunks = b"IHDR" + struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0), b"IDAT"
    written = [struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(written)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_entries_are_refused(kind: str, tmp_path: Path) -> None:
    name, expected = HOSTILE[kind]
    files = [*digits("one", "two").items(), (name, png_header(20_000, 20_000) if "huge" in kind else digit(0))]
    pack(tmp_path / "up.zip", files)
    with refused(tmp_path, expected):
        unpack(tmp_path / "up.zip", tmp_path / "into")
    assert not (tmp_path.parent / "evil.png").exists()
    assert not Path("/tmp/evil.png").exists()


@pytest.mark.parametrize(
    "side", [7072, 10_000, 20_000]
)  # just too large; large enough for Pillow's warning; for its error
def test_image_bombs_are_refused_by_their_header(side: int, tmp_path: Path) -> None:
    pack(tmp_path / "up.zip", {**digits("one", "two"), "one/bomb.png": png_header(side, side)})
    with refused(tmp_path, "'one/bomb.png': expected an image of at most 50 megapixels"):
        unpack(tmp_path / "up.zip", tmp_path / "into")


WRONG: dict[str, tuple[Files, str]] = {
    "nothing": ({}, "expected a zip of class folders with images in them, got none"),
    "no folder": ({"0.png": digit(0)}, "expected a zip of class folders with images in them, got none"),
    "no image": ({"one/a.txt": b"", "two/a.txt": b""}, "expected a zip of class folders with images in them"),
    "no training part": (
        {**digits("one", "two", around="val/"), **digits("one", "two", around="test/")},
        "expected a split train",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_zips_without_class_folders_are_refused(kind: str, tmp_path: Path) -> None:
    files, expected = WRONG[kind]
    pack(tmp_path / "up.zip", files)
    with refused(tmp_path, expected):
        unpack(tmp_path / "up.zip", tmp_path / "into")


LACKING: dict[str, tuple[Files, str]] = {
    "empty": ({"empty/": b""}, "class 'empty': expected readable images to learn from, got none"),
    "unreadable": ({"bad/0.png": b"?", "bad/1.png": b"?"}, "class 'bad': expected readable images to learn from"),
}


@pytest.mark.parametrize("kind", LACKING)
def test_a_class_without_images_is_refused(kind: str, unpacked: Callable[[Files], Path]) -> None:
    files, expected = LACKING[kind]
    folder = unpacked({**digits("one", "two"), **files})
    with pytest.raises(InputError, match=expected):
        summarize(folder)
    if kind == "a single one":  # a lesson would learn it, but the page wants images for testing
        return
    with pytest.raises(InputError):
        load_lesson(folder, 8, options=ReadOptions(skip_unreadable=True))


ACCEPTED: dict[str, Files] = {
    "one class": digits("one"),
    "one class, wrapped": digits("one", around="photos/"),
    "a class of a single image": {**digits("one", "two"), "lone/0.png": digit(3)},
    "a class without test images": {**digits("one", "two", around="train/"), **digits("one", around="test/")},
    "no test part": {**digits("one", "two", around="train/"), **digits("one", "two", around="other/")},
}


@pytest.mark.parametrize("kind", ACCEPTED)
def test_what_a_lesson_accepts_is_accepted(kind: str, unpacked: Callable[[Files], Path]) -> None:
    summary = summarize(unpacked(ACCEPTED[kind]))
    source = load_lesson(summary.folder, 8)
    assert source.class_names == tuple(summary.counts)
    assert len(source.train) + len(source.test) == sum(summary.counts.values())
    assert sum(summary.counts.values()) + len(summary.left_out) == len(ACCEPTED[kind])


LIMITS: dict[str, tuple[Limits, str]] = {
    "upload": (Limits(upload_bytes=1000), "expected at most 0.0009537 MiB, got"),
    "entries": (Limits(entries=9), "expected at most 9 files and folders, got more"),
    "classes": (Limits(classes=1), "folder: expected at most 1 classes, got 2"),
    "unpacked": (Limits(unpacked_bytes=500), "expected at most 0.0004768 MiB of images once unpacked"),
    "pixels": (Limits(pixels=639), "expected images of at most 0 megapixels"),
}


@pytest.mark.parametrize("limit", LIMITS)
def test_limits_hold(limit: str, tmp_path: Path) -> None:
    limits, expected = LIMITS[limit]
    pack(tmp_path / "up.zip", digits("one", "two"))
    with refused(tmp_path, expected):
        unpack(tmp_path / "up.zip", tmp_path / "into", limits)
    if limit == "classes":  # it also holds for a folder on the server's machine
        folder = folder_of(tmp_path / "open", digits("one", "two"))
        with refused(tmp_path, expected):
            summarize(folder, limits)
    exact = Limits(entries=10, classes=2, pixels=640)
    assert len(summarize(unpack(tmp_path / "up.zip", tmp_path / "into", exact)).counts) == 2


def test_unpacking_stops_at_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 100 MB compressed to 100 kB, no more than the limit is written or held in memory."""
    pack(tmp_path / "up.zip", {**digits("one", "two"), "one/z.png": bytes(100 * 2**20)})
    written = []

    class Counting(io.FileIO):
        def write(self, content: object, /) -> int:
            written.append(super().write(content))  # type: ignore[arg-type]
            return written[-1]

    monkeypatch.setattr(Path, "open", lambda path, mode: Counting(path, mode))
    tracemalloc.start()
    with refused(tmp_path, "at most 1 MiB of images once unpacked"):
        unpack(tmp_path / "up.zip", tmp_path / "into", Limits(unpacked_bytes=2**20))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(written) <= 2**20
    assert peak < 8 * 2**20


def test_a_directory_of_millions_is_not_read(tmp_path: Path) -> None:
    """A small zip can list millions of entries of 50 bytes, for each of which zipfile would make an object."""
    record = struct.pack("<4s4B4HL2L5H2L", b"PK\1\2", 20, 0, 20, 0, 0, 0, 0, 33, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0) + b"a/b."
    size, count = 10**6 * len(record), 65_535
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, size, 0, 0)
    (tmp_path / "up.zip").write_bytes(record * 10**6 + end)
    began = time.process_time()
    with refused(tmp_path, "expected at most 20,000 files and folders, got more"):
        unpack(tmp_path / "up.zip", tmp_path / "into")
    assert time.process_time() - began < 0.5  # reading it takes seconds


def test_an_encrypted_zip_is_refused(tmp_path: Path) -> None:
    content = bytearray(pack(tmp_path / "up.zip", digits("one", "two")).read_bytes())
    at = -1
    while (at := content.find(b"PK\1\2", at + 1)) >= 0:
        content[at + 8] |= 1
    (tmp_path / "up.zip").write_bytes(content)
    with refused(tmp_path, "'one/0.png': expected no password in an upload"):
        unpack(tmp_path / "up.zip", tmp_path / "into")


def test_an_entry_with_a_wrong_size_is_refused_as_damaged(tmp_path: Path) -> None:
    content = bytearray(pack(tmp_path / "up.zip", digits("one", "two")).read_bytes())
    content[content.index(b"PK\1\2") + 24] -= 1  # the unpacked size of the first entry
    (tmp_path / "up.zip").write_bytes(content)
    with refused(tmp_path, "'one/0.png': expected a whole file in the zip, got a damaged one"):
        unpack(tmp_path / "up.zip", tmp_path / "into")


@pytest.mark.parametrize("content", [b"", b"PK\3\4", digit(0), b"Rar!\x1a\x07\x00" * 100])
def test_other_files_than_zips_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "up.zip").write_bytes(content)
    with refused(tmp_path, "expected a zip of class folders, got no zip or a damaged one"):
        unpack(tmp_path / "up.zip", tmp_path / "into")


@given(st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_zip_is_accepted_or_refused_in_one_line(tmp_path: Path, data: st.DataObject) -> None:
    """Random bytes are changed, most of them in the zip's directory."""
    content = bytearray(pack(tmp_path / "up.zip", digits("one", "two", count=2)).read_bytes())
    directory = content.index(b"PK\1\2")
    for at in data.draw(
        st.lists(st.integers(0, len(content) - 1) | st.integers(directory, len(content) - 1), min_size=1)
    ):
        content[at] = data.draw(st.integers(0, 255))
    (tmp_path / "up.zip").write_bytes(
        content[: data.draw(st.integers(directory, len(content)) | st.just(len(content)))]
    )
    into = tmp_path / "into"
    message = ""
    try:
        summarize(unpack(tmp_path / "up.zip", into))
    except InputError as error:
        message = str(error)
    assert str(tmp_path) not in message
    shutil.rmtree(into, ignore_errors=True)  # it exists if only the summary refused it
    assert {path.name for path in tmp_path.iterdir()} == {"up.zip"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux")
def test_a_full_disk_is_reported_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack(tmp_path / "up.zip", digits("one", "two"))
    monkeypatch.setattr(Path, "open", lambda path, mode: io.FileIO("/dev/full", "w"))
    with refused(tmp_path, "got a full disk"):
        unpack(tmp_path / "up.zip", tmp_path / "into")


def test_an_existing_folder_is_not_changed(tmp_path: Path) -> None:
    pack(tmp_path / "up.zip", digits("one", "two"))
    (tmp_path / "into").mkdir()
    (tmp_path / "into" / "precious").touch()
    with refused(tmp_path, "got File exists"):
        unpack(tmp_path / "up.zip", tmp_path / "into")
    assert (tmp_path / "into" / "precious").exists()


@pytest.fixture
def roots(tmp_path: Path) -> list[Path]:
    """Two allowed folders; the first holds a folder, and links to the second one and out of both."""
    for name in ("open/pets", "more", "secret"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "open" / "across").symlink_to(tmp_path / "more")
    (tmp_path / "open" / "out").symlink_to(tmp_path / "secret")
    (tmp_path / "open" / "circle").symlink_to("circle")
    (tmp_path / "open" / "file").touch()
    return [tmp_path / "open", tmp_path / "more"]


def test_folders_in_the_roots_are_allowed(roots: list[Path]) -> None:
    pets = roots[0] / "pets"
    for named in (str(pets), "pets", f"{pets}/", "pets/../pets"):
        assert allowed_folder(named, roots) == pets
    assert allowed_folder(str(roots[1]), roots) == roots[1]
    assert allowed_folder("across", roots) == roots[1]


ELSEWHERE = [
    "",
    " ",
    "/",
    "/etc",
    "..",
    "../secret",
    "pets/../../secret",
    "OPEN/../secret",
    "OPEN-not",
    "out",
    "across",
]
NOWHERE = ["none", "file", "circle", "~", "a\0b", "\ud800", "x" * 5000]


@pytest.mark.parametrize("named", [*ELSEWHERE, *NOWHERE])
def test_other_folders_are_refused_with_the_same_message(named: str, roots: list[Path]) -> None:
    """The message does not tell whether a folder outside the roots exists."""
    (roots[0].parent / "open-not").mkdir()
    named = named.replace("OPEN", str(roots[0]))
    with pytest.raises(
        InputError, match="expected a folder inside those that this server's owner has opened"
    ) as caught:
        allowed_folder(named, roots[:1])
    assert len(str(caught.value)) < 200
    with pytest.raises(InputError):
        allowed_folder(str(roots[0]), [])


def test_links_out_of_a_folder_are_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "open", digits("one", "two"))
    (tmp_path / "secret.png").write_bytes(digit(5))
    (folder / "one" / "inside.png").symlink_to(folder / "one" / "0.png")
    assert summarize(folder).counts == {"one": 6, "two": 5}
    (folder / "one" / "link.png").symlink_to(tmp_path / "secret.png")
    with refused(tmp_path, "'one/link.png': expected an image or a folder inside the one named, got a link out of it"):
        summarize(folder)


def test_only_plain_files_are_opened(tmp_path: Path) -> None:
    """A pipe would block the server for ever, and the list of left-out files could be a link to any text file."""
    folder = folder_of(tmp_path / "open", digits("one", "two"))
    os.mkfifo(folder / "one" / "pipe.png")
    (folder / "two" / "folder.png").mkdir()  # a folder, whatever its name
    (tmp_path / "secret.txt").write_text("password\n")
    (folder / uploads.LEFT_OUT).symlink_to(tmp_path / "secret.txt")
    summary = summarize(folder)
    assert summary.unreadable == ("one/pipe.png",)
    assert summary.left_out == ()


def test_a_folder_that_cannot_be_described_is_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "open", digits("one", "two"))
    with refused(tmp_path, "got No such file or directory"):
        summarize(tmp_path / "gone")
    (folder / "val").mkdir()
    (folder / "train").mkdir()
    for content in (b"none of the format\n", b"\xff\xfe"):
        (folder / "val" / "val_annotations.txt").write_bytes(content)
        with refused(tmp_path, "expected file, wnid and box|expected text in UTF-8"):
            summarize(folder)
    for split in ("train", "test"):
        (folder / f"{split}-0.parquet").touch()
    with refused(tmp_path, "folder: expected folders of image files, got Parquet files"):
        summarize(folder)


def test_beyond_a_number_of_pixels_only_headers_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of(tmp_path / "open", {**digits("one", "two"), "two/cut.png": digit(1)[:-30]})
    assert summarize(folder).unreadable == ("two/cut.png",)
    monkeypatch.setattr(uploads, "CHECKED_PIXELS", 5 * 64)
    assert summarize(folder).counts == {"one": 5, "two": 6}
