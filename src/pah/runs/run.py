"""A run: a configuration trained in a folder, from the beginning or from its checkpoint."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
import yaml

from pah.core import files, distributed
from pah.training import checkpoint
from pah.core.config import InputError
from pah.data.stream import Stream
from pah.core.devices import CPU
from pah.training.evaluation import answers, evaluate
from pah.methods import METHODS
from pah.methods.base import Method
from pah.runs.results import Moment, commit, peak_memory_mb, results, save_model, save_network, save_predictions, save_prototypes
from pah.training.config import RunConfig, build_method, load_stream
from pah.runs.folder import CHECKPOINT, CONFIG, LOG, METRICS, MODEL, PREDICTIONS, PROTOTYPES, SNAPSHOTS, append_log, cut_log, refuse_other_run, run_files
from pah.core.files import locked
from pah.training.loop import read_terms, replay, require_finite, train
from pah.training.state import EpochDone, Event, StepDone, TaskBegun, TaskDone, TrainState

Saved: TypeAlias = tuple[dict[str, torch.Tensor], dict[str, Any]]  # a checkpoint's tensors and facts


@dataclass(frozen=True)
class Progress:
    """What happened, and how far the run is: handed to whoever watches."""

    event: Event
    state: TrainState
    stream: Stream
    config: RunConfig

    @property
    def all_tasks_seen(self) -> bool:
        """Whether the method learns from the images of all tasks seen."""
        return METHODS[self.config.method].method.learns_from == "all tasks seen"

    @property
    def seconds_left(self) -> float:
        """Estimated seconds to the end of the run: what it took so far, scaled to the images that are left."""
        tasks, state, training = self.stream.tasks, self.state, self.config.training
        seen = (tasks[: k + 1] if self.all_tasks_seen else [task] for k, task in enumerate(tasks))
        per_task = [sum(len(task.train) for task in of) for of in seen]
        total = sum(training.epochs_of(k) * images for k, images in enumerate(per_task))
        return state.seconds / max(state.images, 1) * (total - state.images)


class StoppedError(Exception):
    """The run was asked to stop; its state is saved."""


def start_run(
    config: RunConfig,
    folder: Path,
    *,
    overwrite: bool = False,
    watch: Callable[[Progress], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
    checkpoint_seconds: float = 180.0,
    device: torch.device = CPU,
) -> dict[str, Any]:
    """Train from the beginning in `folder`; returns what `metrics.json` holds.

    Of several processes (`pah.core.distributed`) each calls this; the first one alone writes, and calls `watch`.

    Args:
        config: What to train.
        folder: Where; made if it is missing.
        overwrite: Whether a run that the folder already holds may be lost.
        watch: Called with every event.
        stop: Asked after every step; when true, the state is saved and `StoppedError` raised.
        checkpoint_seconds: Time between checkpoints; 0 saves after every step.
        device: Where; no part of the configuration, a checkpoint goes on elsewhere.

    Raises:
        InputError: bad data or options, or the folder holds another run.
        StoppedError: `stop` said so, in any process.
        LostError: another process of this run ended.
    """
    stream = load_stream(config).on(device)
    method = build_method(config, stream.image_shape).to(device)
    with _held(folder):
        distributed.from_first(lambda: _make_room(config, folder, overwrite))
        return _train(config, folder, stream, method, TrainState(), watch, stop, checkpoint_seconds)


def resume_run(
    config: RunConfig,
    folder: Path,
    *,
    watch: Callable[[Progress], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
    checkpoint_seconds: float = 180.0,
    device: torch.device = CPU,
) -> dict[str, Any]:
    """Continue the run of `config` in `folder` from its checkpoint, or from the beginning if it has none yet.

    On a CPU the result equals that of an uninterrupted run of as many processes, bit for bit. A finished run's metrics
    are returned as they stand. Arguments and errors are those of `start`; InputError also if the checkpoint is broken
    or belongs to another configuration.
    """
    with _held(folder):
        finished: dict[str, Any] | None = distributed.from_first(lambda: _read_if_there(folder / METRICS))
        if finished is not None:
            return finished
        saved = distributed.from_first(lambda: _saved(config, folder))  # first: what was changed may be too large to build
        stream = load_stream(config).on(device)
        method = build_method(config, stream.image_shape).to(device)
        state = _restore(saved, folder, config.seed, stream, method) if saved else TrainState()
        del saved  # its tensors are the method's now
        return _train(config, folder, stream, method, state, watch, stop, checkpoint_seconds)


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Hold the folder for all processes of this run; the first one has the lock."""
    with ExitStack() as stack:
        distributed.from_first(lambda: stack.enter_context(locked(folder)))
        try:
            yield
        except distributed.LostError as error:
            raise distributed.LostError(
                f"{folder}: {error}; `pah resume {folder}` continues from the last checkpoint, with any number of them"
            ) from error


