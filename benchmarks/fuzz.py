"""Run commands on thousands of damaged and malicious files: each must be used, or refused with one line.

    OMP_NUM_THREADS=1 python benchmarks/fuzz.py --cases 12000
    OMP_NUM_THREADS=1 python benchmarks/fuzz.py --only images --case 1234     # repeat one case and print its result

Each case is a complete command on a mutated file: a learner's `learner.json` with a matching checksum, the header of
its safetensors, YAML configurations, images in nine formats, or TinyImageNet's annotations. Faults are: an exit
status other than 0 and 2, a traceback, more than one line on stderr, more than 10 s, more than 1 GB of memory (of the
process, including libraries), a file written outside the given folder, a started program, and an object made from a
pickle.
"""

import argparse
import contextlib
import hashlib
import io
import json
import multiprocessing
import os
import random
import re
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from mutations import mutated_bytes, mutated_tree
from PIL import Image, features

from pah.cli import main
from pah.data.sources import load_digits

NOTES = re.compile("without effect|resumed with ")  # on options, and on another commit of the source code
MAX_SECONDS, MAX_MEGABYTES = 10.0, 1024.0
QUICK = ("--backbone", "convnet", "--backbone.width", "4", "--image_size", "8")
FORBIDDEN_EVENTS = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "pickle.find_class"}
FILE_EVENTS = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod"}


@dataclass(frozen=True)
class Result:
    """The result of a case: exit status, stderr, seconds, peak memory and forbidden actions."""

    status: int
    err: str
    seconds: float
    megabytes: float
    violations: tuple[str, ...]

    @property
    def fault(self) -> str | None:
        """Return a description of the fault; None if there is none."""
        lines = self.err.splitlines()
        if self.status not in (0, 2):
            return f"status {self.status}: {lines[-1] if lines else ''}"
        reasons = [line for line in lines if not NOTES.search(line)]  # notes may come beside the reason
        if [line for line in lines if not line.startswith("pah: ")] or len(reasons) != (self.status == 2):
            return f"status {self.status}, stderr: {self.err!r:.300}"
        if self.violations:
            return f"did {', '.join(self.violations)}"
        if self.seconds > MAX_SECONDS:
            return f"took {self.seconds:.0f} s"
        return f"took {self.megabytes:.0f} MB" if self.megabytes > MAX_MEGABYTES else None


class AuditMonitor:
    """Records forbidden actions in this process by Python's audit events, while `active`."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder.resolve())
        self.active = False
        self.violations: list[str] = []
        sys.addaudithook(self._note)

    def _note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.active:
            return
        if event in FORBIDDEN_EVENTS and "git" not in str(arguments[1:2])[:6]:  # pah asks git for its own commit
            self.violations.append(f"{event} {arguments[:2]}"[:200])
        elif event == "open":
            path, mode, flags = arguments
            writes = set(mode or "") & set("wax+") or (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            self._check(event, (path,) if writes else ())
        elif event in FILE_EVENTS:
            self._check(event, arguments[:2])

    def _check(self, event: str, paths: Iterable[Any]) -> None:
        self.active = False  # resolving a path raises events of its own
        for path in paths:
            if isinstance(path, str | bytes) and not os.path.realpath(os.fsdecode(path)).startswith(self.folder):
                self.violations.append(f"{event} {os.fsdecode(path)}"[:200])
        self.active = True


def prepare(folder: Path) -> None:
    """Write the valid files: a learner of two tasks, an unfinished run, images, and a folder like TinyImageNet's."""
    digits = load_digits()
    for part, images in (("train", digits.train), ("val", digits.test)):
        rows = [i for c in range(4) for i in (images.labels == c).nonzero().flatten().tolist()[:6]]
        for i in rows:
            wnid = f"n0{int(images.labels[i])}"
            picture = Image.fromarray(images.pixels[i, 0].numpy())
            tiny = folder / "tiny" / (f"train/{wnid}/images" if part == "train" else "val/images")
            for target in (tiny, folder / ("low" if wnid < "n02" else "high") / wnid):
                target.mkdir(parents=True, exist_ok=True)
                picture.save(target / f"{part}_{i}.png")
            if part == "val":
                with (folder / "tiny" / "val" / "val_annotations.txt").open("a") as file:
                    file.write(f"val_{i}.png\t{wnid}\t0\t0\t7\t7\n")
    for name in ("low", "high"):
        lesson = ("learn", str(folder / "animals"), "--name", name, "--data", str(folder / name))
        assert (
            main([*lesson, *QUICK, "--epochs", "2", "--stream.validation", "0.2"][: None if name == "low" else 6]) == 0
        )
    run = ("run", "--epochs", "1", "--classes", "4", "--tasks", "2", "--backbone.width", "2", "--out")
    assert main([*run, str(folder / "run")]) == 0
    (folder / "run" / "metrics.json").unlink()
    (folder / "pictures").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    colour = Image.fromarray(noise)
    for name, mode, options in PICTURES:
        colour.convert(mode).save(folder / "pictures" / name, **options)


