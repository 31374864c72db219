"""What clients and servers write begins no line of a log, and drives no terminal that shows it."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable

import pytest

from weighbridge.log_lines import PlainLines
from weighbridge.server.lifecycle import JsonLines

FORGED = (
    "down\r\nERROR: all keys were shown\n\x1b]0;owned\x07\x1b[2J\x9b31m \u202egnihton\u2028 \x00 Größe 東京"
)


def record(message: str, *arguments: object, failed: bool = False) -> logging.LogRecord:
    info = None
    if failed:
        try:
            raise ValueError(FORGED)
        except ValueError:
            info = sys.exc_info()
    return logging.LogRecord("weighbridge", logging.WARNING, __file__, 1, message, arguments, info)


@pytest.mark.parametrize("failed", [False, True])
@pytest.mark.parametrize("make", [PlainLines, JsonLines])
def test_no_line_is_forged_and_no_terminal_driven(
    make: Callable[[], logging.Formatter], failed: bool
) -> None:
    text = make().format(record("replica %s is %s", "a", FORGED, failed=failed))
    first, *others = text.splitlines()
    assert first.startswith(("WARNING: replica a is down", "{"))
    assert all(line.startswith("    ") for line in others)
    assert all(one.isprintable() or one == "\n" for one in text)
    assert "Größe 東京" in text


def test_json_lines_say_what_was_written() -> None:
    assert json.loads(JsonLines().format(record("%s", FORGED)))["message"] == FORGED
    assert len(JsonLines().format(record("%s", FORGED)).splitlines()) == 1


def test_a_traceback_is_a_traceback() -> None:
    text = PlainLines().format(record("it failed", failed=True))
    assert "\n    Traceback (most recent call last):\n" in text
