"""What is taken from outside, and what is refused: zips with an attack in them, folders outside the allowed ones."""

import io
import stat
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pah.app import uploads
from pah.app.uploads import Limits, allowed, class_root, understand, unpack
from pah.config import InputError


def png(level: int = 0, side: int = 8) -> bytes:
    data = io.BytesIO()
    Image.fromarray(np.random.default_rng(level).integers(0, 255, (side, side, 3), dtype=np.uint8)).save(data, "png")
    return data.getvalue()


def zipped(path: Path, entries: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return path


def refused(archive: Path, folder: Path, limits: Limits = uploads.LIMITS) -> str:
    with pytest.raises(InputError) as error:
        unpack(archive, folder / "images", limits)
    assert not (folder / "images").exists()
    assert str(folder) not in str(error.value)
    return str(error.value)


def test_a_zip_of_class_folders_is_understood(tmp_path: Path) -> None:
    entries = {f"animals/{name}/{i}.png": png(i, 8 + i) for name in ("cat", "dog") for i in range(5)}
    others = {
        "animals/dog/broken.png": b"none",
        "animals/dog/notes.txt": b"x",
        "__MACOSX/animals/cat/._0.png": b"x",
        "animals/.DS_Store": b"x",
    }
    unpack(zipped(tmp_path / "a.zip", entries | others), tmp_path / "images")
    found = understand(class_root(tmp_path / "images"))
    assert [(of.name, of.images, of.smallest, of.largest) for of in found.classes] == [
        ("cat", 5, (8, 8), (12, 12)),
        ("dog", 5, (8, 8), (12, 12)),
    ]
    assert [len(of.samples) for of in found.classes] == [uploads.SAMPLES] * 2
    assert found.unreadable == ("dog/broken.png",)


@pytest.mark.parametrize(
    "name",
    ["../out.png", "a/../../out.png", "/etc/out.png", "..\\out.png", "C:/out.png", "a/b\n.png", "a/" * 9 + "x.png"],
)
def test_entries_that_would_lie_elsewhere_are_refused(name: str, tmp_path: Path) -> None:
    said = refused(zipped(tmp_path / "a.zip", {"cat/1.png": png(), name: png()}), tmp_path)
    assert said.startswith("zip: expected")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip"]


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFBLK])
def test_links_and_devices_are_refused(kind: int, tmp_path: Path) -> None:
    link = zipfile.ZipInfo("cat/1.png")
    link.create_system, link.external_attr = 3, (kind | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    assert "link or a device" in refused(tmp_path / "a.zip", tmp_path)


def test_what_is_larger_than_the_limits_is_refused(tmp_path: Path) -> None:
    many = zipped(tmp_path / "many.zip", {f"cat/{i}.png": png(i) for i in range(4)})
    assert "at most 3 entries" in refused(many, tmp_path, Limits(entries=3))
    assert "0 MB" in refused(many, tmp_path, Limits(upload=10))
    assert "more than the limit" in refused(many, tmp_path, Limits(unpacked=3 * len(png())))
    assert "more than the limit" in refused(many, tmp_path, Limits(entry=20))


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    bomb = zipped(tmp_path / "bomb.zip", {"cat/1.bmp": b"\0" * 20 * 2**20})
    assert "shrinks more than 100 times" in refused(bomb, tmp_path)


def test_a_zip_that_lies_about_its_sizes_is_refused(tmp_path: Path) -> None:
    data = zipped(tmp_path / "a.zip", {"cat/1.png": b"\0" * 5000}).read_bytes()
    lie = data.replace(struct.pack("<L", 5000), struct.pack("<L", 50))
    (tmp_path / "a.zip").write_bytes(lie)
    assert "damaged" in refused(tmp_path / "a.zip", tmp_path)


def test_what_is_no_zip_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"no zip")
    assert "whole zip file" in refused(tmp_path / "a.zip", tmp_path)
    whole = zipped(tmp_path / "b.zip", {"cat/1.png": png(side=64)}).read_bytes()
    (tmp_path / "b.zip").write_bytes(whole[:200] + b"\1\2\3" + whole[203:])
    assert "damaged" in refused(tmp_path / "b.zip", tmp_path)
    locked = bytearray(zipped(tmp_path / "c.zip", {"cat/1.png": png()}).read_bytes())
    locked[6] |= 1
    locked[locked.index(b"PK\1\2") + 8] |= 1
    (tmp_path / "c.zip").write_bytes(locked)
    assert "password" in refused(tmp_path / "c.zip", tmp_path)


def test_an_image_bomb_is_unreadable(tmp_path: Path) -> None:
    """30,000 x 30,000 pixels in a few bytes: not decoded, but named."""
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0")), (b"IEND", b"")]
    bomb = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    unpack(zipped(tmp_path / "a.zip", {"cat/1.png": png(), "cat/2.png": bomb}), tmp_path / "images")
    assert understand(tmp_path / "images").unreadable == ("cat/2.png",)


def test_only_allowed_folders_are_reached(tmp_path: Path) -> None:
    root, secret = tmp_path / "root", tmp_path / "secret"
    (root / "birds").mkdir(parents=True)
    secret.mkdir()
    (root / "link").symlink_to(secret)
    assert allowed("birds", [root]) == allowed(str(root / "birds"), [root]) == root / "birds"
    said = set()
    for name in ("../secret", str(secret), "link", "/", "", "none", "birds/../../secret", "a\0b", "/none"):
        with pytest.raises(InputError) as error:
            allowed(name, [root])
        said.add(str(error.value))
    assert len(said) == 1, "nothing tells what there is outside"
    with pytest.raises(InputError):
        allowed("birds", [])
