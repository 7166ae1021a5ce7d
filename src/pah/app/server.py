"""The web server of the page: its address, its login and its limits. It sends no request to other machines."""

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from pah.app.open_learner import OpenLearner
from pah.app.views import STYLE
from pah.app.zip_upload import LIMITS
from pah.core.config import InputError

MAX_SESSIONS = 200  # visitors and API calls whose state gradio keeps in memory, about 150 kB each


@dataclass(frozen=True)
class ServerOptions:
    """The address of the page and its login.

    Args:
        host: Address to listen at.
        port: Port to listen at; 0 for a free one.
        user: Name of the login; without it there is no login.
        password: Password of the login.

    Raises:
        InputError: only one of user and password is given, other machines could reach the address without a login,
            or the port is out of range.
    """

    host: str = "127.0.0.1"
    port: int = 7860
    user: str | None = None
    password: str | None = None

    def __post_init__(self) -> None:
        if bool(self.user) != bool(self.password):
            raise InputError("app: expected both a user and a password, or neither, got one of them")
        if not self.user and not _is_loopback(self.host):
            raise InputError(
                f"app: expected --user and a password for an address that others reach, got {self.host} without"
            )
        if not 0 <= self.port <= 65535:
            raise InputError(f"port: expected 0 to 65535, got {self.port}")


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@contextmanager
def serving(opened: OpenLearner, options: ServerOptions) -> Iterator[str]:
    """Serve the page inside the context, which yields its web address.

    Raises:
        InputError: the extra `app` is missing, or the port is taken.
    """
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}  # gradio reads them on import
    try:
        import gradio  # noqa: F401 - the page needs it
    except ImportError:
        raise InputError("app needs the extra: in a clone of pah, run pip install -e '.[app]'") from None
    from pah.app.offline import disable_downloads
    from pah.app.page import build, theme

    opened.upload_folder = folder = Path(tempfile.mkdtemp(prefix="pah-app-"))
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    disable_downloads()
    page = build(opened)
    try:
        _, address, _ = page.launch(
            server_name=options.host,
            server_port=options.port or _free_port(options.host),
            auth=(options.user, options.password) if options.user and options.password else None,
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
            state_session_capacity=MAX_SESSIONS,
            allowed_paths=[],
            blocked_paths=[str(opened.learners.resolve())],
            theme=theme(),
            css=STYLE,
            favicon_path=None,
        )
        yield address
    except OSError as error:
        raise InputError(f"port {options.port}: expected a free one at {options.host}, got: {error}") from None
    finally:
        page.close(verbose=False)
        opened.close()
        shutil.rmtree(folder, ignore_errors=True)


def _free_port(host: str) -> int:
    with socket.create_server((host, 0)) as server:
        return int(server.getsockname()[1])
