"""What a gateway of many replicas costs by itself, and a large schema its engine: rows of `growth.py`.

Backends that cost nothing (gateway/backend.py) on as many ports of another process; the gateway in this one.
"""

from __future__ import annotations

import asyncio
import json
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from weighbridge.engine.guidance.factory import GuideFactory
from weighbridge.engine.request import Guide
from weighbridge.fleet.gateway import Gateway
from weighbridge.fleet.replicas.build import build_replica
from weighbridge.routes.config import parse_configuration
from weighbridge.server.gateway.metrics import GatewayMetrics, replica_pieces

BACKEND = Path(__file__).parent / "gateway" / "backend.py"
#: Seconds that a gateway is watched doing nothing.
IDLE = 5.0


def constrained(properties: int) -> float:
    """Milliseconds of the engine's thread that a choice takes whose schema, of so many properties, was validated."""
    letters = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(letters, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<end>"])
    factory = GuideFactory(backend, len(letters) + 1, [len(letters)])
    named = {f"property_{number}": {"type": "string"} for number in range(properties)}
    guide = Guide("json_schema", json.dumps({"type": "object", "properties": named}))
    factory.compiled(guide).result()
    began, choices = time.thread_time(), 200
    for _ in range(choices):
        mask = factory.matcher(guide).forbidden()
        assert mask is not None
    took = time.thread_time() - began
    factory.close()
    return took / choices * 1e3


def metrics(replicas: int) -> float:
    """The longest that the event loop is held up by a page of `/metrics`, in milliseconds of the processor."""
    return _with_gateway(replicas, _longest_piece)


def idle(replicas: int) -> float:
    """Percent of a core that a gateway takes where nothing happens."""
    return _with_gateway(replicas, _at_rest)


async def _longest_piece(gateway: Gateway) -> float:
    page = GatewayMetrics(gateway)
    await page.exposition()
    longest = []
    for _ in range(5):
        pieces = [_steps(page.exposition()), _steps_of(replica_pieces(gateway))]
        longest.append(max(map(max, pieces)))
    return min(longest) * 1e3


def _steps(work: object) -> list[float]:
    """Processor seconds between two moments at which a coroutine lets others have their turn."""
    steps, done = [], False
    while not done:
        began = time.thread_time()
        try:
            work.send(None)  # type: ignore[attr-defined]
        except StopIteration:
            done = True
        steps.append(time.thread_time() - began)
    return steps


def _steps_of(pieces: Iterator[bytes]) -> list[float]:
    steps = [0.0]
    while True:
        began = time.thread_time()
        if next(pieces, None) is None:
            return steps
        steps.append(time.thread_time() - began)


async def _at_rest(gateway: Gateway) -> float:
    began, used = time.monotonic(), time.process_time()
    await asyncio.sleep(IDLE)
    return 100 * (time.process_time() - used) / (time.monotonic() - began)


def _with_gateway(replicas: int, work: Callable[[Gateway], object]) -> float:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with _backends(replicas) as ports:
        entries = "".join(f"      - {{url: 'http://127.0.0.1:{port}'}}\n" for port in ports)
        text = f"listen: 127.0.0.1:0\nmodels:\n  m:\n    replicas:\n{entries}"
        return asyncio.run(_run(text, work))


async def _run(text: str, work: Callable[[Gateway], object]) -> float:
    spec = parse_configuration(text, "growth", Path(".")).fleet
    gateway = Gateway(spec, build_replica)
    await gateway.start()
    try:
        members = list(gateway.pools["m"].members.values())
        until = time.monotonic() + 60
        while not all(member.heard for member in members):
            if time.monotonic() > until:
                raise RuntimeError("not all replicas answered within a minute")
            await asyncio.sleep(0.2)
        await asyncio.sleep(2.0)
        return await work(gateway)  # type: ignore[misc,no-any-return]
    finally:
        await gateway.close()


@contextmanager
def _backends(count: int) -> Iterator[list[int]]:
    first = _free_ports(count)
    process = subprocess.Popen([sys.executable, str(BACKEND), str(first), str(count)])
    try:
        yield list(range(first, first + count))
    finally:
        process.terminate()
        process.wait()


def _free_ports(count: int) -> int:
    """The first of so many free ports in a row, below those that the system hands out."""
    for first in range(12_000, 30_000, 1100):
        try:
            for port in range(first, first + count, 25):
                socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return first
    raise RuntimeError("there are no free ports in a row")
