"""The trackers for TensorBoard, Weights & Biases, MLflow and trackio.

Each package is imported only when a run uses it. Nothing is sent over a network unless the tool's own environment
variables request it.
"""

import contextlib
import io
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar
from uuid import uuid4

import numpy as np
from filelock import FileLock
from PIL.Image import Image

from pah.core.config import InputError, unknown_name_error
from pah.tracking.base import TrackedRun, Tracker

PROJECT = "pah"
MAX_PARAMETERS = 100  # of a run that MLflow accepts in one call


class TensorBoard(Tracker):
    """Event files, one folder per run."""

    packages = ("tensorboard",)

    def __init__(self, run: TrackedRun, key: str | None, last_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.key = run.name
        self.config = run.config
        folder = run.store / run.name
        if key is None:
            for event_file in folder.glob("events.out.tfevents.*"):  # of a run that was overwritten
                event_file.unlink()
        self.writer = SummaryWriter(str(folder), purge_step=None if key is None else last_step + 1)
        if key is None:
            self.writer.add_text("configuration", f"```\n{json.dumps(dict(run.config), indent=1)}\n```")
        self.last_values: dict[str, float] = {}

    def log_scalars(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.last_values = dict(values)

    def log_picture(self, name: str, picture: Image, step: int) -> None:
        self.writer.add_image(name, np.asarray(picture), step, dataformats="HWC")

    def flush(self) -> None:
        self.writer.flush()

    def close(self, finished: bool) -> None:
        from torch.utils.tensorboard.summary import hparams

        if finished:  # the table of runs shows the options and the last numbers
            options = {k: v if isinstance(v, (bool, int, float)) else str(v) for k, v in self.config.items()}
            for summary in hparams(options, self.last_values):
                self.writer.file_writer.add_summary(summary)
        self.writer.close()


class WeightsAndBiases(Tracker):
    """One folder per run, which `wandb sync` uploads.

    If a run has two folders, the server keeps the one that is uploaded last. The folder of a killed process lacks its
    last numbers. Offline, a resumed run is therefore written completely into a new folder.
    """

    packages = ("wandb",)
    environment: ClassVar = {"WANDB_ERROR_REPORTING": "false"}

    def __init__(self, run: TrackedRun, key: str | None, last_step: int) -> None:
        import wandb

        self.key = key or uuid4().hex[:8]
        folder = Path(os.environ.get("WANDB_DIR", run.store.parent))  # wandb creates a folder `wandb` in it
        folder.mkdir(parents=True, exist_ok=True)
        mode = os.environ.get("WANDB_MODE", "offline")
        self.resumable = mode == "online"
        if not self.resumable:
            for incomplete in folder.glob(f"wandb/offline-run-*-{self.key}"):
                shutil.rmtree(incomplete)
        self.image = wandb.Image
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            group=run.group,
            name=run.name,
            id=self.key,
            resume="allow",
            reinit="create_new",
            dir=str(folder),
            mode=mode,
            config=dict(run.config),
            settings=wandb.Settings(silent=True, console="off", save_code=False, disable_git=True),
        )
        self.run.define_metric("epoch")
        self.run.define_metric("*", step_metric="epoch")

    def log_scalars(self, values: Mapping[str, float], step: int) -> None:
        self.run.log({**values, "epoch": step})

    def log_picture(self, name: str, picture: Image, step: int) -> None:
        self.run.log({name: self.image(picture), "epoch": step})

    def close(self, finished: bool) -> None:
        self.run.finish(exit_code=0 if finished else 1)


class MLflow(Tracker):
    """An SQLite store beside the run, or the server that MLFLOW_TRACKING_URI names."""

    packages = ("mlflow", "sqlalchemy", "alembic")
    environment: ClassVar = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_LOGGING_LEVEL": "ERROR",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # the defaults wait for minutes if a server does not answer
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    }

    def __init__(self, run: TrackedRun, key: str | None, last_step: int) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self.metric = Metric
        artifacts = None
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        run.store.mkdir(parents=True, exist_ok=True)
        if not uri:
            uri, artifacts = f"sqlite:///{run.store.resolve() / 'mlflow.db'}", (run.store / "artifacts").resolve()
        with FileLock(run.store / ".store.lock"):  # several processes of a study may start at the same time
            self.client = MlflowClient(tracking_uri=uri)
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", run.group)
            experiment = self.client.get_experiment_by_name(name)
            if experiment:
                experiment_id = experiment.experiment_id
            else:
                experiment_id = self.client.create_experiment(name, artifacts and artifacts.as_uri())
        if key is not None:
            self.key = key
            self.client.update_run(key, status="RUNNING")
            return
        self.key = self.client.create_run(experiment_id, run_name=run.name).info.run_id
        options = [Param(name, str(value)) for name, value in run.config.items()]
        for first in range(0, len(options), MAX_PARAMETERS):
            self.client.log_batch(self.key, params=options[first : first + MAX_PARAMETERS])

    def log_scalars(self, values: Mapping[str, float], step: int) -> None:
        now = int(1000 * time.time())
        self.client.log_batch(self.key, [self.metric(name, value, now, step) for name, value in values.items()])

    def log_picture(self, name: str, picture: Image, step: int) -> None:
        self.client.log_image(self.key, picture, f"{name}.png")

    def close(self, finished: bool) -> None:
        self.client.set_terminated(self.key, "FINISHED" if finished else "KILLED")


