"""Chat over HTTP with any OpenAI-compatible server; on Weighbridge a cancelled request's slot is seen free."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import msgspec

from weighbridge.cost.step import StepCost
from weighbridge.errors import BadInput, WeighbridgeError
from weighbridge.flow.bets.gate import ServerLoad
from weighbridge.secret import Secret, split_account, without_account
from weighbridge.wire.client import HttpClient, Response, Trust
from weighbridge.wire.errors import error_message
from weighbridge.wire.headers import bearer_of
from weighbridge.wire.sse import EventFramer, EventTooLong, event_data

CONNECT_SECONDS = 10.0
#: How long a cancelled request's slot is watched until it is free, and how often.
FREED_SECONDS, FREED_EVERY_SECONDS = 2.0, 0.005
#: How long a ticket may be unknown: the server may still be reading the request that proposed it.
UNKNOWN_SECONDS = 0.05
#: A server's load is asked for at most this often, and is believed for so long.
LOAD_SECONDS, STALE_SECONDS = 0.5, 10.0
#: How long the body of an answer may take to end behind its last event; after that its connection is not used again.
END_SECONDS = 1.0
#: How long the body of an error may take, and how much of it is read.
ERROR_SECONDS, MAX_ERROR_BYTES = 10.0, 1 << 20
#: A ticket or a load is not larger.
MAX_PAGE_BYTES = 1 << 20


class LlmError(WeighbridgeError):
    """The server answered with an error, or not at all. `status` is its HTTP status, 0 without one."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


@dataclass(slots=True)
class ChatEndpoint:
    """One server. `ours` (is it Weighbridge?) is learned from its first answer; None before."""

    url: str
    api_key: Secret | None = None
    account: Secret | None = None  # `user:password`; where the URL names one, it is taken out of it
    trust: Trust = field(default_factory=Trust)
    ours: bool | None = None
    load: ServerLoad | None = None
    load_at: float = -1e9  # when it last said what its load is, by `time.monotonic`
    asked_at: float = -1e9  # when it was last asked for it

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            shown = without_account(self.url)
            raise BadInput(f"llm: {shown!r} is not a URL; give one like http://127.0.0.1:8080/v1")
        self.url, named = split_account(self.url.rstrip("/").removesuffix("/v1"))
        self.account = named or self.account

    def __str__(self) -> str:
        return self.url

    def load_now(self) -> ServerLoad | None:
        """Return its load if it is known; what was heard long ago says nothing."""
        return self.load if time.monotonic() - self.load_at < STALE_SECONDS else None

    def headers(self) -> dict[str, str]:
        headers = {"User-Agent": "weighbridge", "Accept-Encoding": "identity"}
        if self.api_key:
            headers["Authorization"] = bearer_of(self.api_key)
        return headers


class ChatClient:
    """Connections to chat servers; a flow's run opens a client and closes it."""

    def __init__(self) -> None:
        self._http: dict[tuple[str, Secret | None, Trust], HttpClient] = {}
        self.freed_seconds: list[float] = []  # from cancelling a request to seeing its slot free

    async def close(self) -> None:
        for http in self._http.values():
            http.close()
        await asyncio.sleep(0)  # the loop may end next; let it see the connections go

    def open(self, endpoint: ChatEndpoint, body: dict[str, Any], speculative: bool) -> ChatStream:
        return ChatStream(self, endpoint, body, speculative)

    async def send(
        self,
        endpoint: ChatEndpoint,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
    ) -> Response:
        """Send a request. Raises OSError without a connection, and ValueError for a URL or header that is none."""
        place = endpoint.url, endpoint.account, endpoint.trust
        http = self._http.get(place)
        if http is None:
            http = HttpClient(endpoint.url, CONNECT_SECONDS, account=endpoint.account, trust=endpoint.trust)
            self._http[place] = http
        return await http.send(http.head(method, path, {**endpoint.headers(), **(headers or {})}), body)

    async def freed(self, endpoint: ChatEndpoint, ticket: str) -> None:
        """Watch until the server says that a cancelled request has ended; for `FREED_SECONDS` at most.

        A server that is not known yet is asked too: the first request to it may be the cancelled one.
        """
        began = time.perf_counter()
        with suppress(OSError, ValueError, msgspec.MsgspecError):
            async with asyncio.timeout(FREED_SECONDS):
                while (record := await self._ticket(endpoint, ticket)) is not None:
                    waited = time.perf_counter() - began
                    if record.get("finished") is not None:
                        self.freed_seconds.append(waited)
                        return
                    if not record and waited > UNKNOWN_SECONDS:
                        return
                    await asyncio.sleep(FREED_EVERY_SECONDS)
        if endpoint.ours is None:
            endpoint.ours = False  # until one of its answers says otherwise

    async def _ticket(self, endpoint: ChatEndpoint, ticket: str) -> dict[str, Any] | None:
        """Return a ticket's record, empty while the server knows no such id; None: it keeps no tickets."""
        status, record = await self._get(endpoint, f"/v1/tickets/{ticket}")
        if status not in (200, 404) or not isinstance(record, dict):
            return None
        if status == 200 and record.get("id") == ticket:
            endpoint.ours = True
            return record
        error = record.get("error")
        if isinstance(error, dict) and error.get("code") == "ticket_not_found":
            endpoint.ours = True
            return {}
        return None

    async def ask_load(self, endpoint: ChatEndpoint) -> None:
        """Refresh what is known of the load of one of our servers."""
        now = time.monotonic()
        if not endpoint.ours or now - endpoint.asked_at < LOAD_SECONDS:
            return
        endpoint.asked_at = now
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError, msgspec.MsgspecError):
            _, load = await self._get(endpoint, "/v1/load")
            cost = load.get("step_cost")
            endpoint.load = ServerLoad(
                int(load["queued_requests"]),
                int(load["running_requests"]),
                StepCost(**{name: float(value) for name, value in cost.items()}) if cost else None,
            )
            endpoint.load_at = time.monotonic()

    async def _get(self, endpoint: ChatEndpoint, path: str) -> tuple[int, Any]:
        """Return status and JSON of a page. Raises OSError, ValueError, and MsgspecError for what is no JSON."""
        response = await self.send(endpoint, "GET", path)
        await response.begin(None)
        return response.status, msgspec.json.decode(await response.whole(MAX_PAGE_BYTES))


