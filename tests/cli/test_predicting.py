"""`pah predict`: any number of images, named in any way, and those that cannot be read."""

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from helpers import DIGITS
from pah import ContinualLearner
from pah.cli import image_paths, main, predicting
from pah.learner.answering import decode_each

Answers = Callable[..., list[dict[str, Any]]]
NEW = ("--image_size", "8", "--backbone", "convnet", "--backbone.width", "8", "--epochs", "3", "--augment.crop", "0")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with class folders of digits, `low` and `high`, and a learner of both, which tests must not change."""
    root = tmp_path_factory.mktemp("root")
    for y, pixels in zip(DIGITS.train.labels.tolist(), DIGITS.train.pixels[:, 0].numpy(), strict=True):
        folder = root / ("low" if y < 3 else "high") / f"digit {y}"
        if y < 5 and (not folder.exists() or len([*folder.iterdir()]) < 40):
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / f"{len([*folder.iterdir()]):02}.png")
    for name in ("low", "high"):
        assert (
            main(
                [
                    "learn",
                    str(root / "learner"),
                    "--name",
                    name,
                    "--data",
                    str(root / name),
                    *NEW[: 10 if name == "low" else 0],
                ]
            )
            == 0
        )
    return root


@pytest.fixture(autouse=True)
def here(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)


@pytest.fixture
def answers_of(capsys: pytest.CaptureFixture[str]) -> Answers:
    """A function that runs `pah predict learner ... --json` and returns the answers; stderr must stay empty."""

    def run(*words: str) -> list[dict[str, Any]]:
        capsys.readouterr()
        assert main(["predict", "learner", "--json", *words]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        return [json.loads(line) for line in out.splitlines()]

    return run


def files_in(*folders: str) -> list[str]:
    return [str(path) for folder in folders for path in sorted(Path(folder).rglob("*.png"))]


def test_folders_patterns_and_stdin_name_the_same_images(answers_of: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = answers_of(*files_in("low"))
    assert len(expected) == 120
    assert answers_of("low") == expected
    assert answers_of("low/*/*.png") == expected
    assert answers_of("low/**/*.png") == expected
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(files_in("low")) + "\r\n\n"))
    assert answers_of("-") == expected
    monkeypatch.setattr(sys, "stdin", io.StringIO("low/digit 1\n"))
    assert answers_of("-", "low/digit 0/01.png") == [expected[n] for n in (*range(40, 80), 1)]


def test_answers_are_printed_before_later_images_are_decoded(
    answers_of: Answers, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = answers_of("low", "--task", "low")
    monkeypatch.setattr(predicting, "BATCHES", 1)  # 50 images
    printed: list[int] = []
    real = decode_each

    def decode_and_count(names: list[str], *options: Any) -> Any:
        printed.append(capsys.readouterr().out.count("\n"))
        assert len(names) <= 50
        return real(names, *options)

    monkeypatch.setattr(predicting, "decode_each", decode_and_count)
    assert main(["predict", "learner", "low", "--json", "--task", "low"]) == 0
    assert printed == [0, 50, 50]
    last = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert last == expected[100:]


def test_names_that_begin_with_a_dash(answers_of: Answers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = Path("low/digit 0/01.png").read_bytes()
    learner = Path("learner").resolve()
    monkeypatch.chdir(tmp_path)
    Path("learner").symlink_to(learner)
    for name in ("-x.png", "--json", "-"):
        Path(name).write_bytes(data)
    assert [answer["file"] for answer in answers_of("--", "-x.png", "--json", "./-")] == ["-x.png", "--json", "./-"]


def test_a_name_with_brackets_is_no_pattern_if_the_file_exists(answers_of: Answers, tmp_path: Path) -> None:
    path = tmp_path / "[bold]*.png"
    path.write_bytes(Path("low/digit 0/01.png").read_bytes())
    assert [answer["file"] for answer in answers_of(str(path))] == [str(path)]


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A folder with 60 good images, a bad one in their middle, a text file, and a link to a folder."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    for number, file in enumerate(files_in("low")[:60]):
        (folder / f"{number:02}.png").write_bytes(Path(file).read_bytes())
    (folder / "30a.png").write_bytes(b"no image")
    (folder / "notes.txt").write_text("notes")
    (folder / "link").symlink_to(Path("high").resolve())
    return folder


def test_images_that_cannot_be_read_are_named_and_the_others_answered(
    answers_of: Answers, mixed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = answers_of(*[str(mixed / f"{number:02}.png") for number in range(60)])
    for words, status in (((), 2), (("--skip_unreadable",), 0)):
        assert main(["predict", "learner", str(mixed), "--json", *words]) == status
        out, err = capsys.readouterr()
        assert [json.loads(line) for line in out.splitlines()] == expected
        bad, left_out, count = err.splitlines()
        assert bad.startswith(f"pah: {mixed / '30a.png'}: expected an image")
        assert left_out.startswith("pah: 2 left out")
        assert left_out.endswith(str(mixed / "link"))
        assert count == "pah: 1 of 61 images could not be read"


def test_an_image_with_more_megapixels_than_allowed_is_not_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("L", (1100, 1000)).save(tmp_path / "large.png")
    assert main(["predict", "learner", str(tmp_path / "large.png"), "--max_megapixels", "1"]) == 2
    assert "megapixel" in capsys.readouterr().err
    assert main(["predict", "learner", str(tmp_path / "large.png"), "--max_megapixels", "2"]) == 0


def test_the_most_likely_classes_and_unsure_answers(
    answers_of: Answers, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    plain = answers_of("low", "high")
    ranked = answers_of("low", "high", "--top", "9", "--threshold", "0.9")
    learner = ContinualLearner.load("learner")
    classes = {task.name: set(task.classes) for task in learner.tasks}
    for answer, before in zip(ranked, plain, strict=True):
        top, unsure = answer.pop("top"), answer.pop("unsure")
        assert answer == before
        assert top[0] == {"label": answer["label"], "probability": answer["probability"]}
        assert {choice["label"] for choice in top} == classes[answer["task"]]
        probabilities = [choice["probability"] for choice in top]
        assert probabilities == sorted(probabilities, reverse=True)
        assert sum(probabilities) == pytest.approx(1, abs=1e-5)
        assert unsure == (answer["probability"] < 0.9)
    assert all(len(answer["top"]) == 2 for answer in answers_of("low", "--top", "2"))


def test_the_most_likely_classes_and_unsure_answers_as_text(
    answers_of: Answers, capsys: pytest.CaptureFixture[str]
) -> None:
    least = min(answers_of("low", "--task", "low", "--top", "3"), key=lambda answer: answer["probability"])
    words = [least["file"], "--task", "low", "--top", "3", "--threshold", str(least["probability"] + 1e-3)]
    assert main(["predict", "learner", *words]) == 0
    title, *lines = capsys.readouterr().out.splitlines()
    assert title.split() == ["class", "probability", "task", "file"]
    first, *others = least["top"]
    assert lines[0].split("  ")[0] == f"{first['label']} (unsure)"
    assert lines[0].endswith(least["file"])
    expected = [f"  {choice['label']} {choice['probability']:.3f}" for choice in others]
    assert [[line[:9], line.split()[-1]] for line in lines[1:]] == [[text[:9], text.split()[-1]] for text in expected]


def test_answers_as_csv(answers_of: Answers, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = answers_of("low/digit 0", "--top", "2", "--threshold", "0.5", "--csv", str(tmp_path / "too.csv"))
    out = tmp_path / "answers.csv"
    words = ["--top", "2", "--threshold", "0.5", "--csv", str(out)]
    assert main(["predict", "learner", "low/digit 0", *words]) == 0
    assert capsys.readouterr().out == f"40 answers in {out}\n"
    assert out.read_text() == (tmp_path / "too.csv").read_text()
    with out.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == [answer["file"] for answer in expected]
    assert [float(row["probability"]) for row in rows] == [answer["probability"] for answer in expected]
    assert [row["label_2"] for row in rows] == [answer["top"][1]["label"] for answer in expected]
    assert {row["unsure"] for row in rows} <= {"True", "False"}


def test_odd_names_are_printed_safely(answers_of: Answers, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = Path("low/digit 0/01.png").read_bytes()
    names = [os.fsdecode(name) for name in (b"[bold]x.png", b"a\nb\x1b[31m.png", b"\xff.png")]
    for name in names:
        (tmp_path / name).write_bytes(image)
    files = [str(tmp_path / name) for name in names]
    assert [answer["file"] for answer in answers_of(str(tmp_path), "--csv", "odd.csv")] == files
    with open("odd.csv", newline="", encoding="utf-8") as file:
        assert [row["file"] for row in csv.DictReader(file)] == [*files[:2], str(tmp_path / "\\udcff.png")]
    assert main(["predict", "learner", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    for part in ("[bold]x.png\n", "a\\nb\\x1b[31m.png\n", "\\udcff.png\n"):
        assert part in shown
    assert main(["predict", "learner", str(tmp_path / "\x1b[2Jnone.png")]) == 2
    err = capsys.readouterr().err
    assert "\\x1b[2Jnone.png" in err
    assert "\x1b" not in err


def test_bad_options(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    image = "low/digit 0/01.png"
    (tmp_path / "empty").mkdir()
    for words, parts in (
        ((image, "--rule", "energy", "--task", "low"), ("rule", "none beside --task")),
        ((image, "--top", "-1"), ("top", "at least 0")),
        ((image, "--threshold", "1.5"), ("threshold", "0 to 1", "1.5")),
        ((image, "--max_megapixels", "0"), ("max_megapixels", "at least 1")),
        ((image, "--csv", str(tmp_path / "no" / "file.csv")), ("file.csv", "a file to write")),
        ((str(tmp_path / "empty"),), ("empty", "expected images", "found none")),
        ((str(tmp_path / "*.jpg"),), ("*.jpg", "found none")),
        (("-x.png",), ("-x.png", "follows --")),
    ):
        assert main(["predict", "learner", *words]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert not [part for part in parts if part not in err], err


def test_a_bad_option_leaves_an_older_csv_file_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "old.csv").write_text("old")
    assert main(["predict", "learner", "low", "--csv", str(tmp_path / "old.csv"), "--task", "birds"]) == 2
    assert main(["predict", "learner", str(tmp_path), "--csv", str(tmp_path / "old.csv")]) == 2
    assert (tmp_path / "old.csv").read_text() == "old"


def test_undecodable_names_on_stdin() -> None:
    code = f"import sys; sys.path.insert(0, {str(Path(predicting.__file__).parents[2])!r})\n"
    code += "from pah.cli import image_paths\nprint([ascii(p) for p in image_paths.ImagePaths(['-']).find()])"
    done = subprocess.run([sys.executable, "-c", code], input=b"a\xff.png\nb c.png\n", capture_output=True, check=True)
    assert done.stdout.decode().strip() == str([ascii("a\udcff.png"), ascii("b c.png")])


def test_a_reader_that_leaves_ends_predict_quietly(root: Path) -> None:
    command = '"$PYTHON" -m pah predict learner low high --json | head -1; echo ${PIPESTATUS[0]}'
    environment = os.environ | {"PYTHON": sys.executable}
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment)
    first, status = done.stdout.splitlines()
    assert json.loads(first)["file"].endswith(".png")
    assert (status, done.stderr) == ("0", "")


def test_hidden_files_are_not_listed(tmp_path: Path) -> None:
    (tmp_path / ".cache").mkdir()
    for name in ("a.png", ".b.png", ".cache/c.png", "B.PNG"):
        (tmp_path / name).write_bytes(b"")
    paths = image_paths.ImagePaths([str(tmp_path)])
    assert paths.find() == [str(tmp_path / "B.PNG"), str(tmp_path / "a.png")]
    assert paths.left_out == 0
