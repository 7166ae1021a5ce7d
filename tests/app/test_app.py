"""The page's service without a browser: lessons in their own processes, answers during a lesson, and the HTTP API."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from fenced_blocks import SERVED, blocks
from pah import ContinualLearner
from pah.app import service as service_module
from pah.app import views
from pah.app.messages import without_paths
from pah.app.open_learner import OpenLearner
from pah.app.prototype_images import load_prototype_images
from pah.app.service import Service, app_folder
from pah.cli import serving as command
from pah.cli.main import main
from pah.core.config import InputError

WAIT = 300.0  # seconds for a lesson, which runs with low priority


def class_zip(path: Path, classes: str, images: int = 12) -> str:
    """A zip with a folder for each letter; the classes differ in brightness."""
    with zipfile.ZipFile(path, "w") as archive:
        for k, name in enumerate(classes):
            for i in range(images):
                pixels = np.random.default_rng(i).integers(25 * k, 25 * k + 25, (8, 8, 3), dtype=np.uint8)
                data = io.BytesIO()
                Image.fromarray(pixels).save(data, "png")
                archive.writestr(f"photos/{name}/{i}.png", data.getvalue())
    return str(path)


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    """Wait until the condition returns something true, and return that."""
    end = time.monotonic() + WAIT
    while time.monotonic() < end:
        if result := condition():
            return result
        time.sleep(0.05)
    raise AssertionError(f"{what}: not within {WAIT} s")


def first(service: Service) -> dict[str, Any]:
    """Return the first lesson, or a stand-in if there is none."""
    lessons = service.lessons()
    return lessons[0] if lessons else {"id": "", "state": "none", "progress": {}, "reason": ""}


def wait_for_state(service: Service, state: str) -> dict[str, Any]:
    """Wait until the first lesson has that state, and return it."""

    def lesson_in_state() -> dict[str, Any] | None:
        lesson = first(service)
        assert lesson["state"] == state or lesson["state"] != "failed", lesson["reason"]
        return lesson if lesson["state"] == state else None

    lesson: dict[str, Any] = wait_for(lesson_in_state, state)
    return lesson


def teach(service: Service, name: str, archive: str, epochs: int = 1) -> dict[str, Any]:
    return service.teach(name, archive, "", epochs, 8, True)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z" if Path("/proc").is_dir() else True


@pytest.fixture(scope="module")
def birds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service whose learner was taught birds; beside its folder lies `one.png`, an image of class b."""
    folder = tmp_path_factory.mktemp("app")
    service = Service(folder / "animals")
    teach(service, "birds", class_zip(folder / "birds.zip", "abc"))
    service.queue.keep(wait_for_state(service, "done")["id"])
    (folder / "one.png").write_bytes(zipfile.ZipFile(folder / "birds.zip").read("photos/b/3.png"))
    yield service
    service.close()


@pytest.fixture
def taught(birds: Service) -> Iterator[Service]:
    """The service `birds`, whose lessons are deleted after each test."""
    yield birds
    for lesson in birds.lessons():
        birds.queue.stop(lesson["id"])


def ask(service: Service) -> Any:
    return service.ask([str(service.folder.parent / "one.png")], None, False)


def test_only_a_lesson_that_is_kept_changes_the_learner(taught: Service) -> None:
    before = ask(taught)
    state = (taught.folder / "learner.json").read_bytes()
    teach(taught, "fish", class_zip(taught.folder.parent / "fish.zip", "defgh", images=15))
    assert [task["name"] for task in taught.tasks] == ["birds"]
    done = wait_for_state(taught, "done")
    assert {*done["result"]["before"]} == {"birds"}
    assert {*done["result"]["after"]} == {"birds", "fish"}
    assert ask(taught) == before, "a lesson that is not kept changes no answer"
    taught.queue.roll_back(done["id"])
    assert (taught.folder / "learner.json").read_bytes() == state
    assert not list((taught.queue.home / "lessons").iterdir()), "its images are deleted"
    learner = json.loads(state)
    assert learner["tasks"][0]["data"] == "images", "the learner does not record the server's paths"


