"""Routes in a gateway: requests for their names go to the hybrid front, all others pass it by."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from weighbridge.errors import Draining
from weighbridge.fleet.gateway import Gateway
from weighbridge.routes.build import build_front
from weighbridge.routes.fleet_side import fleet_sides
from weighbridge.routes.front import Front
from weighbridge.routes.settings import HybridSettings
from weighbridge.wire.body import decode
from weighbridge.wire.errors import ApiError

CHAT = "/v1/chat/completions"


class _Named(msgspec.Struct):
    model: str | None = None


_peek = msgspec.json.Decoder(_Named).decode


class GatewayRoutes:
    """The routes of one gateway. Their tickets are in its store, their fleet sides are its models."""

    def __init__(self, gateway: Gateway, settings: HybridSettings) -> None:
        """Raises BadInput where a file or an extra is missing."""
        self._gateway = gateway
        self._front: Front = build_front(settings, tickets=gateway.tickets, make_side=fleet_sides(gateway))

    @property
    def names(self) -> list[str]:
        return list(self._front.routers)

    def named(self, body: bytes) -> str | None:
        """The route that a request asks for; None for everything else, also for what is no JSON."""
        with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            name = _peek(body).model
            return name if name in self._front.routers else None
        return None

    def response(
        self, name: str, path: str, body: bytes, headers: Mapping[str, str], tenant: str | None
    ) -> Response:
        """A response that places the request when it is sent. Raises ApiError, BadInput or Draining."""
        if path != CHAT:
            message = f"{name!r} is a route between models, and routes answer chats; use {CHAT}"
            raise ApiError(400, message, param="model")
        if self._gateway.draining:
            raise Draining("the gateway is shutting down and takes no new requests; try another one")
        return self._front.answer(name, decode(body, dict), headers, tenant)

    async def answer(self, response: Response, scope: Scope, receive: Receive, send: Send) -> int:
        """Serve one request to its end; returns the status, 499 when the client went away before there was one."""
        status = 499

        async def noted(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self._gateway.open_journeys += 1  # a drain waits for it, also between two sides
        try:
            with suppress(OSError):  # the client's connection broke
                await response(scope, receive, noted)
        finally:
            self._gateway.open_journeys -= 1
        return status

    async def close(self) -> None:
        for router in self._front.routers.values():
            await router.close()
