"""What a connection may cost: bytes and seconds of a request's head and body, and how many connections there are.

uvicorn bounds none of these with its quick parser. A head is held back until it is whole, so that one that never ends
costs `LARGEST_HEAD` bytes and is never parsed; silent connections end by themselves, and make room before that when
there are too many.
"""

from __future__ import annotations

import asyncio
import logging
import resource
from collections.abc import Mapping
from typing import Any

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from weighbridge.wire.errors import ApiError, error_body

log = logging.getLogger("weighbridge.server")

#: Bytes of request line and headers.
LARGEST_HEAD = 64 << 10
#: Seconds for a whole head, from the first moment of a connection or the first byte of a further request.
HEAD_SECONDS = 15.0
#: Seconds for a whole body behind its head.
BODY_SECONDS = 120.0
#: Seconds until it is looked again whether a client whose request we held back is late.
SHORTEST_LOOK = 0.1
#: Bytes of one answer that wait for the end of a turn of the loop.
MOST_GATHERED = 64 << 10
#: Requests that may wait on a connection for the answers of those before them.
MOST_PIPELINED = 32
#: Files that are not connections of clients: connections to replicas, models, logs.
RESERVED_FILES = 128
#: More connections than this are of no use to anybody.
MOST_CONNECTIONS = 50_000

_LINE = b"\r\n"
_END = b"\r\n\r\n"


class Gathering:
    """A transport whose writes of one turn of the loop go out together.

    An answer's head and its first event are two writes; together they are one system call, and the client wakes once.
    """

    __slots__ = ("_loop", "_parts", "_size", "_transport")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._parts: list[bytes] = []
        self._size = 0

    def write(self, data: bytes) -> None:
        if not self._parts:
            self._loop.call_soon(self.flush)
        self._parts.append(data)
        self._size += len(data)
        if self._size > MOST_GATHERED:  # a writer must feel that its reader is slow
            self.flush()

    def flush(self) -> None:
        parts = self._parts
        if parts:
            self._parts, self._size = [], 0
            if not self._transport.is_closing():  # else nobody is there to read it
                self._transport.write(parts[0] if len(parts) == 1 else b"".join(parts))

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
        self._held_s = self.held_s
        super().resume_reading()


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
        self._answered: RequestResponseCycle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._line = Gathering(transport, self.loop)
        super().connection_made(self._line)  # type: ignore[arg-type]
        self.flow: TimedFlow = TimedFlow(self._line, self.loop)  # type: ignore[arg-type]
        self._names = names_in(transport.get_extra_info("peercert") or {})
        self._expect(HEAD_SECONDS)
        if len(self.connections) > connection_limit():
            self._make_room()

    def eof_received(self) -> None:
        self._line.flush()  # asyncio closes behind a client that says no more
        super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self.pipeline.clear()
        self._give_up()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self._in_head:
            self._beside += len(data)
            super().data_received(data)
        elif self._fed:
            self._fed += len(data)
            super().data_received(data)
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
            super().data_received(without_upgrade(head))
        if max(self._fed, self._beside) > LARGEST_HEAD:
            self._refuse(431, f"the request's headers are larger than {LARGEST_HEAD >> 10} KiB; send less")
        elif self._in_head and not self._fed:
            self._stop_timer()  # nothing is under way: uvicorn's own keep-alive counts
            if self.cycle is not None and self.cycle.response_complete:  # or did, until this came too late
                self._expect(self.timeout_keep_alive)
        elif self._timer is None:
            self._expect(HEAD_SECONDS if self._in_head else BODY_SECONDS)

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
        super().on_body(body)

    def on_headers_complete(self) -> None:
        self._in_head, self._fed, self._beside = False, 0, 0
        self._stop_timer()
        super().on_headers_complete()

        if len(self.pipeline) > MOST_PIPELINED:
            self.transport.abort()
            raise ValueError("too many requests wait for the answers of those before them")

    def on_message_complete(self) -> None:
        self._in_head, self._fed, self._beside = True, 0, 0
        self._stop_timer()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.pipeline:  # what was read comes first
            self.flow.pause_reading()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
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
            self._answered.disconnected = True
            self._answered.message_event.set()

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
