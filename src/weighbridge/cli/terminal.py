"""What commands share of the terminal: errors, text from outside, progress bars, JSON output."""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.text import Text

errors = Console(stderr=True, highlight=False)
log = logging.getLogger("weighbridge.cli")

#: Seconds between lines about progress where there is no terminal.
SECONDS_A_LINE = 5.0

#: What a terminal obeys instead of showing: control characters but tab and line feed, and marks that turn the
#: direction of the text behind them. Halves of a surrogate pair cannot be written at all.
_BEYOND_ASCII = "\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff"
_COMMANDS = re.compile(f"[\x00-\x08\x0b-\x1f{_BEYOND_ASCII}]")
_NOT_ESCAPED_BY_JSON = re.compile(f"[{_BEYOND_ASCII}]")


def visible(text: str) -> str:
    """The text with every character that drives a terminal written as its number: ESC becomes `\\x1b`."""
    return _COMMANDS.sub(lambda found: _number(ord(found.group())), text)


def outside(value: object) -> Text:
    """Whatever came from outside, for a console or a table's cell: shown as it is, obeyed by nobody.

    Names of tenants and models, messages of servers and files: in a plain string rich would read `[/x]` as markup.
    """
    return Text(visible(str(value)))


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
    """A bar over (done, total), or without a terminal lines in the log; yields the function that moves it."""
    if not quiet and not errors.is_terminal:
        yield _counted_in_lines(label)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=errors, transient=True, disable=quiet or not errors.is_terminal) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _counted_in_lines(label: str) -> Callable[[int, int], None]:
    """Say how far it is where that takes long: services read the log, and nobody sees a bar."""
    said = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal said
        now = time.monotonic()
        if now - said >= SECONDS_A_LINE:
            log.info("%s: %d of %d", label, done, total)
            said = now

    return tell


class DownloadBar:
    """The progress of a pull: bytes, when the size is known."""

    def __init__(self, label: str) -> None:
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn())
        self._bar = Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal)
        self._label = visible(label)
        self._task: TaskID | None = None

    def start(self, total: int | None) -> None:
        if self._task is not None:  # another source is tried
            self._bar.remove_task(self._task)
        self._bar.start()
        self._task = self._bar.add_task(self._label, total=total)

    def advance(self, amount: int) -> None:
        if self._task is not None:
            self._bar.advance(self._task, amount)

    def done(self) -> None:
        self._bar.stop()

    def note(self, text: str) -> None:
        errors.print(outside(text), soft_wrap=True)
