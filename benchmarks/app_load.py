"""Measure `pah app` under load: 50 clients ask at once during a lesson; writes results/app-load.json.

    python benchmarks/app_load.py --minutes 2

It makes a learner of two tasks of 32x32 images, serves it, and sends questions with one image each: from one client on
the idle server, from one client during a lesson, then from all clients during the lesson. Each client sends its next
question as soon as it has an answer. At the end it waits for the lesson and accepts it. Clients and server share the
machine.
"""

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from pah import ContinualLearner
from pah.app.lesson import Request, new_learner_config

ROOT = Path(__file__).resolve().parent.parent
SIDE = 32  # pixels
ALONE = 40  # questions of a single client
TIMEOUT = 600.0  # seconds for an answer, and for the end of the lesson


def picture(colour: int, seed: int) -> np.ndarray[Any, Any]:
    """Return a noisy image of one colour, uint8 (32, 32, 3)."""
    base = np.random.default_rng(colour).integers(40, 215, 3)
    noise = np.random.default_rng(seed).integers(-40, 40, (SIDE, SIDE, 3))
    return (base + noise).astype(np.uint8)


def encoded(image: np.ndarray[Any, Any]) -> bytes:
    """Return the content of the image's PNG file."""
    data = io.BytesIO()
    Image.fromarray(image).save(data, "png")
    return data.getvalue()


def make_learner(folder: Path) -> None:
    """Save a learner of two tasks with five classes and a few images each."""
    learner = ContinualLearner(config=new_learner_config(Request("", "", "", "images", image_size=SIDE)))
    learner.config = replace(learner.config, training=replace(learner.config.training, epochs=1))
    for name, classes in (("first", range(5)), ("second", range(5, 10))):
        images = np.stack([picture(c, seed) for c in classes for seed in range(8)])
        labels = [k for k in range(len(classes)) for _ in range(8)]
        learner.learn(name, (images, labels, [f"colour {c}" for c in classes]))
    learner.save(folder)


def lesson_zip(path: Path, images: int) -> None:
    """Write an archive of three classes with this many images each."""
    with zipfile.ZipFile(path, "w") as archive:
        for colour in range(10, 13):
            for seed in range(images):
                archive.writestr(f"colour {colour}/{seed}.png", encoded(picture(colour, seed)))


class Client:
    """One person's connection to the server."""

    def __init__(self, address: str) -> None:
        self.http = httpx.Client(base_url=f"{address}gradio_api", timeout=TIMEOUT)

    def upload(self, name: str, content: bytes) -> dict[str, Any]:
        """Send a file; return its description for a call."""
        answer = self.http.post("/upload", files={"files": (name, content)}).raise_for_status()
        return {"path": answer.json()[0], "orig_name": name, "meta": {"_type": "gradio.FileData"}}

    def call(self, endpoint: str, *arguments: Any) -> Any:
        """Call an endpoint and return its answer; RuntimeError with the server's message if it fails."""
        number = self.http.post(f"/call/{endpoint}", json={"data": arguments}).raise_for_status().json()["event_id"]
        text = self.http.get(f"/call/{endpoint}/{number}").raise_for_status().text
        event, _, data = text.strip().split("\n\n")[-1].partition("\n")
        if event != "event: complete":
            raise RuntimeError(text[-200:])
        return json.loads(data.removeprefix("data: "))[0]

    def ask(self, seed: int) -> float:
        """Send an image and ask about it; return the seconds of both."""
        content = encoded(picture(seed % 10, seed))
        start = time.perf_counter()
        answers = self.call("ask", [self.upload("asked.png", content)], "", False)
        if len(answers) != 1 or answers[0]["task"] not in ("first", "second"):
            raise RuntimeError(f"expected an answer from the accepted state, got {answers}")
        return time.perf_counter() - start


