"""Listens for Envoy: a gRPC server beside the HTTP one, on the same event loop."""

from __future__ import annotations

import asyncio
import logging
import ssl
from pathlib import Path

from weighbridge.errors import BadInput
from weighbridge.server.picker import words
from weighbridge.server.picker.door import PickerDoor
from weighbridge.server.picker.health import Health
from weighbridge.server.picker.http2 import Connection, GrpcCalls, Handle

log = logging.getLogger("weighbridge.server")

#: Requests that are carried at one time; beyond them Envoy is refused.
MOST_LINES = 16_384
#: Bytes that a message may have beyond the body in it.
_BESIDE = 64 << 10
#: Seconds that open conversations have once we close; a drain went before.
GRACE = 1.0


class PickerServer:
    """Starts and closes with the HTTP server. `certificate`: the chain and its key, where Envoy is to use TLS."""

    def __init__(
        self,
        door: PickerDoor,
        host: str,
        port: int,
        *,
        max_body: int,
        certificate: tuple[Path, Path] | None = None,
    ) -> None:
        self._door = door
        self._host, self.port = host, port
        health = Health(lambda: door.ready)
        handlers: dict[str, Handle] = {f"/{words.SERVICE}/{words.METHOD}": door.serve, **health.handlers()}
        self._calls = GrpcCalls(handlers, MOST_LINES, max_body + _BESIDE)
        self._tls = None if certificate is None else _tls(*certificate)
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Raises BadInput where the address cannot be had."""
        await self._door.start()
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(
                lambda: Connection(self._calls), self._host, self.port, ssl=self._tls
            )
        except OSError as error:
            raise BadInput(f"cannot listen on {self._host}:{self.port}: {error}", param="port") from error
        self.port = self._server.sockets[0].getsockname()[1]
        log.info("picking endpoints for Envoy on %s:%d", self._host, self.port)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._calls.close(GRACE)
        await self._door.close()


def _tls(certificate: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key)
    except OSError as error:  # SSLError is one
        raise BadInput(f"{certificate} with {key}: {error.strerror or error}", param="tls_cert") from error
    context.set_alpn_protocols(["h2"])
    return context
