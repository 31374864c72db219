"""A replica behind a URL: any server that speaks OpenAI's API, on this machine or in a cloud."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field

import aiohttp
from yarl import URL

from weighbridge.fleet.api import Answer, Call, Report
from weighbridge.fleet.dialects import Dialect, read_report
from weighbridge.fleet.replica import BytesAnswer, EventFramer, Failure, ReplicaError, Timeouts

log = logging.getLogger("weighbridge.fleet")

#: Headers that belong to one connection, or that the relay writes itself.
_NOT_PASSED_ON = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "content-length",
        "date",
        "server",
        "set-cookie",
        "alt-svc",
    }
)
#: The last event of a stream, and the seconds its body may take to end behind it.
_DONE = b"data: [DONE]\n\n"
END_WITHIN = 1.0
#: An error's body is read whole, to be retried or passed on; no error is longer than this.
_LARGEST_ERROR = 1 << 20


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a replica is and how to speak to it. `key` goes out as a bearer token; `base` is the URL up to and
    without `/v1`."""

    base: str
    dialect: Dialect
    key: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    timeouts: Timeouts = field(default_factory=Timeouts)
    probe_path: str | None = None  # None: the dialect's


class HttpReplica:
    """One replica over HTTP, with connections of its own that are kept and used again."""

    def __init__(self, name: str, endpoint: Endpoint, clock: Callable[[], float] = time.monotonic) -> None:
        self.name = name
        self.endpoint = endpoint
        self._clock = clock
        self._session: aiohttp.ClientSession | None = None
        self._urls: dict[str, URL] = {}
        self._doubted = ""

    async def open(self, call: Call) -> Answer:
        """Send a call and wait for its status. Raises ReplicaError; cancelling closes the connection."""
        timeouts = self.endpoint.timeouts
        limit = timeouts.first_byte if call.stream else timeouts.answer
        try:
            async with asyncio.timeout(limit):
                response = await self._connected().post(
                    self._url(call.path), data=call.body, headers=self._headers(call), allow_redirects=False
                )
                if response.status >= 300:
                    return await self._whole(response)
        except TimeoutError as error:
            if isinstance(error, aiohttp.ConnectionTimeoutError):
                raise self._unreachable(f"no connection within {timeouts.connect:g} s") from error
            raise ReplicaError(self.name, Failure.FIRST_BYTE, f"nothing came within {limit:g} s") from error
        except aiohttp.ClientConnectorError as error:
            raise self._unreachable(str(error.os_error or error)) from error
        except aiohttp.ServerDisconnectedError as error:
            raise ReplicaError(self.name, Failure.STALE, "closed the connection without an answer") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise ReplicaError(self.name, Failure.BROKEN, f"the call failed: {error!r}") from error
        return HttpAnswer(self.name, response, call.stream, timeouts)

    async def probe(self) -> Report:
        path = self.endpoint.probe_path or self.endpoint.dialect.path
        limit = self.endpoint.timeouts.probe
        try:
            async with (
                asyncio.timeout(limit),
                self._connected().get(self._url(path), headers=self._own_headers()) as response,
            ):
                page = await response.read()
        except TimeoutError as error:
            raise ReplicaError(self.name, Failure.PROBE, f"{path} did not answer in {limit:g} s") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise ReplicaError(self.name, Failure.PROBE, f"{path} is out of reach: {error}") from error
        if response.status != 200:
            raise ReplicaError(self.name, Failure.PROBE, f"{path} answers with status {response.status}")
        try:
            return read_report(self.endpoint.dialect, page, self._clock())
        except ValueError as error:
            self._doubt(f"{path}: {error}")
            return Report(at=self._clock())

    def _doubt(self, why: str) -> None:
        """It answers, so it lives; what it says of its load is not believed. Said once for each reason."""
        if why != self._doubted:
            self._doubted = why
            log.warning("the load that replica %r reports is not used: %s", self.name, why)

    async def close(self) -> None:
        if self._session is not None:
            session, self._session = self._session, None
            await session.close()

    def _connected(self) -> aiohttp.ClientSession:
        """The session, made on first use because it belongs to the running event loop."""
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=20.0, ttl_dns_cache=30)
            self._session = aiohttp.ClientSession(
                connector=connector,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=self.endpoint.timeouts.connect),
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                skip_auto_headers=("User-Agent", "Accept"),
                read_bufsize=1 << 18,
            )
        return self._session

    def _url(self, path: str) -> URL:
        url = self._urls.get(path)
        if url is None:
            url = self._urls[path] = URL(self.endpoint.base + path)
        return url

    def _headers(self, call: Call) -> dict[str, str]:
        return {**call.headers, **self._own_headers(), "Content-Type": "application/json"}

    def _own_headers(self) -> dict[str, str]:
        headers = {"Accept-Encoding": "identity", **self.endpoint.headers}
        if self.endpoint.key is not None:
            headers["Authorization"] = f"Bearer {self.endpoint.key}"
        return headers

    def _unreachable(self, why: str) -> ReplicaError:
        return ReplicaError(self.name, Failure.CONNECT, f"{self.endpoint.base} is out of reach: {why}")

    async def _whole(self, response: aiohttp.ClientResponse) -> BytesAnswer:
        """An error with its body; a longer one is cut off, and its connection with it."""
        body = b""
        try:
            while not response.content.at_eof() and len(body) < _LARGEST_ERROR:
                body += await response.content.read(_LARGEST_ERROR - len(body))
        finally:
            response.close()  # gives the connection back when the body was read to its end
        return BytesAnswer(response.status, body, passed_on(response.headers))


