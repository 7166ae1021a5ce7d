"""A run: a configuration, the folder in which it trains, and what the folder holds at the end.

config.yaml  log.jsonl  metrics.json  checkpoint/  model/
"""

import hashlib
import json
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import yaml
from filelock import FileLock, Timeout

from pah import checkpoint, metrics
from pah.config import InputError, derived_seed, require
from pah.data.augment import AugmentOptions
from pah.data.benchmarks import benchmark
from pah.data.stream import Stream, StreamOptions, make_stream
from pah.methods import METHODS
from pah.methods.base import Method, MethodOptions, OptimizerOptions
from pah.methods.pah import PAHOptions
from pah.models.backbones import BackboneOptions, ConvNetOptions
from pah.models.network import GeneratedHeads, Network
from pah.trainer import EpochDone, Event, StepDone, TaskDone, TrainingOptions, TrainState, replay, train

CONFIG, LOG, METRICS, CHECKPOINT, MODEL, LOCK = (
    "config.yaml",
    "log.jsonl",
    "metrics.json",
    "checkpoint",
    "model",
    ".lock",
)
WEIGHTS, LEARNER = "model.safetensors", "learner.json"  # in MODEL


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides what a run computes; two runs of equal configuration are the same run."""

    benchmark: str = "split-digits"
    data: str | None = None
    label_column: str | None = None
    image_size: int | None = None
    seed: int = 0
    method: str = "pah"
    method_options: MethodOptions = field(default_factory=PAHOptions)
    backbone: str = "convnet"
    backbone_options: BackboneOptions = field(default_factory=ConvNetOptions)
    stream: StreamOptions = field(default_factory=StreamOptions)
    augment: AugmentOptions = field(default_factory=AugmentOptions)
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    training: TrainingOptions = field(default_factory=TrainingOptions)

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**63, "seed", "0 to 2^63 - 1", self.seed)
        require(self.image_size is None or 1 <= self.image_size <= 4096, "image_size", "1 to 4096", self.image_size)
        held_out = self.training.evaluate_on == "test" or self.stream.validation > 0
        require(held_out, "training.evaluate_on validation", "stream.validation above 0", self.stream.validation)

    def as_dict(self) -> dict[str, Any]:
        """The configuration as `config.yaml` writes it."""
        plain = asdict(self)
        for key in ("method", "backbone"):
            plain[key] = {"name": plain[key], **plain.pop(f"{key}_options")}
        plain["backbone"].pop("model", None)  # part of the name, timm:<model>
        return json.loads(json.dumps(plain))  # type: ignore[no-any-return]  # tuples become lists

    @property
    def fingerprint(self) -> str:
        """A short hash of the configuration."""
        return hashlib.sha256(json.dumps(self.as_dict(), sort_keys=True).encode()).hexdigest()[:16]

    @property
    def folder(self) -> Path:
        """Where the run goes unless told otherwise."""
        return Path("runs") / f"{self.benchmark}-{self.method}-{self.seed}"


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


class StoppedError(Exception):
    """The run was asked to stop; its state is saved."""


def load_stream(config: RunConfig) -> Stream:
    """The run's stream of tasks; InputError if the data or the split is not possible."""
    bench = benchmark(config.benchmark)
    source = bench.source(config.data, config.label_column, config.image_size)
    classes = config.stream.classes or len(source.class_names)
    tasks = config.stream.tasks or bench.tasks or max(1, min(5, classes // 2))
    stream = make_stream(source, config.stream, tasks, config.seed)
    config.method_options.check_stream([len(task.class_names) for task in stream.tasks])
    return stream


def build_method(config: RunConfig, channels: int) -> Method:
    """The untrained method on its network, for images of `channels`; its weights depend on the seed alone."""
    torch.manual_seed(derived_seed(config.seed, "network"))
    backbone = config.backbone_options.build(channels)
    heads = config.method_options.build_heads(backbone.features, channels)
    method = METHODS[config.method].method(Network(backbone, heads, channels), config.optimizer, config.method_options)
    return method.to(memory_format=torch.channels_last)


def start(
    config: RunConfig,
    folder: Path,
    *,
    overwrite: bool = False,
    watch: Callable[[Progress], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
    checkpoint_seconds: float = 180.0,
) -> dict[str, Any]:
    """Train from the beginning in `folder`; returns what `metrics.json` holds.

    Args:
        config: What to train.
        folder: Where; made if it is missing.
        overwrite: Whether a run that the folder already holds may be lost.
        watch: Called with every event.
        stop: Asked after every step; when true, the state is saved and `StoppedError` raised.
        checkpoint_seconds: Time between checkpoints; 0 saves after every step.

    Raises:
        InputError: bad data or options, or the folder holds another run.
        StoppedError: `stop` said so.
    """
    stream = load_stream(config)
    method = build_method(config, stream.image_shape[0])
    with _locked(folder):
        if not overwrite:
            refuse_other_run(folder, config)
        for old in _files(folder):
            old.unlink(missing_ok=True)
        text = yaml.safe_dump(config.as_dict(), sort_keys=False, allow_unicode=True)
        checkpoint.write_file(folder / CONFIG, text.encode())
        return _train(config, folder, stream, method, TrainState(), watch, stop, checkpoint_seconds)


def resume(
    config: RunConfig,
    folder: Path,
    *,
    watch: Callable[[Progress], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
    checkpoint_seconds: float = 180.0,
) -> dict[str, Any]:
    """Continue the run of `config` in `folder` from its checkpoint, or from the beginning if it has none yet.

    On a CPU the result equals that of an uninterrupted run, bit for bit. A finished run's metrics are returned as
    they stand. Arguments and errors are those of `start`; InputError also if the checkpoint is broken or belongs to
    another configuration.
    """
    with _locked(folder):
        if (folder / METRICS).is_file():
            finished: dict[str, Any] = checkpoint.read_json(folder / METRICS)
            return finished
        stream = load_stream(config)
        method = build_method(config, stream.image_shape[0])
        state = TrainState()
        if (folder / CHECKPOINT / checkpoint.FILE).is_file():
            state = _restore(config, folder, stream, method)
        return _train(config, folder, stream, method, state, watch, stop, checkpoint_seconds)


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
    _cut_log(folder / LOG, state)
    for event in train(method, stream, config.training, config.augment, config.seed, state):
        if isinstance(event, EpochDone):
            _append(folder / LOG, event)
        stopping = isinstance(event, StepDone) and stop()
        if stopping or isinstance(event, TaskDone) or time.monotonic() - saved_at >= checkpoint_seconds:
            _save(config, folder, method, state)
            saved_at = time.monotonic()
        watch(Progress(event, state, stream, config))
        if stopping:
            raise StoppedError
    save_model(folder / MODEL, config, stream, method)
    results = _results(config, stream, method, state, revision)
    checkpoint.write_json(folder / METRICS, results)
    return results


def save_model(folder: Path, config: RunConfig, stream: Stream, method: Method) -> None:
    """The finished network as `model.safetensors`, and `learner.json`, which says what it is."""
    tensors = {name: tensor.contiguous() for name, tensor in method.network.state_dict().items()}
    data = safetensors.torch.save(tensors)
    checkpoint.write_file(folder / WEIGHTS, data)
    plain = config.as_dict()
    learner = {
        "format": 1,
        "sha256": hashlib.sha256(data).hexdigest(),
        "method": plain["method"],
        "backbone": plain["backbone"],
        "image_shape": list(stream.image_shape),
        "normalization": asdict(stream.normalization),
        "class_order": stream.class_order,
        "tasks": [{"name": task.name, "classes": list(task.class_names)} for task in stream.tasks],
        "data": stream.where,
    }
    checkpoint.write_json(folder / LEARNER, learner)


def _save(config: RunConfig, folder: Path, method: Method, state: TrainState) -> None:
    _require_finite(method, state)
    tensors = {f"method/{name}": tensor for name, tensor in method.state_dict().items()}
    tensors |= {f"optimizer/{k}": tensor for k, tensor in checkpoint.optimizer_tensors(method.optimizers).items()}
    facts = {"fingerprint": config.fingerprint, "state": asdict(state)}
    checkpoint.save(folder / CHECKPOINT, tensors, facts)


def _require_finite(method: Method, state: TrainState) -> None:
    """Raise InputError for weights that are of no use: the loss of a last step is seen by nobody."""
    for name, tensor in method.state_dict().items():
        if not torch.isfinite(tensor).all():
            inside = f"task {state.task + 1}, epoch {state.epoch + 1}, step {state.step}"
            raise InputError(
                f"{name} became NaN or infinite by {inside if state.began else f'the end of task {state.task}'}: "
                "expected finite weights; a lower --optimizer.lr may help"
            )


def _restore(config: RunConfig, folder: Path, stream: Stream, method: Method) -> TrainState:
    """Load the checkpoint into the method, and return how far it had come."""
    path = folder / CHECKPOINT
    tensors, facts = checkpoint.load(path)
    if facts.get("fingerprint") != config.fingerprint:
        raise InputError(
            f"{path}: expected a checkpoint of the configuration in {folder / CONFIG}, got one of another configuration"
        )
    try:
        state = TrainState(**facts["state"])
        replay(method, stream, state, config.seed)
        parts: dict[str, dict[str, torch.Tensor]] = {"method": {}, "optimizer": {}}
        for name, tensor in tensors.items():
            owner, _, rest = name.partition("/")
            parts[owner][rest] = tensor
        method.load_state_dict(parts["method"], strict=True)
        checkpoint.load_optimizers(method.optimizers, parts["optimizer"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:  # pah or the data have changed since
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: expected a checkpoint that fits this pah and these data, got: {reason}") from None
    return state


def _results(
    config: RunConfig, stream: Stream, method: Method, state: TrainState, revision: str | None
) -> dict[str, Any]:
    """What `metrics.json` holds."""
    heads = method.network.heads
    hypernetwork = heads.hypernetwork if isinstance(heads, GeneratedHeads) else None
    return {
        "benchmark": config.benchmark,
        "method": config.method,
        "seed": config.seed,
        "evaluated_on": config.training.evaluate_on,
        "class_order": stream.class_order,
        "task_names": [task.name for task in stream.tasks],
        "accuracy_matrix": state.matrix,
        **metrics.summary(state.matrix),
        "class_incremental_accuracy": state.class_incremental[-1],
        "parameters": {
            "backbone": sum(p.numel() for p in method.network.backbone.parameters()),
            "hypernetwork": sum(p.numel() for p in hypernetwork.parameters()) if hypernetwork else 0,
            "per_task": [p.numel() for p in heads.per_task()],
        },
        "seconds": round(state.seconds, 3),
        "images_per_second": round(state.images / state.train_seconds, 1),
        "peak_memory_mb": round(_peak_memory_mb(), 1),
        "versions": versions(),
        "commit": revision,
    }


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    packages = ("pah", "torch", "numpy", "datasets", "pillow", "scikit-learn")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def commit() -> str | None:
    """The commit of the source that runs, with "+changes" if files differ from it; None outside a checkout."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", str(here))
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _peak_memory_mb() -> float:
    """The most memory this process has held, in MB (2^20 bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def _files(folder: Path) -> list[Path]:
    """What a run writes into its folder after its configuration."""
    model = [folder / MODEL / name for name in (WEIGHTS, LEARNER)]
    return [folder / METRICS, folder / LOG, folder / CHECKPOINT / checkpoint.FILE, *model]


def refuse_other_run(folder: Path, config: RunConfig) -> None:
    """Raise InputError if the folder holds a run, be it that of `config`: nothing that was trained gets lost."""
    if not any(file.exists() for file in (folder / CONFIG, *_files(folder))):
        return
    try:
        same = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8")) == config.as_dict()
    except (OSError, ValueError, yaml.YAMLError):
        same = False
    if same and not (folder / METRICS).exists():
        raise InputError(
            f"{folder}: expected a folder without a run, got this run, unfinished: "
            f"`pah resume {folder}` continues it, --overwrite starts anew"
        )
    kind = "this run, finished" if same else "another run"
    raise InputError(
        f"{folder}: expected a folder without a run, got one that holds {kind}: choose another --out, or --overwrite it"
    )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder: a second process is refused. The system lets go of the lock even if the process is killed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK)
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(f"{folder}: expected a free run folder, got one in use by another process") from None
    except OSError as error:
        raise InputError(f"{folder}: expected a folder to write in, got: {error.strerror}") from None
    try:
        yield
    finally:
        lock.release()


def _append(path: Path, event: EpochDone) -> None:
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(event)) + "\n")
    except OSError as error:
        raise InputError(f"{path}: expected to write a line, got: {error.strerror}") from None


def _cut_log(path: Path, state: TrainState) -> None:
    """Drop the log's lines of epochs that the state has yet to do: they will be done, and written, again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_bytes().splitlines():
        try:
            entry = json.loads(line)
            done = (entry["task"], entry["epoch"]) < (state.task, state.epoch)
        except (ValueError, KeyError, TypeError):  # a line that was cut while it was written
            break
        if not done:
            break
        kept.append(line + b"\n")
    checkpoint.write_file(path, b"".join(kept))
