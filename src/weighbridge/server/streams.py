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

from weighbridge.server.elsewhere.store import LogPart, LogPiece, Lost, StreamHead, StreamLog, StreamStore
from weighbridge.server.endpoint import Endpoint, HttpService, json_response
from weighbridge.wire.answer import CLIENT_GONE, KEEP_ALIVE_SECONDS
from weighbridge.wire.ask import Ask, Extension
from weighbridge.wire.body import until_gone
from weighbridge.wire.errors import ApiError, as_api_error, error_body
from weighbridge.wire.headers import Headers, headers_of
from weighbridge.wire.identity.callers import Peer, peer_of
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

#: Seconds between two looks into another gateway's log; seconds since somebody did that make our client there.
FOLLOW_S, READ_LATELY_S = 0.05, 5.0
#: Seconds for which another gateway's log may be out of reach until its stream ends with an error.
FOLLOW_PATIENCE_S = 30.0
#: Requests whose answers can go on at another gateway, and headers of theirs that say how they are to be treated.
_GOES_ON = ("/v1/chat/completions", "/v1/completions")
_SAID = tuple(
    f"x-weighbridge-{name.replace('_', '-')}" for name in Extension.__struct_fields__ if name != "tenant"
)
_IS_NAME = re.compile("[0-9a-f]{32}")
_NUMBER = re.compile(rb"^id: \d+\n", re.MULTILINE)
#: The end of an answer in the streams that can go on, and the last event behind it.
_FINISH = re.compile(rb'^data: \[DONE\]|"finish_reason": ?"', re.MULTILINE)
_DONE = re.compile(rb"^data: \[DONE\]", re.MULTILINE)

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
        self.count = 0  # of events so far

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
        self.count += 1
        name = b"" if self._is_lines else b"id: %d\n" % self.count
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
        self._failing = False  # it was to go on here, and what comes now says why it does not
        self._shared: Sharing | None = None
        self._log: StreamLog | None = None  # where other gateways can read it

    def share(self, sharing: Sharing) -> None:
        """Let other gateways read it, and go on with it should this one end."""
        self._shared = sharing

    def start(self, write: Writes) -> None:
        if self._waited_for:
            self._register.keep(self)
        self._task = asyncio.create_task(self._run(write))

    async def _run(self, write: Writes) -> None:
        try:
            await write(_never, self._send)
            await self._write_on([], is_last=True)
        finally:
            self.over = True
            self._more.set()

    async def abort(self, *, for_others: bool = False) -> None:
        """End it, if it is not over, and keep nothing of it; `for_others`: but what another gateway needs to go on."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._log is not None and not for_others:
            await self._log.drop()
        self.drop()

    def drop(self) -> None:
        """Keep nothing of it any more."""
        self._register.give_back(self.ask.tenant, self._size)
        self._size, self.is_kept, self._waited_for = 0, False, False
        if self._log is not None:
            self._log.give_back()
            self._log = None
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
            if self.status:  # it goes on here, and began elsewhere
                self._failing = message["status"] != 200
                return
            self._begin(message["status"], list(message["headers"]))
            if self.is_kept and self._shared is not None:
                self._log = await self._shared.begin(self.name, self.status, self._headers)
        elif self._failing:
            await self._add(self._frames.feed(_error_event(message.get("body", b"")), True))
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
        if events:
            await self._write_on(events)
        self._events += events
        if not self.is_kept:  # no faster than it is read
            self._more.set()
            while self.readers and self._unread:
                await self._progress()
            self._drop_read()

    async def _write_on(self, events: list[bytes], *, is_last: bool = False) -> None:
        """Write events where other gateways can read them, before any client does."""
        if self._log is None:
            return
        try:
            read = await self._log.append(self._first + len(self._events), events, is_last=is_last)
        except Exception as error:
            self._log.failed(error)
            self._log = None
        else:
            if 0.0 <= read < READ_LATELY_S:
                self.alone_since = time.monotonic()

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

    # -- from elsewhere --------------------------------------------------------------------------------

    def begun_elsewhere(self, status: int, headers: HeaderList) -> None:
        """Take over how an answer began that another gateway writes."""
        self.status, self._headers, self._waited_for = status, headers, False
        self._frames = StreamFrames(dict(headers).get(b"content-type", b""))
        self.is_kept = self._hold(STREAM_BYTES)

    def follow(self, work: Callable[[], Awaitable[None]]) -> None:
        """Have `work` bring what another gateway writes."""

        async def write(receive: Receive, send: Callable[[Any], Awaitable[None]]) -> int:
            await work()
            return self.status

        self._task = asyncio.create_task(self._run(write))

    async def take(self, piece: LogPiece) -> None:
        """Take in events that another gateway has written, if they are the next. Raises Lost."""
        if piece.first != self._first + len(self._events):
            raise Lost("its log has a gap")
        await self._add(piece.events)
        self._frames.count = self._first + len(self._events)
        self._more.set()

    def written_here(self, ask: Ask, log: StreamLog) -> tuple[bytes, ...]:
        """It is written here from now on; return what has been sent of it, without what we had added."""
        self.ask, self._log = ask, log
        return tuple(_NUMBER.sub(b"", event, count=1) for event in self._events)

    async def write_on(self, write: Writes) -> None:
        await write(_never, self._send)

    async def fail(self, body: bytes) -> None:
        """End it with an error."""
        await self._add(self._frames.feed(_error_event(body), True))

    @property
    def is_whole(self) -> bool:
        """Whether what was sent ends as an answer does."""
        return bool(self._events) and any(_FINISH.search(event) for event in self._events[-4:])

    async def say_done(self) -> None:
        """Add the last event, where it is lacking: who wrote the rest did not come to it."""
        if not _DONE.search(self._events[-1]):
            await self._add(self._frames.feed(b"data: [DONE]\n\n", True))

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
        telling, leaving = (
            asyncio.create_task(self._tell(reader, send)),
            asyncio.create_task(until_gone(receive)),
        )
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
    """All streams of one server that can be picked up.

    `go_on`: reads a request again that another gateway had; the door says how. None: nothing goes on here.
    """

    def __init__(self, service: HttpService) -> None:
        self.go_on: GoOn | None = None
        self._service = service
        self._room = StreamRoom(service.keeping.streams_memory)
        self._streams: dict[str, KeptStream] = {}
        self._sweeping: asyncio.Task[None] | None = None

    def wants(self, ask: Ask) -> bool:
        """Whether a stream is to survive its client: as the client says, else as its model is configured."""
        return ask.stream and (self._service.keeps_streams(ask.model) if ask.resume is None else ask.resume)

    async def answer(self, ask: Ask, headers: Headers, write: Writes, receive: Receive, send: Send) -> int:
        """Answer a request whose stream is to be kept; return the status. Raises what nobody foresaw."""
        self._begin_sweeping()
        opened_by = credentials(headers) if self._service.callers.are_asked else None
        stream = KeptStream(ask, opened_by, self)
        if (store := self._service.stream_store) is not None:
            stream.share(Sharing(store, ask, opened_by, headers))
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
                    await stream.abort(for_others=draining)

    async def start(self) -> None:
        """Nothing is kept yet."""

    async def close(self) -> None:
        if self._sweeping is not None:
            self._sweeping.cancel()
            await asyncio.gather(self._sweeping, return_exceptions=True)
        await asyncio.gather(*(one.abort(for_others=True) for one in list(self._streams.values())))
        if self._service.stream_store is not None:
            await self._service.stream_store.close()

    # -- endpoints -------------------------------------------------------------------------------------

    def endpoints(self) -> list[Endpoint]:
        return [
            Endpoint("GET", PATH + "/{stream}", self.pick_up),
            Endpoint("DELETE", PATH + "/{stream}", self.delete),
        ]

    async def pick_up(self, request: Request) -> Response:
        """The events behind number `Last-Event-ID`, or `?after=`, and all that follow."""
        stream = await self._named(request)
        text = request.headers.get("last-event-id", request.query_params.get("after", "0"))
        if not (text.isascii() and text.isdigit() and len(text) <= 9):
            raise ApiError(400, "last-event-id: must be an event's number", param="last-event-id")
        stream.check_has(int(text))
        return _Continued(stream, int(text))

    async def delete(self, request: Request) -> Response:
        stream = await self._named(request)
        await stream.abort()
        return json_response({"id": stream.ask.id, "object": "stream", "deleted": True})

    async def _named(self, request: Request) -> KeptStream:
        name = request.path_params["stream"]
        stream = self._streams.get(name) or await self._elsewhere(name, request)
        if stream is None or not _may_read(request, stream.ask.tenant, stream.opened_by):
            message = (
                f"there is no stream {name[:80]!r}: one is kept where its request has `x-weighbridge-resume: true`, "
                f"for {KEPT_S:.0f} s behind its client, and for the key that opened it"
            )
            raise ApiError(404, message, code="stream_not_found")
        return stream

    def _begin_sweeping(self) -> None:
        if self._sweeping is None:
            self._sweeping = asyncio.create_task(self._sweep())

    # -- streams of other gateways ---------------------------------------------------------------------

    async def _elsewhere(self, name: str, request: Request) -> KeptStream | None:
        """A stream that another gateway began; None where there is none for whoever asks."""
        store = self._service.stream_store
        if store is None or not _IS_NAME.fullmatch(name):
            return None
        try:
            part = await store.read(name, 0)
        except Lost:
            return None
        except Exception as error:
            store.failed(error)
            return None
        head, headers = part.head, headers_of(request.headers.raw)
        if head is None or not _may_read(request, head.tenant, head.opened_by):
            return None
        self._begin_sweeping()
        stream = KeptStream(Ask(name, head.path, {}, "", head.tenant, stream=True), head.opened_by, self)
        stream.begun_elsewhere(head.status, head.headers)
        follower = LogFollower(store, stream, head, part, self.go_on, headers, peer_of(request.scope))
        try:
            await follower.catch_up()
        except Lost:
            stream.drop()
            return None
        except Exception as error:
            store.failed(error)
            stream.drop()
            return None
        if name in self._streams:
            stream.drop()
            return self._streams[name]
        self.keep(stream)
        stream.follow(follower.run)
        return stream


class Sharing:
    """How one stream is shared with other gateways."""

    def __init__(self, store: StreamStore, ask: Ask, opened_by: str | None, headers: Headers) -> None:
        self._store, self._ask, self._opened_by = store, ask, opened_by
        said = {name: headers.get(name, "") for name in _SAID}
        self._said = {name: value for name, value in said.items() if value}

    async def begin(self, name: str, status: int, headers: HeaderList) -> StreamLog | None:
        ask = self._ask
        head = StreamHead(ask.tenant, self._opened_by, status, headers, ask.path, ask.raw, self._said)
        return await self._store.begin(name, head)


class LogFollower:
    """Brings one stream from another gateway's log, and goes on with it where that gateway has ended."""

    def __init__(
        self,
        store: StreamStore,
        stream: KeptStream,
        head: StreamHead,
        part: LogPart,
        go_on: GoOn | None,
        headers: Headers,
        peer: Peer,
    ) -> None:
        self._store, self._stream, self._head, self._part = store, stream, head, part
        self._go_on, self._headers, self._peer = go_on, {**headers, **head.said}, peer
        self._pieces = 0
        self._ended = False

    async def catch_up(self) -> None:
        """Take in all that is written by now. Raises Lost, and whatever the Redis client raises."""
        self._ended = await self._took()
        while self._part.pieces and not self._ended:
            self._part = await self._store.read(self._stream.name, self._pieces)
            self._ended = await self._took()

    async def run(self) -> None:
        try:
            while not self._ended:
                if not self._part.pieces:
                    if self._store.is_gone(self._part.owner) and await self._continued():
                        return
                    await asyncio.sleep(FOLLOW_S)
                self._part = await self._read()
                self._ended = await self._took()
        except Lost as why:
            await self._stream.fail(
                error_body(ApiError(410, f"the stream ends here: {why}", code="stream_gone"))
            )
        except Exception as error:  # no stream ends without a word
            log.exception("stream %s could not go on here", self._stream.name)
            await self._stream.fail(error_body(as_api_error(error)))

    async def _read(self) -> LogPart:
        """What was written since; a Redis that is slow or away is asked again for a while. Raises Lost."""
        until = time.monotonic() + FOLLOW_PATIENCE_S
        while True:
            try:
                return await self._store.read(self._stream.name, self._pieces)
            except Lost:
                raise
            except Exception as error:
                self._store.failed(error)
                if time.monotonic() >= until:
                    raise Lost("its log cannot be read") from error
                await asyncio.sleep(FOLLOW_S)

    async def _took(self) -> bool:
        """Take in what was read; whether that was the end."""
        for piece in self._part.pieces:
            self._pieces += 1
            await self._stream.take(piece)
            if piece.is_last:
                return True
        return False

    async def _continued(self) -> bool:
        """Go on with it here; False where another gateway does."""
        stream, head = self._stream, self._head
        if not await self._store.claim(stream.name, self._part.owner):
            return False
        self._part = await self._read()
        if await self._took():  # its owner lived longer than we thought
            return True
        log = StreamLog(self._store, stream.name, 0, self._pieces)
        if self._go_on is None or head.path not in _GOES_ON or not head.body:
            raise Lost("the gateway that served it is gone")
        try:
            ask, write = await self._go_on(head.path, head.body, self._headers, self._peer)
        except Exception as error:
            await stream.fail(error_body(as_api_error(error)))
            return True
        ask.id, ask.proposed_id = stream.name, True
        ask.sent = stream.written_here(ask, log)
        await (stream.say_done() if stream.is_whole else stream.write_on(write))
        return True


def _may_read(request: Request, tenant: str, opened_by: str | None) -> bool:
    """Whether whoever asks may have a stream of a tenant, bound to what its client showed."""
    shown = credentials(headers_of(request.headers.raw))
    return request.state.tenant in (None, tenant) and opened_by in (None, shown)


#: Reads a request that another gateway had: its path, body, headers, and who asks for the rest of its answer.
GoOn = Callable[[str, bytes, Headers, Peer], Awaitable[tuple[Ask, Writes]]]


class _Continued(Response):
    """The rest of a stream."""

    def __init__(self, stream: KeptStream, after: int) -> None:
        super().__init__()
        self._stream, self._after = stream, after

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._stream.serve(self._after, receive, send)


def _error_event(body: bytes) -> bytes:
    return b"data: " + body.replace(b"\n", b" ") + b"\n\ndata: [DONE]\n\n"


def credentials(headers: Headers) -> str:
    """What shows who calls, so that it can be compared and not read."""
    shown = "\0".join(headers.get(name, "") for name in _CREDENTIALS)
    return blake2b(shown.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


async def _never() -> dict[str, Any]:
    """The log is there as long as the stream is."""
    await asyncio.Event().wait()
    raise AssertionError
