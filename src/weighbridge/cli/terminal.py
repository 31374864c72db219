"""What commands share of the terminal: errors, text from outside, progress bars, JSON output."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from weighbridge.errors import BadInput
from weighbridge.log_lines import PlainLines

for _size in ("COLUMNS", "LINES"):
    if (
        os.environ.get(_size, "1").strip().strip("0") == ""
    ):  # no size, but rich would draw tables of no width by it
        del os.environ[_size]

errors = Console(stderr=True, highlight=False)
log = logging.getLogger("weighbridge.cli")

#: What `--log-level` takes, from much to little, and the variable that processes we start read it from.
LOG_LEVELS = ("debug", "info", "warning", "error")
LOG_LEVEL = "WEIGHBRIDGE_LOG_LEVEL"

#: Seconds between lines about progress where there is no terminal.
SECONDS_A_LINE = 5.0

#: What a terminal obeys instead of showing: control characters but tab and line feed, and marks that turn the
#: direction of the text behind them. Halves of a surrogate pair cannot be written at all.
_BEYOND_ASCII = "\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff"
_COMMANDS = re.compile(f"[\x00-\x08\x0b-\x1f{_BEYOND_ASCII}]")
_NOT_ESCAPED_BY_JSON = re.compile(f"[{_BEYOND_ASCII}]")


def take_log_level(words: list[str]) -> list[str]:
    """The words of a command line without `--log-level LEVEL`, wherever it stands before a `--`. That level, or the
    variable's, holds from here on, also in processes that are started. Raises BadInput for one that is not known.
    """
    left, end = [], words.index("--") if "--" in words else len(words)
    level = os.environ.get(LOG_LEVEL) or None
    taken = iter(words[:end])
    for word in taken:
        flag, equals, value = word.partition("=")
        if flag == "--log-level":
            level = value if equals else next(taken, "")
        else:
            left.append(word)
    if level is not None:
        _set_log_level(level)
    return left + words[end:]


def _set_log_level(level: str) -> None:
    if level.lower() not in LOG_LEVELS:
        raise BadInput(f"--log-level {level!r} is not known: use {', '.join(LOG_LEVELS)}")
    os.environ[LOG_LEVEL] = level.lower()
    root = logging.getLogger("weighbridge")
    root.setLevel(level.upper())
    handler = logging.StreamHandler(sys.stderr)  # servers put their own in its place
    handler.setFormatter(PlainLines())
    root.handlers[:] = [handler]


def visible(text: str) -> str:
    """The text with every character that drives a terminal written as its number: ESC becomes `\\x1b`."""
    return _COMMANDS.sub(lambda found: _number(ord(found.group())), text)


def outside(value: object) -> Text:
    """Whatever came from outside, for a console or a table's cell: shown as it is, obeyed by nobody.

    Names of tenants and models, messages of servers and files: in a plain string rich would read `[/x]` as markup.
    """
    return Text(visible(str(value)))


def whole_table(*headings: str) -> Table:
    """A table whose cells are folded where the terminal is too narrow for them: nothing is left out that one copies."""
    table = Table()
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def fail(message: str, *, code: int) -> NoReturn:
    """Print one error and leave with `code`."""
    errors.print(Text.assemble(("error:", "bold red"), " ", visible(message)), soft_wrap=True)
    sys.exit(code)


def print_json(value: Any) -> None:
    """Print indented JSON in which characters that drive a terminal are escaped."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    sys.stdout.write(_NOT_ESCAPED_BY_JSON.sub(lambda found: f"\\u{ord(found.group()):04x}", text) + "\n")


def _number(code: int) -> str:
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


@contextmanager
def counting(label: str, *, quiet: bool = False) -> Iterator[Callable[[int, int], None]]:
    """A bar over (done, total), or without a terminal a line now and then; yields the function that moves it."""
    if not quiet and not errors.is_terminal:
        lines = ProgressLines(label)
        yield lambda done, total: lines.tell(f"{done} of {total}")
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=errors, transient=True, disable=quiet or not errors.is_terminal) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class ProgressLines:
    """Says how far something is where that takes long: services read the log, and nobody sees a bar."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._said = time.monotonic()

    def tell(self, how_far: str) -> None:
        now = time.monotonic()
        if now - self._said < SECONDS_A_LINE:
            return
        self._said = now
        if log.hasHandlers():
            log.info("%s: %s", self._label, how_far)
        else:  # a command that keeps no log
            errors.print(outside(f"{self._label}: {how_far}"), soft_wrap=True)


class DownloadBar:
    """The progress of a pull: bytes, when the size is known; without a terminal a line now and then."""

    def __init__(self, label: str) -> None:
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn())
        self._bar = Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal)
        self._label = visible(label)
        self._task: TaskID | None = None
        self._lines = None if errors.is_terminal else ProgressLines(label)
        self._done, self._total = 0, 0

    def start(self, total: int | None) -> None:
        self._done, self._total = 0, total or 0
        if self._task is not None:  # another source is tried
            self._bar.remove_task(self._task)
        self._bar.start()
        self._task = self._bar.add_task(self._label, total=total)

    def advance(self, amount: int) -> None:
        self._done += amount
        if self._lines is not None:
            of = f" of {self._total / 1e6:.1f}" if self._total else ""
            self._lines.tell(f"{self._done / 1e6:.1f}{of} MB")
        if self._task is not None:
            self._bar.advance(self._task, amount)

    def done(self) -> None:
        self._bar.stop()

    def note(self, text: str) -> None:
        errors.print(outside(text), soft_wrap=True)
