"""Streams that survive their client, where it asks for that: answers that can be picked up again for a minute.

The answer is written as any other is, but into a log, which the client's connection reads. When that breaks, the
answer goes on; whoever has the key that opened it reads on behind the last event that arrived, for a minute.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from hashlib import blake2b
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from weighbridge.server.endpoint import Endpoint, HttpService, json_response
from weighbridge.wire.answer import CLIENT_GONE, KEEP_ALIVE_SECONDS
from weighbridge.wire.ask import Ask
from weighbridge.wire.errors import ApiError
from weighbridge.wire.headers import Headers, headers_of
from weighbridge.wire.journey import HeaderList

log = logging.getLogger("weighbridge.server")

PATH = "/v1/streams"
#: Seconds that a stream whose client is gone may be picked up.
KEPT_S = 60.0
#: Seconds between two looks at what nobody has picked up.
SWEEP_S = 0.25
#: About what a stream takes beside its events, and each of them.
STREAM_BYTES, EVENT_BYTES = 16 << 10, 64
#: Bytes in one write, unless a single event has more.
PIECE_BYTES = 64 << 10
#: Said first in an answer that can be picked up.
NAMES_STREAM = b"x-weighbridge-stream"

_EVENTS, _LINES = b"text/event-stream", b"application/x-ndjson"
_END = re.compile(rb"\r?\n\r?\n")
_KEEP_ALIVE = b": keep-alive\n\n"
_CREDENTIALS = ("authorization", "x-api-key")

Message = Mapping[str, Any]
Writes = Callable[[Receive, Callable[[Any], Awaitable[None]]], Awaitable[int]]


class StreamRoom:
    """Bytes of kept streams: of one tenant, and in all."""

    def __init__(self, whole: int) -> None:
        self._whole, self._each = whole, max(whole // 8, 1)
        self._held: Counter[str] = Counter()
        self.total = 0

    def take(self, tenant: str, size: int) -> bool:
        if self._held[tenant] + size > self._each or self.total + size > self._whole:
            self._held += Counter()  # none of nothing
            return False
        self._held[tenant] += size
        self.total += size
        return True

    def give_back(self, tenant: str, size: int) -> None:
        self._held[tenant] -= size
        self.total -= size
        self._held += Counter()


class StreamFrames:
    """Cuts what an encoder writes into events, numbered from 1 on; in the stream too, where that has a place for it."""

    def __init__(self, content_type: bytes) -> None:
        self.is_stream = content_type.startswith((_EVENTS, _LINES))
        self.has_comments = content_type.startswith(_EVENTS)
        self._is_lines = content_type.startswith(_LINES)
        self._held = b""
        self._comments = b""
        self._count = 0

    def feed(self, data: bytes, last: bool) -> list[bytes]:
        """The whole events that are there now; comments go before the event that follows, keep-alives nowhere."""
        events, data = [], self._held + data
        at = 0
        while (end := self._end(data, at)) >= 0:
            events += self._numbered(data[at:end])
            at = end
        self._held = data[at:]
        if last and self._held:
            events += self._numbered(self._held)
            self._held = b""
        return events

    def _end(self, data: bytes, at: int) -> int:
        if self._is_lines:
            return data.find(b"\n", at) + 1 or -1
        found = _END.search(data, at)
        return found.end() if found is not None else -1

    def _numbered(self, event: bytes) -> list[bytes]:
        if not self._is_lines and all(line.startswith(b":") for line in event.splitlines() if line):
            self._comments += b"" if event == _KEEP_ALIVE else event
            return []
        self._count += 1
        name = b"" if self._is_lines else b"id: %d\n" % self._count
        before, self._comments = self._comments, b""
        return [before + name + event]


class StreamRegister(Protocol):
    """Who knows the streams of a server."""

    def keep(self, stream: KeptStream) -> None:
        """Let it be found from now on."""
        ...

    def forget(self, stream: KeptStream) -> None: ...

    def hold(self, tenant: str, size: int) -> bool:
        """Take bytes for a tenant; False where there is no room for them."""
        ...

    def give_back(self, tenant: str, size: int) -> None: ...


class KeptStream:
    """One answer on its way into a log, which connections read."""

    def __init__(self, ask: Ask, opened_by: str | None, register: StreamRegister) -> None:
        self.ask = ask
        self.opened_by = opened_by
        self.name = ask.id
        self.readers: dict[object, int] = {}  # events that each of them has
        self.alone_since = time.monotonic()
        self.status = 0
        self.over = False
        self.is_kept = False  # it has room, and can be picked up
        self._register = register
        self._headers: HeaderList = []
        self._frames = StreamFrames(b"")
        self._events: list[bytes] = []
        self._first = 0  # events that were dropped from the front, which all readers had
        self._size = 0
        self._more, self._read_on = asyncio.Event(), asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._waited_for = ask.proposed_id  # its client can name it before an answer begins

    def start(self, write: Writes) -> None:
        if self._waited_for:
            self._register.keep(self)
        self._task = asyncio.create_task(self._run(write))

    async def _run(self, write: Writes) -> None:
        try:
            await write(_never, self._send)
        finally:
            self.over = True
            self._more.set()

    async def abort(self) -> None:
        """End it, if it is not over, and keep nothing of it."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self.drop()

    def drop(self) -> None:
        """Keep nothing of it any more."""
        self._register.give_back(self.ask.tenant, self._size)
        self._size, self.is_kept, self._waited_for = 0, False, False
        self._register.forget(self)

    def raise_failure(self) -> None:
        """Raise what nobody foresaw and its writer met."""
        task = self._task
        if (
            task is not None
            and task.done()
            and not task.cancelled()
            and (error := task.exception()) is not None
        ):
            raise error

    # -- into the log ----------------------------------------------------------------------------------

    async def _send(self, message: Message) -> None:
        """What the writer of answers takes for its client."""
        if message["type"] == "http.response.start":
            self._begin(message["status"], list(message["headers"]))
        else:
            body, last = message.get("body", b""), not message.get("more_body")
            whole = [body] if body else []
            await self._add(self._frames.feed(body, last) if self._frames.is_stream else whole)
        self._more.set()

    def _begin(self, status: int, headers: HeaderList) -> None:
        self.status, self._headers = status, headers
        self._frames = StreamFrames(dict(headers).get(b"content-type", b""))
        self.is_kept = status == 200 and self._frames.is_stream and self._hold(STREAM_BYTES)
        if self.name != self.ask.id or not self.is_kept:
            self._register.forget(self)
        self.name, self._waited_for = self.ask.id, False
        if self.is_kept:
            self._register.keep(self)
            self._headers.append((NAMES_STREAM, self.name.encode()))

    async def _add(self, events: list[bytes]) -> None:
        """Log events. Without room those go that readers have; without a reader the answer ends."""
        size = sum([len(event) + EVENT_BYTES for event in events])
        while self.is_kept and not self._hold(size):
            if self._drop_read():
                continue
            if not self.readers:
                raise ConnectionResetError("there is no room for what nobody reads")
            if self._unread:
                await self._progress()
            else:
                self.drop()
        self._events += events
        if not self.is_kept:  # no faster than it is read
            self._more.set()
            while self.readers and self._unread:
                await self._progress()
            self._drop_read()

    def _hold(self, size: int) -> bool:
        if not self._register.hold(self.ask.tenant, size):
            return False
        self._size += size
        return True

    @property
    def _unread(self) -> int:
        return self._first + len(self._events) - min(self.readers.values(), default=self._first)

    def _drop_read(self) -> bool:
        """Forget what all readers have; False where there is nothing of it."""
        done = min(self.readers.values(), default=self._first) - self._first
        if done <= 0:
            return False
        if self.is_kept:
            size = sum([len(event) + EVENT_BYTES for event in self._events[:done]])
            self._register.give_back(self.ask.tenant, size)
            self._size -= size
        del self._events[:done]
        self._first += done
        return True

    async def _progress(self) -> None:
        self._read_on.clear()
        await self._read_on.wait()

    # -- out of it -------------------------------------------------------------------------------------

    def check_has(self, after: int) -> None:
        """Raises ApiError for a number that the stream has not reached, or that is no longer there."""
        reached = self._first + len(self._events)
        if after > reached:
            message = f"the stream has {reached} events, and so none behind number {after}"
            raise ApiError(400, message, code="event_not_reached", param="last-event-id")
        if after < self._first:
            message = f"the events up to number {self._first} are gone: there was no room for all of them"
            raise ApiError(410, message, code="events_gone", param="last-event-id")

    async def serve(self, after: int, receive: Receive, send: Send) -> None:
        """Write the answer to a client from behind an event on, until it is over or the client is gone."""
        reader = object()
        self.readers[reader] = after
        telling, leaving = asyncio.create_task(self._tell(reader, send)), asyncio.create_task(_gone(receive))
        try:
            await asyncio.wait((telling, leaving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (telling, leaving):
                task.cancel()
            await asyncio.gather(telling, leaving, return_exceptions=True)
            del self.readers[reader]
            self.alone_since = time.monotonic()
            self._read_on.set()
            if not (self.readers or self.is_kept or self._waited_for):
                await self.abort()

    async def _tell(self, reader: object, send: Send) -> None:
        while not self.status:
            if self.over:
                return
            await self._soon(None)
        await send({"type": "http.response.start", "status": self.status, "headers": self._headers})
        while True:
            fresh = self._piece(self.readers[reader] - self._first)
            if fresh:
                await send({"type": "http.response.body", "body": b"".join(fresh), "more_body": True})
                self.readers[reader] += len(fresh)
                self._read_on.set()
            elif self.over:
                break
            elif not await self._soon(KEEP_ALIVE_SECONDS) and self._frames.has_comments:
                await send({"type": "http.response.body", "body": _KEEP_ALIVE, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _soon(self, seconds: float | None) -> bool:
        """Wait until there is more; False where it took too long."""
        if self._more.is_set():
            self._more = asyncio.Event()  # others may wait for the one that is set
        more = self._more
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await more.wait()
        return more.is_set()

    def _piece(self, position: int) -> list[bytes]:
        """Events from a position on, no more than one write takes."""
        size, end = 0, position
        while end < len(self._events) and (end == position or size + len(self._events[end]) <= PIECE_BYTES):
            size += len(self._events[end])
            end += 1
        return self._events[position:end]


class KeptStreams:
    """All streams of one server that can be picked up."""

    def __init__(self, service: HttpService) -> None:
        self._service = service
        self._room = StreamRoom(service.keeping.streams_memory)
        self._streams: dict[str, KeptStream] = {}
        self._sweeping: asyncio.Task[None] | None = None

    def wants(self, ask: Ask) -> bool:
        """Whether a stream is to survive its client: as the client says, else as its model is configured."""
        return ask.stream and (self._service.keeps_streams(ask.model) if ask.resume is None else ask.resume)

    async def answer(self, ask: Ask, headers: Headers, write: Writes, receive: Receive, send: Send) -> int:
        """Answer a request whose stream is to be kept; return the status. Raises what nobody foresaw."""
        if self._sweeping is None:
            self._sweeping = asyncio.create_task(self._sweep())
        opened_by = credentials(headers) if self._service.callers.are_asked else None
        stream = KeptStream(ask, opened_by, self)
        stream.start(write)
        await stream.serve(0, receive, send)
        stream.raise_failure()
        return stream.status or CLIENT_GONE

    def keep(self, stream: KeptStream) -> None:
        self._streams.setdefault(stream.name, stream)

    def forget(self, stream: KeptStream) -> None:
        if self._streams.get(stream.name) is stream:
            del self._streams[stream.name]

    def hold(self, tenant: str, size: int) -> bool:
        """Answers that are over and that nobody reads make room, the oldest first, those of the tenant itself."""
        while not self._room.take(tenant, size):
            old = (one for one in self._streams.values() if one.over and not one.readers)
            first = next((one for one in old if one.ask.tenant == tenant), None)
            if first is None:
                return False
            first.drop()
        return True

    def give_back(self, tenant: str, size: int) -> None:
        self._room.give_back(tenant, size)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            now, draining = time.monotonic(), self._service.draining
            for stream in list(self._streams.values()):
                if not stream.readers and (draining or now >= stream.alone_since + KEPT_S):
                    await stream.abort()

    async def start(self) -> None:
        """Nothing is kept yet."""

    async def close(self) -> None:
        if self._sweeping is not None:
            self._sweeping.cancel()
            await asyncio.gather(self._sweeping, return_exceptions=True)
        await asyncio.gather(*(stream.abort() for stream in list(self._streams.values())))

    # -- endpoints -------------------------------------------------------------------------------------

    def endpoints(self) -> list[Endpoint]:
        return [
            Endpoint("GET", PATH + "/{stream}", self.pick_up),
            Endpoint("DELETE", PATH + "/{stream}", self.delete),
        ]

    async def pick_up(self, request: Request) -> Response:
        """The events behind number `Last-Event-ID`, or `?after=`, and all that follow."""
        stream = self._named(request)
        text = request.headers.get("last-event-id", request.query_params.get("after", "0"))
        if not (text.isascii() and text.isdigit() and len(text) <= 9):
            raise ApiError(400, "last-event-id: must be an event's number", param="last-event-id")
        stream.check_has(int(text))
        return _Continued(stream, int(text))

    async def delete(self, request: Request) -> Response:
        stream = self._named(request)
        await stream.abort()
        return json_response({"id": stream.ask.id, "object": "stream", "deleted": True})

    def _named(self, request: Request) -> KeptStream:
        name, owner = request.path_params["stream"], request.state.tenant
        stream = self._streams.get(name)
        mine = stream is not None and owner in (None, stream.ask.tenant)
        if (
            stream is None
            or not mine
            or stream.opened_by not in (None, credentials(headers_of(request.headers.raw)))
        ):
            message = (
                f"there is no stream {name[:80]!r}: one is kept where its request has `x-weighbridge-resume: true`, "
                f"for {KEPT_S:.0f} s behind its client, and for the key that opened it"
            )
            raise ApiError(404, message, code="stream_not_found")
        return stream


class _Continued(Response):
    """The rest of a stream."""

    def __init__(self, stream: KeptStream, after: int) -> None:
        super().__init__()
        self._stream, self._after = stream, after

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._stream.serve(self._after, receive, send)


def credentials(headers: Headers) -> str:
    """What shows who calls, so that it can be compared and not read."""
    shown = "\0".join(headers.get(name, "") for name in _CREDENTIALS)
    return blake2b(shown.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


async def _never() -> dict[str, Any]:
    """The log is there as long as the stream is."""
    await asyncio.Event().wait()
    raise AssertionError


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
