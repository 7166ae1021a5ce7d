"""`--ray`: runs on a Ray cluster equal local runs, even if nodes are lost or the command is interrupted."""

import contextlib
import json
import os
import queue
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest
from rich.console import Console

import pah
from conftest import EVENTS_PER_TASK, TINY, assert_same_run, contents, tiny
from pah.cli import main
from pah.cli.grid_display import GridDisplay
from pah.study.grid import Cell, Outcome, Running, Waiting
from pah.study.ray_worker import (
    CellResult,
    ProgressMessage,
    RunFiles,
    read_run_files,
    run_remote_cell,
    software_versions,
    write_run_files,
)
from pah.training.config import RunConfig

pytest.importorskip("ray")

SOURCE = Path(pah.__file__).parents[1]
GRID = ("--methods", "pah,finetune", "--seeds", "0,1")
SMALL = ("split-digits", *TINY, "--epochs", "1", *GRID)
LONG = ("split-digits", *TINY, "--epochs", "20", *GRID, "--checkpoint_seconds", "0.5")  # some seconds a cell


def send(config: RunConfig, files: RunFiles, **changes: Any) -> tuple[CellResult, "queue.Queue[Any]"]:
    """Run a cell as a node does; return its result and its progress messages."""
    messages: queue.Queue[Any] = queue.Queue()
    sent: dict[str, Any] = {
        "study_folder": "studies/mine",
        "working_directory": os.getcwd(),
        "threads": 1,
        "device": "cpu",
        "study_versions": software_versions(),
        "checkpoint_seconds": 180.0,
        "progress_queue": messages,
        "stop_queue": queue.Queue(),
    }
    return run_remote_cell("pah-seed0", config.as_dict(), files, **{**sent, **changes}), messages


def run_and_write(config: RunConfig, folder: Path, **changes: Any) -> CellResult:
    """Run a cell as a node does, and write all files that it sends into its folder, as a study does."""
    result, messages = send(config, read_run_files(folder), **changes)
    for item in messages.queue:
        write_run_files(ProgressMessage(*item).files, folder)
    write_run_files(result.files, folder)
    return result


def stopping() -> "queue.Queue[bool]":
    halt: queue.Queue[bool] = queue.Queue()
    halt.put(True)
    return halt


def test_a_remote_cell_sends_the_files_of_a_run(tmp_path: Path, uninterrupted: Callable[[RunConfig], Path]) -> None:
    config = tiny("--snapshots", "true")
    result, messages = send(config, {})
    assert result[:2] == ("ended", "")
    received = [ProgressMessage(*item) for item in messages.queue]
    assert {message.cell_name for message in received} == {"pah-seed0"}
    # a checkpoint when a task's epochs are over, and one when it is evaluated
    saved = [message.progress[:2] for message in received if message.files]
    assert saved == [(0, 3), (1, 3), (1, 3), (2, 3), (2, 3), (3, 3)]
    assert not any("metrics.json" in message.files for message in received)
    for files in (*(message.files for message in received), result.files):
        write_run_files(files, tmp_path)
    assert_same_run(tmp_path, uninterrupted(config))


def test_the_last_received_files_are_enough_to_resume_on_another_node(
    tmp_path: Path, uninterrupted: Callable[[RunConfig], Path]
) -> None:
    _, messages = send(tiny(), {}, checkpoint_seconds=0.0)
    received = [ProgressMessage(*item) for item in messages.queue]
    assert len(received) == 3 * EVENTS_PER_TASK  # a checkpoint with each event
    for count in (EVENTS_PER_TASK, EVENTS_PER_TASK + 4, len(received)):
        folder = tmp_path / str(count)
        for message in received[:count]:
            write_run_files(message.files, folder)
        log = (folder / "log.jsonl").read_bytes()
        run_and_write(tiny(), folder)
        assert (
            (folder / "log.jsonl").read_bytes().startswith(log)
        )  # with the same times, so the run did not start again
        assert_same_run(folder, uninterrupted(tiny()))


