"""Uploads: what is taken, what is refused in one line that names no path of the server, and that nothing is left."""

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
from pah.app.uploads import Limits, allowed, understand, unpack
from pah.core.config import InputError
from pah.data.lesson import load_lesson

Files = Mapping[str, bytes | str]


def encoded(image: Image.Image, form: str = "PNG") -> bytes:
    content = io.BytesIO()
    image.save(content, form)
    return content.getvalue()


def digit(y: int, number: int = 0, side: int = 8) -> bytes:
    """A handwritten digit as a PNG file."""
    row = (DIGITS.train.labels == y).nonzero()[number]
    return encoded(Image.fromarray(DIGITS.train.pixels[row].squeeze().numpy()).resize((side, side)))


def digits(*names: str, count: int = 5, around: str = "") -> dict[str, bytes]:
    """Files of `count` digits a class, the y-th of which holds the digit y."""
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
def taken(tmp_path: Path) -> Callable[[Files], Path]:
    return lambda files: unpack(pack(tmp_path / "up.zip", files), tmp_path / "into")


@contextmanager
def refused(tmp_path: Path, match: str) -> Iterator[None]:
    """Inside, something is refused in one line that tells no path, and leaves nothing behind."""
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
def test_what_is_understood_is_what_a_lesson_takes(layout: str, taken: Callable[[Files], Path]) -> None:
    found = understand(taken(LAYOUTS[layout]))
    assert {name: found.counts[name] for name in ("one", "two")} == {"one": 5, "two": 5}
    assert found.sizes == "8x8"
    assert found.unreadable == ()
    source = load_lesson(found.folder, 8)
    assert source.class_names == tuple(found.counts)
    assert len(source.train) + len(source.test) == sum(found.counts.values())
    for name, file in found.samples:
        assert file.parent.name == name
        Image.open(file).close()


def test_samples_are_few(taken: Callable[[Files], Path]) -> None:
    files = {f"{c:02}/{i}.png": digit(c % 10, i) for c in range(14) for i in range(4)}
    found = understand(taken(files))
    assert [name for name, _ in found.samples] == [f"{c:02}" for c in range(12) for _ in range(3)]
    assert len({file for _, file in found.samples}) == 36
    assert len(found.counts) == 14


def test_sizes_are_the_smallest_and_the_largest(taken: Callable[[Files], Path]) -> None:
    files = {**digits("one", "two"), "one/big.png": encoded(Image.new("RGB", (64, 48))), "two/m.png": digit(1, side=9)}
    assert understand(taken(files)).sizes == "8x8 to 64x48"


def test_what_cannot_be_read_is_listed_and_not_counted(taken: Callable[[Files], Path]) -> None:
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
    found = understand(taken({**digits("one", "two"), **others}))
    assert found.counts == {"one": 5, "two": 5}
    assert found.unreadable == tuple(sorted(others))
    source = load_lesson(found.folder, 8, skip_unreadable=True)
    assert len(source.train) + len(source.test) == 10
    assert {Path(name).name for name in source.skipped} == {"cut.png", "cut.jpg", "empty.png", "text.png"}


def test_nothing_but_images_is_written(taken: Callable[[Files], Path]) -> None:
    """A Parquet file or TinyImageNet's annotations would have a lesson read other files than those understood."""
    files = {**digits("val", "two"), "train-0.parquet": b"PAR1", "data/train-0.parquet": b"PAR1"}
    with pytest.raises(InputError, match="class 'data': expected at least 2 readable images, got 0"):
        understand(taken({**files, "val/val_annotations.txt": b"0.png\tn01\n"}))


def test_letters_with_accents_are_the_same_from_every_system(taken: Callable[[Files], Path]) -> None:
    apart, together = "e\u0301toile", "\u00e9toile"
    assert list(understand(taken(digits(apart, "two"))).counts) == ["two", together]


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
    "nested": ("one/more/0.png", "got folders in a class"),
    "nested deeper": ("train/one/more/0.png", "got folders in a class"),
    "LZMA": (entry("one/evil.png", compress_type=zipfile.ZIP_LZMA), "Deflate"),
    "huge image": ("one/evil.png", "at most 50 megapixels"),
}


def png_header(width: int, height: int) -> bytes:
    """A PNG file that claims a size, and ends where its pixels would begin."""
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


