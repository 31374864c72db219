"""Routes between models as services of a gateway: a request for their name is placed by the route."""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec

from weighbridge.errors import BadInput
from weighbridge.fleet.gateway import Gateway
from weighbridge.routes.answer import Gathered
from weighbridge.routes.build import build_front
from weighbridge.routes.fleet_side import fleet_sides
from weighbridge.routes.request import RoutedRequest, routed_request
from weighbridge.routes.router import HybridRouter, RoutedStream
from weighbridge.routes.settings import HybridSettings
from weighbridge.ticket import Ticket
from weighbridge.wire.ask import Ask
from weighbridge.wire.errors import as_api_error, error_event
from weighbridge.wire.events import Event
from weighbridge.wire.journey import HeaderList, WholeAnswer
from weighbridge.wire.protocols import chat
from weighbridge.wire.sse import DONE


def add_routes(gateway: Gateway, settings: HybridSettings) -> None:
    """Make a gateway's routes. Raises BadInput where a file or an extra is missing."""
    if settings.routes:
        front = build_front(settings, tickets=gateway.tickets, make_side=fleet_sides(gateway))
        for name, router in front.routers.items():
            gateway.routes[name] = RouteService(gateway, router)


class RouteService:
    def __init__(self, gateway: Gateway, router: HybridRouter) -> None:
        self._gateway = gateway
        self._router = router

    async def admit(self, ask: Ask) -> RoutedJourney:
        if ask.path != chat.PATH:
            message = f"{ask.model!r} is a route between models, and routes answer chats; use {chat.PATH}"
            raise BadInput(message, param="model")
        return RoutedJourney(self._gateway, self._router, routed_request(ask))

    async def close(self) -> None:
        await self._router.close()


class RoutedJourney:
    """A request on a route: `wire.journey.Journey`."""

    def __init__(self, gateway: Gateway, router: HybridRouter, request: RoutedRequest) -> None:
        self._gateway = gateway
        self._router = router
        self._request = request
        self._stream: RoutedStream | None = None
        self.status = 200
        self.is_stream = request.stream
        gateway.open_journeys += 1  # a drain waits for it, also between two sides
        self._closed = False

    @property
    def ticket(self) -> Ticket:
        return self._begun().ticket

    async def open(self) -> RoutedJourney:
        self._stream = await self._router.open(self._request)
        return self

    def headers(self) -> HeaderList:
        ticket = self.ticket
        headers = [
            (b"x-weighbridge-ticket", ticket.id.encode()),
            (b"x-weighbridge-replica", ticket.replica.encode("latin-1", "replace")),
            (b"x-weighbridge-placement", str(ticket.placement).encode()),
            (b"x-weighbridge-degraded", b"true" if ticket.degraded else b"false"),
        ]
        if not self.is_stream:
            headers.append((b"x-weighbridge-cost", f"{ticket.cost_usd:.9f}".encode()))
        return headers

    async def stream(self) -> AsyncIterator[Event]:
        stream = self._begun()
        try:
            async for chunk in stream:
                if chunk.get("usage") and not chunk.get("choices"):
                    if not self._request.include_usage:
                        continue
                    chunk["weighbridge"] = {"ticket": stream.ticket.id, "cost_usd": round(stream.cost_usd, 9)}
                yield Event(b"data: " + msgspec.json.encode(chunk) + b"\n\n", chat.chat_parts)
        except Exception as error:
            yield Event(error_event(as_api_error(error)), chat.chat_parts, last=True)
            return
        yield Event(DONE, chat.chat_parts, last=True)

    async def whole(self) -> WholeAnswer:
        stream, gathered = self._begun(), Gathered()
        async for chunk in stream:
            gathered.add(chunk)
        wanted = bool(self._request.body.get("logprobs"))
        body = msgspec.json.encode(gathered.whole(stream.ticket.model, wanted))
        await stream.close()
        return WholeAnswer(body, chat.chat_answer_parts)

    async def close(self, error: str | None = None) -> bool:
        if self._closed:
            return False
        self._closed = True
        self._gateway.open_journeys -= 1
        if self._stream is not None:
            await self._stream.close()
        return True

    def _begun(self) -> RoutedStream:
        assert self._stream is not None, "open() comes first"
        return self._stream