ORIENTED = b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0\0\0\0\0"  # EXIF orientation 6
PICTURES: list[tuple[str, str, dict[str, Any]]] = [
    ("a.png", "RGB", {}),
    ("b.png", "P", {"transparency": 3}),
    ("c.png", "I;16", {}),
    ("d.jpg", "RGB", {}),
    ("e.jpg", "CMYK", {"progressive": True}),
    ("f.gif", "P", {}),
    ("g.bmp", "RGB", {}),
    ("h.tif", "RGB", {"compression": "tiff_lzw"}),
    ("i.tif", "L", {"compression": "tiff_deflate"}),
    ("j.tif", "RGB", {}),
    ("k.webp", "RGB", {"lossless": True}),
    ("l.ppm", "RGB", {}),
    ("m.pgm", "L", {}),
    ("n.png", "RGBA", {}),
    ("o.png", "LA", {}),
    ("p.png", "L", {"transparency": 7}),
    ("q.png", "P", {"transparency": bytes(range(0, 256, 4))}),
    ("r.tif", "RGBA", {}),
    ("s.tif", "I", {}),
    ("t.webp", "RGBA", {"lossless": True}),
    ("u.jpg", "RGB", {"exif": ORIENTED}),
    ("v.png", "RGB", {"exif": ORIENTED}),
    ("w.gif", "P", {"transparency": 3}),
    ("x.dib", "RGB", {}),
    ("y.pbm", "1", {}),
]
if "avif" in features.get_supported_modules():
    PICTURES.append(("z.avif", "RGBA", {}))


def learner(rng: random.Random, folder: Path, base: Path) -> list[str]:
    """Mutate `learner.json`, usually with a matching checksum; return the command."""
    shutil.copy(base / "animals" / "model.safetensors", folder / "animals")
    text = (base / "animals" / "learner.json").read_bytes()
    if rng.random() < 0.15:
        changed = mutated_bytes(text, rng)
    else:
        changed = _signed(mutated_tree(json.loads(text), rng)).encode(errors="surrogatepass")
    (folder / "animals" / "learner.json").write_bytes(changed)
    return rng.choice(COMMANDS)


COMMANDS = [
    ["predict", "animals", "pictures/a.png"],
    ["predict", "animals", "pictures/a.png", "--json", "--unknown", "0.05"],
    ["predict", "animals", "pictures/a.png", "--task", "low"],
    ["data", "animals"],
    ["forget", "animals", "--task", "low"],
]


def _signed(content: Any) -> str:
    """Return JSON with a matching checksum."""
    if isinstance(content, dict):
        content.pop("checksum", None)
        with contextlib.suppress(TypeError):
            content["checksum"] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return json.dumps(content, ensure_ascii=False)