def test_a_stopped_cell_sends_its_state(tmp_path: Path, uninterrupted: Callable[[RunConfig], Path]) -> None:
    assert run_and_write(tiny(), tmp_path, stop_queue=stopping()).status == "stopped"
    assert sorted(contents(tmp_path)) == ["checkpoint/state.safetensors", "config.yaml", "prototypes/0.safetensors"]
    run_and_write(tiny(), tmp_path)
    assert_same_run(tmp_path, uninterrupted(tiny()))


def test_a_node_resumes_a_run_that_was_started_here(
    tmp_path: Path, unfinished: Path, uninterrupted: Callable[[RunConfig], Path]
) -> None:
    folder = shutil.copytree(unfinished, tmp_path / "run")
    run_and_write(tiny(), folder)
    assert_same_run(folder, uninterrupted(tiny()))


def test_a_node_with_other_versions_is_refused() -> None:
    result, messages = send(tiny(), {}, study_versions={**software_versions(), "torch": "0.4.1"})
    assert result.status == "refused"
    assert "expected the study's versions, got others: torch is" in result.reason
    assert result.reason.endswith("not 0.4.1")
    assert messages.empty()
    assert re.fullmatch(r"\S+ \(source [0-9a-f]{12}\)", software_versions()["pah"])


def test_the_reason_of_a_failed_cell_names_the_study_and_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setattr("pah.runs.run.train", broken)
    result, _ = send(tiny(), {})
    assert result.status == "ended"
    assert result.reason.startswith("RuntimeError: out of luck (details: studies/mine/pah-seed0/error.txt) (node ")
    assert b"Traceback" in result.files["error.txt"]
    monkeypatch.undo()
    result, _ = send(tiny("--data", "none/such"), {})
    assert "none/such" in result.reason
    assert " (node " in result.reason


def test_a_relative_data_path_starts_in_the_working_directory_of_the_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home").mkdir()
    send(tiny(), {}, stop_queue=stopping(), working_directory=str(tmp_path / "home"))
    assert Path.cwd() == tmp_path / "home"
    send(tiny(), {}, stop_queue=stopping(), working_directory=str(tmp_path / "elsewhere"))
    assert Path.cwd() == tmp_path / "home"


