"""Runs sent to trackers: the data that TensorBoard and MLflow wrote are compared with the run folder."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from conftest import TINY, assert_same_run, processes, tiny
from pah.cli import main
from pah.study.ablation import flat_options
from pah.tracking.sending import Tracking
from pah.tracking.trackers import TRACKERS, TensorBoard, _installed
from pah.training.config import RunConfig

pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")  # of MLflow's own tables

Uninterrupted = Callable[[RunConfig], Path]
Curves = dict[str, list[tuple[int, float]]]  # by name: each step and its number

QUICK = ("--epochs", "2", "--backbone.width", "2", "--classes", "4", "--tasks", "2")
PICTURE = "accuracy"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Change to the folder where MLflow puts the pictures of a store that it is given."""
    monkeypatch.chdir(tmp_path)


def board(folder: Path) -> EventAccumulator:
    """Return what TensorBoard shows of one run."""
    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0}).Reload()


def board_curves(folder: Path) -> Curves:
    """Return the curves, sorted: two event files that one process starts within a second may be read in any order."""
    found = board(folder)
    return {name: sorted((e.step, e.value) for e in found.Scalars(name)) for name in found.Tags()["scalars"]}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return an MLflow store that several tests share, because making one takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'store.db'}"


def mlflow_runs(uri: str, experiment: str) -> list[Any]:
    """Return the runs of an experiment, the newest first."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    return list(client.search_runs([found.experiment_id]))


def mlflow_curves(uri: str, run: Any) -> Curves:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    names = run.data.metrics
    return {k: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, k)] for k in names}


def expected(folder: Path) -> Curves:
    """Return the curves that a tracker must hold of a finished run of two epochs per task."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    found = json.loads((folder / "metrics.json").read_text())
    curves: Curves = {}
    for step, line in enumerate(lines, start=1):
        for name, value in {**line["terms"]}.items():
            curves.setdefault(f"terms/{name}", []).append((step, value))
        curves.setdefault("lr", []).append((step, line["lr"]))
    for k, row in enumerate(found["accuracy_matrix"], start=1):
        for j, accuracy in enumerate(row, start=1):
            curves.setdefault(f"accuracy/task_{j:02}", []).append((2 * k, accuracy))
        curves.setdefault("average_accuracy", []).append((2 * k, sum(row) / k))
    for name in ("forgetting", "backward_transfer", "class_incremental_accuracy", "seconds"):
        curves[f"final/{name}"] = [(len(lines), found[name])]
    return curves


def assert_holds(curves: Curves, folder: Path) -> None:
    """Assert that every number is there exactly once, at its step."""
    for name, points in expected(folder).items():
        assert [step for step, _ in curves[name]] == [step for step, _ in points], name
        assert [value for _, value in curves[name]] == pytest.approx([value for _, value in points], rel=1e-6), name


