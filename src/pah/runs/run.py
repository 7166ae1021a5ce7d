"""A run: the training of a configuration in a folder, from the beginning or from a checkpoint."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from pah.core import distributed, files
from pah.core.config import InputError
from pah.core.devices import CPU
from pah.core.files import locked
from pah.data.stream import Stream
from pah.methods.base import Method
from pah.runs.folder import (
    CHECKPOINT,
    CONFIG,
    DIAGNOSIS,
    LOG,
    METRICS,
    MODEL,
    PREDICTIONS,
    PROTOTYPES,
    REPORT,
    SNAPSHOTS,
    append_log,
    cut_log,
    refuse_other_run,
    reopen_trackers,
    run_files,
    write_config,
)
from pah.runs.progress import Progress, StoppedError
from pah.runs.provenance import (
    Provenance,
    begin,
    go_on,
    note_new_place,
    require_data_of_study,
    require_data_place,
    require_same_data,
    say_hub_place,
)
from pah.runs.results import (
    Moment,
    peak_memory_mb,
    results,
    save_model,
    save_network,
    save_predictions,
    save_prototypes,
)
from pah.runs.saved_state import load_state, restore, save_state
from pah.training.config import RunConfig, build_method, load_stream
from pah.training.evaluation import evaluate, predict_tasks
from pah.training.features import with_features_if_frozen
from pah.training.loop import epochs_are_over, train
from pah.training.metrics import average_accuracy
from pah.training.state import EpochDone, Event, ImagesRead, StepDone, TaskBegun, TaskDone, TrainState


def start_run(
    config: RunConfig,
    folder: Path,
    *,
    overwrite: bool = False,
    watch: Callable[[Progress], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
    checkpoint_seconds: float = 180.0,
    device: torch.device = CPU,
    data_fingerprint: str | None = None,
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
        data_fingerprint: The fingerprint that the data must have (`Source.fingerprint`); None for any data.

    Raises:
        InputError: the data or options are invalid or not those of the fingerprint, or the folder holds another run.
        StoppedError: `stop` returned true in any process.
        ProcessLostError: another process of this run ended.
    """
    stream = load_stream(config)
    require_data_of_study(data_fingerprint, stream, folder)
    provenance, stream = begin(config, stream, device), stream.to(device)
    method = build_method(config, stream.image_shape).to(device)
    with _locked_by_main_process(folder):
        distributed.run_on_main_process(lambda: _start_folder(config, folder, overwrite))
        stream = _with_features(stream, method, config, TrainState(), watch, stop)
        return _train(config, folder, stream, method, TrainState(), provenance, watch, stop, checkpoint_seconds)