def test_answers_during_a_lesson_are_quick_and_come_from_the_accepted_learner(taught: Service) -> None:
    before = ask(taught)
    number = teach(taught, "long", class_zip(taught.folder.parent / "long.zip", "ij", images=300), epochs=500)["id"]
    wait_for(
        lambda: first(taught)["progress"].get("accuracy") is not None, "an accuracy"
    )  # it is reported after the epoch's number
    assert first(taught)["progress"]["epoch"] >= 1
    times = []
    for _ in range(20):
        started = time.monotonic()
        assert ask(taught) == before
        times.append(time.monotonic() - started)
    assert sorted(times)[10] < 1
    taught.queue.pause(number)
    share = wait_for_state(taught, "paused")["progress"]["share"]
    time.sleep(0.5)
    assert first(taught)["progress"]["share"] == share
    taught.queue.go(number)
    wait_for_state(taught, "running")
    wait_for(lambda: first(taught)["progress"]["share"] > share, "steps after the pause")
    process = taught.queue._process
    assert process is not None
    taught.queue.stop(number)
    assert not is_alive(process.pid)
    assert taught.lessons() == []
    assert ask(taught) == before


def test_a_full_queue_and_a_name_that_is_taken_are_refused(taught: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = class_zip(taught.folder.parent / "few.zip", "xy", images=300)
    monkeypatch.setattr(taught.queue, "max_waiting", 1)
    running, waiting = teach(taught, "one", archive, 500), teach(taught, "two", archive)
    assert waiting["state"] == "waiting"
    with pytest.raises(InputError, match="the queue is full"):
        teach(taught, "three", archive)
    monkeypatch.undo()
    for name in ("two", "birds", " ", "x" * 81):
        with pytest.raises(InputError, match="name: expected"):
            teach(taught, name, archive)
    with pytest.raises(InputError, match="done"):
        taught.queue.keep(running["id"])
    taught.queue.stop(waiting["id"])
    taught.queue.stop(running["id"])
    with pytest.raises(InputError, match="none of that id"):
        taught.queue.pause(running["id"])


def test_names_with_spaces_at_an_end_are_refused_and_not_changed(taught: Service, tmp_path: Path) -> None:
    archive = class_zip(tmp_path / "two.zip", "xy")
    for name in (" fish", "fish ", "fish\N{NO-BREAK SPACE}"):
        with pytest.raises(InputError, match="name: expected"):
            teach(taught, name, archive)
    assert taught.lessons() == []
    with pytest.raises(InputError, match="name: expected 1 to 40 letters"):
        OpenLearner(None, tmp_path / "learners").choose("new ")


@pytest.mark.parametrize("epochs", [2.5, None, float("nan"), float("inf"), True, 0, 501])
def test_epochs_are_refused_and_not_rounded(taught: Service, tmp_path: Path, epochs: float | None) -> None:
    with pytest.raises(InputError, match=f"epochs: expected a whole number from 1 to 500, got {epochs}"):
        taught.teach("fish", class_zip(tmp_path / "two.zip", "xy"), "", epochs, 8, True)


def test_a_taught_learner_keeps_its_image_size(taught: Service, tmp_path: Path) -> None:
    archive = class_zip(tmp_path / "two.zip", "xy")
    with pytest.raises(InputError, match=r"^image size: expected 8, which this learner has, got 64$"):
        taught.teach("fish", archive, "", 1, 64, True)
    assert taught.fixed_size == 8
    for size in (None, 0, 8.0):
        lesson = taught.teach("fish", archive, "", 1, size, True)
        taught.queue.stop(lesson["id"])


def test_the_first_lesson_of_a_new_learner_decides_the_image_size_of_the_others(tmp_path: Path) -> None:
    service, archive = Service(tmp_path / "new"), class_zip(tmp_path / "two.zip", "xy", images=100)
    try:
        before = service.fixed_size
        assert before is None
        with pytest.raises(InputError, match="image size: expected a whole number from 8 to 256, got 7"):
            service.teach("fish", archive, "", 1, 7, True)
        service.teach("fish", archive, "", 500, 16, True)
        assert service.fixed_size == 16
        assert service.next_digits is None, "digits do not fit a learner of photos"
        with pytest.raises(InputError, match="image size: expected 16"):
            service.teach("birds", archive, "", 1, 32, True)
    finally:
        service.close()


def test_a_zip_and_a_folder_at_once_are_refused(taught: Service, tmp_path: Path) -> None:
    archive = class_zip(tmp_path / "two.zip", "xy")
    with pytest.raises(InputError, match="images: expected a zip or a folder, got both: a zip and 'pets'"):
        taught.teach("fish", archive, "pets", 1, 8, True)
    with pytest.raises(InputError, match="got both"):
        taught.describe_upload(archive, "pets")


def test_files_that_a_lesson_leaves_out_are_counted_when_it_is_queued(taught: Service, tmp_path: Path) -> None:
    archive = class_zip(tmp_path / "two.zip", "xy")
    with zipfile.ZipFile(archive, "a") as opened:
        for name in ("photos/x/a.txt", "photos/y/b.TXT", "photos/notes.pdf"):
            opened.writestr(name, "text")
        opened.writestr("photos/x/bad.png", "no image")
    lesson = teach(taught, "fish", archive)
    assert lesson["left_out"] == [
        "Unreadable, will be left out: x/bad.png.",
        "No images of a class, will be left out: 2 .txt, 1 .pdf.",
    ]
    taught.queue.stop(lesson["id"])
    assert "2 .txt, 1 .pdf" in taught.describe_upload(archive, "")


def test_a_learner_that_another_program_taught_meanwhile_is_not_replaced(taught: Service, tmp_path: Path) -> None:
    teach(taught, "insects", class_zip(tmp_path / "insects.zip", "kl"))
    done = wait_for_state(taught, "done")
    try:
        other = ContinualLearner.load(taught.folder)
        other.learn("other", (np.zeros((8, 8, 8), np.uint8), [0, 1] * 4, ["m", "n"]))
        other.save(taught.folder)
        with pytest.raises(InputError, match="taught since"):
            taught.queue.keep(done["id"])
        assert [task["name"] for task in taught.tasks] == ["birds", "other"], "answers come from the new learner"
    finally:
        other.forget("other")
        other.save(taught.folder)
        taught.queue.roll_back(done["id"])


def test_a_failed_lesson_gives_its_reason_without_paths(taught: Service, tmp_path: Path) -> None:
    lesson = teach(taught, "gone", class_zip(tmp_path / "two.zip", "yz"))
    shutil.rmtree(taught.queue.home / "lessons" / lesson["id"] / "images")  # before its process has read any image
    failed = wait_for(lambda: first(taught)["state"] == "failed" and first(taught), "failed")
    assert "expected" in failed["reason"]
    assert "/" not in failed["reason"]
    taught.queue.stop(failed["id"])
    assert without_paths("/home/me/x y: expected /tmp/a/b.png, 3/4", Path("/home/me/x y")) == (
        "the images: expected b.png, 3/4"
    )


def test_a_zip_without_classes_is_refused_before_a_lesson_is_queued(taught: Service, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "none.zip", "w") as archive:
        archive.writestr("notes.txt", "text")
    with pytest.raises(InputError, match="expected a zip of class folders with images in them, got none"):
        teach(taught, "none", str(tmp_path / "none.zip"))
    assert not taught.lessons()
    assert not list((taught.queue.home / "lessons").iterdir())


def test_a_killed_server_ends_its_lesson_which_can_be_started_again(tmp_path: Path) -> None:
    archive = class_zip(tmp_path / "birds.zip", "ab", images=300)
    code = (
        "import sys, time; from pah.app.service import Service; from pathlib import Path\n"
        f"s = Service(Path({str(tmp_path / 'new')!r})); s.teach('birds', {archive!r}, '', 500, 8, True)\n"
        "while not s.lessons()[0]['progress'].get('epoch'): time.sleep(0.05)\n"
        "print(s.queue._process.pid, flush=True); time.sleep(100)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        child = int(server.stdout.readline())
        with pytest.raises(InputError, match="in use"):
            Service(tmp_path / "new")
        server.send_signal(signal.SIGKILL)
    wait_for(lambda: not is_alive(child), "the lesson's end")
    again = Service(tmp_path / "new")
    try:
        lesson = first(again)
        assert lesson["state"] == "interrupted"
        assert not (tmp_path / "new" / "learner.json").exists()
        again.queue.go(lesson["id"])
        wait_for(lambda: first(again)["progress"].get("epoch"), "an epoch of the second try")
        again.queue.stop(lesson["id"])
        assert not list((app_folder(tmp_path / "new") / "lessons").iterdir())
    finally:
        again.close()


@pytest.fixture(scope="module")
def address(birds: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server for a copy of the learner, which the command started with a user and a password."""
    folder = tmp_path_factory.mktemp("served") / "animals"
    shutil.copytree(birds.folder, folder)
    words = [sys.executable, "-m", "pah", "app", str(folder), "--port", "0", "--user", "me"]
    environment = os.environ | {command.PASSWORD: "secret"}
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment) as server:
        assert server.stdout is not None
        yield server.stdout.readline().split()[0]
        server.send_signal(signal.SIGTERM)
        assert server.wait(WAIT) == 128 + signal.SIGTERM


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_answers_downloads_and_refusals_over_http(taught: Service, address: str) -> None:
    """Warnings are ignored because gradio's client leaves sockets and an event loop open."""
    image = handle_file(str(taught.folder.parent / "one.png"))
    with pytest.raises(Exception, match=r"401|[Ll]ogin|credentials|auth"):
        Client(address, verbose=False)
    client = Client(address, auth=("me", "secret"), verbose=False)
    (answer,) = client.predict([image], api_name="/ask")
    assert answer["task"] == "birds"
    assert {share["label"] for share in answer["shares"]} == set("abc")
    assert [task["name"] for task in client.predict(api_name="/tasks")] == ["birds"]
    archive = client.predict("learner", api_name="/download")
    names = {Path(name).name for name in zipfile.ZipFile(archive).namelist()}
    assert names == {"learner.json", "model.safetensors", "README.md"}
    meta = {"_type": "gradio.FileData"}
    address_file, server_file = ({"path": path, "meta": meta} for path in ("http://127.0.0.1:1/a.png", "/etc/hostname"))
    for images, task in (([image], "no task"), ([], ""), ([address_file], ""), ([server_file], "")):
        with pytest.raises(AppError) as error:
            client.predict(images, task, api_name="/ask")
        assert "Traceback" not in str(error.value)
        assert str(taught.folder.parent) not in str(error.value)
    kept = next((taught.queue.home / "checks").iterdir())
    for file in (taught.folder / "learner.json", "/etc/hostname", Path(__file__), kept):
        assert httpx.get(f"{address}gradio_api/file={file}", cookies=client.cookies).status_code in (403, 404)
    client.close()


class Caller:
    """Calls endpoints of the page; unlike gradio's client it leaves no socket open."""

    def __init__(self, address: str) -> None:
        self.address = address
        login = httpx.post(f"{address}login", data={"username": "me", "password": "secret"})
        self.cookies = login.raise_for_status().cookies

    def upload(self, file: Path | str) -> dict[str, Any]:
        """Upload a file, and return it as an argument of a call."""
        with open(file, "rb") as opened:
            sent = httpx.post(f"{self.address}gradio_api/upload", files={"files": opened}, cookies=self.cookies)
        return {"path": sent.raise_for_status().json()[0], "meta": {"_type": "gradio.FileData"}}

    def __call__(self, endpoint: str, *arguments: Any) -> Any:
        """Return the answer of an endpoint; an error is returned as its text."""
        url = f"{self.address}gradio_api/call/{endpoint}"
        number = httpx.post(url, json={"data": arguments}, cookies=self.cookies).raise_for_status().json()["event_id"]
        result = httpx.get(f"{url}/{number}", cookies=self.cookies, timeout=WAIT).text
        content = json.loads(result.rsplit("data: ", 1)[1])
        return content[0] if "event: complete" in result else content["error"]


def odd_images(folder: Path) -> list[Path]:
    """Write images whose pixels depend on how a file is read, and return their files."""
    pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 4), dtype=np.uint8)
    colour = Image.fromarray(pixels[..., :3])
    turned = Image.Exif()
    turned[0x0112] = 6  # orientation: a quarter turn
    Image.fromarray(pixels).save(folder / "alpha.png")
    colour.save(folder / "turned.jpg", exif=turned)
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(folder / "16 bits.png")
    colour.quantize(8).save(folder / "animated.gif", save_all=True, append_images=[colour.rotate(180).quantize(8)])
    colour.save(folder / "photo.jfif", "JPEG")
    return sorted(folder.iterdir())


def test_answers_are_those_of_the_command_and_a_bad_file_is_named(
    taught: Service, address: str, tmp_path: Path
) -> None:
    files = odd_images(tmp_path)
    (tmp_path / "bäd #1.png").write_bytes(b"no image")
    call = Caller(address)
    sent = [call.upload(file) for file in (*files, tmp_path / "bäd #1.png")]
    for unknown in (False, True):
        expected = ContinualLearner.load(taught.folder).predict([str(file) for file in files], unknown=unknown)
        asked = call("ask", sent[:-1], "", unknown)
        each = call("ask_each", [*sent[:2], sent[-1], *sent[2:-1]], "", unknown)
        bad = each.pop(2)
        assert set(bad) == {"file", "error"}
        assert bad["error"].startswith("bäd #1.png: expected an image, got: ")
        assert [answer.pop("file") for answer in each] == [file.name for file in files]
        for prediction, *answers in zip(expected, asked, each, strict=True):
            for answer in answers:
                assert (answer["label"], answer["task"]) == (prediction.label, prediction.task)
                assert answer["probability"] == prediction.probability
    assert call("ask", sent, "", False).startswith("bäd #1.png: expected an image, got: ")


def test_each_download_is_the_learner_as_it_is_and_uploads_of_queued_lessons_are_deleted(
    taught: Service, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = OpenLearner(None, tmp_path / "learners")
    opened.upload_folder, opened.service = tmp_path / "uploads", taught
    opened.upload_folder.mkdir()
    first_file, second = opened.write_download("report"), opened.write_download("report")
    assert first_file != second, "a visitor's file does not change while it is fetched"
    monkeypatch.setattr("pah.app.open_learner.DOWNLOAD_SECONDS", -1)
    third = opened.write_download("report")
    assert [file for file in (first_file, second, third) if file.exists()] == [third]
    call = Caller(address)
    archive = call.upload(class_zip(tmp_path / "two.zip", "xy"))
    assert call("teach", archive, "fish", "", 1, 64, True).startswith("image size: expected 8, which this learner has")
    assert call("teach", archive, "fish", "", 1.5, 0, True).startswith("epochs: expected a whole number")
    assert Path(archive["path"]).exists(), "the visitor may try again"
    lesson = call("teach", archive, "fish", "", 1, 0, True)
    assert not Path(archive["path"]).exists()
    call("stop", lesson["id"])


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_examples_of_the_docs_run(
    taught: Service, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    class_zip(tmp_path / "fish.zip", "pqrs")
    shutil.copy(taught.folder.parent / "one.png", "photo.jpg")
    python, shell = (
        block.text.replace("http://127.0.0.1:7860", address.rstrip("/"))
        for block in blocks(Path(__file__).parents[2] / "docs" / SERVED)
        if block.language in ("python", "sh")
    )
    exec(compile(python.replace('name="fish"', 'name="fish", epochs=1'), SERVED, "exec"), {})
    assert "'after': {" in capsys.readouterr().out
    done = subprocess.run(["bash", "-euc", shell], capture_output=True, text=True, check=True)
    assert "event: complete" in done.stdout
    assert '"probability"' in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--host", "0.0.0.0"], "expected --user and a password"),
        (["--host", "0.0.0.0", "--user", "me"], "both a user and a password"),
        (["--port", "70000"], "expected 0 to 65535"),
        (["--roots", "nowhere"], "roots: expected folders"),
        (["--password", "x"], "password"),
        (["--password_file", "nowhere", "--user", "me"], "nowhere"),
        (["a", "b"], "one learner folder or none"),
        ([""], "one learner folder or none, got an empty name"),
    ],
)
def test_the_command_refuses_bad_options_in_one_line(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(command.PASSWORD, raising=False)
    assert main(["app", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_errors_hide_folders_whose_names_have_spaces(taught: Service, tmp_path: Path) -> None:
    folder = tmp_path / "my secret learner"
    shutil.copytree(taught.folder, folder)
    opened = OpenLearner(folder, tmp_path / "all learners")
    (folder / "learner.json").write_text("damaged")
    with pytest.raises(InputError, match="my secret learner") as private:
        opened.require_service().learner_html()
    assert "secret" not in views.refusal(private.value, opened.private_folders)
    opened.close()


def test_a_page_without_a_learner_makes_one_by_name(tmp_path: Path) -> None:
    opened = OpenLearner(None, tmp_path)
    for name in ("", "..", "a/b", "/etc", ".hidden", "x" * 41):
        with pytest.raises(InputError, match="name: expected"):
            opened.choose(name)
    service = opened.choose("new")
    assert service.folder == tmp_path / "new"
    assert service.next_digits == service_module.TOUR[0][0]
    with pytest.raises(InputError, match="open"):
        opened.choose("other")
    opened.close()


def test_prototypes_are_shown_at_their_start_after_their_lesson_and_today(taught: Service) -> None:
    birds = load_prototype_images(ContinualLearner.load(taught.folder), taught.queue.prototypes)[:3]
    assert [(prototype.task, prototype.label) for prototype in birds] == [("birds", label) for label in "abc"]
    own_lesson_moved_one = False
    for prototype in birds:
        assert prototype.start is not None
        assert prototype.learned is not None
        assert prototype.moved is not None
        assert prototype.moved < 0.1, "a later lesson hardly moves it"
        own_lesson_moved_one |= prototype.learned.tobytes() != prototype.start.tobytes()
    assert own_lesson_moved_one


def test_gradio_keeps_the_state_of_few_visitors(taught: Service, tmp_path: Path) -> None:
    """gradio keeps about 150 kB for every visitor and every API call."""
    shutil.copytree(taught.folder, tmp_path / "animals")
    code = (
        "import gc, httpx; from pathlib import Path; from pah.app import server\n"
        "from pah.app.open_learner import OpenLearner\n"
        f"server.MAX_SESSIONS = 3; opened = OpenLearner(Path({str(tmp_path / 'animals')!r}), Path('learners'))\n"
        "with server.serving(opened, server.ServerOptions(port=0)) as address:\n"
        "    for _ in range(6):\n"
        "        call = f'{address}gradio_api/call/tasks'\n"
        "        number = httpx.post(call, json={'data': []}).raise_for_status().json()['event_id']\n"
        "        assert 'event: complete' in httpx.get(f'{call}/{number}').text\n"
        "    from gradio.state_holder import StateHolder\n"
        "    print(max(len(state.session_data) for state in gc.get_objects() if isinstance(state, StateHolder)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert int(done.stdout) == 3