def test_tensorboard_and_mlflow_hold_the_whole_run_and_do_not_change_it(
    tmp_path: Path, uninterrupted: Uninterrupted, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "a run, 100% of it"
    assert main(["run", *TINY, "--out", str(folder), "--track", "tensorboard, mlflow"]) == 0
    assert capfd.readouterr().err == ""
    files = folder / "track" / "tensorboard" / folder.name
    assert_holds(board_curves(files), folder)
    picture = board(files).Images(PICTURE)[0]
    assert Image.open(io.BytesIO(picture.encoded_image_string)).size == (picture.width, picture.height) > (300, 300)
    assert "method.stability" in str(board(files).Tensors("configuration/text_summary")[0].tensor_proto)

    uri = f"sqlite:///{folder / 'track' / 'mlflow' / 'mlflow.db'}"
    (run,) = mlflow_runs(uri, "split-digits")
    assert_holds(mlflow_curves(uri, run), folder)
    assert run.data.params == {name: str(value) for name, value in flat_options(tiny()).items()}
    assert (run.info.run_name, run.info.status) == (folder.name, "FINISHED")
    (artifact,) = (folder / "track" / "mlflow" / "artifacts").rglob("accuracy.png")
    with Image.open(artifact) as image:
        assert image.size == (picture.width, picture.height)

    shutil.rmtree(folder / "track")
    assert_same_run(folder, uninterrupted(tiny()))


def run_and_die(words: list[str], step: int, environment: dict[str, str]) -> None:
    """Run a command that is killed in its n-th optimizer step; called in a new process."""
    os.environ.update(environment)
    import torch
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    torch.set_num_threads(1)  # as here: the number of threads decides the last digit
    steps = iter(range(step, -1, -1))
    register_optimizer_step_pre_hook(lambda *_: None if next(steps) else os.kill(os.getpid(), signal.SIGKILL))
    sys.exit(main(words))


def test_a_killed_run_continues_as_the_same_tracked_run_with_every_point_once(
    tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {"MLFLOW_TRACKING_URI": store, "MLFLOW_EXPERIMENT_NAME": "killed"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    folder = tmp_path / "run"
    words = ["run", *TINY, "--out", str(folder), "--track", "tensorboard,mlflow"]
    process = processes.Process(
        target=run_and_die, args=(words, 10 + 2 * 7, environment)
    )  # in the 2nd task's 2nd epoch
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    (before,) = mlflow_runs(store, "killed")
    assert before.data.metrics["task"] == 2, "what is sent is there at once"
    assert main(["resume", str(folder)]) == 0, "from the first task's end: an epoch is repeated"
    (after,) = mlflow_runs(store, "killed")
    assert after.info.run_id == before.info.run_id
    assert after.info.status == "FINISHED"
    assert_holds(mlflow_curves(store, after), folder)
    assert_holds(board_curves(folder / "track" / "tensorboard" / "run"), folder)


def test_a_finished_run_can_be_tracked_later_and_is_sent_once(tmp_path: Path, uninterrupted: Uninterrupted) -> None:
    shutil.copytree(uninterrupted(tiny()), tmp_path / "run")
    files = tmp_path / "run" / "track" / "tensorboard" / "run"
    for _ in range(2):
        assert main(["resume", str(tmp_path / "run"), "--track", "tensorboard"]) == 0
        assert_holds(board_curves(files), tmp_path / "run")


def test_a_run_that_is_overwritten_is_a_new_one_to_the_tracker(
    tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "overwritten")
    words = ["run", *QUICK, "--out", str(tmp_path / "run"), "--track", "tensorboard,mlflow", "--overwrite"]
    assert main([*words, "--seed", "1"]) == 0
    (first,) = mlflow_runs(store, "overwritten")
    assert main([*words, "--seed", "2", "--out", str(tmp_path / "run")]) == 0
    second, other = mlflow_runs(store, "overwritten")
    assert other.info.run_id == first.info.run_id != second.info.run_id
    assert second.data.params["seed"] == "2"
    assert_holds(mlflow_curves(store, second), tmp_path / "run")
    assert_holds(board_curves(tmp_path / "run" / "track" / "tensorboard" / "run"), tmp_path / "run")


def test_the_runs_of_a_study_form_one_group(tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    words = ["compare", "split-digits", *QUICK, "--methods", "finetune,pah", "--out", str(tmp_path / "my-study")]
    assert main(words) == 0
    assert main([*words, "--seeds", "0,1", "--track", "tensorboard,mlflow"]) == 0, "those done are sent too"
    cells = {f"{method}-seed{seed}" for method in ("finetune", "pah") for seed in (0, 1)}
    found = {run.info.run_name: run for run in mlflow_runs(store, "my-study")}
    assert set(found) == cells
    boards = tmp_path / "my-study" / "track" / "tensorboard"
    assert {path.name for path in boards.iterdir() if path.is_dir()} == cells
    for name, run in found.items():
        assert_holds(mlflow_curves(store, run), tmp_path / "my-study" / name)
        assert_holds(board_curves(boards / name), tmp_path / "my-study" / name)
    (tmp_path / "my-study" / "pah-seed0" / "log.jsonl").unlink()
    assert main([*words, "--track", "tensorboard,mlflow"]) == 0, "and nothing is read that was sent"
    assert len(mlflow_runs(store, "my-study")) == 4


def test_a_studys_run_that_is_resumed_alone_stays_with_the_study(tmp_path: Path, unfinished: Path) -> None:
    folder = tmp_path / "study" / "pah-seed0"
    shutil.copytree(unfinished, folder)
    tracking = Tracking(["tensorboard"], tmp_path / "study", pytest.fail)
    tracking.update(folder, tiny(), [])
    tracking.close()
    assert main(["resume", str(folder)]) == 0
    assert_holds(board_curves(tmp_path / "study" / "track" / "tensorboard" / "pah-seed0"), folder)


def broken(*_: object, **__: object) -> None:
    raise RuntimeError("disk\nfull")


@pytest.mark.parametrize("call", ["__init__", "log_scalars", "flush", "log_picture", "close"])
def test_a_failing_tracker_is_named_once_and_does_not_stop_the_run(
    call: str,
    tmp_path: Path,
    uninterrupted: Uninterrupted,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setitem(TRACKERS, "wandb", TensorBoard)  # a second tracker, which works
        patched.setitem(TRACKERS, "tensorboard", type("Broken", (TensorBoard,), {call: broken}))
        assert main(["run", *TINY, "--out", str(folder), "--track", "tensorboard,wandb"]) == 0
    err = capsys.readouterr().err
    assert err == (
        "pah: track tensorboard: expected it to take the run's numbers, got: disk full; going on without it\n"
    )
    assert_holds(board_curves(folder / "track" / "wandb" / "run"), folder)
    assert main(["resume", str(folder), "--track", "tensorboard"]) == 0, "and what it missed is sent when it works"
    assert_holds(board_curves(folder / "track" / "tensorboard" / "run"), folder)
    shutil.rmtree(folder / "track")
    assert_same_run(folder, uninterrupted(tiny()))


def test_an_interrupt_inside_a_tracker_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(TensorBoard, "log_scalars", interrupted)
        assert main(["run", *TINY, "--out", str(tmp_path / "run"), "--track", "tensorboard"]) == 130
    assert main(["resume", str(tmp_path / "run")]) == 0
    assert_holds(board_curves(tmp_path / "run" / "track" / "tensorboard" / "run"), tmp_path / "run")


def test_an_unreachable_server_causes_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert main(["run", *QUICK, "--out", str(tmp_path / "run"), "--track", "mlflow"]) == 0
    err = capsys.readouterr().err
    assert err.startswith("pah: track mlflow: expected it to take the run's numbers, got: ")
    assert err.count("\n") == 1


def test_ctrl_c_with_weights_and_biases_saves_and_the_resumed_run_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CACHE", "CONFIG", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path))
    folder = tmp_path / "run"
    words = ["run", *TINY, "--epochs", "12", "--out", str(folder), "--track", "wandb"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True, "env": env}
    process = subprocess.Popen([sys.executable, "-m", "pah", *words], start_new_session=True, **pipes)
    while not (folder / "track" / "wandb" / "sent.json").exists():
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of the group
    assert process.communicate(timeout=60)[1] == f"pah: stopped, the state is saved; `pah resume {folder}` continues\n"
    assert process.returncode == 130
    (cut,) = (folder / "track" / "wandb").glob("offline-run-*")
    time.sleep(1.0)  # its name is the second it was made in
    assert main(["resume", str(folder)]) == 0
    (whole,) = (folder / "track" / "wandb").glob("offline-run-*")
    assert whole != cut
    assert whole.name.split("-")[-1] == cut.name.split("-")[-1] == sent(folder, "wandb")["key"]
    told = {"epochs": 36, "tasks": 3, "end": True, "closed": True}
    assert told.items() <= sent(folder, "wandb").items()
    assert next(whole.glob("*.wandb")).read_bytes().count(b"terms/L_hm") >= 36


def sent(folder: Path, tool: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "track" / tool / "sent.json").read_text())
    return found


def test_trackio_receives_a_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("trackio")  # it cannot be installed beside the versions of constraints.txt
    folder = tmp_path / "run"
    code = (
        f"import sys; from pah.cli import main; sys.exit(main({['run', *TINY, '--out', str(folder)]!r} + sys.argv[1:]))"
    )
    words = [sys.executable, "-c", code, "--track", "trackio", "--progress", "json"]
    done = subprocess.run(words, env={**os.environ, "TRACKIO_DIR": str(tmp_path / "t")}, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout.splitlines()[-1])["event"] == "done"
    import sqlite3

    rows = (
        sqlite3.connect(tmp_path / "t" / "pah.db").execute("select step, metrics from metrics order by id").fetchall()
    )
    losses = [(step, json.loads(text)["terms/L_hm"]) for step, text in rows if "terms/L_hm" in json.loads(text)]
    assert losses == expected(folder)["terms/L_hm"]


def test_a_missing_or_unknown_tool_is_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pah.tracking.trackers._installed", lambda package: package != "alembic")
    for command in ("run", "compare", "ablate"):
        assert main([command, "--track", "tensorboard,mlflow"]) == 2
        err = capsys.readouterr().err
        command_to_run = "in a clone of pah, run pip install -e '.[track]'"
        assert err == f"pah: track mlflow needs the extra: {command_to_run} (alembic not found)\n"
        assert main([command, "--track", "tensorbord"]) == 2
        assert capsys.readouterr().err == "pah: unknown tracker 'tensorbord'; did you mean 'tensorboard'?\n"
    assert not [*tmp_path.iterdir()]


def test_a_folder_with_the_name_of_a_package_is_not_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "not_a_tracker").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert not _installed("not_a_tracker")
    assert _installed("tensorboard")


def test_a_resumed_run_continues_without_a_tracker_that_is_no_longer_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert main(["run", *QUICK, "--out", str(folder), "--track", "tensorboard"]) == 0
    monkeypatch.setattr("pah.tracking.trackers._installed", lambda package: package != "tensorboard")
    capsys.readouterr()
    assert main(["resume", str(folder)]) == 0
    assert "pip install -e '.[track]'" in capsys.readouterr().err
    assert main(["resume", str(folder), "--track", "tensorboard"]) == 2


def test_a_run_that_another_process_sends_is_not_sent_twice(tmp_path: Path, uninterrupted: Uninterrupted) -> None:
    folder = tmp_path / "run"
    shutil.copytree(uninterrupted(tiny()), folder)
    warnings: list[str] = []
    one, other = (Tracking(["tensorboard"], folder, warnings.append) for _ in range(2))
    metrics = json.loads((folder / "metrics.json").read_text())
    one.update(folder, tiny(), metrics["accuracy_matrix"][:1])
    other.update(folder, tiny(), metrics["accuracy_matrix"][:2])
    one.finish(folder, tiny(), metrics)
    other.finish(folder, tiny(), metrics)
    assert warnings == []
    assert_holds(board_curves(folder / "track" / "tensorboard" / "run"), folder)