def resume_run(
    config: RunConfig,
    folder: Path,
    *,
    more_tasks: bool = False,
    watch: Callable[[Progress], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
    checkpoint_seconds: float = 180.0,
    device: torch.device = CPU,
    data_fingerprint: str | None = None,
) -> dict[str, Any]:
    """Continue a run from its checkpoint, or from the beginning if it has none, and return the metrics.

    On a CPU the result equals that of an uninterrupted run with as many processes, bit for bit. For a finished run,
    its metrics are returned and nothing is done.

    Args:
        config: The configuration of the run. `data` may name another place of the same data, which is then written into
            `config.yaml`.
        folder: The run folder.
        more_tasks: Go on to more tasks than the run began with: `config.stream.first` is larger than in the folder. The
            result equals that of a run that began with it.
        watch: See `start_run`.
        stop: See `start_run`.
        checkpoint_seconds: See `start_run`.
        device: See `start_run`.
        data_fingerprint: See `start_run`.

    Raises:
        InputError: the data or options are invalid, the data are not those the run began with, or the checkpoint is
            damaged, missing for `more_tasks`, or has another configuration.
        StoppedError: `stop` returned true in any process.
        ProcessLostError: another process of this run ended.
    """
    with _locked_by_main_process(folder):
        metrics: dict[str, Any] | None = distributed.run_on_main_process(lambda: _read_if_exists(folder / METRICS))
        if metrics is not None and not more_tasks:
            known = metrics
            distributed.run_on_main_process(lambda: note_new_place(config, folder, known))
            return metrics
        # before anything is built: a configuration that was changed may be too large to build
        saved = distributed.run_on_main_process(lambda: load_state(config, folder))
        if more_tasks and saved is None:
            raise InputError(f"{folder / CHECKPOINT}: expected the checkpoint from which a run goes on, found none")
        require_data_place(config, saved.facts if saved else {}, folder)
        stream = load_stream(config)
        say_hub_place(config, saved.facts if saved else {}, folder)
        if saved:
            require_same_data(saved.facts, stream, folder)
        require_data_of_study(data_fingerprint, stream, folder)
        provenance, stream = begin(config, stream, device), stream.to(device)
        method = build_method(config, stream.image_shape, start_weights=saved is None).to(device)
        state = TrainState()
        if saved:
            state = restore(saved, folder, config.seed, stream, method)
            provenance = go_on(provenance, saved.facts, state, folder)
        restored, saved = saved is not None, None  # free the memory of its tensors
        distributed.run_on_main_process(
            lambda: _update_folder(config, folder, method, state, provenance, restored, more_tasks)
        )
        stream = _with_features(stream, method, config, state, watch, stop)
        return _train(config, folder, stream, method, state, provenance, watch, stop, checkpoint_seconds)


def _update_folder(
    config: RunConfig,
    folder: Path,
    method: Method,
    state: TrainState,
    provenance: Provenance,
    restored: bool,
    more_tasks: bool,
) -> None:
    """Write the new place of the data or the new number of tasks into the configuration of a run that goes on."""
    if not (folder / CONFIG).is_file() or config.completed(files.read_yaml(folder / CONFIG)) == config.as_dict():
        return
    if restored:  # first, so that the checkpoint fits the old and the new configuration
        save_state(config, folder, method, state, provenance)
    if more_tasks:
        for name in (METRICS, PREDICTIONS, DIAGNOSIS, REPORT):  # they describe the run on fewer tasks
            (folder / name).unlink(missing_ok=True)
        reopen_trackers(folder)
    write_config(folder, config)


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
    write_config(folder, config)


def _read_if_exists(path: Path) -> Any:
    """Return the content of a JSON file; None if there is no such file."""
    return files.read_json(path) if path.is_file() else None


def _with_features(
    stream: Stream,
    method: Method,
    config: RunConfig,
    state: TrainState,
    watch: Callable[[Progress], None],
    stop: Callable[[], bool],
) -> Stream:
    """Return the stream with the features of a frozen backbone; StoppedError if the run is stopped meanwhile.

    Features are kept on disk, so that a resumed run goes on with the class at which it was stopped. Several processes
    do without, because they must ask whether to stop equally often.
    """

    def report(event: ImagesRead) -> None:
        if distributed.is_main_process():
            watch(Progress(event, state, stream, config))
        if distributed.any_process(stop()):
            raise StoppedError

    return with_features_if_frozen(stream, method, config, report, keep=distributed.world_size() == 1)


def _train(
    config: RunConfig,
    folder: Path,
    stream: Stream,
    method: Method,
    state: TrainState,
    provenance: Provenance,
    watch: Callable[[Progress], None],
    stop: Callable[[], bool],
    checkpoint_seconds: float,
) -> dict[str, Any]:
    """Train to the end with a log and checkpoints, write the results, and return the metrics."""
    saved_at = time.monotonic()
    distributed.run_on_main_process(lambda: cut_log(folder / LOG, state))
    for event in train(method, stream, config.training, config.augment, config.seed, state):
        stopping = isinstance(event, StepDone) and distributed.any_process(stop())
        if distributed.is_main_process():
            _record_event(config, folder, method, stream, event)
            due = time.monotonic() - saved_at >= checkpoint_seconds
            if stopping or due or _always_saved(event, config, state):
                save_state(config, folder, method, state, provenance)
                saved_at = time.monotonic()
            watch(Progress(event, state, stream, config))
        if stopping:
            raise StoppedError
    return _write_results(config, folder, stream, method, state, provenance)


def _always_saved(event: Event, config: RunConfig, state: TrainState) -> bool:
    """Return whether a checkpoint is always saved after this event.

    This is so after each task and after the last epoch of a task. Between the two the task is consolidated and
    evaluated, which may take long and cannot be interrupted and saved.
    """
    last_epoch = isinstance(event, EpochDone) and epochs_are_over(state, config.training)
    return last_epoch or isinstance(event, TaskDone)


def _write_results(
    config: RunConfig, folder: Path, stream: Stream, method: Method, state: TrainState, provenance: Provenance
) -> dict[str, Any]:
    """Write the model, the predictions and the metrics of a finished run, and return the metrics."""
    predictions = predict_tasks(method, stream.tasks, config.training)
    metrics = results(config, stream, method, state, provenance.parts[-1]["commit"]) | provenance.metrics()
    if config.training.flip_test:  # the metrics without mirror images, for comparison
        without_flip = dataclasses.replace(config.training, flip_test=False)
        accuracies, _ = evaluate(method, stream.tasks, without_flip)
        metrics["average_accuracy_without_flip"] = average_accuracy([accuracies])
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
