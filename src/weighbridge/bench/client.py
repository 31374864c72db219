"""One streamed answer: when its text came, and how many tokens it held."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import aiohttp

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
    """What one request brought. Times are seconds on one clock.

    `chunks` are the times at which text arrived, `sizes` the bytes of text in each. `asked` and
    `output_tokens` are the tokens ordered and delivered.
    """

    started: float
    prompt_tokens: int = 0
    output_tokens: int = 0
    chunks: list[float] = field(default_factory=list)
    finished: float = 0.0
    error: str | None = None
    asked: int = 0
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
    """One token to every chunk, and `surplus` more by their `sizes`; the sum is exact."""
    total, given, bytes_so_far, counts = sum(sizes), 0, 0, []
    for size in sizes:
        bytes_so_far += size
        due = round(surplus * bytes_so_far / total)
        counts.append(1 + due - given)
        given = due
    return counts


async def complete(
    session: aiohttp.ClientSession,
    url: str,
    payload: bytes,
    *,
    timeout: float,
    asked: int = 0,
    outcome: StreamedAnswer | None = None,
) -> StreamedAnswer:
    """POST a streaming request and read it to the end. Never raises: a failure is in `error`.

    `timeout` is in seconds, for the whole request. An `outcome` that is passed in is filled while the stream
    runs, so that others can watch it.
    """
    outcome = outcome or StreamedAnswer(0.0)
    outcome.asked = asked
    outcome.started = time.perf_counter()
    reader = _StreamReader(outcome)
    headers = {"Content-Type": "application/json"}
    limit = aiohttp.ClientTimeout(total=timeout)
    try:
        async with session.post(url, data=payload, headers=headers, timeout=limit) as answer:
            if answer.status != 200:
                outcome.error = f"HTTP {answer.status}: {(await answer.text(errors='replace'))[:300]}"
                return outcome
            async for data in answer.content.iter_any():
                reader.feed(data, time.perf_counter())
        outcome.finished = time.perf_counter()
        reader.close()
    except TimeoutError:
        outcome.error = f"no end within {timeout:g} s"
    except (aiohttp.ClientError, OSError, ValueError) as error:
        outcome.error = f"{type(error).__name__}: {error}"
    return outcome


class _StreamReader:
    """Server-sent events into an `StreamedAnswer`, from whatever pieces the network delivers."""

    def __init__(self, outcome: StreamedAnswer) -> None:
        self._outcome = outcome
        self._rest = b""
        self._usage = b""
        self._first_event: float | None = None
        self._ended = False

    def feed(self, data: bytes, now: float) -> None:
        for event in self._events(data):
            self._take(event, now)

    def _events(self, data: bytes) -> Iterator[bytes]:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:]

    def _take(self, event: bytes, now: float) -> None:
        text = _TEXT.search(event)
        if text is not None:
            self._outcome.chunks.append(now)
            self._outcome.sizes.append(len(text[1]))
        elif event.strip() == b"[DONE]":
            self._ended = True
            return
        elif _ERROR.match(event):
            self._outcome.error = event.strip()[:300].decode(errors="replace")
            return
        if self._first_event is None and _CHOICE.search(event) and not _OPENING.search(event):
            self._first_event = now
        if _USAGE.search(event):
            self._usage = event
        if _FINISHED.search(event):
            self._ended = True

    def close(self) -> None:
        """Count the tokens, and say what is wrong with a stream that ended too early. May raise ValueError."""
        outcome = self._outcome
        usage = _usage_of(self._usage)
        outcome.counted = "completion_tokens" in usage
        outcome.output_tokens = int(usage.get("completion_tokens") or len(outcome.chunks))
        outcome.prompt_tokens = int(usage.get("prompt_tokens") or 0)
        if not outcome.chunks and outcome.output_tokens and self._first_event is not None:
            outcome.chunks, outcome.sizes = [self._first_event], [1]  # tokens that spell no text
        if outcome.error is not None:
            return
        if not self._ended:
            outcome.error = "the stream ended without a finish reason or [DONE]"
        elif not outcome.chunks:
            outcome.error = "the stream brought no tokens"


def _usage_of(event: bytes) -> dict[str, Any]:
    usage = json.loads(event).get("usage") if event else None
    return usage if isinstance(usage, dict) else {}
