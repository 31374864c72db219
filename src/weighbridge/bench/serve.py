"""`weighbridge bench serve`: a closed loop of N clients, or the arrivals of a trace."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from weighbridge.bench.client import Outcome, complete
from weighbridge.bench.report import Report, Slo
from weighbridge.bench.workload import Arrival, prompt_ids
from weighbridge.errors import WeighbridgeError

#: Token ids that are ordinary text in every vocabulary met so far: past the special ones and single bytes.
FIRST_ID, LAST_ID = 1000, 15_000


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """A run. `concurrency` None: open loop, each request at its own time."""

    url: str
    model: str | None
    arrivals: Sequence[Arrival]
    concurrency: int | None = None
    shared_prefix: int = 0  # tokens every prompt begins with
    warm_up: int = 0  # requests sent first and not counted
    temperature: float = 0.0
    seed: int = 0
    timeout: float = 600.0  # seconds, for each request
    text_prompts: bool = False  # words instead of token ids, for servers that take no ids
    api_key: str | None = None
    slo: Slo = field(default_factory=Slo)


def run(options: ServeOptions) -> Report:
    """Send the whole workload and wait for all of it. Raises WeighbridgeError when the server is not there."""
    return asyncio.run(run_async(options))


async def run_async(options: ServeOptions) -> Report:
    headers = {"Authorization": f"Bearer {options.api_key}"} if options.api_key else {}
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(headers=headers, connector=connector) as session:
        model = options.model or await first_model(session, options.url)
        bodies = _bodies(options, model)
        send = _sender(session, options)
        for body in bodies[: options.warm_up]:
            await send(body)
        counted = list(zip(options.arrivals, bodies[options.warm_up :], strict=True))
        began = time.perf_counter()
        if options.concurrency is None:
            outcomes = await _open_loop(send, counted)
        else:
            outcomes = await _closed_loop(send, [body for _, body in counted], options.concurrency)
        return Report(outcomes, time.perf_counter() - began, options.slo)


async def first_model(session: aiohttp.ClientSession, url: str) -> str:
    """The name of the first model the server has."""
    try:
        async with session.get(
            f"{url.rstrip('/')}/v1/models", timeout=aiohttp.ClientTimeout(total=10)
        ) as answer:
            return str((await answer.json())["data"][0]["id"])
    except (aiohttp.ClientError, TimeoutError, KeyError, IndexError, ValueError) as error:
        raise WeighbridgeError(
            f"no model at {url} ({type(error).__name__}: {error}); is a server running there?"
        ) from error


def _bodies(options: ServeOptions, model: str) -> list[dict[str, Any]]:
    """All requests are made before the clock starts. The warm-up's come first."""
    rng = random.Random(options.seed)
    vocabulary = range(FIRST_ID, LAST_ID)
    shared = prompt_ids(options.shared_prefix, vocabulary, rng)
    arrivals = [*(options.arrivals[0] for _ in range(options.warm_up)), *options.arrivals]
    return [
        completion_body(model, one, options, prompt_ids(one.prompt_tokens, vocabulary, rng, shared))
        for one in arrivals
    ]


def completion_body(model: str, arrival: Arrival, options: ServeOptions, ids: list[int]) -> dict[str, Any]:
    """A streaming completion that must produce exactly as many tokens as asked."""
    prompt: Any = " ".join(f"{one}" for one in ids) if options.text_prompts else ids
    return {
        "model": model,
        "prompt": prompt,
        "max_tokens": arrival.output_tokens,
        "temperature": options.temperature,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


Send = Callable[[dict[str, Any]], Awaitable[Outcome]]


def _sender(session: aiohttp.ClientSession, options: ServeOptions) -> Send:
    url = f"{options.url.rstrip('/')}/v1/completions"

    async def send(body: dict[str, Any]) -> Outcome:
        return await complete(session, url, body, options.timeout)

    return send


async def _closed_loop(send: Send, bodies: list[dict[str, Any]], concurrency: int) -> list[Outcome]:
    """`concurrency` clients; each sends its next request when the last one is done."""
    waiting = iter(bodies)
    outcomes: list[Outcome] = []

    async def client() -> None:
        for body in waiting:
            outcome = await send(body)
            outcomes.append(outcome)

    await asyncio.gather(*(client() for _ in range(concurrency)))
    return outcomes


async def _open_loop(send: Send, counted: list[tuple[Arrival, dict[str, Any]]]) -> list[Outcome]:
    """Every request at its own time, whatever became of the others."""
    began = time.perf_counter()

    async def one(arrival: Arrival, body: dict[str, Any]) -> Outcome:
        await asyncio.sleep(max(arrival.at - (time.perf_counter() - began), 0.0))
        return await send(body)

    return list(await asyncio.gather(*(one(arrival, body) for arrival, body in counted)))