def ask_in_parallel(address: str, clients: int, seconds: float) -> tuple[list[float], list[str]]:
    """Let many clients ask for some seconds; return the seconds of each answer, and the errors."""
    times: list[float] = []
    errors: list[str] = []
    end = time.monotonic() + seconds

    def ask_until_end(number: int) -> None:
        client, seed = Client(address), 1000 * number
        while time.monotonic() < end:
            seed += 1
            try:
                times.append(client.ask(seed))
            except (httpx.HTTPError, RuntimeError, ValueError) as error:
                errors.append(f"{type(error).__name__}: {error}"[:300])
                time.sleep(0.5)

    threads = [threading.Thread(target=ask_until_end, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return times, errors


def summary(times: list[float]) -> dict[str, float]:
    """Return the number of answers, and their median, 99th percentile and maximum in milliseconds."""
    milliseconds = sorted(1000 * t for t in times)
    return {
        "answers": len(milliseconds),
        "median_ms": round(statistics.median(milliseconds), 1),
        "p99_ms": round(milliseconds[int(0.99 * (len(milliseconds) - 1))], 1),
        "largest_ms": round(milliseconds[-1], 1),
    }


def memory_mb(pid: int) -> float:
    """Return the present memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return round(int(line.split()[1]) / 1024, 1)
    raise RuntimeError(f"process {pid}: expected a running process")


def wait_for(condition: Callable[[], bool], seconds: float = TIMEOUT) -> bool:
    """Wait until a condition is true; return whether it was in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.5)
    return False


def measure(address: str, pid: int, options: argparse.Namespace, archive: bytes) -> dict[str, Any]:
    """Return all measurements of one server."""
    owner = Client(address)
    owner.ask(0)  # the first answer loads what the others use
    results: dict[str, Any] = {"idle": summary([owner.ask(seed) for seed in range(ALONE)])}
    start = time.monotonic()
    owner.call("teach", owner.upload("lesson.zip", archive), "third", "", options.epochs, SIDE, True)

    def lesson() -> dict[str, Any]:
        first: dict[str, Any] = owner.call("lessons")[0]
        return first

    wait_for(lambda: lesson()["progress"].get("share", 0) > 0)
    results["beside_a_lesson"] = summary([owner.ask(seed) for seed in range(ALONE)])
    results["memory_before_mb"] = memory_mb(pid)
    times, errors = ask_in_parallel(address, options.askers, 60 * options.minutes)
    results |= {"all_beside_a_lesson": summary(times), "errors": len(errors), "first_errors": errors[:3]}
    results |= {"memory_after_mb": memory_mb(pid), "lesson_after_the_load": lesson()["state"]}
    ended = wait_for(lambda: lesson()["state"] not in ("waiting", "running"))
    results |= {"lesson_at_the_end": lesson()["state"] if ended else "unfinished"}
    results |= {"lesson_seconds": round(time.monotonic() - start)}
    if lesson()["state"] == "done":
        owner.call("keep", lesson()["id"])
        results["tasks_kept"] = [task["name"] for task in owner.call("tasks")]
    return results


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description="measure pah app with many clients during a lesson")
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--askers", type=int, default=50)
    parser.add_argument("--epochs", type=int, default=20, help="of the lesson; enough to outlast the clients")
    parser.add_argument("--images", type=int, default=60, help="of each of the lesson's three classes")
    parser.add_argument("--json", type=Path, default=ROOT / "results" / "app-load.json")
    options = parser.parse_args()
    load = [round(value, 2) for value in os.getloadavg()]
    with tempfile.TemporaryDirectory() as place:
        make_learner(Path(place) / "animals")
        lesson_zip(Path(place) / "lesson.zip", options.images)
        command = [sys.executable, "-m", "pah", "app", "animals", "--port", "0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=place) as server:
            try:
                assert server.stdout is not None
                address = server.stdout.readline().split()[0]
                results = measure(address, server.pid, options, (Path(place) / "lesson.zip").read_bytes())
            finally:
                server.terminate()
    about = {"askers": options.askers, "minutes": options.minutes, "cores": os.cpu_count(), "load_average_before": load}
    options.json.write_text(json.dumps(about | results, indent=2) + "\n", encoding="utf-8")
    print(options.json.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
