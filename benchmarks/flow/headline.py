"""Three independent tools of 300 ms and a synthesis by our server: the same function, without and with decorators.

    python -m benchmarks.flow.headline [--url http://127.0.0.1:8080] [--rounds 5]

Without a URL a server with the default model is started. The function is written once; `plain` gets the tools
as they are, `flow` gets them decorated.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable
from statistics import median
from typing import Any

from benchmarks.flow.serving import serving

from weighbridge.flow import flow, llm, step

TOOL_SECONDS = 0.3


async def weather(city: str) -> str:
    await asyncio.sleep(TOOL_SECONDS)
    return f"sunny in {city}"


async def flights(city: str) -> str:
    await asyncio.sleep(TOOL_SECONDS)
    return f"two flights to {city}"


async def hotels(city: str) -> str:
    await asyncio.sleep(TOOL_SECONDS)
    return f"five hotels in {city}"


def trip(decorate: Callable[[Any], Any], url: str, spent: list[float]) -> Callable[[str], Awaitable[str]]:
    """The pipeline, over tools that went through `decorate`."""
    sky, ways, beds = decorate(weather), decorate(flights), decorate(hotels)
    ask = llm(url, max_tokens=16, temperature=0.0)

    async def plan(city: str) -> str:
        a = sky(city)
        b = ways(city)
        c = beds(city)
        facts = f"{await a}, {await b}, {await c}"
        began = time.perf_counter()
        text = await ask.text(f"Plan a trip: {facts}")
        spent.append(time.perf_counter() - began)
        return text

    return plan


async def seconds(work: Awaitable[Any]) -> float:
    began = time.perf_counter()
    await work
    return time.perf_counter() - began


async def measure(url: str, rounds: int) -> dict[str, float]:
    """Median seconds of both, of the synthesis in each, and of the flow without its synthesis at best and worst."""
    plain_synthesis: list[float] = []
    flow_synthesis: list[float] = []
    plain = trip(lambda tool: tool, url, plain_synthesis)
    piped = flow(trip(step(effect="read"), url, flow_synthesis))  # type: ignore[arg-type]
    await plain("Oslo")
    plain_synthesis.clear()
    sequential = [await seconds(plain(f"Oslo {n}")) for n in range(rounds)]
    parallel = [await seconds(piped(f"Oslo {n}")) for n in range(rounds)]
    return {
        "sequential": median(sequential),
        "sequential_synthesis": median(plain_synthesis),
        "flow": median(parallel),
        "flow_synthesis": median(flow_synthesis),
        "flow_tools_best": min(a - b for a, b in zip(parallel, flow_synthesis, strict=True)),
        "flow_tools_worst": max(a - b for a, b in zip(parallel, flow_synthesis, strict=True)),
        "sequential_tools_best": min(a - b for a, b in zip(sequential, plain_synthesis, strict=True)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if options.url:
        figures = asyncio.run(measure(options.url, options.rounds))
    else:
        with serving() as url:
            figures = asyncio.run(measure(url, options.rounds))
    for name, value in figures.items():
        print(f"{name:24} {value * 1e3:8.1f} ms")


if __name__ == "__main__":
    main()
