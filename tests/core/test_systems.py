"""What Windows lacks is not needed to import the commands, to stop a run, or to measure its memory."""

import subprocess
import sys

CODE = """
import signal, sys, warnings
warnings.simplefilter("ignore")  # filelock says that its locks are weaker without fcntl
for name in ("resource", "fcntl"):
    sys.modules[name] = None
for name in ("SIGALRM", "setitimer", "ITIMER_REAL"):
    delattr(signal, name)
from pah.cli import main
from pah.cli.stopping import Stop
from pah.runs.results import peak_memory_mb
with Stop() as stop:
    before = stop()
    signal.raise_signal(signal.SIGINT)
    print(peak_memory_mb(), before, stop(), stop.status)
print(main(["--version"]))
"""


def test_commands_work_without_the_modules_and_signals_that_windows_lacks() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert done.stderr == ""
    said, version, status = done.stdout.splitlines()
    assert (said, version.split()[0], status) == ("None False True 130", "pah", "0")
