"""Text that the program did not write is printed without effect on the terminal."""

import io
import json
import sys

import pytest
from rich.table import Table

from pah.cli.printing import PlainConsole, escape_control, json_line, one_line


def test_control_characters_are_escaped_and_text_is_not() -> None:
    for text in ("crow", "λόγος", "\u00a0\u202f鳥 🐦", "a\tb\nc"):
        assert escape_control(text) == text
    assert escape_control("a\x1b[2J\x07\r\x9b\u2028\u202e\udcff") == "a\\x1b[2J\\x07\\r\\x9b\\u2028\\u202e\\udcff"
    assert one_line("a\tb\nc") == "a\\tb\\nc"


def test_lines_of_json_fit_the_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    for encoding, expected in (("utf-8", '{"file": "é🐦"}'), ("cp1252", '{"file": "\\u00e9\\ud83d\\udc26"}')):
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
        assert json_line({"file": "é🐦"}) == expected
        assert json.loads(json_line({"file": "\udcff"})) == {"file": "\udcff"}


def test_the_console_prints_names_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    console = PlainConsole()
    console.print("[bold]x :smile: \x1b[31m", highlight=False)
    table = Table("[red]title", box=None)
    table.add_row("a\x1b[1m")
    console.print(table)
    out = capsys.readouterr().out
    assert "[bold]x :smile: \\x1b[31m\n" in out
    assert "[red]title" in out
    assert "a\\x1b[1m" in out
    assert "\x1b" not in out
