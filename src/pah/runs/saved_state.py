"""The state of a run as its checkpoint holds it: saved, checked against the run's configuration, and restored."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pah.core.config import InputError
from pah.core.files import read_yaml
from pah.data.stream import Stream
from pah.methods.base import Method
from pah.runs.folder import CHECKPOINT, CONFIG
from pah.runs.provenance import Provenance
from pah.training import checkpoint
from pah.training.config import RunConfig, fingerprint_of
from pah.training.loop import read_terms, replay, require_finite
from pah.training.state import TrainState


class SavedState(NamedTuple):
    """The content of a checkpoint."""

    tensors: dict[str, torch.Tensor]
    facts: dict[str, Any]


def save_state(config: RunConfig, folder: Path, method: Method, state: TrainState, provenance: Provenance) -> None:
    """Save a checkpoint; raise InputError if a number is not finite."""
    read_terms(state, config.training)
    require_finite(method, state)
    tensors = {f"method/{name}": tensor for name, tensor in method.state_dict().items()}
    tensors |= {f"optimizer/{k}": tensor for k, tensor in checkpoint.optimizer_tensors(method.optimizers).items()}
    tensors |= {f"best/{name}": tensor for name, tensor in state.best_tensors.items()}
    facts = {"fingerprint": config.fingerprint, "state": asdict(state), **asdict(provenance)}
    checkpoint.save(folder / CHECKPOINT, tensors, facts)


def load_state(config: RunConfig, folder: Path) -> SavedState | None:
    """Return the content of the run's checkpoint; None if it has none yet.

    Raises:
        InputError: the checkpoint is damaged, or belongs to another configuration.
    """
    path = folder / CHECKPOINT
    if not checkpoint.exists(path):
        return None
    saved = SavedState(*checkpoint.load(path))
    fingerprint = saved.facts.get("fingerprint")
    if fingerprint != config.fingerprint and fingerprint not in _older_fingerprints(config, folder):
        raise InputError(
            f"{path}: expected a checkpoint of the configuration in {folder / CONFIG}, got one of another configuration"
        )
    return saved


def checkpoint_facts(folder: Path) -> dict[str, Any]:
    """Return the facts of the run's checkpoint; empty if it has none or a damaged one."""
    try:
        return checkpoint.load(folder / CHECKPOINT)[1]
    except InputError:
        return {}


def _older_fingerprints(config: RunConfig, folder: Path) -> tuple[str, ...]:
    """Return the fingerprints that older versions of pah gave to this configuration.

    They had fewer options, which are those that they wrote into `config.yaml`. The oldest ones included the place of
    the data and the number of tasks.
    """
    if not (folder / CONFIG).is_file():
        return ()
    written = read_yaml(folder / CONFIG)
    try:
        if fingerprint_of(config.completed(written)) != config.fingerprint:
            return ()
        whole = hashlib.sha256(json.dumps(written, sort_keys=True).encode()).hexdigest()[:16]
        return fingerprint_of(written), whole
    except (TypeError, AttributeError):  # not what pah wrote
        return ()


def restore(saved: SavedState, folder: Path, seed: int, stream: Stream, method: Method) -> TrainState:
    """Load a checkpoint into the method, and return its training state.

    Raises:
        InputError: the checkpoint does not fit this version of pah or these data.
    """
    try:
        state = TrainState(**saved.facts["state"])
        replay(method, stream, state, seed)
        parts: dict[str, dict[str, torch.Tensor]] = {"method": {}, "optimizer": {}, "best": {}}
        for name, tensor in saved.tensors.items():
            owner, _, rest = name.partition("/")
            parts[owner][rest] = tensor
        method.load_state_dict(parts["method"], strict=True)
        checkpoint.load_optimizers(method.optimizers, parts["optimizer"])
        state.best_tensors = {name: tensor.to(method.device) for name, tensor in parts["best"].items()}
    except (KeyError, TypeError, ValueError, RuntimeError) as error:  # pah or the data have changed since
        reason = " ".join(str(error).split())
        raise InputError(
            f"{folder / CHECKPOINT}: expected a checkpoint that fits this pah and these data, got: {reason}"
        ) from None
    return state
