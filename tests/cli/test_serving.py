"""`pah app` refuses, before it serves anything, what could not work."""

import socket
from pathlib import Path

import pytest

from pah.cli import main

pytest.importorskip("gradio")


def test_a_port_that_is_in_use_is_named_with_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        assert main(["app", "--learners", str(tmp_path), "--port", port]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert f"port {port}: expected a free one, got one in use; choose another with --port, 0 for a free one" in err


def test_a_folder_of_learners_beside_a_learner_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["app", str(tmp_path / "learner"), "--learners", str(tmp_path)]) == 2
    assert "learners: expected none beside a learner" in capsys.readouterr().err