@pytest.mark.parametrize("side", [7072, 10_000, 20_000])  # just too large; Pillow would warn of it, or raise
def test_image_bombs_are_refused_by_their_header(side: int, tmp_path: Path) -> None:
    pack(tmp_path / "up.zip", {**digits("one", "two"), "one/bomb.png": png_header(side, side)})
    with refused(tmp_path, "'one/bomb.png': expected an image of at most 50 megapixels"):
        unpack(tmp_path / "up.zip", tmp_path / "into")


WRONG: dict[str, tuple[Files, str]] = {
    "nothing": ({}, "expected a zip of class folders with images in them, got none"),
    "no folder": ({"0.png": digit(0)}, "expected a zip of class folders with images in them, got none"),
    "no image": ({"one/a.txt": b"", "two/a.txt": b""}, "expected a zip of class folders with images in them"),
    "one class": (digits("one"), "expected at least 2 classes, got only 'one'"),
    "one class, wrapped": (digits("one", around="photos/"), "expected at least 2 classes, got only 'one'"),
    "no test part": (
        {**digits("one", "two", around="train/"), **digits("one", "two", around="other/")},
        "'other/one/0.png': expected CLASS/IMAGE",
    ),
    "no training part": (
        {**digits("one", "two", around="val/"), **digits("one", "two", around="test/")},
        "expected a split train",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_no_lesson_is_refused(kind: str, tmp_path: Path) -> None:
    files, expected = WRONG[kind]
    pack(tmp_path / "up.zip", files)
    with refused(tmp_path, expected):
        unpack(tmp_path / "up.zip", tmp_path / "into")


LACKING: dict[str, tuple[Files, str]] = {
    "empty": ({"empty/": b""}, "class 'empty': expected at least 2 readable images, got 0"),
    "unreadable": ({"bad/0.png": b"?", "bad/1.png": b"?"}, "class 'bad': expected at least 2 readable images, got 0"),
    "a single one": ({"lone/0.png": digit(3)}, "class 'lone': expected at least 2 readable images, got 1"),
}


@pytest.mark.parametrize("kind", LACKING)
def test_a_class_without_images_is_refused(kind: str, taken: Callable[[Files], Path]) -> None:
    files, expected = LACKING[kind]
    folder = taken({**digits("one", "two"), **files})
    with pytest.raises(InputError, match=expected):
        understand(folder)
    with pytest.raises(InputError):
        load_lesson(folder, 8, skip_unreadable=True)


def test_a_class_lacking_in_one_part_is_refused(taken: Callable[[Files], Path]) -> None:
    folder = taken({**digits("one", "two", around="train/"), **digits("one", around="test/")})
    with pytest.raises(InputError, match="class 'two': expected readable images in test, got none"):
        understand(folder)


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
    if limit == "classes":  # of a folder on the server's machine, too
        folder = folder_of(tmp_path / "open", digits("one", "two"))
        with refused(tmp_path, expected):
            understand(folder, limits)
    exact = Limits(entries=10, classes=2, pixels=640)
    assert len(understand(unpack(tmp_path / "up.zip", tmp_path / "into", exact)).counts) == 2


def test_a_bomb_stops_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousandfold: 100 MB in 100 kB, of which no more than the limit is written or held."""
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
    """Entries of 50 bytes, of which a zip within the limit in size holds millions, and zipfile an object for each."""
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


def test_a_size_that_lies_is_damage(tmp_path: Path) -> None:
    content = bytearray(pack(tmp_path / "up.zip", digits("one", "two")).read_bytes())
    content[content.index(b"PK\1\2") + 24] -= 1  # the unpacked size of the first entry
    (tmp_path / "up.zip").write_bytes(content)
    with refused(tmp_path, "'one/0.png': expected a whole file in the zip, got a damaged one"):
        unpack(tmp_path / "up.zip", tmp_path / "into")


@pytest.mark.parametrize("content", [b"", b"PK\3\4", digit(0), b"Rar!\x1a\x07\x00" * 100])
def test_what_is_no_zip_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "up.zip").write_bytes(content)
    with refused(tmp_path, "expected a zip of class folders, got no zip or a damaged one"):
        unpack(tmp_path / "up.zip", tmp_path / "into")


@given(st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_never_ends_in_anything_but_one_line(tmp_path: Path, data: st.DataObject) -> None:
    """Bytes turned anywhere, mostly in the zip's own directory: taken for what it is, or refused."""
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
        understand(unpack(tmp_path / "up.zip", into))
    except InputError as error:
        message = str(error)
    assert str(tmp_path) not in message
    shutil.rmtree(into, ignore_errors=True)  # it is there where only a class lacks readable images
    assert {path.name for path in tmp_path.iterdir()} == {"up.zip"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux")
def test_a_disk_that_fills_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack(tmp_path / "up.zip", digits("one", "two"))
    monkeypatch.setattr(Path, "open", lambda path, mode: io.FileIO("/dev/full", "w"))
    with refused(tmp_path, "got a full disk"):
        unpack(tmp_path / "up.zip", tmp_path / "into")


def test_a_folder_that_is_there_stays_as_it_is(tmp_path: Path) -> None:
    pack(tmp_path / "up.zip", digits("one", "two"))
    (tmp_path / "into").mkdir()
    (tmp_path / "into" / "precious").touch()
    with refused(tmp_path, "got File exists"):
        unpack(tmp_path / "up.zip", tmp_path / "into")
    assert (tmp_path / "into" / "precious").exists()


@pytest.fixture
def roots(tmp_path: Path) -> list[Path]:
    """Two open folders; the first has a folder, and links to the second and out of both."""
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
        assert allowed(named, roots) == pets
    assert allowed(str(roots[1]), roots) == roots[1]
    assert allowed("across", roots) == roots[1]


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
def test_other_folders_are_refused_alike(named: str, roots: list[Path]) -> None:
    """Whether a folder exists outside of the roots is not told."""
    (roots[0].parent / "open-not").mkdir()
    named = named.replace("OPEN", str(roots[0]))
    with pytest.raises(
        InputError, match="expected a folder inside those that this server's owner has opened"
    ) as caught:
        allowed(named, roots[:1])
    assert len(str(caught.value)) < 200
    with pytest.raises(InputError):
        allowed(str(roots[0]), [])


def test_links_out_of_a_folder_are_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "open", digits("one", "two"))
    (tmp_path / "secret.png").write_bytes(digit(5))
    (folder / "one" / "inside.png").symlink_to(folder / "one" / "0.png")
    assert understand(folder).counts == {"one": 6, "two": 5}
    (folder / "one" / "link.png").symlink_to(tmp_path / "secret.png")
    with refused(tmp_path, "'one/link.png': expected an image or a folder inside the one named, got a link out of it"):
        understand(folder)


def test_nothing_but_plain_files_is_opened(tmp_path: Path) -> None:
    """A pipe would have the server wait for ever; a list of what was left out could be a link to any text."""
    folder = folder_of(tmp_path / "open", digits("one", "two"))
    os.mkfifo(folder / "one" / "pipe.png")
    (folder / "two" / "folder.png").mkdir()
    (tmp_path / "secret.txt").write_text("password\n")
    (folder / uploads.LEFT_OUT).symlink_to(tmp_path / "secret.txt")
    assert understand(folder).unreadable == ("one/pipe.png", "two/folder.png")


def test_a_folder_that_cannot_be_described_is_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "open", digits("one", "two"))
    with refused(tmp_path, "got No such file or directory"):
        understand(tmp_path / "gone")
    (folder / "val").mkdir()
    (folder / "train").mkdir()
    for content in (b"none of the format\n", b"\xff\xfe"):
        (folder / "val" / "val_annotations.txt").write_bytes(content)
        with refused(tmp_path, "expected file, wnid and box|expected text in UTF-8"):
            understand(folder)
    for split in ("train", "test"):
        (folder / f"{split}-0.parquet").touch()
    with refused(tmp_path, "folder: expected folders of image files, got Parquet files"):
        understand(folder)


def test_beyond_a_number_of_pixels_headers_are_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of(tmp_path / "open", {**digits("one", "two"), "two/cut.png": digit(1)[:-30]})
    assert understand(folder).unreadable == ("two/cut.png",)
    monkeypatch.setattr(uploads, "CHECKED_PIXELS", 5 * 64)
    assert understand(folder).counts == {"one": 5, "two": 6}
