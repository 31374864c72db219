"""`weighbridge bench interference`: what a long prompt does to the streams beside it."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import Any

import aiohttp
from rich.console import Console

from weighbridge.bench.client import Outcome, complete
from weighbridge.bench.report import percentile
from weighbridge.bench.serve import FIRST_ID, LAST_ID, ServeOptions, completion_body, first_model
from weighbridge.bench.workload import Arrival, prompt_ids


@dataclass(frozen=True, slots=True)
class InterferenceOptions:
    """`streams` decode; after `delay` seconds a prompt of `prompt_tokens` arrives."""

    url: str
    model: str | None = None
    streams: int = 16
    stream_prompt: int = 100
    stream_output: int = 400
    prompt_tokens: int = 4000
    delay: float = 3.0
    timeout: float = 300.0


@dataclass(frozen=True, slots=True)
class InterferenceReport:
    """Gaps between the streams' tokens in seconds: all along, and while the long prompt was computed."""

    gaps: list[float]
    gaps_during: list[float]
    prompt: Outcome
    errors: list[str]

    def as_dict(self) -> dict[str, Any]:
        median = percentile(self.gaps, 0.5)
        return {
            "itl_ms": {f"p{int(p * 100)}": percentile(self.gaps, p) * 1e3 for p in (0.5, 0.95, 0.99)},
            "itl_during_prompt_ms": {
                f"p{int(p * 100)}": percentile(self.gaps_during, p) * 1e3 for p in (0.5, 0.99)
            },
            "max_gap_ms": max(self.gaps, default=0.0) * 1e3,
            "p99_over_median": percentile(self.gaps, 0.99) / median if median else 0.0,
            "prompt_ttft_ms": self.prompt.ttft * 1e3 if self.prompt.chunks else None,
            "errors": self.errors,
        }

    def print(self) -> None:
        figures = self.as_dict()
        Console().print(
            f"inter-token gap of the streams: median {figures['itl_ms']['p50']:.1f} ms, "
            f"p99 {figures['itl_ms']['p99']:.1f} ms ({figures['p99_over_median']:.2f}x the median), "
            f"largest {figures['max_gap_ms']:.1f} ms; first token of the long prompt after "
            f"{figures['prompt_ttft_ms'] or 0.0:.0f} ms",
            soft_wrap=True,
        )


def run(options: InterferenceOptions) -> InterferenceReport:
    return asyncio.run(_run(options))


async def _run(options: InterferenceOptions) -> InterferenceReport:
    rng = random.Random(0)
    url = f"{options.url.rstrip('/')}/v1/completions"
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        model = options.model or await first_model(session, options.url)
        serve = ServeOptions(options.url, model, [])

        def body(prompt_tokens: int, output_tokens: int) -> dict[str, Any]:
            ids = prompt_ids(prompt_tokens, range(FIRST_ID, LAST_ID), rng)
            return completion_body(model, Arrival(0.0, prompt_tokens, output_tokens), serve, ids)

        bodies = [body(options.stream_prompt, options.stream_output) for _ in range(options.streams)]
        long = body(options.prompt_tokens, 1)
        streams = [asyncio.ensure_future(complete(session, url, one, options.timeout)) for one in bodies]
        await asyncio.sleep(options.delay)
        prompt = await complete(session, url, long, options.timeout)
        outcomes = await asyncio.gather(*streams)
    # The first gaps belong to the other streams' own prompts; steady decoding starts when all have begun.
    steady = max((one.chunks[0] for one in outcomes if one.chunks), default=0.0)
    gaps, during = [], []
    for one in outcomes:
        for earlier, later in zip(one.chunks, one.chunks[1:], strict=False):
            if earlier >= steady:
                gaps.append(later - earlier)
                if later > prompt.started and prompt.chunks and earlier < prompt.chunks[0]:
                    during.append(later - earlier)
    errors = [one.error for one in [*outcomes, prompt] if one.error]
    return InterferenceReport(gaps, during, prompt, errors)
