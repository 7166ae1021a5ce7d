"""Where a run comes from: which data it has seen, and with which versions, threads and device each part was made."""

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from pah.core import distributed, files
from pah.core.config import InputError, RecoveryWarning
from pah.core.devices import device_name
from pah.data.located import HUB_ID
from pah.data.stream import Stream
from pah.runs.folder import CONFIG, METRICS, write_config
from pah.runs.results import commit, versions
from pah.training.config import RunConfig, load_stream
from pah.training.state import TrainState

CONDITIONS = ("device", "processes", "versions", "commit")


@dataclass(frozen=True)
class Provenance:
    """Where a run comes from; part of its checkpoint and, without the place of the data, of its `metrics.json`.

    Args:
        data_fingerprint: Hash of the data set (`Source.fingerprint`); None if an older pah trained without it.
        data_counts: Numbers of `classes`, `train` and `test` images of the data set; None as above.
        data_place: The option `data` (`path`), whether it is a folder (`is_folder`), and the `working_directory` from
            which a relative path started; None if no data were named.
        parts: One entry for the beginning and one for each resume under other conditions: from which `task`, `epoch`
            and `step` on, and the `device`, `processes`, `versions` and `commit` of `metrics.json`. An entry of a part
            that an older pah trained has None for these.
    """

    data_fingerprint: str | None
    data_counts: dict[str, int] | None
    data_place: dict[str, Any] | None
    parts: list[dict[str, Any]]

    def metrics(self) -> dict[str, Any]:
        """Return the keys of `metrics.json`."""
        return {"data_fingerprint": self.data_fingerprint, "data_counts": self.data_counts, "parts": self.parts}


def begin(config: RunConfig, stream: Stream, device: torch.device) -> Provenance:
    """Return the provenance of a run that begins now in this process.

    Raises:
        InputError: the processes of the run have read different data.
    """
    _require_same_in_all_processes(stream)
    place = None
    if config.data is not None:
        is_folder = _is_folder(config.data)
        place = {"path": config.data, "is_folder": is_folder, "working_directory": os.getcwd() if is_folder else None}
    conditions = {
        "device": device_name(device),
        "processes": distributed.world_size(),
        "versions": versions(),
        "commit": commit(),
    }
    parts = [_position(TrainState()) | conditions]
    return Provenance(stream.data_fingerprint, _counts(stream), place, parts)


def go_on(new: Provenance, saved: Mapping[str, Any], state: TrainState, folder: Path) -> Provenance:
    """Return the provenance of a run that goes on from a checkpoint; warn if the conditions are not as they were.

    Args:
        new: The provenance as if the run began now.
        saved: The facts of the checkpoint.
        state: Where the run goes on.
        folder: The run folder, for messages.
    """
    conditions = {key: new.parts[0][key] for key in CONDITIONS}
    parts: list[dict[str, Any]] = saved.get("parts") or [_position(TrainState()) | dict.fromkeys(CONDITIONS)]
    before = {key: parts[-1].get(key) for key in CONDITIONS}
    if before == conditions:
        return replace(new, parts=parts)
    if changes := _changes(before, conditions):
        _warn(
            f"{folder}: resumed with {', '.join(changes)}: numbers may differ in their last digits from those of a run "
            f"without the stop; `parts` in {METRICS} tells which part was made with what"
        )
    return replace(new, parts=[*parts, _position(state) | conditions])