class HttpAnswer:
    """An answer that is still coming. Reading to its end gives the connection back; `close` cuts it."""

    def __init__(
        self, replica: str, response: aiohttp.ClientResponse, streaming: bool, timeouts: Timeouts
    ) -> None:
        self.status = response.status
        self.headers: Mapping[str, str] = passed_on(response.headers)
        self._replica = replica
        self._response = response
        self._streaming = streaming
        self._idle = timeouts.idle if streaming else timeouts.answer
        self._loop = asyncio.get_running_loop()
        self._waiting_since: float | None = None  # for the next bytes; None while nobody reads
        self._fell_silent = False
        self._ended = False  # the last event has come: what is left is the end of the body
        self._timer = self._loop.call_later(self._idle, self._look)

    async def chunks(self) -> AsyncIterator[bytes]:
        """Whole events of a stream as they come. Raises ReplicaError when it breaks off or falls silent."""
        content, framer, time_now = self._response.content, EventFramer(self._replica), self._loop.time
        try:
            while True:
                self._waiting_since = time_now()
                data = await content.readany()
                self._waiting_since = None
                if not data:
                    break
                whole = framer.feed(data) if self._streaming else data
                if whole:
                    if self._streaming and whole.endswith(_DONE):
                        self._ends_soon()
                    yield whole
        except (aiohttp.ClientError, OSError) as error:
            if self._ended:
                return
            if self._fell_silent:
                raise ReplicaError(self._replica, Failure.IDLE, f"silent for {self._idle:g} s") from error
            raise ReplicaError(
                self._replica, Failure.BROKEN, "broke off in the middle of an answer"
            ) from error
        finally:
            self._timer.cancel()
        rest = framer.flush()
        if rest:
            yield rest

    async def close(self) -> None:
        """After the end of the body this does nothing; before it, the server sees the connection go."""
        self._timer.cancel()
        self._response.close()

    def _ends_soon(self) -> None:
        """The body should end with its last event; a server that keeps it open loses the connection."""
        self._ended = True
        self._idle = min(self._idle, END_WITHIN)
        self._timer.cancel()
        self._timer = self._loop.call_later(self._idle, self._look)

    def _look(self) -> None:
        """One timer for a whole stream instead of one for each chunk: it looks how long the silence has lasted."""
        since = self._waiting_since
        silent = 0.0 if since is None else self._loop.time() - since
        if silent >= self._idle:
            self._fell_silent = True
            self._response.close()
        else:
            self._timer = self._loop.call_later(max(self._idle - silent, 0.001), self._look)


def passed_on(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers of an answer that its reader should see, in lower case."""
    lowered = ((name.lower(), value) for name, value in headers.items())
    return {name: value for name, value in lowered if name not in _NOT_PASSED_ON}
