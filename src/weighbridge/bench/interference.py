"""`weighbridge bench interference`: what a long prompt does to the streams beside it."""

from __future__ import annotations

import asyncio
import json
import random
import time
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from rich.console import Console

from weighbridge.bench.client import LoadClient, StreamedAnswer, complete
from weighbridge.bench.prompts import prompt_ids
from weighbridge.bench.serve import ServeOptions, first_model, request_body
from weighbridge.secret import Secret, without_account
from weighbridge.workload.quantiles import quantile, quantiles_ms


@dataclass(frozen=True, slots=True)
class InterferenceOptions:
    """`streams` decode; when each has shown `settle` chunks, a prompt of `prompt_tokens` arrives."""

    url: str
    model: str | None = None
    streams: int = 16
    stream_prompt: int = 100
    stream_output: int = 400
    prompt_tokens: int = 4000
    settle: int = 40
    timeout: float = 300.0  # seconds, for each request
    api_key: Secret | None = None


@dataclass(frozen=True, slots=True)
class InterferenceReport:
    """Seconds between the chunks of the streams: `before` the long prompt, `during` it, and until the end.

    Gaps count from when the last stream has begun, since the first ones belong to the streams' own prompts.
    """

    before: list[float]
    during: list[float]
    after: list[float]
    prompt: StreamedAnswer
    errors: list[str]
    cut_short: int = 0  # streams that ended before the long prompt had its first token

    @property
    def gaps(self) -> list[float]:
        return self.before + self.during + self.after

    def as_dict(self) -> dict[str, Any]:
        usual, during = quantile(self.before, 0.5), quantile(self.during, 0.5)
        worst = quantile(self.during, 0.99)
        return {
            "itl_ms": _figures(self.gaps),
            "itl_before_prompt_ms": _figures(self.before),
            "itl_during_prompt_ms": _figures(self.during),
            "max_gap_ms": max(self.gaps, default=0.0) * 1e3,
            "p99_over_median": _ratio(quantile(self.gaps, 0.99), quantile(self.gaps, 0.5)),
            "p99_over_median_during": _ratio(worst, during),
            "p99_during_over_median_before": _ratio(worst, usual),
            "prompt_ttft_ms": self.prompt.ttft * 1e3 if self.prompt.chunks else None,
            "streams_cut_short": self.cut_short,
            "errors": self.errors,
        }

    def print(self) -> None:
        figures = self.as_dict()
        console = Console(highlight=False)
        for name, key in (
            ("before the prompt", "itl_before_prompt_ms"),
            ("while it is computed", "itl_during_prompt_ms"),
            ("all along", "itl_ms"),
        ):
            gaps = figures[key]
            console.print(
                f"gaps {name}: median {gaps['p50']:.1f} ms, p99 {gaps['p99']:.1f} ms, max {gaps['max']:.1f} ms"
            )
        console.print(
            f"p99 over median: {figures['p99_over_median']:.2f} all along, "
            f"{figures['p99_over_median_during']:.2f} during, "
            f"{figures['p99_during_over_median_before']:.2f} during against before; "
            f"first token of the long prompt after {figures['prompt_ttft_ms'] or 0.0:.0f} ms",
            soft_wrap=True,
        )
        if self.cut_short:
            console.print(
                f"{self.cut_short} streams ended before the long prompt was computed: ask them for more tokens",
                style="yellow",
            )


def run(options: InterferenceOptions) -> InterferenceReport:
    """Measure, and wait for all of it. Raises WeighbridgeError when the server is not there."""
    return asyncio.run(run_async(options))


async def run_async(options: InterferenceOptions) -> InterferenceReport:
    serve = ServeOptions(options.url, options.model, [])
    async with LoadClient(serve.base, options.api_key) as client:
        model = options.model or await first_model(client, without_account(serve.base))
        rng = random.Random(time.time_ns())  # a prompt the server has not seen, however often this is run
        answers = [StreamedAnswer(0.0) for _ in range(options.streams)]

        def start(
            prompt_tokens: int, output_tokens: int, answer: StreamedAnswer
        ) -> asyncio.Task[StreamedAnswer]:
            ids = prompt_ids(prompt_tokens, range(*serve.vocabulary), rng)
            payload = json.dumps(request_body(model, ids, output_tokens, serve)).encode()
            sent = complete(
                client,
                serve.path,
                payload,
                timeout=options.timeout,
                ordered_tokens=output_tokens,
                answer=answer,
            )
            return asyncio.create_task(sent)

        streams = [start(options.stream_prompt, options.stream_output, stream) for stream in answers]
        while any(len(stream.chunks) < options.settle for stream in answers if stream.error is None):
            done, _ = await asyncio.wait(streams, timeout=0.01)
            if len(done) == len(streams):
                break
        prompt = await start(options.prompt_tokens, 1, StreamedAnswer(0.0))
        await asyncio.gather(*streams)
    return _report(answers, prompt)


def _report(answers: list[StreamedAnswer], prompt: StreamedAnswer) -> InterferenceReport:
    steady = max((stream.chunks[0] for stream in answers if stream.chunks), default=0.0)
    end = prompt.chunks[0] if prompt.chunks else prompt.started
    before: list[float] = []
    during: list[float] = []
    after: list[float] = []
    for stream in answers:
        for earlier, later in pairwise(stream.chunks):
            if earlier < steady:
                continue
            where = before if later <= prompt.started else during if earlier < end else after
            where.append(later - earlier)
    errors = [stream.error for stream in [*answers, prompt] if stream.error]
    cut_short = sum(not stream.chunks or stream.chunks[-1] < end for stream in answers)
    return InterferenceReport(before, during, after, prompt, errors, cut_short)


def _figures(gaps: list[float]) -> dict[str, float]:
    return {**quantiles_ms(gaps, (0.5, 0.95, 0.99)), "max": max(gaps, default=0.0) * 1e3}


def _ratio(value: float, by: float) -> float:
    return value / by if by else 0.0
