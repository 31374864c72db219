"""`--log-level` stands before or behind any command, and holds for the processes that are started."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from weighbridge.cli import terminal
from weighbridge.cli.terminal import LOG_LEVEL, DownloadBar, counting, take_log_level
from weighbridge.errors import BadInput
from weighbridge.server.lifecycle import set_up_logging

ROOT = logging.getLogger("weighbridge")


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process that has said nothing of its log yet."""
    before = ROOT.level, list(ROOT.handlers), ROOT.propagate
    ROOT.setLevel(logging.NOTSET)
    monkeypatch.delenv(LOG_LEVEL, raising=False)
    yield
    ROOT.setLevel(before[0])
    ROOT.handlers[:] = before[1]
    ROOT.propagate = before[2]
    os.environ.pop(LOG_LEVEL, None)


@pytest.mark.parametrize(
    "words",
    [
        ["--log-level", "warning", "serve", "m", "--port", "1"],
        ["serve", "--log-level=WARNING", "m", "--port", "1"],
        ["serve", "m", "--port", "1", "--log-level", "warning"],
    ],
)
def test_it_stands_anywhere_and_servers_keep_to_it(words: list[str]) -> None:
    assert take_log_level(words) == ["serve", "m", "--port", "1"]
    set_up_logging(False)
    assert ROOT.level == logging.WARNING
    assert os.environ[LOG_LEVEL] == "warning"


def test_without_it_servers_say_what_they_do() -> None:
    assert take_log_level(["serve", "--", "--log-level", "loud"]) == ["serve", "--", "--log-level", "loud"]
    set_up_logging(False)
    assert ROOT.level == logging.INFO


def test_the_variable_says_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LOG_LEVEL, "debug")
    assert take_log_level(["keys", "new"]) == ["keys", "new"]
    assert ROOT.level == logging.DEBUG


@pytest.mark.parametrize("words", [["--log-level", "loud"], ["serve", "--log-level"]])
def test_one_that_is_not_known_is_said(words: list[str]) -> None:
    with pytest.raises(BadInput, match="use debug, info, warning, error"):
        take_log_level(words)


def test_a_command_ends_with_2_and_one_line() -> None:
    command = [sys.executable, "-m", "weighbridge", "keys", "new", "--log-level", "loud"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "--log-level 'loud' is not known" in done.stderr
    assert subprocess.run([*command[:-1], "error"], capture_output=True, timeout=60).returncode == 0


def test_progress_without_a_terminal_is_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of commands that keep no log. The time between lines is taken away."""
    monkeypatch.setattr(terminal, "SECONDS_A_LINE", 0.0)
    monkeypatch.setattr(terminal.log, "hasHandlers", lambda: False)
    with counting("Simulating") as tell:
        tell(3, 9)
    bar = DownloadBar("a model")
    bar.start(20_000_000)
    bar.advance(5_000_000)
    said = capsys.readouterr().err
    assert "Simulating: 3 of 9" in said
    assert "a model: 5.0 of 20.0 MB" in said
