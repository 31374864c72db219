"""Where a process stands between the one before it and the one after: it takes over, serves, and is taken over from."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable
from pathlib import Path

from weighbridge.errors import BadInput
from weighbridge.server.upgrade.handover import Handover
from weighbridge.server.upgrade.inherited import Taken

log = logging.getLogger("weighbridge.server")

#: Seconds that replicas have to be up until the process before is told to finish.
UP_WITHIN = 60.0
#: Seconds between two looks at whether this process serves.
_LOOK_S = 0.05


class Upgrade:
    """`taken`: from whom the socket was taken over; `path`: where the next process asks for it."""

    def __init__(
        self, taken: Taken | None = None, path: Path | None = None, is_up: Callable[[], bool] = lambda: True
    ) -> None:
        """`is_up`: whether what is behind this server can answer, as far as it ever will soon."""
        self._taken, self._path, self._is_up = taken, path, is_up
        self._handover: Handover | None = None

    async def passed_on(self, listener: socket.socket, serves: Callable[[], bool]) -> None:
        """Return once another process serves in the place of this one. Without a path that never happens."""
        until = time.monotonic() + UP_WITHIN
        while not serves() or (self._taken is not None and not self._is_up() and time.monotonic() < until):  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_S)
        if self._taken is not None:
            await asyncio.to_thread(self._taken.ready)
        if self._path is not None:
            self._handover = Handover(self._path, listener)
            try:
                self._handover.open()
            except BadInput as error:
                log.error("nobody can take over from this process: %s", error)
            else:
                await self._handover.taken()
                return
        await asyncio.Event().wait()

    def close(self) -> None:
        if self._handover is not None:
            self._handover.close()
