"""The server: where it listens, who may come in, and what it serves; no request leaves the machine."""

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from pah.app.open_learner import Rooms
from pah.app.views import STYLE
from pah.app.zip_upload import LIMITS
from pah.core.config import InputError

SESSIONS = 200  # visitors, and calls of programs, whose state gradio holds: some 150 kB each


@dataclass(frozen=True)
class Door:
    """Where the page is, and who may come in.

    Args:
        host: Address to listen at.
        port: 0 takes a free one.
        user: Who may come in; everybody on this machine unless given.
        password: Of that user.

    Raises:
        InputError: another address than this machine's own without user and password, or one of these alone.
    """

    host: str = "127.0.0.1"
    port: int = 7860
    user: str | None = None
    password: str | None = None

    def __post_init__(self) -> None:
        if bool(self.user) != bool(self.password):
            raise InputError("app: expected both a user and a password, or neither, got one of them")
        if not self.user and not _is_own(self.host):
            raise InputError(
                f"app: expected --user and a password for an address that others reach, got {self.host} without"
            )
        if not 0 <= self.port <= 65535:
            raise InputError(f"port: expected 0 to 65535, got {self.port}")


def _is_own(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@contextmanager
def serving(rooms: Rooms, door: Door) -> Iterator[str]:
    """Serve the page inside; yields its address.

    Raises:
        InputError: the extra `app` is missing, or the address is taken.
    """
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}  # read when it is imported
    try:
        import gradio  # noqa: F401 - the page needs it
    except ImportError:
        raise InputError("app needs the extra: pip install 'pah[app]'") from None
    from pah.app.offline import stay_on_this_machine
    from pah.app.page import build, look

    rooms.uploads = place = Path(tempfile.mkdtemp(prefix="pah-app-"))
    os.environ["GRADIO_TEMP_DIR"] = str(place)
    stay_on_this_machine()
    page = build(rooms)
    try:
        _, address, _ = page.launch(
            server_name=door.host,
            server_port=door.port or _free(door.host),
            auth=(door.user, door.password) if door.user and door.password else None,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            show_error=False,
            ssr_mode=False,
            mcp_server=False,
            enable_monitoring=False,
            run_history=False,
            footer_links=["api"],
            max_file_size=LIMITS.upload_bytes,
            state_session_capacity=SESSIONS,
            allowed_paths=[],
            blocked_paths=[str(rooms.learners.resolve())],
            theme=look(),
            css=STYLE,
            favicon_path=None,
        )
        yield address
    except OSError as error:
        raise InputError(f"port {door.port}: expected a free one at {door.host}, got: {error}") from None
    finally:
        page.close(verbose=False)
        rooms.close()
        shutil.rmtree(place, ignore_errors=True)


def _free(host: str) -> int:
    """A free port."""
    with socket.create_server((host, 0)) as taken:
        return int(taken.getsockname()[1])