class Trackio(Tracker):
    """A database for all runs of a user, in TRACKIO_DIR or in the Hugging Face cache."""

    packages = ("trackio",)
    extra = "trackio"

    def __init__(self, run: TrackedRun, key: str | None, last_step: int) -> None:
        with self._without_output():
            import trackio

            self.key = key or f"{run.name}-{uuid4().hex[:8]}"  # trackio identifies a run by its name
            self.image, self.end = trackio.Image, trackio.finish
            self.run = trackio.init(
                project=PROJECT,
                group=run.group,
                name=self.key,
                config=dict(run.config),
                resume="allow",
                embed=False,
                auto_log_cpu=False,
                auto_log_gpu=False,
            )

    def log_scalars(self, values: Mapping[str, float], step: int) -> None:
        self.run.log(dict(values), step=step)

    def log_picture(self, name: str, picture: Image, step: int) -> None:
        self.run.log({name: self.image(picture)}, step=step)

    def close(self, finished: bool) -> None:
        with self._without_output():
            self.end()  # instead of run.finish(): the module would finish the run again, and print, when Python exits

    @staticmethod
    @contextlib.contextmanager
    def _without_output() -> Iterator[None]:
        """Hide what trackio prints: programs read the output of `pah`."""
        with contextlib.redirect_stdout(io.StringIO()):
            yield


TRACKERS: dict[str, type[Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
    "trackio": Trackio,
}


def open_tracker(name: str, run: TrackedRun, key: str | None, last_step: int) -> Tracker:
    """Start a run in the tool of that name, or continue the one with this key after `last_step`."""
    for variable, value in TRACKERS[name].environment.items():
        os.environ.setdefault(variable, value)
    return TRACKERS[name](run, key, last_step)


def require_trackers(names: Iterable[str]) -> None:
    """Raise InputError for an unknown tracker, or for one whose packages are not installed."""
    for name in names:
        if name not in TRACKERS:
            raise unknown_name_error("tracker", name, TRACKERS)
        required = (*TRACKERS[name].packages, "matplotlib")
        missing = [package for package in required if not _installed(package)]
        if missing:
            raise InputError(
                f"track {name} needs the extra: in a clone of pah, run pip install -e '.[{TRACKERS[name].extra}]' "
                f"({', '.join(missing)} not found)"
            )


def _installed(package: str) -> bool:
    """Return whether a package can be imported; a folder with its name, such as wandb creates, is no package."""
    spec = find_spec(package)
    return spec is not None and spec.origin is not None
