"""Stalls: how long the event loop, and the engine's thread, kept everybody else waiting, and where.

The loop is asked to run a timer every `INTERVAL`; how late that comes is what every stream waited. A thread beside it
looks at who is late right now, so that the log can say what the stalled thread was doing. Both cost some 30 us a beat.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Histogram

from weighbridge.engine.api import Turn

log = logging.getLogger("weighbridge.server")

#: Seconds between two beats; a stall that is shorter may be missed.
INTERVAL = 0.1
#: Seconds of lateness from which the loop is said to stand still, and of one iteration for the engine's thread, whose
#: prompts may well take a second to compute.
LOOP_LIMIT = 0.25
TURN_LIMIT = 5.0
#: Seconds between two lines of the log about one thread.
QUIET = 60.0
#: Calls that a line names, innermost first.
MAX_CALLS = 8

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

#: Hears the name of a thread ("loop" or "engine") and the seconds that it kept others waiting.
Stalled = Callable[[str, float], None]


def stall_histogram(registry: CollectorRegistry) -> Histogram:
    """The metric of stalls, in the registry of a server."""
    text = "How long the thread kept others waiting: beats of the loop, iterations of the engine beside the model"
    return Histogram("weighbridge_loop_stall_seconds", text, ("thread",), buckets=_SECONDS, registry=registry)


class Watchdog:
    """Watches the event loop that it is started on and `others`: what each is at, None while it has nothing to do."""

    def __init__(
        self,
        stalled: Stalled,
        others: Mapping[str, Callable[[], Turn | None]],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stalled = stalled
        self._others = dict(others)
        self._clock = clock
        self._due = 0.0
        self._ident = 0
        self._timer: asyncio.TimerHandle | None = None
        self._stopped = threading.Event()
        self._quiet_until: dict[str, float] = {}
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        """Begin; called on the loop to be watched."""
        self._ident = threading.get_ident()
        self._next_beat()
        self._thread.start()

    def stop(self) -> None:
        """End; called on the loop."""
        self._stopped.set()
        if self._timer is not None:
            self._timer.cancel()
        self._thread.join(1.0)

    def _next_beat(self) -> None:
        self._due = self._clock() + INTERVAL
        self._timer = asyncio.get_running_loop().call_later(INTERVAL, self._beat)

    def _beat(self) -> None:
        late = max(self._clock() - self._due, 0.0)
        self._stalled("loop", late)
        if late > LOOP_LIMIT:  # the other thread could not look while a single call held the interpreter
            self._tell("loop", late, None)
        self._next_beat()

    def _watch(self) -> None:
        while not self._stopped.wait(INTERVAL):
            self._look("loop", Turn(self._ident, self._due), LOOP_LIMIT)
            for name, turn in self._others.items():
                self._look(name, turn(), TURN_LIMIT)

    def _look(self, name: str, turn: Turn | None, limit: float) -> None:
        if turn is not None and (late := self._clock() - turn.began) > limit:
            self._tell(name, late, turn.thread)

    def _tell(self, name: str, seconds: float, thread: int | None) -> None:
        """Write a line, if there was none about this thread in the last minute."""
        now = self._clock()
        if now < self._quiet_until.get(name, now):
            return
        self._quiet_until[name] = now + QUIET
        where = "it held the interpreter" if thread is None else place_of(thread)
        what = "the event loop" if name == "loop" else f"the {name}'s thread"
        log.warning("%s has kept everybody waiting for %.1f s: %s", what, seconds, where)


def place_of(thread: int) -> str:
    """What a thread is doing now: its innermost calls, without any values."""
    frame = sys._current_frames().get(thread)
    if frame is None:
        return "it has ended"
    calls = [
        f"{at.f_code.co_qualname} ({at.f_code.co_filename}:{line})"
        for at, line in traceback.walk_stack(frame)
    ]
    return " < ".join(calls[:MAX_CALLS])
