"""A study's engine: here, one cell after another, or on a Ray cluster."""

import logging
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from pah.core.config import InputError
from pah.core.devices import DeviceName, find_device
from pah.study.grid import Cell, Engine, Outcome, Stop, Watch, run_cells
from pah.study.ray_driver import AUTO, LOCAL, Errands, Place, fits, last_line

LISTENS = 2.0  # seconds in which a cluster's address must take a connection
ANSWERS = 8.0  # seconds in which the cluster must have let this machine in
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",  # of a cluster that is started here
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # what Ray says of its nodes; what matters to a study is said here
}
CONNECT = "import sys, ray; ray.init(sys.argv[1], log_to_driver=False, logging_level='critical')"


@contextmanager
def engine(place: Place | None, device: DeviceName = "cpu") -> Iterator[Engine]:
    """What runs a study's cells: `run_cells` on a device here without a place, else what does the same on its cluster.

    Raises:
        InputError: this machine has no such device, Ray is not installed, the cluster does not answer or is lost, or
            its nodes will not do.
    """
    if place is None:
        yield partial(run_cells, device=find_device(device))
        return
    _connect(place)
    import ray

    try:
        if place.address == LOCAL and not fits(place):
            raise InputError(f"ray {LOCAL}: expected runs that this machine has room for, got runs of {place.needs}")
        yield partial(_run, place)
    except ray.exceptions.RayError as error:
        reason = " ".join(str(error).split())
        raise InputError(f"ray {place.address}: expected a cluster that stays, lost it: {reason}") from None
    finally:
        ray.shutdown()


def _connect(place: Place) -> None:
    """Connect this process to the cluster, or start one here."""
    for name, value in (QUIET | (_own_token() if place.address == LOCAL else {})).items():
        os.environ.setdefault(name, value)  # before the import, which reads them
    try:
        import ray
    except ImportError:
        raise InputError("a study on a cluster needs the extra: pip install 'pah[ray]'") from None
    if place.address != LOCAL:
        _require_answer(place.address)
    dashboard: Any = {"include_dashboard": False} if place.address == LOCAL else {}
    try:
        ray.init(place.address, log_to_driver=False, logging_level=logging.CRITICAL, **dashboard)
    except Exception as error:
        raise InputError(f"ray {place.address}: expected a Ray cluster, got: {last_line(str(error))}") from None


def _own_token() -> dict[str, str]:
    """Ray would write one into the home for a cluster here, and clusters of later days would ask for it."""
    return {} if "RAY_AUTH_MODE" in os.environ else {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


def _require_answer(address: str) -> None:
    """Raise InputError if there is no cluster to connect to.

    Another process tries, for Ray tries for minutes and cannot be told not to.
    """
    host, _, port = address.rpartition(":")
    reason = ""
    try:
        if address != AUTO:
            socket.create_connection((host.strip("[]"), int(port)), timeout=LISTENS).close()
        done = subprocess.run([sys.executable, "-c", CONNECT, address], capture_output=True, text=True, timeout=ANSWERS)
        if done.returncode:
            reason = last_line(done.stderr)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
    except subprocess.TimeoutExpired as late:
        asked = b"AuthToken" in (late.stderr or b"")
        reason = f"none within {ANSWERS:g} s{', as it asks for a token: set RAY_AUTH_MODE=token' if asked else ''}"
    if reason:
        raise InputError(f"ray {address}: expected a Ray cluster that answers, got: {reason}")


def _run(place: Place, cells: Sequence[Cell], watch: Watch, stop: Stop, checkpoint_seconds: float) -> list[Outcome]:
    return Errands(place, cells, watch, stop, checkpoint_seconds).run()
