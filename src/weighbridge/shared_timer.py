"""Who has waited too long: one timer of the event loop for all that wait, however many."""

from __future__ import annotations

import asyncio
import math
from typing import Protocol


class Waits(Protocol):
    """Whoever waits. It is known by its identity."""

    def overdue(self, now: float) -> float | None:
        """Hear that its time has come; return another time at which to look again, or None."""
        ...


class SharedTimer:
    """A timer of its own for each request, set anew with each of its stages, costs more than a request may.

    The one timer goes off at the earliest deadline there was; who has got a later one since then is left alone.
    """

    __slots__ = ("_due", "_loop", "_next", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._due: dict[Waits, float] = {}
        self._next = math.inf  # when the timer goes off
        self._timer: asyncio.TimerHandle | None = None

    def set(self, one: Waits, due: float) -> None:
        """Tell `one` at `due`, on the loop's clock, unless it is given another time before."""
        self._due[one] = due
        if due < self._next:
            self._arm(due)

    def discard(self, one: Waits) -> None:
        """Tell it nothing any more."""
        self._due.pop(one, None)

    def __len__(self) -> int:
        return len(self._due)

    def close(self) -> None:
        self._due.clear()
        if self._timer is not None:
            self._timer.cancel()

    def _arm(self, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._next = due
        self._timer = self._loop.call_at(due, self._look)

    def _look(self) -> None:
        now = self._loop.time()
        self._timer, self._next = None, math.inf
        for one in [one for one, due in self._due.items() if due <= now]:
            if self._due.get(one, math.inf) > now:  # another one's end was its own
                continue
            again = one.overdue(now)
            if again is None:
                self._due.pop(one, None)
            else:
                self._due[one] = max(again, now + 0.001)
        if self._due:
            due = min(self._due.values())
            if due < self._next:
                self._arm(due)
