"""Writes one answer of the gateway: raw bytes from replica to client, until the client goes away."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any

from weighbridge.fleet.attempt import Opened
from weighbridge.fleet.gateway import Gateway
from weighbridge.fleet.journey import Journey, ReplicaAnswered, error_event
from weighbridge.server.gateway.request import Receive
from weighbridge.wire.ask import Ask
from weighbridge.wire.errors import as_api_error, error_body, error_response

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
HeaderList = list[tuple[bytes, bytes]]

#: Seconds of silence after which a stream gets a comment, so that proxies keep the line open.
KEEP_ALIVE_SECONDS = 15.0

_STREAM_HEADERS: HeaderList = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
#: Replaced by our own, or known only of the replica.
_REWRITTEN = frozenset(
    {"x-weighbridge-replica", "x-weighbridge-cost", "x-weighbridge-placement", "content-type"}
)


class Line:
    """The connection to one client. `status` is None until the answer has begun."""

    __slots__ = ("_send", "ended", "status", "streaming", "ticket", "wrote_at")

    def __init__(self, send: Send, streaming: bool, now: float) -> None:
        self._send = send
        self.streaming = streaming
        self.status: int | None = None
        self.ended = False
        self.ticket = ""
        self.wrote_at = now

    async def start(self, status: int, headers: HeaderList) -> None:
        self.status = status
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def write(self, body: bytes, more: bool, now: float) -> None:
        self.wrote_at = now
        self.ended = not more
        await self._send({"type": "http.response.body", "body": body, "more_body": more})

    async def pulse(self, now: float) -> None:
        """Say that we are still here. From now on a failure can only be told inside the stream."""
        if self.status is None:
            named = [(b"x-weighbridge-ticket", self.ticket.encode())] if self.ticket else []
            await self.start(200, [*_STREAM_HEADERS, *named])
        if not self.ended:
            await self.write(b": keep-alive\n\n", True, now)

    async def fail(self, error: Exception, now: float) -> None:
        """Tell the client what went wrong, in the way that is still open."""
        if self.ended:
            return
        if self.status is not None:
            await self.write(_as_event(error), False, now)
            return
        if isinstance(error, ReplicaAnswered):
            kept = error.answer
            headers = _passed(kept.headers, self.ticket)
            headers.append((b"content-type", kept.headers.get("content-type", "application/json").encode()))
            headers.append((b"content-length", str(len(kept.body)).encode()))
            await self.start(kept.status, headers)
            await self.write(kept.body, False, now)
            return
        failure = as_api_error(error)
        response = error_response(failure, {"x-weighbridge-ticket": self.ticket} if self.ticket else None)
        await self.start(failure.status, response.raw_headers)
        await self.write(error_body(failure), False, now)


def _as_event(error: Exception) -> bytes:
    """An error for a client that has been told 200 already."""
    if isinstance(error, ReplicaAnswered):
        return b"data: " + error.answer.body.replace(b"\n", b" ") + b"\n\n"
    failure = as_api_error(error)
    return error_event(str(failure), failure.code or "server_error")


class Relays:
    """All answers being written. One task keeps quiet lines open, whatever their number."""

    def __init__(self, gateway: Gateway, clock: Callable[[], float]) -> None:
        self._gateway = gateway
        self._clock = clock
        self._lines: set[Line] = set()
        self._pulses: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._pulses = asyncio.create_task(self._pulse())

    async def stop(self) -> None:
        if self._pulses is not None:
            self._pulses.cancel()
            await asyncio.gather(self._pulses, return_exceptions=True)

    async def answer(self, ask: Ask, receive: Receive, send: Send) -> int:
        """Serve one request to its end; returns the status. A client that goes away cancels it at once."""
        line = Line(send, ask.stream, self._clock())
        task = asyncio.current_task()
        assert task is not None
        gone = False

        async def watch() -> None:
            nonlocal gone
            while (await receive())["type"] != "http.disconnect":
                pass
            gone = True
            task.cancel()

        watcher = asyncio.create_task(watch())
        self._lines.add(line)
        try:
            await self._serve(ask, line)
        except asyncio.CancelledError:
            if not gone:
                raise
            task.uncancel()
        finally:
            self._lines.discard(line)
            watcher.cancel()
            with suppress(asyncio.CancelledError):
                await watcher
        return line.status or 499

    async def _serve(self, ask: Ask, line: Line) -> None:
        journey: Journey | None = None
        error: str | None = None
        try:
            journey = await self._admitted(ask, line)
            opened = await journey.open()
            if opened.is_stream and opened.status < 400:
                await self._stream(journey, opened, line)
            else:
                await self._whole(journey, opened, line)
        except asyncio.CancelledError:
            raise
        except OSError:
            error = "the client's connection broke"
        except Exception as failure:
            error = str(failure)
            await line.fail(failure, self._clock())
            if as_api_error(failure).status == 500 and not isinstance(failure, ReplicaAnswered):
                raise
        finally:
            if journey is not None:
                await self._gateway.finish(journey, error)

    async def _admitted(self, ask: Ask, line: Line) -> Journey:
        try:
            return await self._gateway.admit(ask)
        finally:  # which id it has is known only now: a refusal has a ticket too
            line.ticket = ask.id

    async def _stream(self, journey: Journey, opened: Opened, line: Line) -> None:
        clock, meter = self._clock, journey.meter
        if line.status is None:
            await line.start(200, [*_STREAM_HEADERS, *_headers(journey, opened)])
        async for chunk in journey.stream(opened):
            await line.write(chunk, not meter.done, clock())
        if not line.ended:
            await line.write(b"", False, clock())

    async def _whole(self, journey: Journey, opened: Opened, line: Line) -> None:
        body = journey.whole(opened)
        if line.status is not None:  # kept open as a stream, but the replica sent none
            await line.write(b"data: " + body.replace(b"\n", b" ") + b"\n\n", False, self._clock())
            return
        headers = _headers(journey, opened)
        kind = opened.answer.headers.get("content-type", "application/json")
        headers += [(b"content-type", kind.encode("latin-1")), (b"content-length", str(len(body)).encode())]
        await line.start(opened.status, headers)
        await line.write(body, False, self._clock())

    async def _pulse(self) -> None:
        while True:
            await asyncio.sleep(KEEP_ALIVE_SECONDS / 3)
            now = self._clock()
            for line in list(self._lines):
                if line.streaming and not line.ended and now - line.wrote_at >= KEEP_ALIVE_SECONDS:
                    with suppress(OSError):
                        await line.pulse(now)


def _headers(journey: Journey, opened: Opened) -> HeaderList:
    """The replica's own headers and ours. What a stream costs is known at its end only: here it is expected."""
    headers = _passed(opened.answer.headers, journey.ask.id)
    headers.append((b"x-weighbridge-replica", opened.lease.member.name.encode()))
    headers.append((b"x-weighbridge-placement", journey.ticket.placement.encode()))
    headers.append((b"x-weighbridge-cost", f"{journey.cost(opened):.8f}".rstrip("0").rstrip(".").encode()))
    return headers


def _passed(replica: Any, ticket: str) -> HeaderList:
    headers = [(b"x-weighbridge-ticket", ticket.encode())]
    for name, value in replica.items():
        if name == "x-weighbridge-ticket":
            headers.append((b"x-weighbridge-replica-ticket", value.encode("latin-1")))
        elif name not in _REWRITTEN and name not in ("cache-control", "x-accel-buffering"):
            headers.append((name.encode("latin-1"), value.encode("latin-1")))
    return headers
