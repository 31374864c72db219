"""Listens for Envoy: a gRPC server beside the HTTP one, on the same event loop."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc

from weighbridge.errors import BadInput
from weighbridge.server.picker import words
from weighbridge.server.picker.door import PickerDoor
from weighbridge.server.picker.health import Health
from weighbridge.server.picker.messages import ProcessingRequest, ProcessingResponse

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
        self, door: PickerDoor, address: str, *, max_body: int, certificate: tuple[Path, Path] | None = None
    ) -> None:
        self._door = door
        self._address = address
        self._max_message = max_body + _BESIDE
        self._credentials = None if certificate is None else _credentials(*certificate)
        self._server: Any = None
        self.port = 0

    async def start(self) -> None:
        """Raises BadInput where the address cannot be had."""
        await self._door.start()
        server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", self._max_message),
                ("grpc.max_send_message_length", self._max_message),
                ("grpc.so_reuseport", 0),
            ],
            maximum_concurrent_rpcs=MOST_LINES,
        )
        process = grpc.stream_stream_rpc_method_handler(
            self._process,
            request_deserializer=ProcessingRequest.FromString,
            response_serializer=ProcessingResponse.SerializeToString,
        )
        handlers = grpc.method_handlers_generic_handler(words.SERVICE, {words.METHOD: process})
        server.add_generic_rpc_handlers((handlers, Health(lambda: self._door.ready).handlers()))
        try:
            if self._credentials is None:
                self.port = server.add_insecure_port(self._address)
            else:
                self.port = server.add_secure_port(self._address, self._credentials)
        except RuntimeError as error:
            raise BadInput(f"cannot listen on {self._address}: {error}", param="port") from error
        await server.start()
        self._server = server
        log.info("picking endpoints for Envoy on %s", self._address)

    async def close(self) -> None:
        if self._server is not None:
            await self._server.stop(GRACE)
        await self._door.close()

    async def _process(self, _requests: AsyncIterator[Any], context: Any) -> None:
        await self._door.serve(context)


def _credentials(certificate: Path, key: Path) -> Any:
    try:
        pair = key.read_bytes(), certificate.read_bytes()
    except OSError as error:
        raise BadInput(f"cannot read {error.filename}: {error.strerror}", param="tls_cert") from error
    return grpc.ssl_server_credentials([pair])