def weights(rng: random.Random, folder: Path, base: Path) -> list[str]:
    """Mutate the header of the safetensors, with matching checksums; return the command."""
    data = (base / "animals" / "model.safetensors").read_bytes()
    size = int.from_bytes(data[:8], "little")
    header, body = data[8 : 8 + size], data[8 + size :]
    kind = rng.random()
    if kind < 0.3:
        header = mutated_bytes(header, rng)
    elif kind < 0.95:  # otherwise it is unchanged
        header = json.dumps(mutated_tree(json.loads(header), rng)).encode()
    written_size = rng.choice((len(header), len(header), len(header), len(header), size, 0, 2**63, len(data)))
    changed = (
        written_size.to_bytes(8, "little") + header + (body if rng.random() < 0.9 else body[: rng.randrange(len(body))])
    )
    (folder / "animals" / "model.safetensors").write_bytes(changed)
    content = json.loads((base / "animals" / "learner.json").read_bytes())
    content["sha256"] = hashlib.sha256(changed).hexdigest()
    (folder / "animals" / "learner.json").write_text(_signed(content))
    return rng.choice(COMMANDS)


TAGS: tuple[str, ...] = (
    "!!python/object/apply:os.system ['touch ../pwned']",
    "!!python/name:os.system",
    "!!timestamp x",
    "!!bool x",
)
TAGS += (
    "!!int ''",
    "!!float x",
    "!!binary x",
    "!!set {1}",
    "&a [*a]",
    "2001-13-45",
    "9" * 5000,
    "=",
    "<<",
    "1_000",
    "0o7",
)
EXTRA_ARGUMENTS: list[list[str]] = [[], [], ["--method", "lwf"], ["--backbone", "resnet32"], ["--epochs", "2"]]


def configuration(rng: random.Random, folder: Path, base: Path) -> list[str]:
    """Mutate a configuration, for `pah data` or in a run folder; return the command."""
    text = (base / "run" / "config.yaml").read_text()
    if rng.random() < 0.4:
        changed = mutated_bytes(text.encode(), rng)
    else:
        changed = yaml.safe_dump(mutated_tree(yaml.safe_load(text), rng), allow_unicode=True).encode(errors="replace")
    if rng.random() < 0.3:
        lines = changed.splitlines()
        index = rng.randrange(len(lines) + 1)
        key = lines[index - 1].split(b":")[0] if index else b"seed"
        changed = b"\n".join([*lines[:index], key + b": " + rng.choice(TAGS).encode(), *lines[index:]])
    if rng.random() < 0.5:
        (folder / "f.yaml").write_bytes(changed)
        return ["data", "--config", "f.yaml", *rng.choice(EXTRA_ARGUMENTS)]
    shutil.rmtree(folder / "run")
    shutil.copytree(base / "run", folder / "run")
    (folder / "run" / "config.yaml").write_bytes(changed)
    return ["resume", "run"]


def images(rng: random.Random, folder: Path, base: Path) -> list[str]:
    """Mutate an image; return a `pah predict` command."""
    name, other = (rng.choice(PICTURES)[0] for _ in range(2))
    read = (base / "pictures" / name).read_bytes(), (base / "pictures" / other).read_bytes()
    (folder / f"broken{Path(name).suffix}").write_bytes(mutated_bytes(read[0], rng, read[1]))
    return ["predict", "animals", f"broken{Path(name).suffix}"]


NAMES = (b"../low/n00/x.png", b"/dev/zero", b"/etc/passwd", b"", b"\0", b"\xff\xfe", b"a" * 5000, b"..", b"n00", b"\t")


def annotations(rng: random.Random, folder: Path, base: Path) -> list[str]:
    """Mutate TinyImageNet's annotations; return a `pah data` command."""
    lines = (base / "tiny" / "val" / "val_annotations.txt").read_bytes().splitlines()
    if rng.random() < 0.4:
        changed = mutated_bytes(b"\n".join(lines), rng)
    else:
        for _ in range(rng.randint(1, 3)):
            columns = lines[index := rng.randrange(len(lines))].split(b"\t")
            columns[rng.randrange(len(columns))] = rng.choice(NAMES)
            lines[index] = b"\t".join(rng.choice((columns, columns, columns[:2], columns[::-1], columns * 3)))
        changed = b"\n".join(lines * rng.choice((1, 1, 1, 0, 2, 100)))
    (folder / "tiny" / "val" / "val_annotations.txt").write_bytes(changed)
    return ["data", "split", "--data", "tiny", "--tasks", "2"]


