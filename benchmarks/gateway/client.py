"""Sends completions at a fixed rate, or keeps so many streams open, and measures with one clock.

    python benchmarks/gateway/client.py URL MODE ...      (run by overhead.py)

A socket per stream, parsed by httptools: the client must be much cheaper than what it measures.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

import httptools
import uvloop
from prompts import KINDS


class Connection(asyncio.Protocol):
    """One request at a time."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.done: asyncio.Future[None] | None = None

    def ask(self, request: bytes) -> asyncio.Future[None]:
        self.parser = httptools.HttpResponseParser(self)
        self.first_at = 0
        self.first = b""
        self.chunks = 0
        self.status = 0
        self.done = asyncio.get_running_loop().create_future()
        self.sent_at = time.monotonic_ns()
        self.transport.write(request)  # type: ignore[attr-defined]
        return self.done

    def data_received(self, data: bytes) -> None:
        if not self.first_at:
            self.now = time.monotonic_ns()
        self.parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        if not self.first_at:
            self.first_at, self.first = self.now, bytes(body)
        self.chunks += body.count(b"\n\n")

    def on_message_complete(self) -> None:
        self.status = self.parser.get_status_code()
        if self.done is not None and not self.done.done():
            self.done.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        if self.done is not None and not self.done.done():
            self.done.set_exception(error or ConnectionError("closed"))


def request(host: str, port: int, prompt: str, chunks: int, gap_us: int) -> bytes:
    body = json.dumps(
        {"model": "m", "stream": True, "max_tokens": chunks, "seed": gap_us, "prompt": prompt},
        ensure_ascii=False,
    ).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: {host}:{port}\r\ncontent-type: application/json\r\n"
    return head.encode() + b"content-length: %d\r\n\r\n" % len(body) + body


async def connect(host: str, port: int) -> Connection:
    _, protocol = await asyncio.get_running_loop().create_connection(Connection, host, port)
    return protocol


async def at_rate(
    host: str, port: int, rate: float, seconds: float, prompts: list[str], chunks: int, gap: int
) -> list[list[float]]:
    """Open loop: a request every 1/rate seconds, whatever became of those before.

    Rows of [ms to the first byte, ms of it outside the backend, ms to the end less the backend's own pauses].
    """
    loop = asyncio.get_running_loop()
    idle: list[Connection] = [await connect(host, port) for _ in range(32)]
    rows: list[list[float]] = []
    running: set[asyncio.Task[None]] = set()
    requests = [request(host, port, prompt, chunks, gap) for prompt in prompts]

    async def one(serial: int) -> None:
        connection = idle.pop() if idle else await connect(host, port)
        await connection.ask(requests[serial])
        ended = time.monotonic_ns()
        assert connection.status == 200, connection.status
        at = connection.first.index(b'"in":')
        received, left = (
            int(part.split(b":")[1].split(b"}")[0]) for part in connection.first[at:].split(b",")[:2]
        )
        first = connection.first_at - connection.sent_at
        rows.append([first / 1e6, (first - (left - received)) / 1e6, (ended - connection.sent_at) / 1e6])
        idle.append(connection)

    began = loop.time()
    for serial in range(int(rate * seconds)):
        due = began + serial / rate
        await asyncio.sleep(max(due - loop.time(), 0.0))
        task = asyncio.create_task(one(serial))
        running.add(task)
        task.add_done_callback(running.discard)
    await asyncio.gather(*running)
    return rows


async def flood(
    host: str, port: int, streams: int, seconds: float, prompts: list[str], chunks: int, gap: int
) -> dict[str, float]:
    """Closed loop: `streams` at once, each begun again when it ends; counts chunks."""
    until = time.monotonic() + seconds
    total = 0

    async def one(number: int) -> int:
        connection = await connect(host, port)
        seen = 0
        while time.monotonic() < until:
            await connection.ask(request(host, port, prompts[number], chunks, gap))
            seen += connection.chunks
        return seen

    began = time.monotonic()
    total = sum(await asyncio.gather(*(one(number) for number in range(streams))))
    return {"chunks": total, "seconds": time.monotonic() - began}


def main() -> None:
    host, port, mode, kind, *rest = sys.argv[1:]
    numbers = [float(one) for one in rest]
    if mode == "rate":
        rate, seconds, size, chunks, gap, seed = numbers
        prompts = KINDS[kind](int(size), int(rate * seconds), int(seed))
        print(json.dumps(uvloop.run(at_rate(host, int(port), rate, seconds, prompts, int(chunks), int(gap)))))
    else:
        streams, seconds, size, chunks, gap, seed = numbers
        prompts = KINDS[kind](int(size), int(streams), int(seed))
        counted = uvloop.run(flood(host, int(port), int(streams), seconds, prompts, int(chunks), int(gap)))
        print(json.dumps(counted))


if __name__ == "__main__":
    main()
