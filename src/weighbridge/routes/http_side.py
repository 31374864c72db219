"""A side behind any OpenAI-compatible URL."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError

from weighbridge.cost.price import Price
from weighbridge.routes.errors import SideFailed
from weighbridge.routes.latency import Latency, TokenCount
from weighbridge.routes.side import Chunk, SideRequest, SideSettings, is_here

#: Failures in a row after which a side rests, and for how long at first and at most, in seconds.
FAILURES, REST, LONGEST_REST = 3, 2.0, 60.0
LARGEST_EVENT = 4 << 20


class HttpSide:
    """A side behind HTTP. Healthy until it fails `FAILURES` times in a row; then it rests, ever longer."""

    def __init__(
        self, name: str, settings: SideSettings, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.name = name
        self.settings = settings
        self.model = settings.model
        self.price = settings.price
        self.context_tokens = settings.context_tokens
        self.abilities = settings.abilities
        self.max_tokens = settings.max_tokens
        self.latency = Latency()
        self.tokens = TokenCount()
        self.in_flight = 0
        self._clock = clock
        self._session: aiohttp.ClientSession | None = None
        self._failures = 0
        self._rests_until = 0.0
        self._load_tokens = 0
        self._load_read = -1e9
        self._reading: asyncio.Task[None] | None = None

    @property
    def healthy(self) -> bool:
        return self._clock() >= self._rests_until

    def queue_seconds(self) -> float:
        cost = self.settings.step_cost
        if self.settings.reports_load:
            self._refresh_load()
        return self._load_tokens * cost.per_token if cost is not None else 0.0

    def expected_seconds(self, prompt_tokens: int, output_tokens: float) -> float | None:
        cost = self.settings.step_cost
        if cost is None:
            return self.latency.expected(output_tokens)
        step = cost.seconds(self.in_flight + 1, self.in_flight + 1, prompt_tokens * (self.in_flight + 1))
        return self.queue_seconds() + cost.prefill_seconds(prompt_tokens) + output_tokens * step

    def estimate_tokens(self, size: int) -> int:
        return self.tokens.estimate(size)

    async def open(self, request: SideRequest) -> HttpStream:
        body = {"max_tokens": self.max_tokens, **request.body}
        if "max_completion_tokens" in body:
            body.pop("max_tokens")
        body |= {"model": self.model, "stream": True, "stream_options": {"include_usage": True}}
        self.in_flight += 1
        try:
            answer = await self._post(body, request)
        except BaseException:
            self.in_flight -= 1
            raise
        return HttpStream(self, answer, request)

    @property
    def elsewhere(self) -> str:
        return "" if is_here(self.settings.url) else f"{self.settings.shown} is not on this machine"

    async def embeddings(self, request: SideRequest) -> Any:
        if self.elsewhere:
            raise SideFailed(f"{self.name}: {self.elsewhere}")
        body = {**request.body, "model": self.model}
        url = f"{self.settings.url.rstrip('/')}/embeddings"
        try:
            async with (
                asyncio.timeout(request.timeout),
                self._http().post(
                    url, json=body, headers=self._headers(request), allow_redirects=False
                ) as answer,
            ):
                text = await answer.text(errors="replace")
        except (aiohttp.ClientError, TimeoutError) as error:
            reason = "no answer in time" if isinstance(error, TimeoutError) else str(error)
            raise SideFailed(f"{self.name}: {reason}", status=504) from error
        if answer.status != 200:
            raise SideFailed(f"{self.name} answered {answer.status}: {_message(text)}", status=answer.status)
        with suppress(ValueError):
            return json.loads(text)
        raise SideFailed(f"{self.name} sent an answer that is no JSON")

    async def close(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            with suppress(asyncio.CancelledError):
                await self._reading
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _post(self, body: Chunk, request: SideRequest) -> aiohttp.ClientResponse:
        url, headers = f"{self.settings.url.rstrip('/')}/chat/completions", self._headers(request)
        try:
            async with asyncio.timeout(min(request.timeout, self.settings.first_chunk_timeout)):
                answer = await self._http().post(url, json=body, headers=headers, allow_redirects=False)
        except aiohttp.ClientConnectorError as error:
            self.failed()
            raise SideFailed(f"{self.name}: no connection ({error})", status=503) from error
        except (aiohttp.ClientError, TimeoutError) as error:
            self.failed()
            reason = "no answer in time" if isinstance(error, TimeoutError) else str(error)
            raise SideFailed(f"{self.name}: {reason}", status=504, billable=True) from error
        if answer.status != 200:
            raise await self._refusal(answer)
        return answer

    def _headers(self, request: SideRequest) -> dict[str, str]:
        headers = {**self.settings.headers, **request.headers}
        if self.settings.api_key:
            headers["Authorization"] = f"Bearer {self.settings.api_key}"
        return headers

    async def _refusal(self, answer: aiohttp.ClientResponse) -> SideFailed:
        text = ""
        with suppress(aiohttp.ClientError, TimeoutError):
            async with asyncio.timeout(5.0):
                text = (await answer.content.read(2000)).decode(errors="replace")
        answer.close()
        after = answer.headers.get("retry-after", "")
        wait = float(after) if after.replace(".", "", 1).isdigit() else None
        failure = SideFailed(
            f"{self.name} answered {answer.status}: {_message(text)}", status=answer.status, retry_after=wait
        )
        if answer.status == 429:
            self._rests_until = max(self._rests_until, self._clock() + min(wait or 0.0, LONGEST_REST))
        elif not failure.is_request_at_fault:
            self.failed()
        return failure

    def failed(self) -> None:
        """Count a failure; after some in a row the side rests."""
        self._failures += 1
        if self._failures >= FAILURES:
            rest = min(REST * 2 ** (self._failures - FAILURES), LONGEST_REST)
            self._rests_until = max(self._rests_until, self._clock() + rest)

    def succeeded(self) -> None:
        self._failures = 0

    def _http(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=self.settings.connect_timeout),
                connector=aiohttp.TCPConnector(limit=0),
                read_bufsize=1 << 18,
            )
        return self._session

    def _refresh_load(self) -> None:
        """Ask for the load in the background, at most twice a second; meanwhile the last answer holds."""
        if self._clock() - self._load_read < 0.5 or (self._reading and not self._reading.done()):
            return
        self._load_read = self._clock()
        self._reading = asyncio.get_running_loop().create_task(self._read_load())

    async def _read_load(self) -> None:
        url = f"{self.settings.url.rstrip('/')}/load"
        with suppress(aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError):
            async with asyncio.timeout(2.0), self._http().get(url) as answer:
                load = await answer.json()
                self._load_tokens = int(load["queued_tokens"]) + int(load["running_tokens"])


def _message(text: str) -> str:
    """The message of OpenAI's error body, else the text itself, kept short."""
    try:
        error = json.loads(text)["error"]
        return str(error["message"] if isinstance(error, dict) else error)[:300]
    except (ValueError, KeyError, TypeError):
        return text[:300] or "no message"


