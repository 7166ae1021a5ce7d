"""The trackers that take a run's numbers, each imported where its first run begins.

Nothing is sent over a network, unless the tool's own environment variables say so.
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

from pah.core.config import InputError, unknown
from pah.tracking.tool import Subject, Tool

PROJECT = "pah"
AT_ONCE = 100  # parameters of a run that MLflow takes in one call


class TensorBoard(Tool):
    """Event files, a folder a run."""

    packages = ("tensorboard",)

    def __init__(self, run: Subject, known: str | None, after: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.key = run.name
        self.config = run.config
        folder = run.store / run.name
        if known is None:
            for old in folder.glob("events.out.tfevents.*"):  # of a run that was overwritten
                old.unlink()
        self.writer = SummaryWriter(str(folder), purge_step=None if known is None else after + 1)
        if known is None:
            self.writer.add_text("configuration", f"```\n{json.dumps(dict(run.config), indent=1)}\n```")
        self.last: dict[str, float] = {}

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.last = dict(values)

    def picture(self, name: str, picture: Image, step: int) -> None:
        self.writer.add_image(name, np.asarray(picture), step, dataformats="HWC")

    def flush(self) -> None:
        self.writer.flush()

    def close(self, finished: bool) -> None:
        from torch.utils.tensorboard.summary import hparams

        if finished:  # the table of runs shows options beside the last numbers sent
            options = {k: v if isinstance(v, (bool, int, float)) else str(v) for k, v in self.config.items()}
            for summary in hparams(options, self.last):
                self.writer.file_writer.add_summary(summary)
        self.writer.close()


class WeightsAndBiases(Tool):
    """A folder a run, which `wandb sync` uploads.

    Of two folders of one run, the server keeps the one that it is sent last, and a killed process leaves one without
    its last numbers: so offline, a run that goes on is written whole into a new folder.
    """

    packages = ("wandb",)
    environment: ClassVar = {"WANDB_ERROR_REPORTING": "false"}

    def __init__(self, run: Subject, known: str | None, after: int) -> None:
        import wandb

        self.key = known or uuid4().hex[:8]
        folder = Path(os.environ.get("WANDB_DIR", run.store.parent))  # in which wandb makes a folder `wandb`
        folder.mkdir(parents=True, exist_ok=True)
        mode = os.environ.get("WANDB_MODE", "offline")
        self.kept = mode == "online"
        if not self.kept:
            for cut in folder.glob(f"wandb/offline-run-*-{self.key}"):
                shutil.rmtree(cut)
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

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self.run.log({**values, "epoch": step})

    def picture(self, name: str, picture: Image, step: int) -> None:
        self.run.log({name: self.image(picture), "epoch": step})

    def close(self, finished: bool) -> None:
        self.run.finish(exit_code=0 if finished else 1)


class MLflow(Tool):
    """An SQLite store beside the run, or the server that MLFLOW_TRACKING_URI names."""

    packages = ("mlflow", "sqlalchemy", "alembic")
    environment: ClassVar = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_LOGGING_LEVEL": "ERROR",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # a server that is gone is not worth minutes of a run
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    }

    def __init__(self, run: Subject, known: str | None, after: int) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self.metric = Metric
        artifacts = None
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        run.store.mkdir(parents=True, exist_ok=True)
        if not uri:
            uri, artifacts = f"sqlite:///{run.store.resolve() / 'mlflow.db'}", (run.store / "artifacts").resolve()
        with FileLock(run.store / ".store.lock"):  # the processes of a study may begin at once
            self.client = MlflowClient(tracking_uri=uri)
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", run.group)
            found = self.client.get_experiment_by_name(name)
            experiment = (
                found.experiment_id if found else self.client.create_experiment(name, artifacts and artifacts.as_uri())
            )
        if known is not None:
            self.key = known
            self.client.update_run(known, status="RUNNING")
            return
        self.key = self.client.create_run(experiment, run_name=run.name).info.run_id
        options = [Param(name, str(value)) for name, value in run.config.items()]
        for first in range(0, len(options), AT_ONCE):
            self.client.log_batch(self.key, params=options[first : first + AT_ONCE])

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        now = int(1000 * time.time())
        self.client.log_batch(self.key, [self.metric(name, value, now, step) for name, value in values.items()])

    def picture(self, name: str, picture: Image, step: int) -> None:
        self.client.log_image(self.key, picture, f"{name}.png")

    def close(self, finished: bool) -> None:
        self.client.set_terminated(self.key, "FINISHED" if finished else "KILLED")


class Trackio(Tool):
    """A database for all runs of a user: where TRACKIO_DIR says, or in the Hugging Face cache."""

    packages = ("trackio",)
    extra = "trackio"

    def __init__(self, run: Subject, known: str | None, after: int) -> None:
        with self._silent():
            import trackio

            self.key = known or f"{run.name}-{uuid4().hex[:8]}"  # the name is all by which it finds a run
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

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self.run.log(dict(values), step=step)

    def picture(self, name: str, picture: Image, step: int) -> None:
        self.run.log({name: self.image(picture)}, step=step)

    def close(self, finished: bool) -> None:
        with self._silent():
            self.end()  # not the run's own: the module would end it once more, and print, when Python exits

    @staticmethod
    @contextlib.contextmanager
    def _silent() -> Iterator[None]:
        """It prints; whoever reads our output did not ask for that."""
        with contextlib.redirect_stdout(io.StringIO()):
            yield


TOOLS: dict[str, type[Tool]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
    "trackio": Trackio,
}


def begin(name: str, run: Subject, known: str | None, after: int) -> Tool:
    """The run in the tool of that name, begun or continued."""
    for variable, value in TOOLS[name].environment.items():
        os.environ.setdefault(variable, value)
    return TOOLS[name](run, known, after)


def require_tools(names: Iterable[str]) -> None:
    """Raise InputError for a tool that there is not, or that is not installed: not only once training has begun."""
    for name in names:
        if name not in TOOLS:
            raise unknown("tracker", name, TOOLS)
        needed = (*TOOLS[name].packages, "matplotlib")
        missing = [package for package in needed if not _installed(package)]
        if missing:
            raise InputError(
                f"track {name} needs the extra: pip install 'pah[{TOOLS[name].extra}]' ({', '.join(missing)} not found)"
            )


def _installed(package: str) -> bool:
    """Whether it can be imported; a folder that happens to bear its name, as wandb leaves them, is no package."""
    spec = find_spec(package)
    return spec is not None and spec.origin is not None
