"""The engine that runs a study's cells: in this process one after another, or on a Ray cluster."""

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
from pah.study.ray_driver import AUTO, LOCAL, ClusterOptions, RayDriver, has_fitting_node, last_line

SOCKET_SECONDS = 2.0  # within which the cluster's address must accept a connection
CONNECT_SECONDS = 8.0  # within which the cluster must accept this machine
RAY_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # of a cluster that is started here
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # hide Ray's own messages about nodes; the driver reports what matters
}
CONNECT_PROGRAM = "import sys, ray; ray.init(sys.argv[1], log_to_driver=False, logging_level='critical')"


@contextmanager
def engine(cluster: ClusterOptions | None, device: DeviceName = "cpu") -> Iterator[Engine]:
    """Yield the function that runs a study's cells: `run_cells` on a device here, or its equivalent on a cluster.

    Args:
        cluster: where to run; None to run in this process.
        device: to train on in this process; a cluster's device is part of its options.

    Raises:
        InputError: this machine has no such device, Ray is not installed, the cluster does not answer or is lost, or
            its nodes are not suitable.
    """
    if cluster is None:
        yield partial(run_cells, device=find_device(device))
        return
    _connect(cluster)
    import ray

    try:
        if cluster.address == LOCAL and not has_fitting_node(cluster):
            raise InputError(
                f"ray {LOCAL}: expected runs that this machine has room for, got runs of {cluster.description}"
            )
        yield partial(_run_on_cluster, cluster)
    except ray.exceptions.RayError as error:
        reason = " ".join(str(error).split())
        raise InputError(f"ray {cluster.address}: expected a cluster that stays, lost it: {reason}") from None
    finally:
        ray.shutdown()


def _connect(cluster: ClusterOptions) -> None:
    """Connect this process to the cluster, or start one here."""
    environment = RAY_ENVIRONMENT | (_own_token() if cluster.address == LOCAL else {})
    for name, value in environment.items():
        os.environ.setdefault(name, value)  # before the import, which reads them
    try:
        import ray
    except ImportError:
        raise InputError(
            "a study on a cluster needs the extra: in a clone of pah, run pip install -e '.[ray]'"
        ) from None
    if cluster.address != LOCAL:
        _require_reachable(cluster.address)
    dashboard: Any = {"include_dashboard": False} if cluster.address == LOCAL else {}
    try:
        ray.init(cluster.address, log_to_driver=False, logging_level=logging.CRITICAL, **dashboard)
    except Exception as error:
        raise InputError(f"ray {cluster.address}: expected a Ray cluster, got: {last_line(str(error))}") from None


def _own_token() -> dict[str, str]:
    """Return a token for a cluster started here; otherwise Ray writes one into the home that later clusters require."""
    return {} if "RAY_AUTH_MODE" in os.environ else {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


def _require_reachable(address: str) -> None:
    """Raise InputError if no cluster answers at the address.

    Another process tries to connect, because Ray itself tries for minutes and has no option to stop earlier.
    """
    host, _, port = address.rpartition(":")
    reason = ""
    try:
        if address != AUTO:
            socket.create_connection((host.strip("[]"), int(port)), timeout=SOCKET_SECONDS).close()
        command = [sys.executable, "-c", CONNECT_PROGRAM, address]
        completed = subprocess.run(command, capture_output=True, text=True, timeout=CONNECT_SECONDS)
        if completed.returncode:
            reason = last_line(completed.stderr)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
    except subprocess.TimeoutExpired as expired:
        token_missing = b"AuthToken" in (expired.stderr or b"")
        hint = ", as it asks for a token: set RAY_AUTH_MODE=token" if token_missing else ""
        reason = f"none within {CONNECT_SECONDS:g} s{hint}"
    if reason:
        raise InputError(f"ray {address}: expected a Ray cluster that answers, got: {reason}")


def _run_on_cluster(
    cluster: ClusterOptions, cells: Sequence[Cell], watch: Watch, stop: Stop, checkpoint_seconds: float
) -> list[Outcome]:
    return RayDriver(cluster, cells, watch, stop, checkpoint_seconds).run()
