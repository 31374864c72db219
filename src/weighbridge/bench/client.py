"""One streamed completion: when each chunk came, and how many tokens in all."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field

import aiohttp


@dataclass(slots=True)
class Outcome:
    """What one request brought. Times are seconds on one clock; `chunks` are when text arrived."""

    started: float
    prompt_tokens: int = 0
    output_tokens: int = 0
    chunks: list[float] = field(default_factory=list)
    finished: float = 0.0
    error: str | None = None

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
        return [later - earlier for earlier, later in zip(self.chunks, self.chunks[1:], strict=False)]


async def complete(
    session: aiohttp.ClientSession, url: str, body: dict[str, object], timeout: float
) -> Outcome:
    """POST a streaming completion and read it to the end. Never raises: a failure is in `error`.

    Chunks are told apart without parsing them; only the last ones, which carry the usage, are decoded.
    """
    outcome = Outcome(time.perf_counter())
    limit = aiohttp.ClientTimeout(total=timeout)
    last = b""
    try:
        async with session.post(url, json=body, timeout=limit) as answer:
            if answer.status != 200:
                outcome.error = f"HTTP {answer.status}: {(await answer.text())[:300]}"
                return outcome
            async for line in answer.content:
                if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                    continue
                if b'"usage":{' in line or b'"usage": {' in line:
                    last = line
                if b'"choices":[]' not in line and b'"choices": []' not in line and not _is_opening(line):
                    outcome.chunks.append(time.perf_counter())
                if b'"error"' in line[:20]:
                    outcome.error = line[6:300].decode(errors="replace")
        outcome.finished = time.perf_counter()
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        outcome.error = f"{type(error).__name__}: {error}"
        return outcome
    usage = json.loads(last[6:]).get("usage") or {} if last else {}
    outcome.output_tokens = usage.get("completion_tokens", len(outcome.chunks))
    outcome.prompt_tokens = usage.get("prompt_tokens", 0)
    if not outcome.chunks and outcome.error is None:
        outcome.error = "the stream brought no text"
    return outcome


def _is_opening(line: bytes) -> bool:
    """A chat stream's first chunk names the role and holds no token."""
    return b'"role":"assistant","content":""' in line or b'"role": "assistant", "content": ""' in line