def _short(value: object) -> str:
    """Return a condition in few characters; of a commit its beginning, and whether files differed from it."""
    text, plus, changes = str(value).partition("+changes")
    return f"{text:.16}{plus}{changes}"


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the differences of two conditions in words; none if the former ones are unknown."""
    flat_before, flat_now = (
        {**{key: value for key, value in conditions.items() if key != "versions"}, **(conditions["versions"] or {})}
        for conditions in (before, now)
    )
    return [
        f"{name} {_short(flat_now[name])} instead of {_short(flat_before[name])}"
        for name in flat_now
        if flat_before.get(name) is not None and flat_now[name] != flat_before[name]
    ]


def require_same_data(known: Mapping[str, Any], stream: Stream, where: Path) -> None:
    """Raise InputError if the data of a run have changed; warn if that is not known.

    Args:
        known: The `data_fingerprint` and `data_counts` of the run, from its checkpoint or `metrics.json`.
        stream: The stream of the data as they are now.
        where: The run folder, for messages.
    """
    expected, found = known.get("data_fingerprint"), stream.data_fingerprint
    if expected is None:
        _warn(f"{where}: an older pah made it and did not record its data: they could not be checked for changes")
    elif expected != found:
        before, now = known.get("data_counts"), _counts(stream)
        began = f" ({_in_words(before)})" if before else ""
        got = f"others ({_in_words(now)})" if now and now != before else "other images, labels or class names"
        raise InputError(
            f"{where}: expected the data with which the run began{began}, got {got} from {stream.origin}: test images "
            "may be former training images; bring the former data back, name their place with --data PATH, or start a "
            "new run"
        )


def require_data_place(config: RunConfig, saved: Mapping[str, Any], folder: Path) -> None:
    """Raise InputError if the folder of the data, as `config.yaml` names it, does not exist from here.

    Without this check, a relative path such as `photos` would be taken for a data set of the Hugging Face hub.

    Args:
        config: The configuration with which the run goes on.
        saved: The facts of the checkpoint; empty if there is none.
        folder: The run folder.
    """
    if config.data is None or _is_folder(config.data):
        return
    place = saved.get("data_place") or {}
    if place.get("path") == config.data and place["is_folder"]:
        then = "" if Path(config.data).is_absolute() else f", relative to {place['working_directory']} as it was,"
        here = "" if Path(config.data).is_absolute() else f" relative to {os.getcwd()}"
        raise InputError(
            f"{folder / CONFIG}: data: expected the folder {config.data!r}{then} got none{here}; "
            "add --data PATH with its place, or run the command from the former working directory"
        )


def say_hub_place(config: RunConfig, saved: Mapping[str, Any], folder: Path) -> None:
    """Warn that data were loaded from the hub if it was not recorded that the run began with them.

    It is called after loading: if the hub lacks them as well, the error of loading says both.
    """
    data = config.data
    if data is not None and not saved.get("data_place") and not _is_folder(data) and HUB_ID.fullmatch(data):
        _warn(f"{folder / CONFIG}: data {data!r} is no folder here, so it was taken for a hub id")


def _is_folder(data: str) -> bool:
    return Path(os.path.expanduser(data)).is_dir()


def _position(state: TrainState) -> dict[str, Any]:
    return {"task": state.task, "epoch": state.epoch, "step": state.step}


def _counts(stream: Stream) -> dict[str, int] | None:
    """Return the numbers of classes and images of a stream's data set."""
    source = stream.source
    if source is None:
        return None
    return {"classes": len(source.class_names), "train": len(source.train), "test": len(source.test)}


def _in_words(counts: Mapping[str, int]) -> str:
    return f"{counts['classes']} classes, {counts['train']} training and {counts['test']} test images"


def _require_same_in_all_processes(stream: Stream) -> None:
    """Raise InputError in every process if one of them has read other data than the main process."""
    main = distributed.run_on_main_process(lambda: stream.data_fingerprint)
    if distributed.any_process(main != stream.data_fingerprint):
        raise InputError("data: expected the same images in every process of the run, got others in one of them")


def _warn(message: str) -> None:
    """Warn once for all processes."""
    if distributed.is_main_process():
        warnings.warn(message, RecoveryWarning, stacklevel=2)


def require_data_of_study(fingerprint: str | None, stream: Stream, folder: Path) -> None:
    """Raise InputError unless the data have the fingerprint, if there is one."""
    if fingerprint is not None and stream.data_fingerprint != fingerprint:
        raise InputError(
            f"{folder}: expected the data of this study, got other images, labels or class names from {stream.origin}, "
            "which changed since the study began; bring the former data back, or start anew with another --out"
        )


def note_new_place(config: RunConfig, folder: Path, metrics: dict[str, Any]) -> None:
    """Write another place of the data of a finished run into its configuration, if the data are the same."""
    if (folder / CONFIG).is_file() and files.read_yaml(folder / CONFIG).get("data") != config.data:
        require_same_data(metrics, load_stream(config), folder)
        write_config(folder, config)
