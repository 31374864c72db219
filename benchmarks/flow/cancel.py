"""From cancelling a step to a free slot: how long our server goes on computing for nobody.

    python -m benchmarks.flow.cancel [--trials 50] [--gateway]

A flow's `llm` step is cancelled before its first token (in the middle of a long prompt), in the middle of
its answer, and, as a plain request without streaming, while it is computed. The clock runs from the
cancellation until `/v1/load` counts no request any more; it is asked every millisecond. One iteration is
what a cancelled request may still have to wait for: the gap between two tokens, or one piece of a long prompt.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable
from itertools import pairwise
from statistics import median
from typing import Any

import httpx
from benchmarks.flow.serving import serving

from weighbridge.flow.llm.client import ChatClient, ChatEndpoint

LONG = "The quick brown fox jumps over the lazy dog. " * 400
STORY = {
    "messages": [{"role": "user", "content": "Tell a long story."}],
    "max_tokens": 2000,
    "ignore_eos": True,
}


def prompt(number: int) -> dict[str, Any]:
    """A long prompt that no prefix of another one helps with."""
    return {"messages": [{"role": "user", "content": f"{number} {LONG}"}], "max_tokens": 20}


async def free(session: httpx.AsyncClient, url: str) -> float:
    """Seconds until no request is left."""
    began = time.perf_counter()
    while True:
        load = (await session.get(f"{url}/v1/load")).json()
        if not load["running_requests"] and not load["queued_requests"]:
            return time.perf_counter() - began
        if time.perf_counter() - began > 30.0:
            raise SystemExit("the slot did not become free in 30 s")
        await asyncio.sleep(0.001)


async def before_first_token(client: ChatClient, endpoint: ChatEndpoint, number: int) -> None:
    stream = client.open(endpoint, prompt(number), False)
    task = asyncio.create_task(stream.start())
    await asyncio.sleep(0.05)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def mid_stream(client: ChatClient, endpoint: ChatEndpoint, number: int) -> None:
    stream = await client.open(endpoint, STORY, False).start()
    for _ in range(5 + number % 7):
        await stream.next()
    await stream.close()


async def not_streaming(client: ChatClient, endpoint: ChatEndpoint, number: int) -> None:
    async def ask() -> None:
        async with httpx.AsyncClient(timeout=60.0) as session:
            await session.post(f"{endpoint.url}/v1/chat/completions", json=STORY)

    task = asyncio.create_task(ask())
    await asyncio.sleep(0.2 + 0.005 * (number % 10))
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def token_gap(client: ChatClient, endpoint: ChatEndpoint) -> float:
    """Median seconds between tokens of one stream alone."""
    stream = await client.open(endpoint, {**STORY, "max_tokens": 60}, False).start()
    times = []
    while await stream.next() is not None:
        times.append(time.perf_counter())
    await stream.close()
    return median(b - a for a, b in pairwise(times))


async def first_token(client: ChatClient, endpoint: ChatEndpoint) -> float:
    """Seconds to the first token of a long prompt: more than any one iteration of it takes."""
    began = time.perf_counter()
    stream = await client.open(endpoint, prompt(-1), False).start()
    seconds = time.perf_counter() - began
    await stream.close()
    return seconds


Cancel = Callable[[ChatClient, ChatEndpoint, int], Awaitable[None]]


async def measure(url: str, trials: int, label: str) -> bool:
    endpoint, client = ChatEndpoint(url), ChatClient()
    good = True
    # A connection per question: a kept one may wait 40 ms for a delayed acknowledgement, which is not measured here.
    async with httpx.AsyncClient(limits=httpx.Limits(max_keepalive_connections=0)) as session:
        gap, prefill = await token_gap(client, endpoint), await first_token(client, endpoint)
        await free(session, url)
        endpoint.ours = False  # measured here, not by the client
        cases: list[tuple[str, Cancel, float]] = [
            ("before first token", before_first_token, prefill),
            ("mid-stream", mid_stream, gap),
            ("not streaming", not_streaming, gap),
        ]
        for name, cancel, iteration in cases:
            seconds = []
            for number in range(trials):
                endpoint.ours = False
                await cancel(client, endpoint, number)
                seconds.append(await free(session, url))
            ordered = sorted(seconds)
            p99 = ordered[min(int(0.99 * trials), trials - 1)]
            within = p99 <= iteration + 0.020
            good &= within
            print(
                f"| {label}, {name} | {median(seconds) * 1e3:.1f} | {p99 * 1e3:.1f} | {iteration * 1e3:.1f} "
                f"| {'yes' if within else 'NO'} |",
                flush=True,
            )
    await client.close()
    return good


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--gateway", action="store_true", help="Also through a gateway with one replica.")
    options = parser.parse_args()
    print(
        "| | median ms | p99 ms | one iteration ms | p99 within one iteration + 20 ms |\n|---|---|---|---|---|"
    )
    with serving() as url:
        good = asyncio.run(measure(url, options.trials, "direct"))
    if options.gateway:
        with serving("--replicas", "1") as url:
            good &= asyncio.run(measure(url, options.trials, "gateway"))
    raise SystemExit(0 if good else 1)


if __name__ == "__main__":
    main()
