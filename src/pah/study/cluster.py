"""A study's engine: here, one cell after another, or on a Ray cluster."""

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from pah.config import InputError
from pah.study.errands import Errands, Place, fits, last_line
from pah.study.grid import Cell, Engine, Outcome, Stop, Watch, run_cells

LOCAL = "local"
ANSWER = 8.0  # seconds in which a cluster must answer


@contextmanager
def engine(place: Place | None) -> Iterator[Engine]:
    """What runs a study's cells: `run_cells` without a place, else what does the same on its cluster.

    Raises:
        InputError: Ray is not installed, the cluster does not answer or is lost, or its nodes will not do.
    """
    if place is None:
        yield run_cells
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # of a cluster that is started here
    try:
        import ray
    except ImportError:
        raise InputError("a study on a cluster needs the extra: pip install 'pah[ray]'") from None
    _connect(place)
    try:
        yield partial(_run, place)
    except ray.exceptions.RayError as error:
        reason = " ".join(str(error).split())
        raise InputError(f"ray {place.address}: expected a cluster that stays, lost it: {reason}") from None
    finally:
        ray.shutdown()


def _connect(place: Place) -> None:
    """Connect this process to the cluster, or start one here."""
    import ray

    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "critical"}
    if place.address == LOCAL:
        if "RAY_AUTH_MODE" not in os.environ:  # else Ray leaves a token in the home, for which later clusters ask
            os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        ray.init(LOCAL, include_dashboard=False, **options)
    else:
        _require_answer(place.address)
        ray.init(place.address, **options)
    if place.address == LOCAL and not fits(place):
        most = {name: ray.cluster_resources().get(name, 0) for name in place.resources}
        raise InputError(f"ray local: expected a cell to need at most {most}, got {place.resources}")


def _require_answer(address: str) -> None:
    """Raise InputError if there is no cluster to connect to.

    Another process tries, for Ray tries for minutes and cannot be told not to.
    """
    code = "import sys, ray; ray.init(sys.argv[1], log_to_driver=False, logging_level='critical')"
    try:
        done = subprocess.run([sys.executable, "-c", code, address], capture_output=True, text=True, timeout=ANSWER)
        reason = "" if done.returncode == 0 else last_line(done.stderr) or "none"
    except subprocess.TimeoutExpired as late:
        asked = b"AuthToken" in (late.stderr or b"")
        reason = f"none within {ANSWER:g} s{', as it asks for a token: set RAY_AUTH_MODE=token' if asked else ''}"
    if reason:
        raise InputError(f"ray {address}: expected a Ray cluster that answers, got: {reason}")


def _run(place: Place, cells: Sequence[Cell], watch: Watch, stop: Stop, checkpoint_seconds: float) -> list[Outcome]:
    return Errands(place, cells, watch, stop, checkpoint_seconds).run()
