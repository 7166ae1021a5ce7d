"""The standard streams of a command: characters that they lack, readers that leave, and streams that are closed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import pah

# the module imports nothing of the package, so that a process starts at once
START = (
    f"import sys; sys.path.insert(0, {str(Path(pah.__file__).parents[1])!r}); from pah.cli import streams; "
    "streams.protect_streams(); "
)


def shell(code: str, redirection: str, **environment: str) -> tuple[int, str, str]:
    """Run Python code after `protect_streams` in a shell, and return the exit status, stdout and stderr."""
    command = f'set -o pipefail; "$PYTHON" -c "$CODE" {redirection}'
    variables = os.environ | {"PYTHON": sys.executable, "CODE": START + code} | environment
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=variables, encoding="utf-8")
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "ascii", "PYTHONUNBUFFERED": "1"},
    ],
)
def test_a_character_that_the_encoding_lacks_is_replaced(environment: dict[str, str]) -> None:
    code = "print('a \\u2501 b'); print('c \\u2501', file=sys.stderr)"
    assert shell(code, "", **environment) == (0, "a ? b\n", "c \\u2501\n")


def test_text_that_can_be_written_is_written(tmp_path: Path) -> None:
    code = "print('λ_sm ━'); print(sys.stdout.isatty(), sys.stdout.encoding)"
    assert shell(code, "", PYTHONIOENCODING="utf-8") == (0, "λ_sm ━\nFalse utf-8\n", "")


def test_work_goes_on_after_the_reader_has_left(tmp_path: Path) -> None:
    code = (
        "[print('x' * 99) for _ in range(9999)]; print(streams.reader_has_left(), file=sys.stderr); "
        f"open({str(tmp_path / 'done')!r}, 'w').close(); sys.exit(streams.finish(0))"
    )
    assert shell(code, "| head -1") == (0, "x" * 99 + "\n", "True\n")
    assert (tmp_path / "done").exists()


def test_a_full_disk_is_reported_at_the_end(tmp_path: Path) -> None:
    code = f"print('x'); open({str(tmp_path / 'done')!r}, 'w').close(); sys.exit(streams.finish(0))"
    status, _, err = shell(code, "> /dev/full")
    assert (status, err) == (2, "pah: stdout: expected to write, got: No space left on device\n")
    assert (tmp_path / "done").exists()


@pytest.mark.parametrize("redirection", [">&-", "<&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_does_not_hand_its_number_to_a_file(redirection: str, tmp_path: Path) -> None:
    path = str(tmp_path / "file")
    code = (
        f"file = open({path!r}, 'w'); assert file.fileno() > 2; file.write('content'); file.close(); "
        "print('to stdout'); print('to stderr', file=sys.stderr); import os; os.write(1, b'x'); "
        "sys.exit(streams.finish(0))"
    )
    assert shell(code, redirection)[0] == 0
    assert Path(path).read_text() == "content"
