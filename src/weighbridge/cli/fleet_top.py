"""`weighbridge fleet top`: the fleet as it changes, sorted by any column, scrolled where the screen is too short."""

from __future__ import annotations

import os
import re
import select
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from weighbridge.cli.fleet import (
    FIGURES,
    AdminSettings,
    figures_of,
    fleet_table,
    load_of,
    model_heading,
    plain_lines,
    reasons,
)
from weighbridge.cli.options import options
from weighbridge.cli.terminal import outside
from weighbridge.errors import BadInput, WeighbridgeError

try:  # keys are read one at a time; Windows has no such modules
    import termios
    import tty
except ImportError:
    termios = tty = None  # type: ignore[assignment]

#: Columns that rows can be sorted by, in the order in which `s` goes through them. Names run up, figures down.
SORTS = ("replica", "standing", *FIGURES)
_KEYS = {
    **{b"q": "leave", b"Q": "leave", b"s": "sort", b"S": "sort back", b"r": "reverse"},
    **{b"\x1b[A": "up", b"k": "up", b"\x1b[B": "down", b"j": "down"},
    **{b"\x1b[5~": "page up", b"\x1b[6~": "page down", b" ": "page down", b"b": "page up"},
    **{b"\x1b[H": "first", b"\x1b[1~": "first", b"g": "first"},
    **{b"\x1b[F": "last", b"\x1b[4~": "last", b"G": "last"},
}
#: A key as a terminal sends it: a sequence behind ESC, or a byte. Held keys come several at once.
_KEY = re.compile(rb"\x1b\[[0-9;]*[@-~]|\x1bO.|.", re.DOTALL)
#: Lines of a table beside its rows: borders and the names of its columns.
_FRAME = 4
#: Replicas whose reasons are told below the tables; `fleet list` tells all.
_MOST_REASONS = 4


