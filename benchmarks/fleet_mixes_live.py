"""The mixes of `fleet_mixes.py` over HTTP: scripted engines that sleep, the real gateway, clients that stream.

    python benchmarks/fleet_mixes_live.py --mixes 10 --seconds 15
    python benchmarks/fleet_mixes_live.py --slow       # one becomes slower under way; figures of what comes after that

An engine serves as many at a time as it has seats, sleeps for a prompt and for each step as its step cost says (steps
five times as long as in the virtual mixes, answers a fifth as long, so that sleeps are tenths of a second), and tells
what its dialect tells. Each policy meets the same arrivals, for about so many seconds of them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import uvicorn
from aiohttp import web

from fleet_mixes import SIMPLE, Engine, JoinShortestQueue, Mix, draw, figures, ratios, slowed
from weighbridge.fleet.gateway import Gateway
from weighbridge.fleet.replicas.build import build_replica
from weighbridge.routes.config import parse_configuration
from weighbridge.server.app import create_app
from weighbridge.server.gateway.metrics import GatewayMetrics
from weighbridge.server.gateway.service import GatewayService

LONGER = 5.0
PAGES = {
    "vllm": "vllm:num_requests_running {running}\nvllm:num_requests_waiting {waiting}\n",
    "sglang": "sglang:num_running_reqs {running}\nsglang:num_queue_reqs {waiting}\n",
    "llama-server": "llamacpp:requests_processing {running}\nllamacpp:requests_deferred {waiting}\n",
}


def live(mix: Mix) -> Mix:
    """The same mix with longer steps and shorter answers."""

    def slow(engine: Engine) -> Engine:
        claims = None if engine.claims is None else engine.claims.scaled(LONGER)
        return replace(engine, cost=engine.cost.scaled(LONGER), claims=claims)

    return replace(
        mix,
        engines=tuple(slow(one) for one in mix.engines),
        output=max(mix.output / LONGER, 2.0),
    )


class Scripted:
    """An engine over HTTP: `seed` of a request is the true length of its answer, its prompt a word a token."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.cost = engine, engine.cost
        self.running = self.waiting = 0
        self._seats = asyncio.Semaphore(engine.seats)

    def app(self) -> web.Application:
        app = web.Application(client_max_size=1 << 22)
        app.router.add_post("/v1/completions", self.complete)
        for path in ("/v1/load", "/metrics", "/v1/models", "/api/ps"):
            app.router.add_get(path, self.load)
        return app

    async def load(self, request: web.Request) -> web.Response:
        page = PAGES.get(self.engine.dialect)
        if request.path == "/metrics" and page is not None:
            return web.Response(text=page.format(running=self.running, waiting=self.waiting))
        claims = self.engine.claims
        report: dict[str, Any] = {"queued_tokens": 0, "running_tokens": 0, "block_size": 16}
        report |= {"queued_requests": self.waiting, "running_requests": self.running}
        report |= {"kv_blocks_total": 1 << 16, "kv_blocks_used": 0, "draining": False, "data": []}
        return web.json_response(report | ({"step_cost": claims.as_dict()} if claims else {}))

    async def complete(self, request: web.Request) -> web.StreamResponse:
        call = await request.json()
        answer = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await answer.prepare(request)
        self.waiting += 1
        try:
            await self._seats.acquire()
        finally:
            self.waiting -= 1
        self.running += 1
        try:
            await self._work(call, answer)
        finally:
            self.running -= 1
            self._seats.release()
        return answer

    async def _work(self, call: dict[str, Any], answer: web.StreamResponse) -> None:
        prompt = len(call["prompt"].split())
        await asyncio.sleep(self.cost.prefill_work(prompt) + self.cost.decode_seconds(1, 0))
        for number in range(call["seed"]):
            if number:
                await asyncio.sleep(self.cost.decode_seconds(self.running, 0))
            choice = {"index": 0, "text": " word", "finish_reason": None}
            await answer.write(b"data: %b\n\n" % json.dumps({"id": "c", "choices": [choice]}).encode())
        choice = {"index": 0, "text": "", "finish_reason": "stop"}
        usage = {"prompt_tokens": prompt, "completion_tokens": call["seed"]}
        await answer.write(b"data: %b\n\n" % json.dumps({"id": "c", "choices": [choice]}).encode())
        await answer.write(b"data: %b\n\n" % json.dumps({"id": "c", "choices": [], "usage": usage}).encode())
        await answer.write(b"data: [DONE]\n\n")


