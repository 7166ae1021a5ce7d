"""A run: the training of a configuration in a folder, from the beginning or from a checkpoint."""

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

from pah.core import distributed, files
from pah.core.config import InputError
from pah.core.devices import CPU
from pah.core.files import locked
from pah.data.stream import Stream
from pah.methods import METHODS
from pah.methods.base import Method
from pah.runs.folder import (
    CHECKPOINT,
    CONFIG,
    LOG,
    METRICS,
    MODEL,
    PREDICTIONS,
    PROTOTYPES,
    SNAPSHOTS,
    append_log,
    cut_log,
    refuse_other_run,
    run_files,
)
from pah.runs.results import (
    Moment,
    commit,
    peak_memory_mb,
    results,
    save_model,
    save_network,
    save_predictions,
    save_prototypes,
)
from pah.training import checkpoint
from pah.training.config import RunConfig, build_method, load_stream
from pah.training.evaluation import evaluate, predict_tasks
from pah.training.features import with_features_if_frozen
from pah.training.loop import read_terms, replay, require_finite, train
from pah.training.state import EpochDone, Event, StepDone, TaskBegun, TaskDone, TrainState

LoadedCheckpoint: TypeAlias = tuple[dict[str, torch.Tensor], dict[str, Any]]  # tensors and facts


@dataclass(frozen=True)
class Progress:
    """An event of training, and the state of the run at that moment."""

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
        """Estimated seconds to the end of the run, assuming that all images take the same time."""
        tasks, state, training = self.stream.tasks, self.state, self.config.training
        training_tasks = (tasks[: k + 1] if self.all_tasks_seen else [task] for k, task in enumerate(tasks))
        images_per_epoch = [sum(len(task.train) for task in group) for group in training_tasks]
        total = sum(training.epochs_of(k) * images for k, images in enumerate(images_per_epoch))
        return state.seconds / max(state.images, 1) * (total - state.images)


class StoppedError(Exception):
    """The run was asked to stop, and its state is saved."""


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
    """Train from the beginning in a folder, and return the content of `metrics.json`.

    With several processes (`pah.core.distributed`) each of them calls this function. Only the main process writes
    files and calls `watch`.

    Args:
        config: The configuration.
        folder: The run folder; created if it is missing.
        overwrite: Whether a run in this folder may be overwritten.
        watch: Called with every event.
        stop: Called after every step. If it returns true, the state is saved and `StoppedError` is raised.
        checkpoint_seconds: Seconds between checkpoints; 0 saves after every step.
        device: Where to train. It is not part of the configuration, so a run may be resumed on another device.

    Raises:
        InputError: the data or options are invalid, or the folder holds another run.
        StoppedError: `stop` returned true in any process.
        ProcessLostError: another process of this run ended.
    """
    stream = load_stream(config).to(device)
    method = build_method(config, stream.image_shape).to(device)
    with _locked_by_main_process(folder):
        distributed.run_on_main_process(lambda: _start_folder(config, folder, overwrite))
        stream = with_features_if_frozen(stream, method, config)
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
    """Continue a run from its checkpoint, or from the beginning if it has none, and return the metrics.

    On a CPU the result equals that of an uninterrupted run with as many processes, bit for bit. For a finished run,
    its metrics are returned and nothing is done. See `start_run` for the arguments.

    Raises:
        InputError: the data or options are invalid, or the checkpoint is damaged or has another configuration.
        StoppedError: `stop` returned true in any process.
        ProcessLostError: another process of this run ended.
    """
    with _locked_by_main_process(folder):
        metrics: dict[str, Any] | None = distributed.run_on_main_process(lambda: _read_if_exists(folder / METRICS))
        if metrics is not None:
            return metrics
        # before anything is built: a configuration that was changed may be too large to build
        loaded = distributed.run_on_main_process(lambda: _load_checkpoint(config, folder))
        stream = load_stream(config).to(device)
        method = build_method(config, stream.image_shape, start_weights=loaded is None).to(device)
        state = _restore(loaded, folder, config.seed, stream, method) if loaded else TrainState()
        del loaded  # free the memory of its tensors
        stream = with_features_if_frozen(stream, method, config)
        return _train(config, folder, stream, method, state, watch, stop, checkpoint_seconds)


@contextmanager
def _locked_by_main_process(folder: Path) -> Iterator[None]:
    """Hold the folder's lock in the main process, on behalf of all processes of this run."""
    with ExitStack() as stack:
        distributed.run_on_main_process(lambda: stack.enter_context(locked(folder)))
        try:
            yield
        except distributed.ProcessLostError as error:
            raise distributed.ProcessLostError(
                f"{folder}: {error}; `pah resume {folder}` continues from the last checkpoint, with any number of them"
            ) from error


