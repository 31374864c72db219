"""Closes each second of a server's history."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from weighbridge.server.watching.view import ServiceView

log = logging.getLogger("weighbridge.server")


class Recorder:
    """Works beside requests as long as the door is open: once a second it reads off how busy the service is."""

    def __init__(self, seen: ServiceView, wall: Callable[[], float] = time.time) -> None:
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
        if number <= self._last:  # woken early, or somebody has set the clock
            return
        self._last = number
        produced = self._seen.produced()
        made = max(produced - self._highest, 0)
        self._highest += made
        self._seen.history.close(number, self._seen.levels(), made)