@asynccontextmanager
async def served(engine: Scripted) -> AsyncIterator[str]:
    runner = web.AppRunner(engine.app())
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield "http://{}:{}".format(*runner.addresses[0][:2])
    finally:
        await runner.cleanup()


@asynccontextmanager
async def gateway_over(mix: Mix, policy: str) -> AsyncIterator[tuple[str, list[Scripted]]]:
    async with AsyncExitStack() as stack:
        engines = [Scripted(one) for one in mix.engines]
        urls = [await stack.enter_async_context(served(one)) for one in engines]
        replicas = "\n".join(
            f"      - {{name: r{number}, url: '{url}', dialect: {one.dialect}}}"
            for number, (one, url) in enumerate(zip(mix.engines, urls, strict=True))
        )
        named = "least_requests" if policy == JoinShortestQueue.name else policy
        text = (
            "health: {interval: 0.5, slow_start: 0}\n"
            f"models:\n  m:\n    policy: {named}\n    replicas:\n{replicas}\n"
        )
        gateway = Gateway(parse_configuration(text, "mix.yaml", Path(".")).fleet, build_replica, None, seed=1)
        if policy == JoinShortestQueue.name:
            gateway.pools["m"].dispatcher.desk.policy = JoinShortestQueue(random.Random(1))
        app = create_app(GatewayService(gateway, GatewayMetrics(gateway)))
        server = uvicorn.Server(
            uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", lifespan="on")
        )
        task = asyncio.create_task(server.serve())
        while not (server.started and gateway.ready):  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.02)
        await asyncio.sleep(1.0)  # each has told what it tells
        try:
            yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", engines
        finally:
            server.should_exit = True
            await task


async def ask(
    client: aiohttp.ClientSession, url: str, at: float, call: dict[str, Any]
) -> tuple[float, float]:
    """Send one request at its time; seconds to its first token and to its end."""
    await asyncio.sleep(max(at - time.monotonic(), 0.0))
    began, first = time.monotonic(), 0.0
    async with client.post(f"{url}/v1/completions", json=call) as answer:
        if answer.status != 200:
            raise AssertionError(await answer.text())
        async for line in answer.content:
            if not first and b"word" in line:
                first = time.monotonic() - began
    return first, time.monotonic() - began


async def measure(mix: Mix, policy: str, count: int) -> dict[str, float]:
    rng, at, calls = random.Random(f"live {mix.number}"), 0.0, []
    for _ in range(count):
        at += rng.expovariate(mix.rate)
        prompt = max(round(rng.lognormvariate(0.0, 0.6) * mix.prompt), 4)
        output = max(round(rng.lognormvariate(0.0, 0.6) * mix.output), 1)
        call = {"model": "m", "prompt": "word " * prompt, "stream": True, "seed": output}
        calls.append((at, call | {"max_tokens": 4 * round(mix.output)}))
    async with gateway_over(mix, policy) as (url, engines), aiohttp.ClientSession() as client:
        begin, changed = time.monotonic(), 0
        if mix.drift is not None:
            one, changed = engines[mix.drift.replica], int(mix.drift.at * count)
            loop, cost = asyncio.get_running_loop(), one.engine.cost.scaled(mix.drift.factor)
            loop.call_later(calls[changed][0], setattr, one, "cost", cost)
        found = await asyncio.gather(*(ask(client, url, begin + at, call) for at, call in calls))
    first, last = np.array(found[changed:]).T
    return figures(first, last)


async def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mixes", type=int, default=10)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=15.0, help="of arrivals, for each policy")
    parser.add_argument("--slow", action="store_true", help="one becomes slower; figures of what comes after")
    options = parser.parse_args()
    for number in range(options.first, options.first + options.mixes):
        mix = live(slowed(draw(number)) if options.slow else replace(draw(number), drift=None))
        count = min(max(round(mix.rate * options.seconds), 20), 200)
        found = {policy: await measure(mix, policy, count) for policy in ("weigh", *SIMPLE)}
        share = ", ".join(f"{name} {value:.2f}" for name, value in ratios(found).items())
        print(f"mix {number}: {count} requests, {share}; {mix.in_words()}", flush=True)
        for policy, values in found.items():
            print(f"    {policy:20}", *(f"{name} {value:7.3f}" for name, value in values.items()), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
