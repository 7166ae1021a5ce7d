"""A run folder: the names of its files, its log, and the check that no run is overwritten.

config.yaml  log.jsonl  metrics.json  predictions.safetensors  checkpoint/  model/  prototypes/  snapshots/
diagnosis.json  report.html  figures/  track/
"""

import json
from pathlib import Path
from typing import Any

import yaml

from pah.core.config import InputError
from pah.core.files import read_json, read_yaml, write_file, write_json
from pah.learner.store import LEARNER_FILE, WEIGHTS_FILE
from pah.training import checkpoint
from pah.training.config import RunConfig
from pah.training.state import EpochDone, TrainState

CONFIG = "config.yaml"
LOG = "log.jsonl"
METRICS = "metrics.json"
PREDICTIONS = "predictions.safetensors"
CHECKPOINT = "checkpoint"
MODEL = "model"
SNAPSHOTS = "snapshots"  # the network after each task
PROTOTYPES = "prototypes"  # initial and learned prototypes of each task
DIAGNOSIS = "diagnosis.json"
REPORT, FIGURES = "report.html", "figures"
TRACK, SENT = "track", "sent.json"  # track/<tool>/sent.json: what a tracker has received


def run_files(folder: Path) -> list[Path]:
    """Return the paths of all files that a run writes into its folder, except its configuration."""
    model = [folder / MODEL / name for name in (WEIGHTS_FILE, LEARNER_FILE)]
    task_files = [file for name in (SNAPSHOTS, PROTOTYPES) for file in (folder / name).glob("*.safetensors")]
    figures = [file for kind in ("svg", "pdf") for file in (folder / FIGURES).glob(f"*.{kind}")]
    return [
        *task_files,
        *(figures if (folder / REPORT).exists() else ()),  # without a report, they are the user's own files
        *(folder / TRACK).glob(f"*/{SENT}"),
        folder / DIAGNOSIS,
        folder / REPORT,
        folder / METRICS,
        folder / PREDICTIONS,
        folder / LOG,
        *(folder / CHECKPOINT / name for name in (checkpoint.FILE, checkpoint.PREVIOUS_FILE)),
        *model,
    ]


def write_config(folder: Path, config: RunConfig) -> None:
    """Write `config.yaml`."""
    text = yaml.safe_dump(config.as_dict(), sort_keys=False, allow_unicode=True)
    write_file(folder / CONFIG, text.encode())


def holds_run(folder: Path, config: RunConfig) -> bool:
    """Return whether the folder holds a run of this configuration, whatever the place of its data."""
    if not (folder / CONFIG).is_file():
        return False
    try:
        written = config.completed(read_yaml(folder / CONFIG))
    except (InputError, TypeError):  # damaged, or not what pah wrote
        return False
    return written | {"data": None} == config.as_dict() | {"data": None}


def reopen_trackers(folder: Path) -> None:
    """Let trackers receive the final metrics of a finished run again, because it goes on to more tasks."""
    for path in (folder / TRACK).glob(f"*/{SENT}"):
        write_json(path, read_json(path) | {"end": False, "closed": False})


class OccupiedError(InputError):
    """The folder holds a run."""


def refuse_other_run(folder: Path, config: dict[str, Any]) -> None:
    """Raise OccupiedError if the folder holds a run, even one of the same configuration."""
    if not any(file.exists() for file in (folder / CONFIG, *run_files(folder))):
        return
    try:
        same = read_yaml(folder / CONFIG) == config
    except InputError:
        same = False
    if same and not (folder / METRICS).exists():
        raise OccupiedError(
            f"{folder}: expected a folder without a run, got this run, unfinished: "
            f"`pah resume {folder}` continues it, --overwrite starts anew"
        )
    kind = "this run, finished" if same else "another run"
    raise OccupiedError(
        f"{folder}: expected a folder without a run, got one that holds {kind}: choose another --out, or --overwrite it"
    )


def append_log(path: Path, event: EpochDone, peak_memory_mb: float | None) -> None:
    """Append an epoch's line to the log.

    Args:
        path: The log.
        event: The epoch.
        peak_memory_mb: The peak memory of the process so far, in MB; None if it is not known.
    """
    try:
        with path.open("a", encoding="utf-8") as file:
            peak = None if peak_memory_mb is None else round(peak_memory_mb, 1)
            file.write(json.dumps(event.as_dict() | {"peak_memory_mb": peak}) + "\n")
    except OSError as error:
        raise InputError(f"{path}: expected to write a line, got: {error.strerror}") from None


def cut_log(path: Path, state: TrainState) -> None:
    """Remove the log's lines of epochs after `state`, because they will be trained and logged again."""
    if not path.exists():
        return
    lines = []
    for line in path.read_bytes().splitlines():
        try:
            entry = json.loads(line)
            done = (entry["task"], entry["epoch"]) < (state.task, state.epoch)
        except (ValueError, KeyError, TypeError, RecursionError):  # the process died while it wrote this line
            break
        if not done:
            break
        lines.append(line + b"\n")
    write_file(path, b"".join(lines))
