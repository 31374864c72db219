"""One streamed answer: when its text came, and how many tokens it held."""

from __future__ import annotations

import asyncio
import json
import re
import time
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from yarl import URL

from weighbridge.errors import BadInput
from weighbridge.secret import Secret, without_account
from weighbridge.wire.client import HttpClient, Response, Trust, Unreachable
from weighbridge.wire.headers import bearer_of
from weighbridge.wire.sse import EventFramer, event_data

_CONNECT_WITHIN = 30.0  # seconds
_LARGEST_PAGE = 16 << 20  # bytes of an answer that is no stream

#: The text of a chunk, when there is any. Chunks are searched, not decoded: the load generator shares its
#: cores with the server it measures.
_TEXT = re.compile(rb'"(?:text|content|reasoning_content|reasoning)":\s*"((?:[^"\\]|\\.)+)"')
_FINISHED = re.compile(rb'"finish_reason":\s*"')
_USAGE = re.compile(rb'"usage":\s*\{')
_ERROR = re.compile(rb'^\s*\{\s*"error":')
_OPENING = re.compile(rb'"role":\s*"assistant"')
_CHOICE = re.compile(rb'"choices":\s*\[\s*\{')


@dataclass(slots=True)
class StreamedAnswer:
    """What a request brought. Times are seconds on one clock.

    `chunks` are the times at which text arrived, `sizes` the bytes of text in each. `ordered_tokens` and
    `output_tokens` are the tokens ordered and delivered.
    """

    started: float
    prompt_tokens: int = 0
    output_tokens: int = 0
    chunks: list[float] = field(default_factory=list)
    finished: float = 0.0
    error: str | None = None
    status: int = 0  # HTTP's; 0: no answer
    ordered_tokens: int = 0
    sizes: list[int] = field(default_factory=list)
    counted: bool = False  # the server told the number of tokens; otherwise chunks were counted

    @property
    def ttft(self) -> float:
        return self.chunks[0] - self.started

    @property
    def e2e(self) -> float:
        return self.finished - self.started

    @property
    def tpot(self) -> float | None:
        """(e2e - TTFT) / (n - 1); None for a single token."""
        if self.output_tokens < 2:
            return None
        return (self.e2e - self.ttft) / (self.output_tokens - 1)

    @property
    def gaps(self) -> list[float]:
        """Seconds between chunks, as a reader sees them."""
        return [later - earlier for earlier, later in pairwise(self.chunks)]

    @property
    def token_gaps(self) -> list[float]:
        """Inter-token latencies: a chunk of k tokens counts k times, with a k-th of its gap.

        Which chunk held how many is estimated from the bytes of its text, when there are fewer chunks than
        tokens.
        """
        gaps = self.gaps
        surplus = self.output_tokens - len(self.chunks)
        if surplus <= 0 or not gaps:
            return gaps
        sizes = self.sizes[1:] if len(self.sizes) == len(self.chunks) else [1] * len(gaps)
        return [gap / k for gap, k in zip(gaps, share_out(surplus, sizes), strict=True) for _ in range(k)]


def share_out(surplus: int, sizes: list[int]) -> list[int]:
    """Give one token to every chunk, and `surplus` more by their `sizes`; the sum is exact."""
    total, given, bytes_so_far, counts = sum(sizes), 0, 0, []
    for size in sizes:
        bytes_so_far += size
        due = round(surplus * bytes_so_far / total)
        counts.append(1 + due - given)
        given = due
    return counts