def _start_folder(config: RunConfig, folder: Path, overwrite: bool) -> None:
    """Remove the files of an old run and write the configuration; raise InputError if the old run must be kept."""
    if not overwrite:
        refuse_other_run(folder, config.as_dict())
    for old_file in run_files(folder):
        old_file.unlink(missing_ok=True)
    text = yaml.safe_dump(config.as_dict(), sort_keys=False, allow_unicode=True)
    files.write_file(folder / CONFIG, text.encode())


def _read_if_exists(path: Path) -> Any:
    """Return the content of a JSON file; None if there is no such file."""
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
    """Train to the end with a log and checkpoints, write the results, and return the metrics."""
    revision = commit()  # now, because the source files may change during the run
    saved_at = time.monotonic()
    distributed.run_on_main_process(lambda: cut_log(folder / LOG, state))
    for event in train(method, stream, config.training, config.augment, config.seed, state):
        stopping = isinstance(event, StepDone) and distributed.any_process(stop())
        if distributed.is_main_process():
            _record_event(config, folder, method, stream, event)
            due = time.monotonic() - saved_at >= checkpoint_seconds
            if stopping or due or _always_saved(event, config, state):
                _save_checkpoint(config, folder, method, state)
                saved_at = time.monotonic()
            watch(Progress(event, state, stream, config))
        if stopping:
            raise StoppedError
    return _write_results(config, folder, stream, method, state, revision)


def _always_saved(event: Event, config: RunConfig, state: TrainState) -> bool:
    """Return whether a checkpoint is always saved after this event.

    This is so after each task and after the last epoch of a task. Between the two the task is consolidated and
    evaluated, which may take long and cannot be interrupted and saved.
    """
    last_epoch = isinstance(event, EpochDone) and state.epoch == config.training.epochs_of(state.task)
    return last_epoch or isinstance(event, TaskDone)


def _write_results(
    config: RunConfig, folder: Path, stream: Stream, method: Method, state: TrainState, revision: str | None
) -> dict[str, Any]:
    """Write the model, the predictions and the metrics of a finished run, and return the metrics."""
    predictions = predict_tasks(method, stream.tasks, config.training)
    metrics = results(config, stream, method, state, revision)
    if config.training.flip_test:  # the metrics without mirror images, for comparison
        without_flip = dataclasses.replace(config.training, flip_test=False)
        metrics["average_accuracy_without_flip"] = statistics.fmean(evaluate(method, stream.tasks, without_flip)[0])
    if distributed.is_main_process():
        save_model(folder / MODEL, config, stream, method, state.matrix)
        save_predictions(folder / PREDICTIONS, predictions)
        files.write_json(folder / METRICS, metrics)
    return metrics


def _record_event(config: RunConfig, folder: Path, method: Method, stream: Stream, event: Event) -> None:
    """Write what belongs to an event: a line of the log, prototypes before and after their task, a snapshot.

    It is called before the checkpoint of the event is saved, so that a resumed run has all of it.
    """
    if isinstance(event, EpochDone):
        append_log(folder / LOG, event, peak_memory_mb())
    if not isinstance(event, TaskBegun | TaskDone):
        return
    name = f"{event.task}.safetensors"
    moment: Moment = "start" if isinstance(event, TaskBegun) else "learned"
    save_prototypes(folder / PROTOTYPES / name, method, stream.normalization, moment)
    if config.snapshots and moment == "learned":
        save_network(folder / SNAPSHOTS / name, method)


def _save_checkpoint(config: RunConfig, folder: Path, method: Method, state: TrainState) -> None:
    """Save a checkpoint; raise InputError if a number is not finite."""
    read_terms(state, config.training)
    require_finite(method, state)
    tensors = {f"method/{name}": tensor for name, tensor in method.state_dict().items()}
    tensors |= {f"optimizer/{k}": tensor for k, tensor in checkpoint.optimizer_tensors(method.optimizers).items()}
    facts = {"fingerprint": config.fingerprint, "state": asdict(state)}
    checkpoint.save(folder / CHECKPOINT, tensors, facts)


def _load_checkpoint(config: RunConfig, folder: Path) -> LoadedCheckpoint | None:
    """Return the tensors and facts of the run's checkpoint; None if it has none yet."""
    path = folder / CHECKPOINT
    if not checkpoint.exists(path):
        return None
    tensors, facts = checkpoint.load(path)
    if facts.get("fingerprint") != config.fingerprint:
        raise InputError(
            f"{path}: expected a checkpoint of the configuration in {folder / CONFIG}, got one of another configuration"
        )
    return tensors, facts


def _restore(loaded: LoadedCheckpoint, folder: Path, seed: int, stream: Stream, method: Method) -> TrainState:
    """Load a checkpoint into the method, and return its training state."""
    tensors, facts = loaded
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
