"""Hands the listening socket to the process that comes after this one.

Both accept from one queue for a moment, so that no connection is refused or lost in between. Who connects to the Unix
socket must run as the same user, or as root. Until the new process says that it is ready nothing changes here, and if
it ends before that, nothing has happened.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
from contextlib import suppress
from pathlib import Path

from weighbridge.errors import BadInput
from weighbridge.server.upgrade.inherited import LEAVING, OFFER, READY

log = logging.getLogger("weighbridge.server")

#: Seconds that a new process may take until it serves: it may load a model.
READY_WITHIN = 900.0


class Handover:
    """Waits at a Unix socket for a process that takes over."""

    def __init__(self, path: Path, listener: socket.socket) -> None:
        self._path, self._listener = path, listener
        self._door: socket.socket | None = None
        self._inode = 0

    def open(self) -> None:
        """Begin to wait. Raises BadInput where there can be no such socket."""
        door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        door.setblocking(False)
        fresh = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            fresh.unlink(missing_ok=True)
            door.bind(str(fresh))
            os.chmod(fresh, 0o600)
            door.listen(4)
            self._inode = fresh.stat().st_ino
            fresh.replace(self._path)  # in the place of one that a process left behind
        except OSError as error:
            door.close()
            fresh.unlink(missing_ok=True)
            raise BadInput(
                f"handover: {self._path} cannot be made: {error.strerror or error}", param="handover"
            ) from error
        self._door = door

    async def taken(self) -> None:
        """Return once a new process serves in our place; until then, wait."""
        assert self._door is not None
        loop = asyncio.get_running_loop()
        while True:
            line, _ = await loop.sock_accept(self._door)
            try:
                if await self._hand_over(line):
                    return
            except (OSError, TimeoutError) as error:
                log.warning("the process that was to take over did not: %s", str(error) or "it took too long")
            finally:
                line.close()

    async def _hand_over(self, line: socket.socket) -> bool:
        if not _is_ours(line):
            log.warning("another user asked for the listening socket, and got none")
            return False
        loop = asyncio.get_running_loop()
        line.setblocking(False)
        socket.send_fds(line, [OFFER], [self._listener.fileno()])
        log.info("a new process is starting in the place of this one")
        async with asyncio.timeout(READY_WITHIN):
            if await loop.sock_recv(line, len(READY)) != READY:
                log.warning("the process that was to take over has ended; this one serves on")
                return False
        self.close()
        with suppress(OSError):
            await loop.sock_sendall(line, LEAVING)
        return True

    def close(self) -> None:
        """Wait no more; the socket of whoever came after stays."""
        if self._door is None:
            return
        self._door.close()
        self._door = None
        with suppress(OSError):
            if self._path.stat().st_ino == self._inode:
                self._path.unlink()


def _is_ours(line: socket.socket) -> bool:
    """Whether who asks runs as the same user, or as root."""
    told = line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, user, _ = struct.unpack("3i", told)
    return user in (os.getuid(), 0)
