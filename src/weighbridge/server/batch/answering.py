"""Answers one line of a batch: through the same reading, admission, writing and tickets as a request from outside."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from weighbridge.cost.usage import Usage
from weighbridge.fleet.limits.spare import SpareRoom
from weighbridge.server.batch.lines import body_of
from weighbridge.server.batch.records import BatchRecord
from weighbridge.wire.answer import Answers
from weighbridge.wire.body import apart
from weighbridge.wire.errors import as_api_error
from weighbridge.wire.extension import KnownCaller
from weighbridge.wire.identity.admission import Doorkeeper, settle_caller
from weighbridge.wire.journey import Service
from weighbridge.wire.protocol import WireProtocol
from weighbridge.wire.readers import whose
from weighbridge.wire.usage import read_usage

#: Statuses that say nothing of the request: it may be answered later.
FOR_NOW = frozenset({408, 409, 429, 500, 502, 503, 504, 529})
#: And those of them with which a server may mean the request itself: it is tried so many times.
MAX_TRIES, DOUBTFUL = 4, frozenset({408, 500, 502, 504})


@dataclass(slots=True)
class LineAnswer:
    """What a line was answered. `retry_after`: seconds that whoever refused it asks for."""

    status: int
    body: bytes
    ticket: str
    retry_after: float | None = None

    @property
    def used(self) -> Usage | None:
        """What its answer says that it took."""
        try:
            told = msgspec.json.decode(self.body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        return read_usage(told.get("usage")) if isinstance(told, dict) else None


@dataclass(slots=True)
class _Collected:
    """Takes what would go to a client."""

    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)

    async def send(self, message: Mapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {
                name.decode("latin-1").lower(): value.decode("latin-1") for name, value in message["headers"]
            }
        else:
            self.body += message.get("body", b"")

    def answer(self) -> LineAnswer:
        named = self.headers.get("x-weighbridge-ticket") or self.headers.get("x-request-id", "")
        wait = self.headers.get("retry-after", "")
        return LineAnswer(
            self.status, bytes(self.body), named, float(wait) if wait.isdecimal() and len(wait) < 6 else None
        )


class LineService(Service, Doorkeeper, Protocol):
    """What answers lines, and knows what of it nobody else needs."""

    max_body: int  # bytes of one request

    @property
    def draining(self) -> bool: ...
    def spare_room(self, model: str) -> SpareRoom: ...


class LineAnswers:
    """Asks a service what lines ask, for the tenant of their batch, behind everybody who waits for an answer."""

    def __init__(
        self, service: LineService, protocols: Sequence[WireProtocol], clock: Callable[[], float]
    ) -> None:
        self._service = service
        self._clock = clock
        self._answers = Answers(service, clock)
        self._protocols = {one.path: one for one in protocols}

    async def answer(self, batch: BatchRecord, text: bytes, priority: int) -> LineAnswer:
        """What a line is answered, an error too. Cancelled, it ends what is under way."""
        protocol, told = self._protocols[batch.endpoint], _Collected()
        try:
            whose.set(batch.tenant)
            body = await apart(len(text), body_of, text)
            ask = await apart(len(body), protocol.read, body)
            caller = KnownCaller(batch.tenant) if batch.known else None
            await settle_caller(self._service, protocol, ask, batch.headers, caller, self._clock())
            if not batch.known:
                ask.tenant = batch.tenant
            ask.priority = priority
        except Exception as error:
            failure = as_api_error(error)
            return LineAnswer(protocol.status(failure), protocol.error(failure), "", failure.retry_after)
        await self._answers.answer(ask, protocol, _never, told.send)
        return told.answer()


async def _never() -> dict[str, Any]:
    """Nobody is there who could go away."""
    await asyncio.Event().wait()
    raise AssertionError
