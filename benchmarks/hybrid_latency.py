"""What a route adds to a request that its edge answers: one client, one request at a time, over real sockets.

    python benchmarks/hybrid_latency.py [--requests 400] [--json FILE]

The edge is a process that answers at once with twelve chunks and their log-probabilities. Each prompt is sent to
it directly and through `weighbridge route serve`, alternately, so that what the machine does meanwhile meets both;
the difference of a pair is what the route adds. The route has all its steps: policy, detectors (`redact_then_cloud`,
patterns), caps, budget in SQLite, pre-router, tickets, and a judge that reads the answer. Prompts are MMLU questions
of RouteLLM, on 500 other ones of which the router is trained (WEIGHBRIDGE_DATA, or ../shared/data beside the
repository). Scoring alone is timed in this process.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import numpy as np

from weighbridge.routes.difficulty.labels import read_labels
from weighbridge.routes.difficulty.train import train
from weighbridge.routes.difficulty.trained import TrainedRouter

DATA = Path(os.environ.get("WEIGHBRIDGE_DATA", Path(__file__).parents[2] / "shared" / "data")) / "routing"
CHUNKS = 12
WARM_UP = 30
CONFIG = """
routes:
  auto:
    edge: {{url: "http://127.0.0.1:{edge}/v1", model: small}}
    cloud: {{url: "http://127.0.0.1:9/v1", model: big, price: {{input: 2.5, output: 10}}}}
    residency: redact_then_cloud
    router: {router}
    threshold: 1.0
    cascade: {{threshold: 0.5}}
budgets: {{usd_per_day: 20}}
ledger: {ledger}
tickets: {tickets}
"""


def _event(delta: dict[str, str], finish: str | None = None) -> bytes:
    token = {"token": "word", "logprob": -0.01, "top_logprobs": [{"token": "word", "logprob": -0.01}] * 5}
    choice = {
        "index": 0,
        "delta": delta,
        "finish_reason": finish,
        "logprobs": {"content": [token] * bool(delta)},
    }
    chunk = {"id": "edge", "object": "chat.completion.chunk", "model": "small", "choices": [choice]}
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


USAGE = {"id": "edge", "choices": [], "usage": {"prompt_tokens": 90, "completion_tokens": CHUNKS}}
BODY = (
    b"".join(_event({"content": "word "}) for _ in range(CHUNKS))
    + _event({}, "stop")
    + b"data: " + json.dumps(USAGE).encode() + b"\n\ndata: [DONE]\n\n"
)  # fmt: skip
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: %d\r\n\r\n" % len(BODY)


async def edge(port: int) -> None:
    """Answers every request on a connection as soon as it is complete."""

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    (
                        line[15:]
                        for line in head.lower().split(b"\r\n")
                        if line.startswith(b"content-length:")
                    ),
                    b"0",
                )
                await reader.readexactly(int(length))
                writer.write(HEAD + BODY)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(connection, "127.0.0.1", port)
    await server.serve_forever()


@contextmanager
def process(*arguments: str, port: int) -> Iterator[None]:
    """A child that listens on `port`; ended with the block."""
    child = subprocess.Popen([sys.executable, *arguments])
    try:
        for _ in range(600):
            if child.poll() is not None:
                raise SystemExit(f"{' '.join(arguments)} ended with code {child.returncode}")
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield
    finally:
        child.terminate()
        child.wait(30)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def ask(session: aiohttp.ClientSession, url: str, prompt: str, model: str, stream: bool) -> float:
    """Milliseconds until the whole answer is there."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "stream": stream,
        "max_tokens": 64,
    }
    started = time.perf_counter()
    async with session.post(f"{url}/v1/chat/completions", json=body) as answer:
        text = await answer.read()
        took = (time.perf_counter() - started) * 1e3
        if answer.status != 200 or b"word" not in text:
            raise SystemExit(f"{url} answered {answer.status}: {text[:300]!r}")
        if answer.headers.get("x-weighbridge-placement", "edge") != "edge":
            raise SystemExit("a request left the edge; nothing here should")
    return took


async def pairs(direct: str, route: str, prompts: list[str], stream: bool) -> tuple[np.ndarray, np.ndarray]:
    """Times of each prompt, directly and through the route, the order changing from pair to pair."""
    times: dict[str, list[float]] = {direct: [], route: []}
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(60)) as session:
        for number, prompt in enumerate(prompts):
            for url in (direct, route) if number % 2 else (route, direct):
                model = "small" if url == direct else "auto"
                times[url].append(await ask(session, url, prompt, model, stream or url == direct))
    return np.array(times[direct][WARM_UP:]), np.array(times[route][WARM_UP:])


def spread(values: np.ndarray) -> dict[str, float]:
    return {
        name: round(float(np.percentile(values, share)), 3)
        for name, share in (("p50", 50), ("p95", 95), ("p99", 99))
    }


def scoring(router: TrainedRouter, prompts: list[str]) -> dict[str, float]:
    took = []
    for prompt in prompts:
        started = time.perf_counter()
        router.score(prompt)
        took.append((time.perf_counter() - started) * 1e3)
    return spread(np.array(took))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--edge", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.edge:
        asyncio.run(edge(given.edge))
        return
    labels = read_labels(DATA / "routellm_mmlu.jsonl.gz")
    order = np.random.default_rng(0).permutation(len(labels))
    router = train([labels[i] for i in order[:500]])
    prompts = [labels[i].prompt for i in order[500 : 500 + given.requests + WARM_UP]]
    result: dict[str, object] = {"requests": given.requests, "scoring_ms": scoring(router, prompts)}
    edge_port, route_port = free_port(), free_port()
    direct, route = f"http://127.0.0.1:{edge_port}", f"http://127.0.0.1:{route_port}"
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        router.save(home / "router.json")
        config = home / "weighbridge.yaml"
        names = {"router": home / "router.json", "ledger": home / "l.sqlite", "tickets": home / "t.jsonl"}
        config.write_text(CONFIG.format(edge=edge_port, **names), encoding="utf-8")
        serve = ("-m", "weighbridge", "route", "serve", "--config", str(config), "--port", str(route_port))
        with process(__file__, "--edge", str(edge_port), port=edge_port), process(*serve, port=route_port):
            for name, stream in (("whole", False), ("streamed", True)):
                plain, routed = asyncio.run(pairs(direct, route, prompts, stream))
                result[name] = {
                    "direct_ms": spread(plain), "routed_ms": spread(routed), "added_ms": spread(routed - plain)
                }  # fmt: skip
    print(json.dumps(result, indent=2))
    if given.json:
        given.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