class ChatStream:
    """One streamed request. `start` sends it, `next` gives its chunks, `close` ends it at any point."""

    def __init__(
        self, client: ChatClient, endpoint: ChatEndpoint, body: dict[str, Any], speculative: bool
    ) -> None:
        self._client = client
        self._endpoint = endpoint
        self._body = body
        self._speculative = speculative
        self._response: Response | None = None
        self._framer = EventFramer()
        self._events: deque[bytes] = deque()  # data of events that have come
        self._first: dict[str, Any] | None = None
        self._ended = False
        self.sent = False  # from now on, that it was cancelled must be confirmed
        self.ticket = uuid.uuid4().hex  # proposed; the server's answer says what it is

    async def start(self) -> ChatStream:
        """Send the request and wait for the first event. Raises LlmError. Cancelled, it leaves nothing."""
        try:
            path, body = "/v1/chat/completions", msgspec.json.encode(self._payload())
            response = await self._client.send(self._endpoint, "POST", path, self._headers(), body)
            self._response, self.sent = response, True
            await response.begin(None)
            named = "x-weighbridge-ticket" in response.headers
            if named or response.status == 200:  # a refusal need not name a ticket
                self._endpoint.ours = named
            self.ticket = response.headers.get("x-weighbridge-ticket", self.ticket)
            if response.status != 200:
                raise await self._failure(response)
            self._first = await self._read()
        except BaseException as error:
            await self.close()
            if isinstance(error, OSError | ValueError):
                raise LlmError(f"no answer from {self._endpoint}: {error or 'timed out'}") from error
            raise
        return self

    async def next(self) -> dict[str, Any] | None:
        """Return the next chunk; None at the end. Raises LlmError when the server breaks off."""
        event, self._first = self._first, None
        try:
            return event or await self._read()
        except OSError as error:
            raise LlmError(f"{self._endpoint} broke off in the middle of an answer: {error}") from error

    async def close(self) -> None:
        """End the exchange; one that had not ended is cancelled, and on our server its slot is seen free."""
        response, self._response = self._response, None
        if response is not None:
            response.close()
        if self._ended:
            return
        self._ended = True
        if self.sent and self._endpoint.ours is not False:
            await self._client.freed(self._endpoint, self.ticket)

    def _payload(self) -> dict[str, Any]:
        body = {**self._body, "stream": True, "stream_options": {"include_usage": True}}
        if self._endpoint.ours and self._speculative:
            body["weighbridge"] = {**body.get("weighbridge", {}), "speculative": True}
        return body

    def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json", "x-weighbridge-ticket": self.ticket}
        if self._speculative:
            headers["x-weighbridge-speculative"] = "true"
        return headers

    async def _read(self) -> dict[str, Any] | None:
        response = self._response
        if self._ended or response is None:
            return None
        while not self._events:
            await self._receive(response)
        data = self._events.popleft()
        if data == b"[DONE]":
            self._ended = True
            await _read_to_the_end(response)
            return None
        try:
            event: dict[str, Any] = msgspec.json.decode(data, type=dict[str, Any])
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise LlmError(f"{self._endpoint} sent an event that is no JSON object: {error}") from error
        if "error" in event:
            raise LlmError(f"{self._endpoint}: {error_message(data)}", 500)
        return event

    async def _receive(self, response: Response) -> None:
        """Wait for more of the answer. Raises LlmError when it ends before its last event has come."""
        piece = await response.read()
        try:
            events = self._framer.feed(piece) if piece else self._framer.flush()
        except EventTooLong as error:
            raise LlmError(f"{self._endpoint} {error}") from error
        self._events.extend(data for data in event_data(events) if data)
        if not piece and not self._events:
            raise LlmError(f"{self._endpoint} broke off in the middle of an answer")

    async def _failure(self, response: Response) -> LlmError:
        self._ended = True
        status = response.status
        if status in (301, 302, 303, 307, 308):
            target = response.headers.get("location", "elsewhere")
            return LlmError(
                f"{self._endpoint} answered {status}: it has moved to {target[:300]}; give that URL", status
            )
        async with asyncio.timeout(ERROR_SECONDS):
            body = await response.whole(MAX_ERROR_BYTES)
        return LlmError(f"{self._endpoint} answered {status}: {error_message(body)}", status)


async def _read_to_the_end(response: Response) -> None:
    """Read what is left of a body, so that its connection can be used again."""
    with suppress(OSError):
        async with asyncio.timeout(END_SECONDS):
            while await response.read():
                pass