TARGETS: dict[str, Callable[[random.Random, Path, Path], list[str]]] = {
    "learner": learner,
    "weights": weights,
    "configuration": configuration,
    "images": images,
    "annotations": annotations,
}


def work(target: str, seed: int, start: int, stop: int, base: Path, folder: Path, results: Connection) -> None:
    """Run the cases from `start` to `stop` in `folder` and send their results; called in a new process."""
    torch.set_num_threads(1)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(base, folder)
    os.chdir(folder)
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
    monitor = AuditMonitor(folder)
    for case in range(start, stop):
        words = TARGETS[target](random.Random(f"{seed}/{target}/{case}"), folder, base)
        results.send(run_case(words, monitor))


def run_case(words: list[str], monitor: AuditMonitor) -> Result:
    """Run a command under the monitor."""
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak memory
    out, err = io.TextIOWrapper(io.BytesIO(), encoding="utf-8"), io.StringIO()
    monitor.violations.clear()
    started, monitor.active = time.monotonic(), True
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(words)
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else 1
        except BaseException:
            status = 1
            traceback.print_exc()
        finally:
            monitor.active = False
    seconds = time.monotonic() - started
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return Result(status, err.getvalue(), seconds, int(peak.split()[1]) / 1024, tuple(monitor.violations))


def cases(target: str, seed: int, start: int, stop: int, base: Path) -> Iterator[tuple[int, Result]]:
    """Yield each case with its result; after a case that ends or blocks its process, a new process continues."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pah.cli", "sklearn.datasets", "torch._dynamo"])
    while start < stop:
        receive, send = context.Pipe(duplex=False)
        arguments = (target, seed, start, stop, base, base.with_name("work"), send)
        process = context.Process(target=work, args=arguments)
        process.start()
        send.close()
        while start < stop:
            try:
                ready = receive.poll(MAX_SECONDS + 20)  # the first case includes the start of the process
                result = receive.recv() if ready else Result(0, "", MAX_SECONDS + 20, 0.0, ())
            except EOFError:
                ready, result = False, Result(-1, "the process died", 0.0, 0.0, ())
            yield start, result
            start += 1
            if not ready:
                break
        process.kill()
        process.join()


def fuzz(options: argparse.Namespace, base: Path) -> int:
    """Run all cases; return the number of faults."""
    targets = [options.only] if options.only else list(TARGETS)
    faults = 0
    for target in targets:
        started, statuses, worst, most = time.monotonic(), Counter[int](), 0.0, 0.0
        count = options.cases // len(TARGETS)
        first, stop = (options.case, options.case + 1) if options.case is not None else (0, count)
        for case, result in cases(target, options.seed, first, stop, base):
            statuses[result.status] += 1
            worst, most = max(worst, result.seconds), max(most, result.megabytes)
            if options.case is not None:
                print(result)
            if result.fault:
                faults += 1
                print(f"{target} --case {case}: {result.fault}", flush=True)
        print(
            f"{target}: {sum(statuses.values())} cases, {statuses[0]} used, {statuses[2]} refused, "
            f"slowest {worst:.1f} s, most memory {most:.0f} MB, {time.monotonic() - started:.0f} s in total",
            flush=True,
        )
    return faults


def program() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", type=int, default=12_000, help="total over the five kinds of file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=list(TARGETS))
    parser.add_argument("--case", type=int, help="run only this case and print its result")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as top:
        given = Path(top).resolve() / "given"
        os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(given / "work" / "cache")}
        (given / "base").mkdir(parents=True)
        with contextlib.redirect_stdout(io.StringIO()):
            prepare(given / "base")
        faults = fuzz(options, given / "base")
        if outside := sorted(path.name for path in Path(top).iterdir() if path != given):
            faults += 1
            print(f"written outside the given folder: {', '.join(outside)}")
    print(f"{faults} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(program())
