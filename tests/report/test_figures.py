"""Figures need no window: the backend that another environment asks for is of no importance."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import os, sys
from pathlib import Path
from pah.report.figures import accuracy_against_forgetting, save
entry = {"forgetting": {"mean": 1.0, "std": 0.1}, "average_accuracy": {"mean": 90.0, "std": 0.2}}
entry |= {"stored_samples": 0, "parameters_per_new_task": 1, "parameters": 100}
save(accuracy_against_forgetting({"benchmark": "b", "tasks": 2, "methods": {"pah": entry}}), Path(sys.argv[1]))
print(os.environ["MPLBACKEND"])
"""


@pytest.mark.parametrize("backend", ["nonsense", "module://matplotlib_inline.backend_inline"])
def test_figures_are_drawn_with_the_backend_of_another_environment(backend: str, tmp_path: Path) -> None:
    words = [sys.executable, "-c", CODE, str(tmp_path / "figure")]
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"MPLBACKEND": backend})
    assert done.stderr == ""
    assert done.stdout == f"{backend}\n"  # the environment is as it was
    assert (tmp_path / "figure.png").read_bytes()[1:4] == b"PNG"
    assert (tmp_path / "figure.svg").read_text().endswith("</svg>\n")
