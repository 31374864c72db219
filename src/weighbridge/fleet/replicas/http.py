"""A replica behind a URL: any server that speaks OpenAI's API, on this machine or in a cloud."""

from __future__ import annotations

import asyncio
import logging
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from urllib.parse import quote

import msgspec

from weighbridge.fleet.abilities.told import NOTHING_TOLD, PAGES, Page, Told, read_page
from weighbridge.fleet.api import Answer, Call, Report
from weighbridge.fleet.load.dialects import Dialect, read_report
from weighbridge.fleet.replica import BytesAnswer, Failure, ReplicaError, Timeouts, has_content
from weighbridge.secret import Secret, hidden
from weighbridge.unzip import Unzip, unzip_of
from weighbridge.wire.client import HttpClient, Response, Trust, Unreachable, header_lines
from weighbridge.wire.headers import bearer_of
from weighbridge.wire.sse import DONE, EventFramer

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
#: Seconds that the body of a stream may take to end behind its last event.
END_WITHIN = 1.0
#: An error's body is read whole, to be retried or passed on; no error is longer than this.
_LARGEST_ERROR = 1 << 20
#: What a replica tells of itself, and how much of it is read on the spot.
_LARGEST_PAGE, _SHORT_PAGE = 1 << 22, 1 << 16
#: Statuses of a page that a server does not have.
_NO_PAGE = frozenset({404, 405, 501})
#: Every so many probes it is asked again what it serves and can: another model may be behind the address.
LOOK_EVERY = 10


@dataclass(frozen=True, slots=True)
class HttpEndpoint:
    """Where a replica is and how to speak to it. `key` goes out as a bearer token; `base` is the URL up to and
    without `/v1`."""

    base: str
    dialect: Dialect
    key: Secret | None = None
    account: Secret | None = None  # `user:password`, for servers that ask for it in place of a key
    trust: Trust = field(default_factory=Trust)
    headers: Mapping[str, Secret] = field(default_factory=dict)
    timeouts: Timeouts = field(default_factory=Timeouts)
    probe_path: str | None = None  # None: the dialect's
    prefix: str = "/v1"  # what its paths begin with, in place of /v1
    model: str = ""  # what it calls the model; empty: whatever it serves
    api_version: str | None = None  # Azure's: paths by deployment, with this version

    def secrets(self) -> tuple[Secret, ...]:
        """What an error of the server must not repeat to clients, as it was sent."""
        sent = [self.key, *self.headers.values()]
        if self.account is not None:
            sent += [self.account, Secret(b64encode(self.account.reveal().encode()).decode())]
        return tuple(one for one in sent if one is not None)

    def path(self, path: str) -> str:
        """A path of OpenAI's API as this server has it."""
        if self.api_version is not None and path.startswith("/v1/"):
            where = "" if path == "/v1/models" else f"/deployments/{quote(self.model, safe='')}"
            return f"/openai{where}{path.removeprefix('/v1')}?api-version={self.api_version}"
        return self.prefix + path.removeprefix("/v1") if path.startswith("/v1/") else path


