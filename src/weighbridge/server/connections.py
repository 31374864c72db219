"""What a connection may cost: bytes and seconds of a request's head and body, and how many connections there are.

uvicorn bounds none of these with its quick parser. A head is held back until it is whole, so that one that never ends
costs `LARGEST_HEAD` bytes and is never parsed; silent connections end by themselves, and make room before that when
there are too many. And one request with its answer, `Exchange`, at the price that a gateway can afford.
"""

from __future__ import annotations

import asyncio
import logging
import math
import resource
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from typing import Any, cast
from urllib.parse import unquote

from httptools import HttpParserError, HttpParserUpgrade, parse_url
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.httptools_impl import (
    HEADER_RE,
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from weighbridge.wire.answer import MOST_NAMES
from weighbridge.wire.errors import ApiError, error_body
from weighbridge.wire.identity.access import no_host

log = logging.getLogger("weighbridge.server")

#: Bytes of request line and headers.
LARGEST_HEAD = 64 << 10
#: Seconds for a whole head, from the first moment of a connection or the first byte of a further request.
HEAD_SECONDS = 15.0
#: Seconds for a whole body behind its head.
BODY_SECONDS = 120.0
#: Seconds until it is looked again whether a client whose request we held back is late.
SHORTEST_LOOK = 0.1
#: Requests that may wait on a connection for the answers of those before them.
MOST_PIPELINED = 32
#: Files that are not connections of clients: connections to replicas, models, logs.
RESERVED_FILES = 128
#: More connections than this are of no use to anybody.
MOST_CONNECTIONS = 50_000

_LINE = b"\r\n"
_END = b"\r\n\r\n"


class Gathering:
    """A transport that can hold something back until the next write, or the end of this turn of the loop.

    An answer's head and its first event are two writes; together they are one system call, and the client wakes once.
    """

    __slots__ = ("_held", "_loop", "_transport", "is_closing")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held = b""
        self.is_closing = transport.is_closing

    def hold(self, data: bytes) -> None:
        """Write `data` together with what comes next, if that comes soon."""
        if not self._held:
            self._loop.call_soon(self.flush)
        self._held += data

    def write(self, data: bytes) -> None:
        if self._held:
            data, self._held = self._held + data, b""
        if not self.is_closing():  # else nobody is there to read it
            self._transport.write(data)

    def flush(self) -> None:
        """Write what is held."""
        if self._held:
            self.write(b"")

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        """Everything else is the transport's own."""
        return getattr(self._transport, name)


class TimedFlow(FlowControl):
    """Knows for how long we did not read."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(transport)
        self._loop = loop
        self._held_s = 0.0
        self._since = 0.0

    @property
    def held_s(self) -> float:
        """Seconds in which nothing was read, because what had come was not wanted yet."""
        return self._held_s + (self._loop.time() - self._since if self.read_paused else 0.0)

    def pause_reading(self) -> None:
        if not self.read_paused:
            self._since = self._loop.time()
        super().pause_reading()

    def resume_reading(self) -> None:
        if self.read_paused:
            self._held_s = self.held_s
            super().resume_reading()


class _News:
    """What `asyncio.Event` does for one waiter, who takes its word back at once."""

    __slots__ = ("_is_set", "_waiter")

    def __init__(self) -> None:
        self._is_set = False
        self._waiter: asyncio.Future[None] | None = None

    def set(self) -> None:
        self._is_set = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def taken(self, loop: asyncio.AbstractEventLoop) -> None:
        """Wait until it is set, and take it back."""
        if not self._is_set:
            self._waiter = loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        self._is_set = False


class Exchange(RequestResponseCycle):
    """One request and its answer: uvicorn's cycle, with its rules, written for many small answers.

    Names of headers are checked once and remembered, values all together; and whoever answers can be told that the
    client is gone, instead of keeping a task that waits for it.
    """

    def __init__(self, protocol: BoundedHttp, scope: dict[str, Any], keep_alive: bool) -> None:
        self.scope = scope  # type: ignore[assignment]
        self.transport = protocol.transport
        self._line = protocol.line
        self.flow = protocol.flow
        self.logger = protocol.logger
        self.access_logger, self.access_log = protocol.access_logger, protocol.access_log
        self.default_headers = protocol.server_state.default_headers
        self.on_response = protocol.on_response_complete
        self.message_event: _News = _News()  # type: ignore[assignment]
        self.disconnected = False
        self.keep_alive = keep_alive
        self.waiting_for_100_continue = protocol.expect_100_continue
        self.body = bytearray()
        self.more_body = True
        self.response_started = self.response_complete = False
        self.chunked_encoding: bool | None = None
        self.expected_content_length = 0
        self._ends_with_line = False  # nothing else says where the body ends
        self._loop = protocol.loop
        self._gone: Callable[[], None] | None = None

    def when_gone(self, then: Callable[[], None] | None) -> None:
        """Have `then` called once the client is gone before its answer is whole. None: nobody has to be told."""
        self._gone = then
        if then is not None:
            self.flow.resume_reading()  # who does not read sees nobody go
            if self.disconnected:
                self._loop.call_soon(self.leave)

    def leave(self) -> None:
        """Take note that the client is gone."""
        self.disconnected = True
        self.message_event.set()
        gone, self._gone = self._gone, None
        if gone is not None:
            gone()

    async def send(self, message: MutableMapping[str, Any]) -> None:  # type: ignore[override]
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        kind = message["type"]
        if not self.response_started:
            if kind != "http.response.start":
                raise RuntimeError(f"Expected ASGI message 'http.response.start', but got '{kind}'.")
            self._start(message["status"], message.get("headers", ()))
        elif self.response_complete:
            raise RuntimeError(f"Unexpected ASGI message '{kind}' sent, after response already completed.")
        elif kind != "http.response.body":
            raise RuntimeError(f"Expected ASGI message 'http.response.body', but got '{kind}'.")
        else:
            self._write(message.get("body", b""), bool(message.get("more_body", False)))

    async def receive(self) -> dict[str, Any]:  # type: ignore[override]
        if self.waiting_for_100_continue and not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.waiting_for_100_continue = False
        if not self.disconnected and not self.response_complete:
            self.flow.resume_reading()
            await self.message_event.taken(self._loop)
        if self.disconnected or self.response_complete:
            return {"type": "http.disconnect"}
        body, self.body = bytes(self.body), bytearray()
        return {"type": "http.request", "body": body, "more_body": self.more_body}

    def _start(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Write the head. Raises RuntimeError for a header that is none."""
        self.response_started = True
        self.waiting_for_100_continue = False
        lines, closes = [STATUS_LINE[status][: -len(_LINE)]], False
        for name, value in self.default_headers:
            lines.append(_NAMES.get(name, name + b": ") + value)
        headers = list(headers)
        try:  # nearly always all are known, and none is heeded
            lines += [_NAMES[name] + value for name, value in headers]
        except KeyError:
            closes = self._take_note(headers, lines)
        if not self.keep_alive and not closes:
            lines.append(b"connection: close")
        if self.chunked_encoding is None and self.scope["method"] != "HEAD" and status not in (204, 304):
            if self.scope["http_version"] == "1.0":  # it knows no chunks
                self._ends_with_line = True
            else:
                self.chunked_encoding = True
                lines.append(b"transfer-encoding: chunked")
        head = b"\r\n".join(lines)
        if len(head) - len(head.translate(None, _NO_VALUE)) != len(_LINE) * (len(lines) - 1):
            raise RuntimeError("Invalid HTTP header value.")
        self._line.hold(head + _END)

    def _take_note(self, headers: Iterable[tuple[bytes, bytes]], lines: list[bytes]) -> bool:
        """Add the lines of headers, some of which are new or heeded; True where one says that the connection closes."""
        closes = False
        for name, value in headers:
            known = _NAMES.get(name)
            if known is None:
                known = _name_of(name)
                closes = (known in _TELLING and self._heed(known, value)) or closes
            lines.append(known + value)
        return closes

    def _heed(self, name: bytes, value: bytes) -> bool:
        """Take note of a header that says how the body comes; True where it says that the connection closes."""
        if name == _LENGTH:
            if self.chunked_encoding is None:
                self.expected_content_length, self.chunked_encoding = int(value), False
        elif name == _CODING:
            if value.lower() == b"chunked":
                self.expected_content_length, self.chunked_encoding = 0, True
        elif b"close" in [word.strip() for word in value.lower().split(b",")]:
            self.keep_alive = False
            return True
        return False

    def _write(self, body: bytes, more: bool) -> None:
        """Write a piece of the body, or the last."""
        if self.scope["method"] == "HEAD":
            self.expected_content_length = 0
        elif self.chunked_encoding:
            if body:
                self.transport.write(
                    b"%x\r\n%b\r\n" % (len(body), body)
                    if more
                    else b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
                )
            elif not more:
                self.transport.write(b"0\r\n\r\n")
        else:
            if not self._ends_with_line:
                self.expected_content_length -= len(body)
            if self.expected_content_length < 0:
                raise RuntimeError("Response content longer than Content-Length")
            self.transport.write(body)
        if not more:
            if self.expected_content_length != 0:
                raise RuntimeError("Response content shorter than Content-Length")
            self.response_complete = True
            self.message_event.set()
            if not self.keep_alive:
                self.transport.close()
            self.on_response()


_LENGTH, _CODING = b"content-length: ", b"transfer-encoding: "
#: Headers that say how a body comes, or that the connection closes behind it.
_TELLING = frozenset({_LENGTH, _CODING, b"connection: "})
#: What no value of a header may hold.
_NO_VALUE = bytes([*range(9), *range(10, 32), 127])
#: Names of headers as they are written, checked before; others than our own come from replicas, so there is a bound.
_NAMES: dict[bytes, bytes] = {}


def _name_of(name: bytes) -> bytes:
    """A header's name as it is written. Raises RuntimeError for what is none."""
    if HEADER_RE.search(name):
        raise RuntimeError("Invalid HTTP header name.")
    known = name.lower() + b": "
    if len(_NAMES) < MOST_NAMES and known not in _TELLING:
        _NAMES[name] = known
    return known


#: Paths of requests as they were read before: most clients ask for a few.
_PATHS: dict[bytes, tuple[str, bytes, bytes]] = {}
MOST_PATHS, LONGEST_PATH = 256, 256


def _path_of(url: bytes) -> tuple[str, bytes, bytes]:
    """Path, path as it was written, and query of a request's target. Raises HttpParserInvalidURLError."""
    known = _PATHS.get(url)
    if known is None:
        parsed = parse_url(url)
        raw = parsed.path
        path = raw.decode("ascii")
        known = unquote(path) if "%" in path else path, raw, parsed.query or b""
        if len(_PATHS) < MOST_PATHS and len(url) <= LONGEST_PATH:
            _PATHS[url] = known
    return known


class BoundedHttp(HttpToolsProtocol):
    """uvicorn's HTTP/1.1, with bounds. Upgrades are not offered: what asks for one is served as it is."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._head = b""  # of a request, until it is whole
        self._in_head = True
        self._fed = (
            0  # bytes of an unfinished head that the parser has already: it came behind another request
        )
        self._beside = 0  # bytes since the last of a body: frames of chunks, lines behind the last one
        self._timer: asyncio.TimerHandle | None = None
        self._held_before = 0.0  # seconds that we did not read before the timer began
        self._names: tuple[str, ...] = ()  # in the certificate that the client showed
        # The request that is being answered: uvicorn's `cycle` is the one that was read last.
        self._answered: Exchange | None = None
        self._unused_since = math.inf  # when the last answer was whole, while nothing has come since
        self._leaves = False  # the next answer is the last here

    def leave(self, unused_s: float) -> None:
        """Close behind the next answer, or now where nothing was asked for so many seconds."""
        self._leaves = True
        if self._unused_since <= self.loop.time() - unused_s and not self.transport.is_closing():
            self.transport.close()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.line = Gathering(transport, self.loop)
        super().connection_made(self.line)  # type: ignore[arg-type]
        self.flow: TimedFlow = TimedFlow(self.line, self.loop)  # type: ignore[arg-type]
        self._names = names_in(transport.get_extra_info("peercert") or {})
        self._expect(HEAD_SECONDS)
        if len(self.connections) > connection_limit():
            self._make_room()

    def eof_received(self) -> None:
        self.line.flush()  # asyncio closes behind a client that says no more
        super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self.pipeline.clear()
        self._give_up()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self._in_head:
            self._beside += len(data)
            self._feed(data)
        elif self._fed:
            self._fed += len(data)
            self._feed(data)
        else:
            self._head = self._head + data if self._head else data.lstrip(_LINE)
            if not self._head:  # empty lines before a request are none, and hold no connection
                return
            if _END not in self._head:
                if len(self._head) > LARGEST_HEAD:
                    self._refuse(
                        431, f"the request's headers are larger than {LARGEST_HEAD >> 10} KiB; send less"
                    )
                elif self._timer is None:
                    self._expect(HEAD_SECONDS)
                return
            head, self._head = self._head, b""
            if head.index(_END) > LARGEST_HEAD:
                self._refuse(
                    431, f"the request's headers are larger than {LARGEST_HEAD >> 10} KiB; send less"
                )
                return
            self._feed(without_upgrade(head))
        if max(self._fed, self._beside) > LARGEST_HEAD:
            self._refuse(431, f"the request's headers are larger than {LARGEST_HEAD >> 10} KiB; send less")
        elif self._in_head and not self._fed:
            self._stop_timer()  # nothing is under way: uvicorn's own keep-alive counts
            if self.cycle is not None and self.cycle.response_complete:  # or did, until this came too late
                self._expect(self.timeout_keep_alive)
        elif self._timer is None:
            self._expect(HEAD_SECONDS if self._in_head else BODY_SECONDS)

    def _feed(self, data: bytes) -> None:
        self._unused_since = math.inf
        try:
            self.parser.feed_data(data)
        except HttpParserError:
            message = "Invalid HTTP request received."
            self.logger.warning(message)
            self.send_400_response(message)
        except HttpParserUpgrade:
            self._unsupported_upgrade_warning()

    @property
    def is_silent(self) -> bool:
        """Whether no request is under way and none was ever sent."""
        return self.cycle is None

    # -- the parser ------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._names:
            self.scope["extensions"] = {"tls": {"client_names": self._names}}
        self._in_head, self._fed = True, 1

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # what comes behind a body is believed by nobody: no proxy has looked at it
            super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        self._beside = 0
        cycle = self.cycle
        if not cycle.response_complete:
            cycle.body += body
            if len(cycle.body) > HIGH_WATER_LIMIT:
                self.flow.pause_reading()
            cycle.message_event.set()

    def on_headers_complete(self) -> None:
        self._in_head, self._fed, self._beside = False, 0, 0
        self._stop_timer()
        parser, scope, before = self.parser, self.scope, self.cycle
        version = parser.get_http_version()
        scope["method"] = parser.get_method().decode("ascii")
        if version != "1.1":
            scope["http_version"] = version
        path, raw, query = _path_of(self.url)
        if self.root_path:
            path, raw = self.root_path + path, self.root_path.encode("ascii") + raw
        scope["path"], scope["raw_path"], scope["query_string"] = path, raw, query
        stays = version != "1.0" and parser.should_keep_alive() and not self._leaves
        app = self.app
        if version == "1.1" and not any(name == b"host" for name, _ in self.headers):
            app, stays = _without_host, False
        cycle = self.cycle = Exchange(self, scope, stays)  # type: ignore[arg-type]
        if before is None or before.response_complete:
            self._start_asgi_task(cycle, app)
        else:  # behind others that are not answered yet
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, app))
        if len(self.pipeline) > MOST_PIPELINED:
            self.transport.abort()
            raise ValueError("too many requests wait for the answers of those before them")

    def on_message_complete(self) -> None:
        self._in_head, self._fed, self._beside = True, 0, 0
        self._stop_timer()
        cycle = self.cycle
        if not cycle.response_complete:
            cycle.more_body = False
            cycle.message_event.set()

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if not self.pipeline:
            self._unused_since = self.loop.time()
            if self.timeout_keep_alive_task is None:
                self._close_unused_in(self.timeout_keep_alive)
            return
        cycle, app = self.pipeline.pop()
        self._start_asgi_task(cast(Exchange, cycle), app)
        if self.pipeline:  # what was read comes first
            self.flow.pause_reading()

    def _close_unused_in(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def timeout_keep_alive_handler(self) -> None:
        """Close a connection that was not used for long: one timer for many answers, which looks how long it was."""
        self.timeout_keep_alive_task = None
        if self._unused_since < math.inf and not self.transport.is_closing():
            left = self._unused_since + self.timeout_keep_alive - self.loop.time()
            if left > 0.0:
                self._close_unused_in(max(left, SHORTEST_LOOK))
            else:
                self.transport.close()

    def _start_asgi_task(self, cycle: Exchange, app: Any) -> None:  # type: ignore[override]
        self._answered = cycle
        super()._start_asgi_task(cycle, app)

    # -- bounds ----------------------------------------------------------------------------------------

    def _expect(self, seconds: float) -> None:
        self._held_before = self.flow.held_s
        self._timer = self.loop.call_later(seconds, self._late)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        self._timer = None
        if (held := self.flow.held_s - self._held_before) > 0.0:  # that was our time and not the client's
            self._expect(max(held, SHORTEST_LOOK))
        elif self._in_head and not self._head and not self._fed:
            self.transport.close()  # it asks for nothing
        else:
            what = "headers" if self._in_head else "body"
            self._refuse(408, f"the request's {what} did not come in time; send it again")

    def _refuse(self, status: int, message: str) -> None:
        """Say why, unless an answer has begun, and close."""
        self._stop_timer()
        if not self.transport.is_closing():
            answered = self._answered
            if answered is None or answered.response_complete or not answered.response_started:
                body = error_body(ApiError(status, message, code=_CODES[status]))
                head = f"HTTP/1.1 {status} {_WORDS[status]}\r\ncontent-type: application/json\r\n"
                head += f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
                self.transport.write(head.encode() + body)
            self.transport.close()
        self._give_up()

    def _give_up(self) -> None:
        """Tell whoever answers that nobody listens any more."""
        if self._answered is not None and not self._answered.response_complete:
            self._answered.leave()

    def _make_room(self) -> None:
        """There are too many connections: the longest silent one goes, else this one."""
        for other in list(self.connections):
            if other is not self and isinstance(other, BoundedHttp) and other.is_silent:
                self.connections.discard(other)
                other.transport.abort()
                return
        self._refuse(503, "the server has too many connections; try again in a moment")


_WORDS = {408: "Request Timeout", 431: "Request Header Fields Too Large", 503: "Service Unavailable"}
_CODES = {408: "request_timeout", 431: "headers_too_large", 503: "too_many_connections"}


async def _without_host(scope: Any, receive: Any, send: Any) -> None:
    """Answer a request that names no host: RFC 9112 has servers refuse it."""
    body = error_body(no_host())
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 400, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def without_upgrade(head: bytes) -> bytes:
    """A head that asks for another protocol, as a plain HTTP/1.1 request: clients such as the JDK's always ask."""
    end = head.index(_END)
    if b"\r\nupgrade:" not in head[:end].lower():
        return head
    kept = []
    for line in head[:end].split(b"\r\n"):
        name, _, value = line.partition(b":")
        low = name.strip().lower()
        if low in (b"upgrade", b"http2-settings"):
            continue
        if low == b"connection":
            words = [word.strip() for word in value.split(b",")]
            words = [word for word in words if word.lower() not in (b"upgrade", b"http2-settings")]
            if not words:
                continue
            line = name + b": " + b", ".join(words)
        kept.append(line)
    return b"\r\n".join(kept) + head[end:]


def raise_file_limit() -> None:
    """Let the process open as many files as it is allowed to: each connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_CONNECTIONS + RESERVED_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


def connection_limit() -> int:
    """Connections of clients that this process takes."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return MOST_CONNECTIONS
    return max(min(soft - RESERVED_FILES, MOST_CONNECTIONS), 16)


def names_in(certificate: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names in a certificate as `ssl` tells it, such as `CN:batch` and `DNS:batch.example`."""
    subject = [pair for entry in certificate.get("subject", ()) for pair in entry]
    names = [f"CN:{value}" for kind, value in subject if kind == "commonName"]
    kinds = {"DNS": "DNS", "URI": "URI", "email": "EMAIL"}
    alternative = certificate.get("subjectAltName", ())
    names += [f"{kinds[kind]}:{value}" for kind, value in alternative if kind in kinds]
    return tuple(names)