def _make_room(config: RunConfig, folder: Path, overwrite: bool) -> None:
    """Begin the folder with the configuration alone; InputError if a run that it holds would be lost."""
    if not overwrite:
        refuse_other_run(folder, config.as_dict())
    for old in run_files(folder):
        old.unlink(missing_ok=True)
    text = yaml.safe_dump(config.as_dict(), sort_keys=False, allow_unicode=True)
    files.write_file(folder / CONFIG, text.encode())


def _read_if_there(path: Path) -> Any:
    """The content of a JSON file; None if there is none."""
    return files.read_json(path) if path.is_file() else None


def _train(
    config: RunConfig,
    folder: Path,
    stream: Stream,
    method: Method,
    state: TrainState,
    watch: Callable[[Progress], None],
    stop: Callable[[], bool],
    checkpoint_seconds: float,
) -> dict[str, Any]:
    """Train to the end, keeping log and checkpoint; then write the model and the metrics."""
    revision = commit()  # now: the files may change while the run goes on
    saved_at = time.monotonic()
    distributed.from_first(lambda: cut_log(folder / LOG, state))
    for event in train(method, stream, config.training, config.augment, config.seed, state):
        stopping = isinstance(event, StepDone) and distributed.any_says(stop())
        if distributed.is_first():
            _record(config, folder, method, stream, event)
            # before a task is consolidated and evaluated as well: that may take long, and cannot be stopped and saved
            over = isinstance(event, TaskDone) or (
                isinstance(event, EpochDone) and state.epoch == config.training.epochs_of(state.task)
            )
            if stopping or over or time.monotonic() - saved_at >= checkpoint_seconds:
                _save(config, folder, method, state)
                saved_at = time.monotonic()
            watch(Progress(event, state, stream, config))
        if stopping:
            raise StoppedError
    given = answers(method, stream.tasks, config.training)
    found = results(config, stream, method, state, revision)
    if config.training.flip_test:  # what the mirror images add can be told only beside what comes without them
        plain = dataclasses.replace(config.training, flip_test=False)
        found["average_accuracy_without_flip"] = statistics.fmean(evaluate(method, stream.tasks, plain)[0])
    if distributed.is_first():
        save_model(folder / MODEL, config, stream, method, state.matrix)
        save_predictions(folder / PREDICTIONS, given)
        files.write_json(folder / METRICS, found)
    return found


def _record(config: RunConfig, folder: Path, method: Method, stream: Stream, event: Event) -> None:
    """Write what only this moment has, before the checkpoint that says that it is over: a line of the log, prototypes
    before and after their own task, a snapshot of the network."""
    if isinstance(event, EpochDone):
        append_log(folder / LOG, event, peak_memory_mb())
    if not isinstance(event, TaskBegun | TaskDone):
        return
    name = f"{event.task}.safetensors"
    moment: Moment = "start" if isinstance(event, TaskBegun) else "learned"
    save_prototypes(folder / PROTOTYPES / name, method, stream.normalization, moment)
    if config.snapshots and moment == "learned":
        save_network(folder / SNAPSHOTS / name, method)


def _save(config: RunConfig, folder: Path, method: Method, state: TrainState) -> None:
    read_terms(state, config.training)
    require_finite(method, state)
    tensors = {f"method/{name}": tensor for name, tensor in method.state_dict().items()}
    tensors |= {f"optimizer/{k}": tensor for k, tensor in checkpoint.optimizer_tensors(method.optimizers).items()}
    facts = {"fingerprint": config.fingerprint, "state": asdict(state)}
    checkpoint.save(folder / CHECKPOINT, tensors, facts)


def _saved(config: RunConfig, folder: Path) -> Saved | None:
    """The tensors and facts of the run's checkpoint; None if it has none yet."""
    path = folder / CHECKPOINT
    if not checkpoint.there(path):
        return None
    tensors, facts = checkpoint.load(path)
    if facts.get("fingerprint") != config.fingerprint:
        raise InputError(
            f"{path}: expected a checkpoint of the configuration in {folder / CONFIG}, got one of another configuration"
        )
    return tensors, facts


def _restore(saved: Saved, folder: Path, seed: int, stream: Stream, method: Method) -> TrainState:
    """Load a checkpoint into the method, and return how far it had come."""
    tensors, facts = saved
    try:
        state = TrainState(**facts["state"])
        replay(method, stream, state, seed)
        parts: dict[str, dict[str, torch.Tensor]] = {"method": {}, "optimizer": {}}
        for name, tensor in tensors.items():
            owner, _, rest = name.partition("/")
            parts[owner][rest] = tensor
        method.load_state_dict(parts["method"], strict=True)
        checkpoint.load_optimizers(method.optimizers, parts["optimizer"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:  # pah or the data have changed since
        reason = " ".join(str(error).split())
        raise InputError(
            f"{folder / CHECKPOINT}: expected a checkpoint that fits this pah and these data, got: {reason}"
        ) from None
    return state
