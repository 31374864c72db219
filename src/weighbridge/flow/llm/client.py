"""Chat over HTTP with any OpenAI-compatible server; on Weighbridge a cancelled request's slot is seen free."""

from __future__ import annotations

import asyncio
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec

from weighbridge.cost.step import StepCost
from weighbridge.errors import BadInput, WeighbridgeError
from weighbridge.flow.bets.gate import ServerLoad

CONNECT_SECONDS = 10.0
#: How long a cancelled request's slot is watched until it is free, and how often.
FREED_SECONDS, FREED_EVERY = 2.0, 0.005
#: How long a ticket may be unknown: the server may still be reading the request that proposed it.
UNKNOWN_SECONDS = 0.05
#: A server's load is asked for at most this often, and is taken as known for so long.
LOAD_SECONDS, STALE_SECONDS = 0.5, 10.0


class LlmError(WeighbridgeError):
    """The server answered with an error, or not at all. `status` is its HTTP status, 0 without one."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


@dataclass(slots=True)
class Endpoint:
    """One server. `ours` (is it Weighbridge?) is learned from its first answer; None before."""

    url: str
    api_key: str | None = None
    ours: bool | None = None
    load: ServerLoad | None = None
    heard: float = -1e9  # when it last said what its load is, by `time.monotonic`
    asked: float = -1e9  # and was last asked

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise BadInput(f"llm: {self.url!r} is not a URL; give one like http://127.0.0.1:8080/v1")
        self.url = self.url.rstrip("/")
        if self.url.endswith("/v1"):
            self.url = self.url[: -len("/v1")]

    def load_now(self) -> ServerLoad | None:
        """Its load, as far as that is known; what was heard long ago says nothing."""
        return self.load if time.monotonic() - self.heard < STALE_SECONDS else None

    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}


class ChatClient:
    """A connection pool; a flow's run opens one and closes it."""

    def __init__(self) -> None:
        timeout = aiohttp.ClientTimeout(total=None, connect=CONNECT_SECONDS)
        trace = aiohttp.TraceConfig()
        trace.on_request_headers_sent.append(_sent)
        self._session = aiohttp.ClientSession(
            timeout=timeout, connector=aiohttp.TCPConnector(limit=0), trace_configs=[trace]
        )
        self.freed_seconds: list[float] = []  # from cancelling a request to seeing its slot free

    async def close(self) -> None:
        await self._session.close()

    def open(self, endpoint: Endpoint, body: dict[str, Any], speculative: bool) -> ChatStream:
        return ChatStream(self, self._session, endpoint, body, speculative)

    async def freed(self, endpoint: Endpoint, ticket: str) -> None:
        """Watch until the server says that a cancelled request has ended; at most `FREED_SECONDS`.

        A server that is not known yet is asked too: the first request to it may be the one cancelled.
        """
        began = time.perf_counter()
        with suppress(aiohttp.ClientError, TimeoutError, ValueError):
            async with asyncio.timeout(FREED_SECONDS):
                while (found := await self._ticket(endpoint, ticket)) is not None:
                    waited = time.perf_counter() - began
                    if found.get("finished") is not None:
                        self.freed_seconds.append(waited)
                        return
                    if not found and waited > UNKNOWN_SECONDS:
                        return
                    await asyncio.sleep(FREED_EVERY)
        if endpoint.ours is None:
            endpoint.ours = False  # until one of its answers says otherwise

    async def _ticket(self, endpoint: Endpoint, ticket: str) -> dict[str, Any] | None:
        """A ticket's record, empty while the server knows none of this id; None: it keeps no tickets."""
        url = f"{endpoint.url}/v1/tickets/{ticket}"
        async with self._session.get(url, headers=endpoint.headers()) as answer:
            record = await answer.json() if answer.status in (200, 404) else None
        if not isinstance(record, dict):
            return None
        if answer.status == 200 and record.get("id") == ticket:
            endpoint.ours = True
            return record
        error = record.get("error")
        if isinstance(error, dict) and error.get("code") == "ticket_not_found":
            endpoint.ours = True
            return {}
        return None

    async def ask_load(self, endpoint: Endpoint) -> None:
        """Refresh what is known of the load of one of our servers."""
        now = time.monotonic()
        if not endpoint.ours or now - endpoint.asked < LOAD_SECONDS:
            return
        endpoint.asked = now
        with suppress(aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError, AttributeError):
            async with self._session.get(f"{endpoint.url}/v1/load", headers=endpoint.headers()) as answer:
                load = await answer.json()
            cost = load.get("step_cost")
            endpoint.load = ServerLoad(
                int(load["queued_requests"]),
                int(load["running_requests"]),
                StepCost(**{name: float(value) for name, value in cost.items()}) if cost else None,
            )
            endpoint.heard = time.monotonic()


