"""The web server of the page: its address, its login and its limits. It sends no request to other machines."""

import errno
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

from pah.app.open_learner import OpenLearner
from pah.app.views import STYLE
from pah.app.zip_upload import LIMITS
from pah.core.config import InputError
from pah.core.files import LOCK, locked

if TYPE_CHECKING:
    import gradio

UPLOADS = "pah-app-"  # how the name of the folder of uploads and downloads begins
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
        InputError: the extra `app` is missing, or the address cannot be used, for example because the port is in use.
    """
    with closing(opened):
        port = _free_port(options.host, options.port)  # before the slow import
        with _page(opened) as page:
            yield _launch(page, opened, replace(options, port=port))


@contextmanager
def _page(opened: OpenLearner) -> Iterator["gradio.Blocks"]:
    """Build the page, with a folder for its uploads; both end with the context."""
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}  # gradio reads them on import
    os.environ.pop("GRADIO_ALLOWED_PATHS", None)  # folders that every gradio page would serve
    try:
        import gradio  # noqa: F401 - the page needs it
    except ImportError:
        raise InputError("app needs the extra: in a clone of pah, run pip install -e '.[app]'") from None
    from pah.app.offline import disable_downloads
    from pah.app.page import build

    with _upload_folder() as folder:
        opened.upload_folder = folder
        os.environ["GRADIO_TEMP_DIR"] = str(folder)
        disable_downloads()
        page = build(opened)
        try:
            yield page
        finally:
            page.close(verbose=False)


def _launch(page: "gradio.Blocks", opened: OpenLearner, options: ServerOptions) -> str:
    """Start the page's server, and return its web address."""
    from pah.app.page import theme

    try:
        _, address, _ = page.launch(
            server_name=options.host,
            server_port=options.port,
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
    except OSError:  # another program took the port just now
        raise _port_in_use(options.port) from None
    return str(address)


@contextmanager
def _upload_folder() -> Iterator[Path]:
    """Make a temporary folder for uploads and downloads; delete those that killed servers of this user left behind."""
    temporary = Path(tempfile.gettempdir())
    for old in temporary.glob(f"{UPLOADS}*"):
        with suppress(InputError, OSError):  # it is in use, or somebody else's
            if not old.is_symlink() and old.stat().st_uid == os.getuid() and (old / LOCK).is_file():
                with locked(old):
                    shutil.rmtree(old, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=UPLOADS))
    try:
        with locked(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _free_port(host: str, port: int) -> int:
    """Return the port if the page can listen there; for 0 a free one.

    Raises:
        InputError: it cannot, in words of this project: gradio names a variable of its own and its own function.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.create_server((host, port), family=family) as server:
            return int(server.getsockname()[1])
    except socket.gaierror:
        raise InputError(f"host: expected an address of this machine, got {host}") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise _port_in_use(port) from None
        if error.errno == errno.EACCES:
            raise InputError(f"port {port}: expected one that this user may use, such as --port 7860") from None
        raise InputError(f"host: expected an address of this machine, got {host}: {error.strerror}") from None


def _port_in_use(port: int) -> InputError:
    return InputError(f"port {port}: expected a free one, got one in use; choose another with --port, 0 for a free one")
