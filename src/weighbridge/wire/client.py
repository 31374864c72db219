"""Connections to one HTTP/1.1 server, and its answers piece by piece.

A general client spends more on a request, and on every piece of a stream, than all the rest of the gateway does for
it. A gateway needs little of what such a client can do: its answers go on as they are, so there are no cookies,
redirects, compression or encodings here; one parser feeds one reader. The parser is httptools', that of the server.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from base64 import b64encode
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from aiohappyeyeballs import start_connection
from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser
from yarl import URL

from weighbridge.secret import Secret, split_account
from weighbridge.shared_timer import SharedTimer

#: Seconds for which an unused connection is kept.
KEEP_SECONDS = 20.0
#: Bytes that wait for a slow reader before the server is held back.
_LARGEST_BUFFER = 1 << 18
#: A server that never ends its headers must not fill our memory.
_LARGEST_HEAD = 1 << 17
#: Head start of an address over the next one of the same host (RFC 8305).
_NEXT_ADDRESS_AFTER = 0.25


def spoken(error: OSError | ValueError) -> str:
    """Why a file or the network failed, in words: no numbers, no tuples. Empty where nothing is said."""
    if isinstance(error, OSError) and error.errno is not None and type(error).__module__ != "ssl":
        is_name = isinstance(error, socket.gaierror)  # its numbers are of another table
        text = (error.strerror if is_name else os.strerror(error.errno)) or ""
        return text[:1].lower() + text[1:]
    return str(error)


class Unreachable(ConnectionError):
    """No connection: refused, no such host, a certificate that is not believed, or no answer in time."""


class Response:
    """One answer. `status` and `headers` (names in lower case) are there after `begin`; `ended`: all of it has come.

    `answered`: anything has come back; before, a kept connection may have been closed under our request.
    """

    __slots__ = (
        "_connection",
        "_error",
        "_waiter",
        "answered",
        "ended",
        "headers",
        "pieces",
        "size",
        "status",
        "timer",
    )

    def __init__(self, connection: _Connection, timer: SharedTimer) -> None:
        """`timer`: where its client notes who has waited for too long, its reader too."""
        self.timer = timer
        self.status = 0
        self.headers: dict[str, str] = {}
        self.answered = False
        self.ended = False
        self._connection: _Connection | None = connection
        self.pieces: list[bytes] = []
        self.size = 0
        self._error: OSError | None = None
        self._waiter: asyncio.Future[None] | None = None

    async def begin(self, limit: float | None) -> None:
        """Wait for status and headers. Raises TimeoutError after `limit` seconds, and ConnectionError."""
        if limit is not None:
            self.timer.set(self, asyncio.get_running_loop().time() + limit)
        try:
            while not self.status:
                await self._more()
        except BaseException:
            self.close()
            raise
        finally:
            self.timer.discard(self)

    def overdue(self, now: float) -> None:
        """Hear that status and headers have not come in time."""
        self.cut(TimeoutError())

    async def read(self) -> bytes:
        """All that came since the last time, waiting until there is something; empty at the end.

        Raises ConnectionError when the answer broke off, behind what came before.
        """
        pieces = self.pieces
        while not pieces:
            if self.ended:
                return b""
            await self._more()
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        self.size = 0
        connection = self._connection
        if connection is not None and connection.held_back:
            connection.go_on()
        return data

    async def whole(self, max_bytes: int) -> bytes:
        """Return the rest of the body in one piece; a longer body is cut off, and its connection with it."""
        body = bytearray()  # which takes small pieces without being copied for each
        try:
            while len(body) < max_bytes and (data := await self.read()):
                body += data
        finally:
            self.close()
        return bytes(body[:max_bytes])

    def close(self) -> None:
        """After the end this does nothing; before it, the server sees the connection go."""
        self.cut(ConnectionAbortedError("closed by its reader"))

    def cut(self, error: OSError) -> None:
        """There will be no more: whoever reads gets `error`."""
        if not self.ended and self._error is None:
            self._error = error
            if self._connection is not None:
                self._connection.drop()
                self._connection = None
            self.wake()

    async def _more(self) -> None:
        if self._error is not None:
            raise self._error
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    # -- called by the connection ----------------------------------------------------------------------

    def wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def end(self) -> None:
        self.ended = True
        self._connection = None

    @property
    def until_close(self) -> bool:
        """Whether its body is as long as the connection lasts."""
        return bool(self.status) and not {"content-length", "transfer-encoding"} & self.headers.keys()


class _Connection(asyncio.Protocol):
    """One answer at a time; then it goes back to `HttpClient`."""

    transport: asyncio.Transport

    def __init__(self, client: HttpClient) -> None:
        self._client = client
        #: What came of bodies and was not handed over yet. The parser, which asks once for its methods, appends to it
        #: itself: a stream has a piece for each of its events.
        self._body: list[bytes] = []
        self.on_body = self._body.append
        self._parser = HttpResponseParser(self)
        self._response: Response | None = None
        self._head = 0  # bytes so far that are of no body: of headers, and of lines behind the last chunk
        self.held_back = False
        self._kept = True
        self.idle_since = 0.0

    def send(self, request: bytes) -> Response:
        self._response = response = Response(self, self._client.timer())
        self._head = 0
        self.transport.write(request)
        return response

    def go_on(self) -> None:
        if self.held_back:
            self.held_back = False
            self.transport.resume_reading()

    def drop(self) -> None:
        self._response = None
        self.transport.abort()

    # -- the transport ---------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._client.connections.add(self)

    def data_received(self, data: bytes) -> None:
        response = self._response
        if response is None:  # nobody asked: some servers say goodbye before they close
            self.transport.abort()
            return
        response.answered = True
        self._head += len(data)
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            self._hand_over(response)
            if not response.ended:
                response.cut(ConnectionError(f"no HTTP: {error}"))
                return
            self._kept = False  # the answer is whole; what came behind it is nobody's
        if self._body:
            self._hand_over(response)
        if self._head > _LARGEST_HEAD:
            response.cut(ConnectionError(f"headers of more than {_LARGEST_HEAD >> 10} KiB"))
        if response.ended:
            self._finished()
        response.wake()

    def connection_lost(self, error: Exception | None) -> None:
        self._client.connections.discard(self)
        response, self._response = self._response, None
        if response is None:
            return
        if error is None and response.until_close:
            response.end()
            response.wake()
        else:
            response.cut(ConnectionResetError(str(error or "closed")))

    def _hand_over(self, response: Response) -> None:
        """Give what came of its body to the answer; what comes behind its end is nobody's."""
        pieces = self._body
        if not pieces:
            return
        self._head = 0
        if not response.ended:
            piece = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            response.pieces.append(piece)
            response.size += len(piece)
            if response.size > _LARGEST_BUFFER and not self.held_back:
                self.held_back = True
                self.transport.pause_reading()
        pieces.clear()

    def _finished(self) -> None:
        self._response = None
        self.go_on()
        if self._kept:
            self._client.give_back(self)
        else:
            self.transport.close()

    # -- the parser ------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._response is None or self._response.ended:
            self._kept = False  # more than one answer to one request

    def on_header(self, name: bytes, value: bytes) -> None:
        response = self._response
        if response is not None and not response.status:  # what follows a body is not passed on
            response.headers[name.decode("latin-1").lower()] = value.decode("latin-1")
            if name.lower() == b"connection" and b"close" in value.lower():
                self._kept = False  # whatever another line of it says

    def on_headers_complete(self) -> None:
        response, status = self._response, self._parser.get_status_code()
        if response is None or response.ended:
            return
        if status < 200:  # the answer proper is yet to come
            response.headers.clear()
        else:
            response.status = status

    def on_message_complete(self) -> None:
        if self._body and self._response is not None:
            self._hand_over(self._response)
        if self._response is not None and self._response.status:
            self._response.end()
            self._kept = self._kept and self._parser.should_keep_alive()  # it knows until it begins anew


