"""What may differ between the runs of a study although their options are equal: their data, and how they were made."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pah.core import files
from pah.core.config import InputError, RecoveryWarning
from pah.data.stream import Stream
from pah.runs.folder import CHECKPOINT, CONFIG, METRICS
from pah.runs.saved_state import checkpoint_facts
from pah.training import checkpoint


def require_same_data(folder: Path, stream: Stream) -> None:
    """Raise InputError if runs in a study folder have seen other data; warn if some did not record what they saw.

    Args:
        folder: The study folder, which may be new.
        stream: A stream of the data as they are now.
    """
    configs = [*folder.glob(f"*/{CONFIG}"), *folder.glob(f"tuning/*/{CONFIG}")]
    known = {path.parent: _data_fingerprint(path.parent) for path in sorted(configs) if _has_learned(path.parent)}
    if unknown := [run for run, fingerprint in known.items() if fingerprint is None]:
        warnings.warn(
            f"{folder}: {len(unknown)} runs were made by an older pah, which did not record their data: it could not "
            "be checked whether these have changed",
            RecoveryWarning,
            stacklevel=2,
        )
    others = [run.name for run, fingerprint in known.items() if fingerprint not in (None, stream.data_fingerprint)]
    if others:
        raise InputError(
            f"{folder}: expected the data of its runs, got other images, labels or class names from {stream.origin} "
            f"than {', '.join(others[:3])}{f' and {len(others) - 3} more' if others[3:] else ''} had; bring the "
            "former data back, remove the folders of these runs, or start a new study with another --out"
        )


def _has_learned(run: Path) -> bool:
    return (run / METRICS).is_file() or checkpoint.exists(run / CHECKPOINT)


def _data_fingerprint(run: Path) -> str | None:
    """Return the fingerprint of the data that a run has seen; None if it is not recorded."""
    facts = files.read_json(run / METRICS) if (run / METRICS).is_file() else checkpoint_facts(run)
    fingerprint: str | None = facts.get("data_fingerprint")
    return fingerprint


def require_one_data_set(runs: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
    """Raise InputError if the runs of one table have seen different data; runs of older versions do not tell.

    Args:
        runs: The name and the `metrics.json` of each run.
    """
    known = [(label, run["data_fingerprint"]) for label, run in runs if run.get("data_fingerprint")]
    for label, fingerprint in known:
        if fingerprint != known[0][1]:
            raise InputError(
                f"{label}: expected a run on the data of {known[0][0]}, got one on other images, labels or class names"
            )


def different_conditions(runs: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return the conditions under which runs were made, if these differ: by name the values that occur.

    Args:
        runs: The `metrics.json` of each run.
    """
    values: dict[str, set[str]] = {}
    for run in runs:
        for part in run.get("parts") or [run]:
            own = {"device": part.get("device"), "processes": part.get("processes"), **(part.get("versions") or {})}
            for name, value in own.items():
                if value is not None:
                    values.setdefault(name, set()).add(str(value))
    return {name: sorted(found) for name, found in values.items() if len(found) > 1}


def conditions_paragraph(summary: Mapping[str, Any]) -> list[str]:
    """Return one paragraph on the different conditions of a study's runs; an empty list if they were the same.

    Args:
        summary: The content of `comparison.json` or `ablation.json`; older ones do not tell.
    """
    different: Mapping[str, Sequence[str]] = summary.get("conditions") or {}
    if not different:
        return []
    text = "; ".join(f"{name} {' and '.join(values)}" for name, values in different.items())
    return [
        f"Not all runs were made under the same conditions: {text}. For this reason alone, numbers may differ in their "
        "last digits, and times cannot be compared."
    ]
