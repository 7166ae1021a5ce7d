"""The page's server: its address, and the folder of uploads and downloads."""

import socket
import tempfile
from contextlib import nullcontext
from pathlib import Path

import pytest

from pah.app import server
from pah.app.open_learner import OpenLearner
from pah.app.server import ServerOptions, serving
from pah.core.config import InputError
from pah.core.files import LOCK, locked


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OpenLearner:
    """The learner of a page that is not served yet; temporary files go to a folder of the test."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    for name in ("GRADIO_TEMP_DIR", "GRADIO_ALLOWED_PATHS", "GRADIO_ANALYTICS_ENABLED", "HF_HUB_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, "")  # and restore it after the test
    return OpenLearner(None, tmp_path / "learners")


def test_a_busy_port_is_refused_in_one_line_that_names_the_option(opened: OpenLearner, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with (
            pytest.raises(InputError, match=f"^port {port}: expected a free one, got one in use; .* --port") as caught,
            serving(opened, ServerOptions(port=port)),
        ):
            pass
    assert "launch" not in str(caught.value)
    assert not list((tmp_path / "temporary").iterdir()), "no folder is left behind"


def test_an_address_of_another_machine_is_not_taken_for_a_busy_port(opened: OpenLearner) -> None:
    options = ServerOptions(host="192.0.2.1", port=7860, user="me", password="secret")
    with (
        pytest.raises(InputError, match=r"^host: expected an address of this machine, got 192\.0\.2\.1"),
        serving(opened, options),
    ):
        pass


def test_the_uploads_of_a_killed_server_are_deleted_at_the_next_start(opened: OpenLearner, tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    for name in ("killed", "running", "older"):
        (temporary / f"{server.UPLOADS}{name}").mkdir()
    (temporary / f"{server.UPLOADS}killed" / LOCK).touch()
    (temporary / f"{server.UPLOADS}killed" / "photo.png").touch()
    with locked(temporary / f"{server.UPLOADS}running"), server._upload_folder() as mine:
        left = {folder.name for folder in temporary.iterdir()}
    assert left == {f"{server.UPLOADS}running", f"{server.UPLOADS}older", mine.name}, "the others may be in use"


def test_a_file_error_while_the_page_is_served_is_not_taken_for_a_busy_port(
    opened: OpenLearner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_page", lambda _: nullcontext())
    monkeypatch.setattr(server, "_launch", lambda *_: "http://127.0.0.1:1/")
    with pytest.raises(FileNotFoundError, match="of another kind"), serving(opened, ServerOptions(port=0)):
        raise FileNotFoundError("of another kind")
