"""Closes each second of a server's history."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from weighbridge.server.watching.view import ServiceView
from weighbridge.state.believed_time import believed_time

log = logging.getLogger("weighbridge.server")

#: Seconds that a clock may be set back by without a gap in the history, which stands still until it is there again.
LATEST_AHEAD = 60


class Recorder:
    """Works beside requests as long as the door is open: once a second it reads off how busy the service is."""

    def __init__(self, seen: ServiceView, wall: Callable[[], float] = believed_time) -> None:
        self._seen = seen
        self._wall = wall
        self.began = wall()
        self._highest = 0  # output tokens that have been counted
        self._last = 0
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(1.0 - self._wall() % 1.0)
            try:
                self.take()
            except Exception:
                log.exception("a second of the console's history is lost")

    def take(self) -> None:
        """Close the second that it is, once."""
        number = int(self._wall())
        if (
            self._last - LATEST_AHEAD < number <= self._last
        ):  # woken early, or the clock was set back a little
            return
        if number <= self._last:  # it was ahead: what was told as later than now is no history
            self._seen.history.forget()
        self._last = number
        produced = self._seen.produced()
        made = max(produced - self._highest, 0)
        self._highest += made
        self._seen.history.close(number, self._seen.levels(), made)