class LoadClient:
    """HTTP to the server under load: a new connection for every request, and as many as it takes.

    Kept connections fail on servers that close them without saying so (llama-server does).
    """

    def __init__(self, base: str, api_key: Secret | None = None, trust: Trust | None = None) -> None:
        """Raises BadInput unless `base` is the URL of a server."""
        url = URL(base)
        if url.scheme not in ("http", "https") or not url.host:
            shown = without_account(base)
            raise BadInput(f"{shown!r} is no server: write for example http://127.0.0.1:8080", param="url")
        self._http = HttpClient(base, _CONNECT_WITHIN, keep=False, trust=trust)
        self._headers = {"Accept-Encoding": "identity", "Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = bearer_of(api_key)
        self._heads: dict[tuple[str, str], bytes] = {}

    async def __aenter__(self) -> LoadClient:
        return self

    async def __aexit__(self, *exception: object) -> None:
        self._http.close()

    async def ask(self, path: str, body: object = None, *, timeout: float = 10.0) -> Any:
        """GET `path`, or POST `body` to it, and decode the answer.

        Raises TimeoutError, ConnectionError, and ValueError for an answer that is no JSON or no success.
        """
        payload = b"" if body is None else json.dumps(body).encode()
        async with asyncio.timeout(timeout):
            response = await self.send("POST" if payload else "GET", path, payload)
            try:
                await response.begin(timeout)
                answer = await _whole(response)
            finally:
                response.close()
        if response.status != 200:
            raise ValueError(f"HTTP {response.status}: {answer[:300].decode(errors='replace')}")
        return json.loads(answer)

    async def send(self, method: str, path: str, payload: bytes = b"") -> Response:
        """Send a request. Raises ConnectionError without a connection, ValueError for a key that is no header."""
        head = self._heads.get((method, path))
        if head is None:
            head = self._heads[method, path] = self._http.head(method, path, self._headers)
        return await self._http.send(head, payload)


async def complete(
    client: LoadClient,
    path: str,
    payload: bytes,
    *,
    timeout: float,
    ordered_tokens: int = 0,
    answer: StreamedAnswer | None = None,
) -> StreamedAnswer:
    """POST a streaming request and read it to the end. Never raises: a failure is in `error`.

    `timeout` is in seconds, for the whole request. An `answer` that is passed in is filled while the stream
    runs, so that others can watch it.
    """
    answer = answer or StreamedAnswer(0.0)
    answer.ordered_tokens = ordered_tokens
    answer.started = time.perf_counter()
    try:
        async with asyncio.timeout(timeout):
            await _read(await client.send("POST", path, payload), answer, timeout)
    except TimeoutError:
        answer.error = f"no end within {timeout:g} s"
    except Unreachable as error:
        answer.error = f"Connection failed: {error}"
    except (OSError, ValueError) as error:
        answer.error = f"{type(error).__name__}: {error}"
    return answer


async def _read(response: Response, answer: StreamedAnswer, timeout: float) -> None:
    reader = _StreamReader(answer)
    try:
        await response.begin(timeout)
        answer.status = response.status
        if response.status != 200:
            body = await _whole(response)
            answer.error = f"HTTP {response.status}: {body.decode(errors='replace')[:300]}"
            return
        while data := await response.read():
            reader.feed(data, time.perf_counter())
        answer.finished = time.perf_counter()
        reader.close(answer.finished)
    finally:
        response.close()


async def _whole(response: Response) -> bytes:
    body = bytearray()
    while data := await response.read():
        body += data
        if len(body) > _LARGEST_PAGE:
            raise ValueError(f"an answer of more than {_LARGEST_PAGE >> 20} MiB")
    return bytes(body)


class _StreamReader:
    """Reads server-sent events into a `StreamedAnswer`, from whatever pieces the network delivers."""

    def __init__(self, answer: StreamedAnswer) -> None:
        self._answer = answer
        self._framer = EventFramer()
        self._usage = b""
        self._first_event: float | None = None
        self._ended = False

    def feed(self, data: bytes, now: float) -> None:
        """Take what has come at `now`. Raises ValueError for an event that never ends."""
        for event in event_data(self._framer.feed(data)):
            self._take(event, now)

    def _take(self, event: bytes, now: float) -> None:
        text = _TEXT.search(event)
        if text is not None:
            self._answer.chunks.append(now)
            self._answer.sizes.append(len(text[1]))
        elif event.strip() == b"[DONE]":
            self._ended = True
            return
        elif _ERROR.match(event):
            self._answer.error = event.strip()[:300].decode(errors="replace")
            return
        if self._first_event is None and _CHOICE.search(event) and not _OPENING.search(event):
            self._first_event = now
        if _USAGE.search(event):
            self._usage = event
        if _FINISHED.search(event):
            self._ended = True

    def close(self, now: float) -> None:
        """Count the tokens, and say what is wrong with a stream that ended too early. Raises ValueError."""
        for event in event_data(self._framer.flush()):
            self._take(event, now)
        answer = self._answer
        usage = _usage_of(self._usage)
        answer.counted = "completion_tokens" in usage
        answer.output_tokens = int(usage.get("completion_tokens") or len(answer.chunks))
        answer.prompt_tokens = int(usage.get("prompt_tokens") or 0)
        if not answer.chunks and answer.output_tokens and self._first_event is not None:
            answer.chunks, answer.sizes = [self._first_event], [1]  # tokens that spell no text
        if answer.error is not None:
            return
        if not self._ended:
            answer.error = "the stream ended without a finish reason or [DONE]"
        elif not answer.chunks:
            answer.error = "the stream brought no tokens"


def _usage_of(event: bytes) -> dict[str, Any]:
    usage = json.loads(event).get("usage") if event else None
    return usage if isinstance(usage, dict) else {}