class HttpStream:
    """Server-sent events as chunks. Every wait has an end; a stream that ends early raises SideFailed."""

    def __init__(self, side: HttpSide, answer: aiohttp.ClientResponse, request: SideRequest) -> None:
        self.upstream_ticket = answer.headers.get("x-weighbridge-ticket")
        self._side = side
        self._answer = answer
        self._size = request.size
        self._started = side._clock()
        self._ends = self._started + request.timeout
        self._first: float | None = None
        self._tokens = 0
        self._closed = False

    @property
    def price(self) -> Price:
        return self._side.price

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        try:
            while True:
                data = await self._event()
                if data == b"[DONE]":
                    self._done()
                    return
                chunk = self._decode(data)
                self._note(chunk)
                yield chunk
        except (SideFailed, GeneratorExit, asyncio.CancelledError):
            raise
        except (aiohttp.ClientError, HttpProcessingError, TimeoutError, OSError) as error:
            reason = "stopped talking" if isinstance(error, TimeoutError) else f"was cut off ({error})"
            raise self._failure(reason) from error
        finally:
            await self.close()

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._side.in_flight -= 1
            self._answer.close()

    async def _event(self) -> bytes:
        """The next event's data. Comments and empty lines are skipped."""
        settings = self._side.settings
        patience = settings.first_chunk_timeout if self._first is None else settings.idle_timeout
        async with asyncio.timeout(max(min(patience, self._ends - self._side._clock()), 0.001)):
            while True:
                line = await self._answer.content.readuntil(b"\n", max_size=LARGEST_EVENT)
                if not line:
                    raise self._failure("ended its stream early")
                if line.startswith(b"data:"):
                    return line[5:].strip()

    def _decode(self, data: bytes) -> Chunk:
        try:
            chunk = json.loads(data)
        except ValueError:
            raise self._failure("sent an event that is no JSON") from None
        if not isinstance(chunk, dict):
            raise self._failure("sent an event that is no object")
        if chunk.get("error"):
            raise self._failure(f"failed: {_message(data.decode(errors='replace'))}")
        return chunk

    def _note(self, chunk: Chunk) -> None:
        usage = chunk.get("usage")
        if usage:
            self._side.tokens.observe(self._size, usage.get("prompt_tokens", 0))
            self._tokens = usage.get("completion_tokens", self._tokens)
        if chunk.get("choices"):
            self._tokens += 1
            if self._first is None:
                self._first = self._side._clock()

    def _done(self) -> None:
        self._side.succeeded()
        if self._first is not None:
            rest = self._side._clock() - self._first
            self._side.latency.observe(self._first - self._started, rest, self._tokens)

    def _failure(self, reason: str) -> SideFailed:
        self._side.failed()
        return SideFailed(f"{self._side.name} {reason}", status=502, billable=True)