def test_the_view_shows_on_which_node_a_cell_runs(tmp_path: Path) -> None:
    cells = [Cell(tiny(), tmp_path / f"pah-seed{seed}") for seed in (0, 1, 2)]
    console = Console(width=100, record=True)
    with GridDisplay(console, cells, "runs") as watch:
        watch(cells[0], Running(0, 3, 40.0, "10.0.0.1"))
        watch(cells[1], Running(1, 3, 20.0, "10.0.0.2"))
        watch(cells[0], Running(3, 3, 0.0, "10.0.0.1"))
        watch(cells[0], Outcome(cells[0], {"seconds": 60.0, "average_accuracy": 90.0, "forgetting": 1.0}))
        assert watch.summary() == "1/3 runs done, 0 failed, about 1 min 20 s left"  # 20 s and 60 s, one at a time
        watch(cells[1], Waiting("its node was lost"))
        watch(cells[2], Running(0, 3, 60.0, "10.0.0.1"))
        watch(cells[1], Running(1, 3, 20.0, "10.0.0.1"))
        assert watch.summary() == "1/3 runs done, 0 failed, about 40 s left"  # two at a time
        console.print(watch.table())
    text = console.export_text()
    assert text.splitlines()[:2] == ["pah-seed0  started on 10.0.0.1", "pah-seed1  started on 10.0.0.2"]
    for part in ("pah-seed1  waits: its node was lost", "pah-seed1  started on 10.0.0.1", "task 2/3 on 10.0.0.1"):
        assert part in text


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("--ray nonsense", "ray: expected HOST:PORT, auto or local, got 'nonsense'"),
        ("--ray ray://here:10001", "ray: expected HOST:PORT, auto or local"),
        ("--ray", "option --ray: expected a value"),
        ("--ray local --ray_cpus 0", "ray_cpus: expected at least 1, got 0"),
        ("--ray local --ray_gpus 1.5", "ray_gpus: expected a share from 0 to 1, or a whole number, got 1.5"),
        ("--ray local --ray_memory -1", "ray_memory: expected at least 0, got -1"),
        ("--ray_cpus 2", "ray_cpus: expected --ray ADDRESS with it, got none"),
        ("--ray no.such.host.invalid:6379", "expected a Ray cluster that answers, got: "),
    ],
)
@pytest.mark.parametrize("command", ["compare", "ablate"])
def test_invalid_arguments_are_refused(
    command: str, words: str, part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([command, "split-digits", *words.split()]) == 2
    err = capsys.readouterr().err
    assert part in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_missing_extra_is_reported_with_its_installation(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # otherwise a token stays in the environment of later tests
    assert main(["compare", "split-digits", "--ray", "local"]) == 2
    message = "pah: a study on a cluster needs the extra: in a clone of pah, run pip install -e '.[ray]'\n"
    assert capsys.readouterr().err == message


@pytest.mark.parametrize("listens", [True, False])
def test_an_address_that_does_not_answer_is_reported_within_ten_seconds(
    listens: bool, tmp_path: Path, capsys: Any
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        if listens:
            taken.listen()
        started = time.monotonic()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert main(["compare", "split-digits", "--ray", address, "--out", str(tmp_path / "s")]) == 2
    assert time.monotonic() - started < 10
    err = capsys.readouterr().err
    assert err.startswith(f"pah: ray {address}: expected a Ray cluster that answers, got: ")
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


# the tests below use real Ray processes

TIMEOUT = 600  # seconds: the machine may be busy
STARTED: list["subprocess.Popen[str]"] = []


def start(*words: str, into: IO[str] | None = None, **environment: str) -> "subprocess.Popen[str]":
    """Start a process in its own process group."""
    env = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    env["RAY_worker_niceness"] = "0"  # Ray's default is 15, with which its workers are very slow on a busy machine
    pipes: Any = {"stdout": into or subprocess.PIPE, "stderr": into or subprocess.PIPE, "text": True}
    STARTED.append(subprocess.Popen(words, env={**env, **environment}, start_new_session=True, **pipes))
    return STARTED[-1]


@pytest.fixture(autouse=True)
def _kill_started_processes() -> Iterator[None]:
    """Kill the processes that a test has started."""
    yield
    while STARTED:
        kill(STARTED.pop())


def study(kind: str, folder: Path, *words: str) -> "subprocess.Popen[str]":
    return start(sys.executable, "-m", "pah", kind, *words, "--out", str(folder))


def kill(process: "subprocess.Popen[str]") -> None:
    """Kill a process and all its descendants at once; for a node this is like a power cut."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = [(int(pid), int(parent)) for pid, parent in map(str.split, listed.splitlines())]
    found = [process.pid] if process.poll() is None else []
    for one in found:  # grows
        found += [pid for pid, parent in parents if parent == one]
    for one in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(one, signal.SIGKILL)
    if process.stdout and not process.stdout.closed:
        process.communicate()
    process.wait()


def wait_for_line(process: "subprocess.Popen[str]", *parts: str) -> str:
    """Read a study's output up to a line with all of these parts; return that line."""
    assert process.stdout is not None
    while line := process.stdout.readline():
        if all(part in line for part in parts):
            return line
    raise AssertionError(f"it ended without {parts}: {process.communicate()}")


def first_epoch(cell: Path) -> bytes:
    """Wait until a checkpoint after the first epoch is saved here; return the log line of the first epoch."""
    log = cell / "log.jsonl"
    until = time.monotonic() + TIMEOUT
    while not ((cell / "checkpoint" / "state.safetensors").exists() and log.exists() and log.stat().st_size):
        assert time.monotonic() < until, f"no checkpoint in {cell}"
        time.sleep(0.05)
    return log.read_bytes().splitlines()[0]


def without_times(found: Any) -> Any:
    """Return a summary without durations."""
    if not isinstance(found, dict):
        return found
    return {key: without_times(value) for key, value in found.items() if not key.endswith("seconds")}


def assert_same_study(folder: Path, reference: Path) -> None:
    """Assert that every run is bit-identical, and that the tables differ only in durations."""
    for cell in reference.glob("*-seed*"):
        assert_same_run(folder / cell.name, cell)
        answers = (path / "predictions.safetensors" for path in (folder / cell.name, cell))
        assert next(answers).read_bytes() == next(answers).read_bytes()
    mine, its = (json.loads((path / "comparison.json").read_text()) for path in (folder, reference))
    assert without_times(mine) == without_times(its)


@pytest.fixture(scope="module")
def serial(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that makes a study locally, once per arguments; tests must not change its folder."""
    made: dict[tuple[str, ...], Path] = {}

    def folder_of(*words: str) -> Path:
        if words not in made:
            made[words] = tmp_path_factory.mktemp("serial") / "s"
            assert main(["compare", *words, "--out", str(made[words])]) == 0
        return made[words]

    return folder_of


@pytest.mark.slow
def test_a_study_on_this_machines_cores_equals_a_serial_one(serial: Callable[..., Path], tmp_path: Path) -> None:
    token = Path.home() / ".ray" / "auth_token"
    had = token.exists()
    words = (*SMALL, "--methods", "pah,finetune", "--seeds", "0")
    process = study("compare", tmp_path / "s", *words, "--ray", "local")
    out, err = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, err) == (0, "")
    assert "2/2 runs done, 0 failed" in out
    assert_same_study(tmp_path / "s", serial(*words))
    assert token.exists() == had  # later clusters would ask for one


class Cluster:
    """Real Ray nodes on this machine; each is a process group with its own address."""

    def __init__(self, logs: Path) -> None:
        self.logs = logs
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        self.nodes: dict[str, subprocess.Popen[str]] = {}
        self.add("head", "--head", "--include-dashboard=false", f"--port={self.address.partition(':')[2]}")

    def join(self, at: str, *words: str, **environment: str) -> None:
        """Start another node."""
        self.add(at, f"--address={self.address}", f"--node-ip-address={at}", *words, **environment)

    def add(self, name: str, *words: str, **environment: str) -> None:
        log = self.logs / name
        ray = str(Path(sys.executable).with_name("ray"))
        with log.open("w") as file:
            self.nodes[name] = start(
                *(ray, "start", "--block", "--num-cpus=1", *words), into=file, RAY_AUTH_MODE="disabled", **environment
            )
        until = time.monotonic() + TIMEOUT
        while "Ray runtime started" not in log.read_text():
            assert self.nodes[name].poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.1)


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    """Return a cluster with one node, the head, on which the study is started."""
    (tmp_path / "logs").mkdir()
    return Cluster(tmp_path / "logs")


@pytest.mark.slow
def test_a_study_that_loses_a_node_equals_a_serial_one(
    cluster: Cluster, serial: Callable[..., Path], tmp_path: Path
) -> None:
    cluster.join("127.0.0.2")
    process = study("compare", tmp_path / "s", *LONG, "--ray", cluster.address)
    lost = wait_for_line(process, "started on 127.0.0.2").split()[0]
    first = first_epoch(tmp_path / "s" / lost)
    kill(cluster.nodes["127.0.0.2"])
    assert "waits: its node was lost" in wait_for_line(process, lost)
    out, err = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, err) == (0, "")
    assert re.search(rf"^{lost}  started on (?!127.0.0.2)", out, re.MULTILINE)
    assert "4/4 runs done, 0 failed" in out
    assert "raylet" not in out
    assert (tmp_path / "s" / lost / "log.jsonl").read_bytes().startswith(first)  # the run started only once
    assert_same_study(tmp_path / "s", serial(*LONG))


@pytest.mark.slow
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGKILL])
def test_the_same_command_continues_a_study(
    sign: signal.Signals, cluster: Cluster, serial: Callable[..., Path], tmp_path: Path
) -> None:
    process = study("compare", tmp_path / "s", *LONG, "--ray", cluster.address)
    begun = wait_for_line(process, "started on ").split()[0]
    first = first_epoch(tmp_path / "s" / begun)
    os.killpg(process.pid, sign)
    _, err = process.communicate(timeout=TIMEOUT)
    if sign == signal.SIGINT:
        said = "pah: stopped, the state is saved; the same command continues\n"
        assert (process.returncode, err) == (130, said)
    assert not (tmp_path / "s" / begun / "metrics.json").exists()
    process = study("compare", tmp_path / "s", *LONG, "--ray", cluster.address)
    _, err = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, err) == (0, "")
    assert (tmp_path / "s" / begun / "log.jsonl").read_bytes().startswith(first)  # the run started only once
    assert_same_study(tmp_path / "s", serial(*LONG))


@pytest.mark.slow
def test_runs_wait_for_a_node_that_has_what_they_need(
    cluster: Cluster, serial: Callable[..., Path], tmp_path: Path
) -> None:
    process = study("compare", tmp_path / "s", *SMALL, "--ray", cluster.address, "--ray_gpus", "0.5")
    line = wait_for_line(process, "waits")
    assert "waits: for a node with 1 cores, 0.5 GPU and 0 MB: the cluster has none" in line
    cluster.join("127.0.0.2", "--num-gpus=1")
    out, err = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, err) == (0, "")
    assert set(re.findall(r"started on (\S+)", out)) == {"127.0.0.2"}
    assert_same_study(tmp_path / "s", serial(*SMALL))


def source(folder: Path, **changes: tuple[str, str]) -> str:
    """Write a copy of pah with texts replaced in some modules; return its folder."""
    shutil.copytree(SOURCE / "pah", folder / "pah", ignore=shutil.ignore_patterns("__pycache__"))
    for module, (old, new) in changes.items():
        path = folder / "pah" / "study" / f"{module}.py"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
    return str(folder)


@pytest.mark.slow
def test_a_node_with_another_pah_ends_the_study(cluster: Cluster, tmp_path: Path) -> None:
    other = source(tmp_path / "other", ray_worker=("REPORT_SECONDS = 1.0", "REPORT_SECONDS = 2.0"))
    cluster.join("127.0.0.2", "--num-gpus=1", PYTHONPATH=other)
    process = study("compare", tmp_path / "s", *SMALL, "--ray", cluster.address, "--ray_gpus", "1")
    _, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 2
    assert re.fullmatch(r"pah: node 127\.0\.0\.2: expected the study's versions, got others: pah is .*\n", err)


@pytest.mark.slow
def test_a_run_that_always_kills_its_worker_fails_and_the_rest_goes_on(tmp_path: Path) -> None:
    deadly = "os.kill(os.getpid(), 9) if name.startswith('pah') else None\n    from ray.util import"
    other = source(
        tmp_path / "other",
        ray_worker=("from ray.util import", deadly),
        ray_driver=("RESEND_SECONDS = 2.0", "RESEND_SECONDS = 0.1"),
    )
    words = ("compare", *SMALL, "--seeds", "0", "--out", str(tmp_path / "s"), "--ray", "local")
    process = start(sys.executable, "-m", "pah", *words, PYTHONPATH=other)
    out, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 1
    assert err.startswith("pah: pah-seed0 failed: lost 5 times without a new checkpoint: ")
    assert err.count("\n") == 1
    assert out.count("pah-seed0  waits: its node was lost") == 4
    assert "finetune-seed0  done" in out