class HttpReplica:
    """One replica over HTTP, with connections of its own that are kept and used again."""

    def __init__(
        self, name: str, endpoint: HttpEndpoint, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.name = name
        self.endpoint = endpoint
        self._clock = clock
        self._client = HttpClient(
            endpoint.base, endpoint.timeouts.connect, account=endpoint.account, trust=endpoint.trust
        )
        self._own_headers = _own_headers(endpoint)
        self._secrets = endpoint.secrets()
        self._own_names = {name.lower() for name in self._own_headers}
        self._heads: dict[tuple[str, str], bytes] = {}  # the beginnings of requests that are always the same
        self._posts: dict[str, bytes] = {}  # of calls, by the path that clients use
        self._doubted = ""
        self._lacking: set[str] = set()  # pages that were said not to be there
        self._page = 0  # which of the pages of its load it has
        self._probes = 0  # since it was last away
        self._told = NOTHING_TOLD

    async def open(self, call: Call) -> Answer:
        """Send a call and wait for its status. Raises ReplicaError; cancelling closes the connection."""
        timeouts = self.endpoint.timeouts
        limit = timeouts.first_byte if call.stream else timeouts.answer
        response: Response | None = None
        try:
            head = self._posts.get(call.path)
            if head is None:
                head = self._posts[call.path] = self._head("POST", self.endpoint.path(call.path))
            response = await self._client.send(
                head + self._headers(call) if call.headers else head, call.body
            )
            await response.begin(limit)
            unzip = unzip_of(response.headers.pop("content-encoding", None))
            if response.status >= 300:
                async with asyncio.timeout(limit):
                    body = await response.whole(_LARGEST_ERROR)
                if unzip is not None:
                    body = b"".join(islice(unzip.pieces(body), 1))[:_LARGEST_ERROR]
                body = hidden(body, self._secrets)
                return BytesAnswer(response.status, body, passed_on(response.headers))
        except Unreachable as error:
            raise self._unreachable(str(error)) from error
        except TimeoutError as error:
            raise ReplicaError(self.name, Failure.FIRST_BYTE, f"nothing came within {limit:g} s") from error
        except (OSError, ValueError) as error:
            if response is not None and not response.answered:
                raise ReplicaError(
                    self.name, Failure.STALE, "closed the connection without an answer"
                ) from error
            raise ReplicaError(self.name, Failure.BROKEN, f"the call failed: {error!r}") from error
        return HttpAnswer(self.name, response, unzip, call.stream, timeouts, self._secrets)

    async def probe(self) -> Report:
        """Its load now, with what its other pages said when they were last asked."""
        try:
            report = await self._load()
        except ReplicaError:
            self._page = self._probes = 0  # it may come back as something else
            raise
        if self._probes % LOOK_EVERY == 0:
            self._told = await self._look()
        self._probes += 1
        return replace(report, told=self._told)

    async def _load(self) -> Report:
        """The page of its load, or where it was started without one, the next best."""
        speaks = self.endpoint.dialect
        given = self.endpoint.probe_path
        pages = ((given, speaks.read),) if given else ((speaks.path, speaks.read), *speaks.instead)
        while True:
            name, read = pages[self._page]
            path = name if given else self.endpoint.path(name)
            status, page = await self.page(path)
            if status not in _NO_PAGE or self._page + 1 >= len(pages):
                break
            self._page += 1
            self._say_instead(path, pages[self._page][0])
        if status != 200:
            raise ReplicaError(self.name, Failure.PROBE, f"{path} answers with status {status}")
        try:
            if len(page) <= _SHORT_PAGE:
                return read_report(speaks, page, self._clock(), read)
            return await asyncio.to_thread(read_report, speaks, page, self._clock(), read)
        except ValueError as error:
            self._doubt(f"{path}: {error}")
            return Report(at=self._clock())

    @property
    def load_page(self) -> str:
        """The page that its load is read from, as far as it has been asked."""
        speaks = self.endpoint.dialect
        return self.endpoint.probe_path or (speaks.path, *(path for path, _ in speaks.instead))[self._page]

    async def _look(self) -> Told:
        """What its pages tell of models and abilities; a page that it does not have tells nothing."""
        told, asked = NOTHING_TOLD, self.endpoint.model
        for page in PAGES.get(self.endpoint.dialect.name, ()):
            if page.asks is not None and not asked:
                continue
            try:
                status, body = await self.page(self.endpoint.path(page.path), _question(page, asked))
                if status == 404 and page.once:
                    status, body = await self.page(self.endpoint.path(page.once), _question(page, asked))
            except ReplicaError:
                continue
            if status == 200:
                more = await asyncio.to_thread(read_page, page, body, asked)
                told = told.and_then(more)
        return told

    async def page(self, path: str, body: bytes = b"") -> tuple[int, bytes]:
        """Status and body of one of its own pages; asked with POST where there is a `body`."""
        limit = self.endpoint.timeouts.probe
        try:
            async with asyncio.timeout(limit):
                response = await self._client.send(self._head("POST" if body else "GET", path), body)
                await response.begin(limit)
                return response.status, await response.whole(_LARGEST_PAGE)
        except TimeoutError as error:
            raise ReplicaError(self.name, Failure.PROBE, f"{path} did not answer in {limit:g} s") from error
        except (OSError, ValueError) as error:
            raise ReplicaError(self.name, Failure.PROBE, f"{path} is out of reach: {error}") from error

    def _say_instead(self, path: str, other: str) -> None:
        """Log once which page stands in for that of its load."""
        if path not in self._lacking:
            self._lacking.add(path)
            hint = self.endpoint.dialect.hint
            remedy = f"; start it with {hint} to have all of its load told" if hint else ""
            log.info("replica %r has no %s, and is asked for %s%s", self.name, path, other, remedy)

    def _doubt(self, why: str) -> None:
        """Log that what it says of its load is not believed, once for each reason: it answers, so it lives."""
        if why != self._doubted:
            self._doubted = why
            log.warning("the load that replica %r reports is not used: %s", self.name, why)

    async def close(self) -> None:
        self._client.close()

    def _head(self, method: str, path: str) -> bytes:
        """The beginning of every request for `path`."""
        head = self._heads.get((method, path))
        if head is None:
            own = self._own_headers
            sent = {**own, "Content-Type": "application/json"} if method == "POST" else own
            head = self._heads[method, path] = self._client.head(method, path, sent)
        return head

    def _headers(self, call: Call) -> bytes:
        own = self._own_names
        return header_lines({name: value for name, value in call.headers.items() if name.lower() not in own})

    def _unreachable(self, why: str) -> ReplicaError:
        return ReplicaError(self.name, Failure.CONNECT, f"{self.endpoint.base} is out of reach: {why}")


def _own_headers(endpoint: HttpEndpoint) -> dict[str, str]:
    """What every request to it carries, whatever the client sent."""
    own = {name: value.reveal() for name, value in endpoint.headers.items()}
    speaks = endpoint.dialect
    headers = {"Accept-Encoding": "identity", **dict(speaks.headers), **own}
    if endpoint.key is not None:
        sent = bearer_of(endpoint.key)
        headers[speaks.key_header or "Authorization"] = sent.partition(" ")[2] if speaks.key_header else sent
    return headers


def _question(page: Page, model: str) -> bytes:
    return b"" if page.asks is None else msgspec.json.encode({page.asks: model})


class HttpAnswer:
    """An answer that is still coming. Reading to its end gives the connection back; `close` cuts it."""

    def __init__(
        self,
        replica: str,
        response: Response,
        unzip: Unzip | None,
        streaming: bool,
        timeouts: Timeouts,
        secrets: Sequence[Secret] = (),
    ) -> None:
        """`unzip`: what unpacks it. `secrets`: what an error in it must not repeat."""
        self._unzip = unzip
        self._secrets = secrets
        self.status = response.status
        self.headers: Mapping[str, str] = passed_on(response.headers)
        self._replica = replica
        self._response = response
        self._streaming = streaming
        self._begun = not streaming  # its first event is there
        self._between = timeouts.idle  # seconds of silence behind it
        self._idle = timeouts.first_byte if streaming else timeouts.answer
        self._longest = max(self._idle, timeouts.idle, timeouts.first_byte)  # seconds between whole events
        self._loop = asyncio.get_running_loop()
        self._waiting_since: float | None = None  # for the next bytes; None while nobody reads
        self._fell_silent = False
        self._ended = False  # the last event has come: what is left is the end of the body
        self._timer = response.timer
        self._timer.set(self, self._loop.time() + self._idle)

    async def chunks(self) -> AsyncIterator[bytes]:
        """Whole events of a stream as they come. Raises ReplicaError when it breaks off or falls silent, and for an
        event that trickles in for ever."""
        framer, unzip, time_now = EventFramer(), self._unzip, self._loop.time
        read = self._response.read
        now = since = time_now()  # since the last whole event
        try:
            while True:
                self._waiting_since = now
                data = await read()
                self._waiting_since = None
                if not data:
                    break
                is_whole = False
                for piece in (data,) if unzip is None else unzip.pieces(data):
                    if whole := self._shown(framer.feed(piece) if self._streaming else piece):
                        if not self._begun and has_content(whole):
                            self._begin()
                        is_whole = True
                        yield whole
                now = time_now()
                if is_whole:
                    since = now
                elif now - since > self._longest:
                    raise ReplicaError(
                        self._replica, Failure.IDLE, f"sent no whole event for {self._longest:g} s"
                    )
        except ValueError as error:  # an event without end, or a body that cannot be unpacked
            raise ReplicaError(self._replica, Failure.BROKEN, str(error)) from error
        except OSError as error:
            if self._ended:
                return
            if self._fell_silent:
                kind = Failure.IDLE if self._begun else Failure.FIRST_BYTE
                raise ReplicaError(self._replica, kind, f"silent for {self._idle:g} s") from error
            raise ReplicaError(
                self._replica, Failure.BROKEN, "broke off in the middle of an answer"
            ) from error
        finally:
            self._timer.discard(self)
        rest = framer.flush()
        if rest:
            yield rest

    def _shown(self, whole: bytes) -> bytes:
        """What came, without our own secrets in it."""
        if self._secrets and b'"error"' in whole:
            whole = hidden(whole, self._secrets)
        if self._streaming and whole.endswith(DONE):
            self._ends_soon()
        return whole

    async def close(self) -> None:
        """Cut the connection, unless the body has ended."""
        self._timer.discard(self)
        self._response.close()

    def _begin(self) -> None:
        """Wait less long from now on: the prompt has been computed."""
        self._begun, self._idle = True, self._between
        self._timer.set(self, self._loop.time() + self._idle)

    def _ends_soon(self) -> None:
        """Expect the body to end with its last event; a server that keeps it open loses the connection."""
        self._ended = True
        self._idle = min(self._idle, END_WITHIN)
        self._timer.set(self, self._loop.time() + self._idle)

    def overdue(self, now: float) -> float | None:
        """Look how long the silence has lasted, now and then instead of at each chunk."""
        since = self._waiting_since
        silent = 0.0 if since is None else now - since
        if silent < self._idle:
            return now + self._idle - silent
        self._fell_silent = True
        self._response.close()
        return None


def passed_on(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers of an answer that its reader should see; their names are in lower case."""
    return {name: value for name, value in headers.items() if name not in _NOT_PASSED_ON}
