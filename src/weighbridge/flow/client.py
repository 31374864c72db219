"""Chat over HTTP with any OpenAI-compatible server; on Weighbridge a cancelled request's slot is seen free."""

from __future__ import annotations

import asyncio
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import msgspec

from weighbridge.errors import BadInput, WeighbridgeError

CONNECT_SECONDS = 10.0
#: How long a cancelled request's slot is watched until it is free, and how often.
FREED_SECONDS, FREED_EVERY = 2.0, 0.005
#: A queue's load is asked for at most this often.
LOAD_SECONDS = 0.5


class LlmError(WeighbridgeError):
    """The server answered with an error, or not at all. `status` is its HTTP status, 0 without one."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


@dataclass(slots=True)
class Endpoint:
    """One server. `ours` is learned from its first answer."""

    url: str
    api_key: str | None = None
    ours: bool | None = None
    queued_requests: int = 0
    seconds_per_token: float = 0.0
    asked: float = field(default=-1e9)  # when its load was last asked for

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise BadInput(f"llm: {self.url!r} is not a URL; give one like http://127.0.0.1:8080/v1")
        self.url = self.url.rstrip("/")
        if self.url.endswith("/v1"):
            self.url = self.url[: -len("/v1")]

    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}


class ChatClient:
    """A connection pool; a flow's run opens one and closes it."""

    def __init__(self) -> None:
        timeout = aiohttp.ClientTimeout(total=None, connect=CONNECT_SECONDS)
        self._session = aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0))
        self.freed_seconds: list[float] = []  # from cancelling a request to seeing its slot free

    async def close(self) -> None:
        await self._session.close()

    def open(self, endpoint: Endpoint, body: dict[str, Any], speculative: bool) -> ChatStream:
        return ChatStream(self, self._session, endpoint, body, speculative)

    async def freed(self, endpoint: Endpoint, ticket: str) -> None:
        """Watch until the server says that a cancelled request has ended; at most `FREED_SECONDS`."""
        began = time.perf_counter()
        url = f"{endpoint.url}/v1/tickets/{ticket}"
        with suppress(aiohttp.ClientError, TimeoutError, ValueError):
            while time.perf_counter() - began < FREED_SECONDS:
                async with self._session.get(url, headers=endpoint.headers()) as answer:
                    if answer.status != 200:
                        return
                    if (await answer.json()).get("finished") is not None:
                        self.freed_seconds.append(time.perf_counter() - began)
                        return
                await asyncio.sleep(FREED_EVERY)

    async def ask_load(self, endpoint: Endpoint) -> None:
        """Refresh what is known of one of our servers' queue."""
        now = time.monotonic()
        if not endpoint.ours or now - endpoint.asked < LOAD_SECONDS:
            return
        endpoint.asked = now
        with suppress(aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError):
            async with self._session.get(f"{endpoint.url}/v1/load", headers=endpoint.headers()) as answer:
                load = await answer.json()
                endpoint.queued_requests = int(load["queued_requests"])
                cost = load["step_cost"]
                batch = max(int(load["running_requests"]), 1)
                endpoint.seconds_per_token = (float(cost["overhead"]) + float(cost["memory"])) / batch


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
        self.ticket = uuid.uuid4().hex  # proposed; the server's answer says what it is

    async def start(self) -> ChatStream:
        """Send the request and wait for the first event. Raises LlmError. Cancelled, it leaves nothing."""
        try:
            self._response = await self._session.post(
                f"{self._endpoint.url}/v1/chat/completions", json=self._payload(), headers=self._headers()
            )
            self._endpoint.ours = "x-weighbridge-ticket" in self._response.headers
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
        if self._endpoint.ours:
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