@dataclass(frozen=True, slots=True)
class Trust:
    """What servers behind https are believed by, and what is shown to them. None: this machine's authorities, nothing.

    `ca`, `cert` and `key` are PEM files: authorities, our certificate chain, and its key unless that is in the same
    file.
    """

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None

    def context(self) -> ssl.SSLContext:
        """Read the files. Raises OSError for what is none."""
        context = ssl.create_default_context(cafile=self.ca)
        if self.cert is not None:
            context.load_cert_chain(self.cert, self.key, password="")  # never ask at the terminal
        return context


class HttpClient:
    """Connections to the server of `base` (scheme, host, port, path before every path), made when they are needed.

    `connect_within`: seconds for a new one. `keep`: whether one that is unused waits for the next request; else
    every request gets a connection of its own. `account`: `user:password` where `base` names none. `trust`: for https.
    """

    def __init__(
        self,
        base: str,
        connect_within: float,
        keep: bool = True,
        account: Secret | None = None,
        trust: Trust | None = None,
    ) -> None:
        base, named = split_account(base)
        self.connections: set[_Connection] = set()
        self._url = URL(base)
        self._account = named or account
        self._connect_within = connect_within
        self._keep = keep
        self._idle: deque[_Connection] = deque()  # the longest unused first
        self._trust = trust or Trust()
        self._ssl: ssl.SSLContext | None = None
        self._timer: SharedTimer | None = None

    def timer(self) -> SharedTimer:
        """Where its answers are waited for; made on the loop that asks first."""
        if self._timer is None:
            self._timer = SharedTimer(asyncio.get_running_loop())
        return self._timer

    def head(self, method: str, path: str, headers: Mapping[str, str]) -> bytes:
        """The beginning of a request, to be continued by `send`. Raises ValueError for what is no header."""
        url = URL(str(self._url).rstrip("/") + path)
        host = f"[{url.raw_host}]" if ":" in (url.raw_host or "") else url.raw_host
        lines = [f"{method} {url.raw_path_qs} HTTP/1.1"]
        lines.append(f"Host: {host}" if url.is_default_port() else f"Host: {host}:{url.port}")
        if self._account is not None and "authorization" not in {name.lower() for name in headers}:
            account = b64encode(self._account.reveal().encode()).decode()
            lines.append(f"Authorization: Basic {account}")
        return "\r\n".join(lines).encode("latin-1") + b"\r\n" + header_lines(headers)

    async def send(self, head: bytes, body: bytes = b"") -> Response:
        """A request is on its way: `head`, and a body with its length. Raises Unreachable."""
        connection = self._unused() or await self._connect()
        return connection.send(
            b"%bContent-Length: %d\r\n\r\n%b" % (head, len(body), body) if body else head + b"\r\n"
        )

    def give_back(self, connection: _Connection) -> None:
        """It is unused now."""
        if not self._keep:
            connection.transport.close()
            return
        connection.idle_since = now = asyncio.get_running_loop().time()
        self._idle.append(connection)
        while self._idle and self._idle[0].idle_since < now - KEEP_SECONDS:
            self._idle.popleft().drop()

    def close(self) -> None:
        """Cut everything."""
        self._idle.clear()
        for connection in list(self.connections):
            connection.transport.abort()
        if self._timer is not None:
            self._timer.close()
            self._timer = None

    def _unused(self) -> _Connection | None:
        oldest = asyncio.get_running_loop().time() - KEEP_SECONDS
        while self._idle:
            connection = self._idle.pop()
            if connection.idle_since >= oldest and not connection.transport.is_closing():
                return connection
            connection.drop()
        return None

    async def _connect(self) -> _Connection:
        loop, url = asyncio.get_running_loop(), self._url
        name = url.raw_host or ""
        try:
            if url.scheme == "https" and self._ssl is None:
                self._ssl = self._trust.context()
            async with asyncio.timeout(self._connect_within):
                found = await loop.getaddrinfo(name, url.port or 80, type=socket.SOCK_STREAM)
                line = await start_connection(found, happy_eyeballs_delay=_NEXT_ADDRESS_AFTER, loop=loop)
                _, connection = await loop.create_connection(
                    lambda: _Connection(self),
                    sock=line,
                    ssl=self._ssl,
                    server_hostname=name if self._ssl else None,
                )
        except TimeoutError as error:
            raise Unreachable(f"no connection within {self._connect_within:g} s") from error
        except (OSError, ValueError) as error:
            raise Unreachable(spoken(error)) from error
        return connection


def header_lines(headers: Mapping[str, str]) -> bytes:
    """Raises ValueError for a header that would be read as something else."""
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    if lines.count("\n") != len(headers) or lines.count("\r") != len(headers) or "\0" in lines:
        raise ValueError("a header has a line break in it")
    try:
        return lines.encode("latin-1")
    except UnicodeEncodeError:  # it holds the headers
        raise ValueError("a header has a character that HTTP does not have") from None