async def _sent(session: aiohttp.ClientSession, context: Any, headers: Any) -> None:
    """A request has left for its server: from now on, that it was cancelled must be confirmed."""
    if isinstance(context.trace_request_ctx, ChatStream):
        context.trace_request_ctx.sent = True


class ChatStream:
    """One streamed chat completion. Leaving it early closes the connection, which cancels it at the server."""

    def __init__(
        self,
        client: ChatClient,
        session: aiohttp.ClientSession,
        endpoint: Endpoint,
        body: dict[str, Any],
        speculative: bool,
    ) -> None:
        self._client = client
        self._session = session
        self._endpoint = endpoint
        self._body = body
        self._speculative = speculative
        self._response: aiohttp.ClientResponse | None = None
        self._ended = False
        self._first: dict[str, Any] | None = None
        self.sent = False
        self.ticket = uuid.uuid4().hex  # proposed; the server's answer says what it is

    async def start(self) -> ChatStream:
        """Send the request and wait for the first event. Raises LlmError. Cancelled, it leaves nothing."""
        try:
            self._response = await self._session.post(
                f"{self._endpoint.url}/v1/chat/completions",
                json=self._payload(),
                headers=self._headers(),
                trace_request_ctx=self,
            )
            named = "x-weighbridge-ticket" in self._response.headers
            if named or self._response.status == 200:  # a refusal need not name a ticket
                self._endpoint.ours = named
            self.ticket = self._response.headers.get("x-weighbridge-ticket", self.ticket)
            if self._response.status != 200:
                raise await self._failure(self._response)
            self._first = await self._read()
        except BaseException as error:
            await self.close()
            if isinstance(error, aiohttp.ClientError | TimeoutError):
                raise LlmError(f"no answer from {self._endpoint.url}: {error or 'timed out'}") from error
            raise
        return self

    async def next(self) -> dict[str, Any] | None:
        """The next chunk; None at the end. Raises LlmError when the server breaks off."""
        event, self._first = self._first, None
        try:
            return event or await self._read()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise LlmError(f"{self._endpoint.url} broke off in the middle of an answer: {error}") from error

    async def close(self) -> None:
        """End the exchange; one that had not ended is cancelled, and on our server its slot is seen free."""
        response, self._response = self._response, None
        if self._ended:
            if response is not None:
                response.release()
            return
        self._ended = True
        if response is not None:
            response.close()
        if self.sent and self._endpoint.ours is not False:
            await self._client.freed(self._endpoint, self.ticket)

    def _payload(self) -> dict[str, Any]:
        body = {**self._body, "stream": True, "stream_options": {"include_usage": True}}
        if self._endpoint.ours and self._speculative:
            body["weighbridge"] = {**body.get("weighbridge", {}), "speculative": True}
        return body

    def _headers(self) -> dict[str, str]:
        headers = {**self._endpoint.headers(), "x-weighbridge-ticket": self.ticket}
        if self._speculative:
            headers["x-weighbridge-speculative"] = "true"
        return headers

    async def _read(self) -> dict[str, Any] | None:
        response = self._response
        if self._ended or response is None:
            return None
        while line := await response.content.readline():
            data = line[5:].strip() if line.startswith(b"data:") else b""
            if not data:
                continue
            if data == b"[DONE]":
                await response.content.read()  # to the end, so that the connection can be used again
                self._ended = True
                return None
            event: dict[str, Any] = msgspec.json.decode(data)
            if "error" in event:
                raise LlmError(f"{self._endpoint.url}: {event['error'].get('message', event['error'])}", 500)
            return event
        raise LlmError(f"{self._endpoint.url} broke off in the middle of an answer")

    async def _failure(self, response: aiohttp.ClientResponse) -> LlmError:
        self._ended = True
        text = await response.text()
        with suppress(msgspec.MsgspecError, KeyError, TypeError):
            text = msgspec.json.decode(text)["error"]["message"]
        return LlmError(f"{self._endpoint.url} answered {response.status}: {text[:500]}", response.status)
