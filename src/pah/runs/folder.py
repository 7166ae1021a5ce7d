"""A run folder: its files, its lock, its log, and the refusal to lose the run that it holds.

config.yaml  log.jsonl  metrics.json  predictions.safetensors  checkpoint/  model/  prototypes/  snapshots/
report.html  figures/  track/
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pah.core.files import read_yaml, write_file
from pah.learner.store import LEARNER, WEIGHTS
from pah.training import checkpoint
from pah.core.config import InputError
from pah.training.state import EpochDone, TrainState

CONFIG = "config.yaml"
LOG = "log.jsonl"
METRICS = "metrics.json"
PREDICTIONS = "predictions.safetensors"
CHECKPOINT = "checkpoint"
MODEL = "model"
SNAPSHOTS = "snapshots"  # of the network after each task
PROTOTYPES = "prototypes"  # of each task, from its start on; for the eyes of whoever has the images anyway
DIAGNOSIS = "diagnosis.json"
REPORT, FIGURES = "report.html", "figures"
TRACK, SENT = "track", "sent.json"  # <run>/track/<tool>/sent.json: what a tracker has of the run


def run_files(folder: Path) -> list[Path]:
    """What a run writes into its folder after its configuration."""
    model = [folder / MODEL / name for name in (WEIGHTS, LEARNER)]
    of_tasks = [file for name in (SNAPSHOTS, PROTOTYPES) for file in (folder / name).glob("*.safetensors")]
    drawn = [file for kind in ("svg", "pdf") for file in (folder / FIGURES).glob(f"*.{kind}")]
    return [
        *of_tasks,
        *(drawn if (folder / REPORT).exists() else ()),  # else they are somebody's own
        *(folder / TRACK).glob(f"*/{SENT}"),
        folder / DIAGNOSIS,
        folder / REPORT,
        folder / METRICS,
        folder / PREDICTIONS,
        folder / LOG,
        *(folder / CHECKPOINT / name for name in (checkpoint.FILE, checkpoint.BEFORE)),
        *model,
    ]


class OccupiedError(InputError):
    """The folder holds a run."""


def refuse_other_run(folder: Path, config: dict[str, Any]) -> None:
    """Raise OccupiedError if the folder holds a run, be it that of `config`: nothing that was trained gets lost."""
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


def append_log(path: Path, event: EpochDone, peak_memory_mb: float) -> None:
    """Add an epoch's line, with the most memory that the process has held up to its end, in MB."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(event) | {"peak_memory_mb": round(peak_memory_mb, 1)}) + "\n")
    except OSError as error:
        raise InputError(f"{path}: expected to write a line, got: {error.strerror}") from None


def cut_log(path: Path, state: TrainState) -> None:
    """Drop the log's lines of epochs that the state has yet to do: they will be done, and written, again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_bytes().splitlines():
        try:
            entry = json.loads(line)
            done = (entry["task"], entry["epoch"]) < (state.task, state.epoch)
        except (ValueError, KeyError, TypeError, RecursionError):  # a line that was cut while it was written
            break
        if not done:
            break
        kept.append(line + b"\n")
    write_file(path, b"".join(kept))
