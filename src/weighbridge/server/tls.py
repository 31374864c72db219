"""HTTPS: a certificate that may change while connections stay, and a handshake that may cost as little as a head."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn

from weighbridge.errors import BadInput
from weighbridge.server.connections import HEAD_SECONDS, connection_limit
from weighbridge.wire.identity.settings import IdentitySettings

log = logging.getLogger("weighbridge.server")

#: Seconds between two looks at the files.
LOOK_SECONDS = 2.0
#: Seconds that a client may take to say goodbye, once we have; it holds its connection meanwhile.
GOODBYE_SECONDS = 3.0
#: The system has no more files or memory, for now.
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
#: Seconds until the next try where the system gives no connection.
ACCEPT_AGAIN_SECONDS = 0.2


class Certificates:
    """The context that new connections get. Connections keep the one they began with."""

    def __init__(self, cert: Path, key: Path | None, client_ca: Path | None) -> None:
        """Reads the files. Raises BadInput naming the one that is wrong."""
        self._cert, self._key, self._client_ca = cert, key, client_ca
        self._seen = self._stamps()
        self.context = self._read()

    @classmethod
    def of(cls, settings: IdentitySettings) -> Certificates | None:
        """Those of a server's settings; None where it speaks plain HTTP. Raises BadInput."""
        if settings.tls_cert is None:
            return None
        return cls(settings.tls_cert, settings.tls_key, settings.tls_client_ca)

    async def watch(self) -> None:
        """Look at the files again and again, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            await asyncio.to_thread(self.look)

    def look(self) -> None:
        """Use what is in the files now, if they changed; what is broken is logged, and changes nothing."""
        seen = self._stamps()
        if seen == self._seen:
            return
        self._seen = seen  # of before reading: a change in between is seen the next time
        try:
            self.context = self._read()
        except BadInput as error:
            log.error("the TLS files changed, and those from before stay in use: %s", error)
        else:
            log.info("the TLS files changed; new connections use them")

    def _read(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.set_alpn_protocols(["http/1.1"])
        where = " and ".join(map(str, filter(None, (self._cert, self._key))))
        try:
            context.load_cert_chain(self._cert, self._key, password="")  # never ask at the terminal
            if self._client_ca is not None:
                where = str(self._client_ca)
                context.load_verify_locations(self._client_ca)
                context.verify_mode = ssl.CERT_OPTIONAL  # who shows none needs a key
        except OSError as error:  # ssl.SSLError is one
            why = error.reason if isinstance(error, ssl.SSLError) else error.strerror
            what = "a PEM certificate chain and its unencrypted private key, which belong together"
            raise BadInput(f"{where}: {_words(why)}; give {what}", param="tls_cert") from error
        return context

    def _stamps(self) -> list[tuple[int, int, int] | None]:
        """What changes when somebody writes or replaces a file; None where there is none."""
        return [_stamp(path) for path in (self._cert, self._key, self._client_ca) if path is not None]


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _words(reason: str | None) -> str:
    return (reason or "it cannot be read").lower().replace("_", " ")


class TlsServer(uvicorn.Server):
    """uvicorn behind handshakes of our own: each has the time of a head, and those under way are counted and bounded.

    Left to the event loop, a connection is nobody's until its handshake is over, which may take a minute.
    """

    def __init__(self, config: uvicorn.Config, certificates: Certificates) -> None:
        super().__init__(config)
        self._certificates = certificates
        self._listeners: list[socket.socket] = []
        self._tasks: list[asyncio.Task[None]] = []  # accepting, and looking at the files
        self._shaking: dict[asyncio.Task[None], None] = {}  # the oldest first

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=[])
        self._listeners = sockets or []
        self._tasks = [asyncio.create_task(self._accept(listener)) for listener in self._listeners]
        self._tasks.append(asyncio.create_task(self._certificates.watch()))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.stop_accepting()
        for task in self._shaking:
            task.cancel()
        await super().shutdown(sockets=[])

    def stop_accepting(self) -> None:
        """Take no more connections; handshakes that are under way go on."""
        for task in self._tasks:
            task.cancel()
        for listener in self._listeners:
            listener.close()

    async def _accept(self, listener: socket.socket) -> None:
        listener.setblocking(False)
        listener.listen(self.config.backlog)
        loop = asyncio.get_running_loop()
        while True:
            try:
                line, _ = await loop.sock_accept(listener)
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    log.warning("a connection could not be accepted: %s", error.strerror)
                    await asyncio.sleep(ACCEPT_AGAIN_SECONDS)
                continue  # else the client went away before
            if (
                len(self._shaking) + len(self.server_state.connections) >= connection_limit()
                and self._shaking
            ):
                next(iter(self._shaking)).cancel()
            task = asyncio.create_task(self._shake_hands(line))
            self._shaking[task] = None
            task.add_done_callback(self._shaking.pop)

    async def _shake_hands(self, line: socket.socket) -> None:
        """Make a connection of a socket, or close it."""
        state = {"config": self.config, "server_state": self.server_state, "app_state": self.lifespan.state}
        make: Any = self.config.http_protocol_class
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                partial(make, **state),
                line,
                ssl=self._certificates.context,
                ssl_handshake_timeout=HEAD_SECONDS,
                ssl_shutdown_timeout=GOODBYE_SECONDS,
            )
        except OSError as error:  # no TLS, a certificate we do not believe, gone, too slow
            log.debug("a handshake failed: %s", error)
            line.close()
        except asyncio.CancelledError:
            line.close()
            raise