@dataclass(slots=True)
class View:
    """Which rows are seen, and in which order. Nothing here reads or draws."""

    sort: str = "replica"
    reverse: bool = False
    first: int = 0
    room: int = 0  # rows that fit; 0: all
    rows: int = 0
    before: dict[str, Any] | None = None
    seconds: float = 0.0
    lost: str = ""  # why the figures are old; empty: they are not
    _earlier: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)

    def press(self, key: str) -> None:
        """Do what a key stands for."""
        page = max(self.room - 1, 1)
        moves = {
            "up": -1,
            "down": 1,
            "page up": -page,
            "page down": page,
            "first": -self.rows,
            "last": self.rows,
        }
        if key in moves:
            self.first += moves[key]
        elif key in ("sort", "sort back"):
            step = 1 if key == "sort" else -1
            self.sort = SORTS[(SORTS.index(self.sort) + step) % len(SORTS)]
        elif key == "reverse":
            self.reverse = not self.reverse

    def of(self, load: dict[str, Any], room: int) -> dict[str, Any]:
        """The load with its replicas sorted, and those left out that do not fit into `room` rows."""
        earlier = self.before["models"] if self.before is not None else {}
        self._earlier = {(m, one["name"]): one for m, pool in earlier.items() for one in pool["replicas"]}
        models = {name: self._sorted(name, pool["replicas"]) for name, pool in load["models"].items()}
        self.rows, self.room = sum(map(len, models.values())), max(room, 1)
        self.first = max(min(self.first, self.rows - self.room), 0)
        left_out, shown = self.first, {}
        still = self.room
        for name, replicas in models.items():
            seen = replicas[left_out:][:still]
            left_out = max(left_out - len(replicas), 0)
            still -= len(seen)
            if seen:
                shown[name] = {**load["models"][name], "replicas": seen}
        return {**load, "models": shown}

    def _sorted(self, model: str, replicas: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if self.sort in ("replica", "standing"):
            key = "name" if self.sort == "replica" else "standing"
            return sorted(replicas, key=lambda one: (str(one[key]), str(one["name"])), reverse=self.reverse)

        def figure(one: dict[str, Any]) -> float:
            known = figures_of(one, self._earlier.get((model, one["name"]), one), self.seconds)[self.sort]
            return float("-inf") if known is None else known

        return sorted(replicas, key=figure, reverse=not self.reverse)

    @property
    def told(self) -> str:
        """What is seen, in words."""
        last = min(self.first + self.room, self.rows)
        order = "reversed, " if self.reverse else ""
        return f"{min(self.first + 1, last)} to {last} of {self.rows} replicas, {order}by {self.sort}"


@options
def top(
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 1.0,
    count: Annotated[int | None, typer.Option(min=1, help="Looks to take; none: until q or Ctrl-C.")] = None,
    sort: Annotated[str, typer.Option(help=f"Column to sort by: {', '.join(SORTS)}.")] = SORTS[0],
    reverse: Annotated[bool, typer.Option("--reverse", help="Sort the other way round.")] = False,
    *,
    gateway: AdminSettings,
) -> None:
    """A live table of the fleet: load, standing and speed of every replica.

    Keys: s sorts by the next column (S by the one before), r the other way round, arrows and pages scroll, q ends.
    A gateway that goes away leaves its last figures on the screen, and is asked again.
    Without a terminal each look is a line for every replica, with tabs between its figures.
    """
    if sort not in SORTS:
        raise BadInput(f"--sort {sort!r} is no column: use {', '.join(SORTS)}", param="sort")
    view, console = View(sort, reverse), Console()
    looks = _looks(gateway, interval, count, view, console)
    if not console.is_terminal:
        for load in looks:
            everybody = sum(len(pool["replicas"]) for pool in load["models"].values())
            print("\n".join(plain_lines(view.of(load, everybody))), flush=True)
        return
    with _keys(), Live(Text("asking..."), console=console, auto_refresh=False, screen=count is None) as live:
        for load in looks:
            live.update(_drawn(load, view, console), refresh=True)


def _looks(
    gateway: AdminSettings, interval: float, count: int | None, view: View, console: Console
) -> Iterator[dict[str, Any]]:
    """The load, each `interval` anew, and again as it was whenever a key changes the view.

    Raises WeighbridgeError where there is none at first, and without a terminal whenever there is none.
    """
    looks, asked = 0, time.monotonic()
    load: dict[str, Any] | None = None
    while count is None or looks < count:
        now = time.monotonic()
        try:
            found = load_of(gateway)
        except WeighbridgeError as error:
            if load is None or count is not None or not console.is_terminal:
                raise
            view.lost = f"{error}; these are its figures of {now - asked:.0f} s ago"
        else:
            view.before, view.seconds, view.lost = load, now - asked, ""
            load, asked = found, now
        looks += 1
        yield load
        until = now + interval
        while (count is None or looks < count) and (left := until - time.monotonic()) > 0.0:
            keys = _pressed(left) if console.is_terminal and _has_keys() else _slept(left)
            if "leave" in keys:
                return
            for key in keys:
                view.press(key)
            if keys:
                yield load


def _drawn(load: dict[str, Any], view: View, console: Console) -> Group:
    why = reasons(load) if not view.lost else [outside(view.lost)]
    more = [outside(f"and {len(why) - _MOST_REASONS} more; `weighbridge fleet list` tells all")]
    why = why if len(why) <= _MOST_REASONS else [*why[:_MOST_REASONS], *more]
    keys = "s sort, r reverse, arrows scroll, q ends" if _has_keys() else ""
    headings = [model_heading(name, model) for name, model in load["models"].items()]
    beside = [*headings, *why, outside(f"{view.told}   {keys}")]
    lines = sum([len(one.wrap(console, console.width)) for one in beside])
    seen = view.of(load, console.height - _FRAME * len(load["models"]) - lines)
    told = outside(f"{view.told}   {keys}")
    told.stylize("dim")
    return Group(fleet_table(seen, view.before, view.seconds, console.width), *why, told)


def _has_keys() -> bool:
    return termios is not None and sys.stdin.isatty()


def _slept(seconds: float) -> list[str]:
    time.sleep(max(seconds, 0.0))
    return []


def _pressed(seconds: float) -> list[str]:
    """What keys stand for that are pressed within some seconds; others are left out."""
    ready, _, _ = select.select([sys.stdin], [], [], max(seconds, 0.0))
    return meanings(os.read(sys.stdin.fileno(), 1024)) if ready else []


def meanings(keys: bytes) -> list[str]:
    """What keys stand for, in their order; arrows are sent as `ESC O A` by some terminals."""
    found = [_KEYS.get(one.replace(b"\x1bO", b"\x1b["), "") for one in _KEY.findall(keys)]
    return [one for one in found if one]


@contextmanager
def _keys() -> Iterator[None]:
    """Let keys be read one at a time and unseen, as long as it lasts."""
    if not _has_keys():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
