"""A gateway is killed: the other one answers each of its requests at the first retry, and nobody pays twice.

Two gateways in processes of their own, one Redis, and servers whose answers can be told apart word by word. What ran
when the first gateway was killed is all that was cut; streams that can be picked up go on where they were.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.fleet.backends import clients, serving, until
from tests.fleet.redis_server import Server, needs_redis
from tests.server.running import free_port, running, wait_until_ready
from weighbridge.fleet.peers.board import GONE_AFTER

pytest.importorskip("redis", reason="the extra `redis` is not installed")
pytestmark = needs_redis

KEY, TENANT = "a-long-key-of-the-operator", "a-long-key-of-ann"
#: Words of each answer, and seconds between two of them.
WORDS, GAP = 12, 0.01
#: Tokens of a prompt, as many as it is weighed with before its server says so, and dollars that an answer costs: the
#: price is 1,000 dollars a million of either.
PROMPT = 4
COST = (PROMPT + WORDS) * 1e-3


class Counting:
    """Answers "w0 w1 w2 ...", going on behind whatever words the prompt ends with. Each word is a token."""

    def __init__(self) -> None:
        self.asked = 0
        self.cut = 0
        self.gap = GAP

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] != "/v1/completions":
            return await self._whole(send, {"data": [], "queued_requests": 0, "running_requests": 0})
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        call = json.loads(body)
        start = len(re.findall(r"\bw\d+\b", call["prompt"]))
        self.asked += 1
        words = [f" w{at}" for at in range(start, WORDS)]
        prompt = PROMPT + start
        usage = {
            "prompt_tokens": prompt,
            "completion_tokens": len(words),
            "total_tokens": prompt + len(words),
        }
        if not call.get("stream"):
            await asyncio.sleep(self.gap * len(words))
            choice = {"index": 0, "finish_reason": "stop", "text": "".join(words)}
            return await self._whole(send, {"id": "x", "choices": [choice], "usage": usage})
        gone = asyncio.create_task(self._gone(receive))
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for at, word in enumerate(words):
            if gone.done():
                self.cut += 1
                return None
            finish = "stop" if at + 1 == len(words) else None
            await self._event(send, {"choices": [{"index": 0, "text": word, "finish_reason": finish}]})
            await asyncio.sleep(self.gap)
        gone.cancel()
        await self._event(send, {"choices": [], "usage": usage})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    async def _event(self, send: Any, value: dict[str, Any]) -> None:
        data = {"id": "x", "object": "text_completion", "created": 1, "model": "m", **value}
        event = b"data: " + json.dumps(data).encode() + b"\n\n"
        await send({"type": "http.response.body", "body": event, "more_body": True})

    async def _whole(self, send: Any, value: Any) -> None:
        body = json.dumps(value).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _gone(self, receive: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass


def configured(folder: Path, redis: Server, urls: list[str], port: int, limits: str) -> Path:
    price = "price: {input_usd_per_million: 1000, output_usd_per_million: 1000}"
    entries = "".join(
        f"      - {{name: r{n}, url: '{url}', dialect: openai, {price}}}\n" for n, url in enumerate(urls)
    )
    file = folder / f"gateway-{port}.yaml"
    file.write_text(
        f"listen: 127.0.0.1:{port}\nadmin_key: {KEY}\n"
        f"shared: {{redis: '{redis.url}', prefix: killed, timeout: 5, streams: 64MiB}}\n"
        "health: {interval: 0.2, slow_start: 0}\nqueue: {max_requests: 100000}\n"
        f"tenants: {{ann: {{key: {TENANT}, limits: {{{limits}}}}}}}\n"
        f"models:\n  m:\n    resume: true\n    replicas:\n{entries}"
    )
    return file


@pytest.fixture
def redis() -> Iterator[Server]:
    server = Server()
    server.start()
    yield server
    server.end()


@dataclass
class Two:
    """Two gateways, the first of which will be killed."""

    urls: tuple[str, str]
    first: subprocess.Popen[bytes]
    servers: list[Counting]
    redis: Server

    def kill(self) -> None:
        os.kill(self.first.pid, signal.SIGKILL)
        self.first.wait(30)


@asynccontextmanager
async def two(folder: Path, redis: Server, limits: str) -> AsyncIterator[Two]:
    await redis.ready()
    servers = [Counting(), Counting()]
    async with serving(servers[0]) as one, serving(servers[1]) as other:
        ports = free_port(), free_port()
        files = [configured(folder, redis, [one, other], port, limits) for port in ports]
        with ExitStack() as stack:
            command = [sys.executable, "-m", "weighbridge", "serve", "--config"]
            processes = [stack.enter_context(running([*command, str(file)], 30)) for file in files]
            urls = tuple(f"http://127.0.0.1:{port}" for port in ports)
            for url, process in zip(urls, processes, strict=True):
                await asyncio.to_thread(wait_until_ready, url, process)
            yield Two((urls[0], urls[1]), processes[0], servers, redis)


@dataclass
class Counts:
    """What clients saw."""

    answered: int = 0
    cut: int = 0  # connections that broke
    resumed: int = 0  # streams that were picked up at the other gateway
    open: int = 0
    begun: int = 0  # streams under way of which something has come
    wrong: list[Any] = field(default_factory=list)
    killed: bool = False
    open_at_kill: int = 0


WHOLE = "".join(f" w{at}" for at in range(WORDS))


class Client:
    """Asks the first gateway, and where its connection breaks the other one, once."""

    def __init__(self, session: aiohttp.ClientSession, gateways: Two, counts: Counts) -> None:
        self._session, self._urls, self._counts = session, gateways.urls, counts

    def _headers(self, name: str) -> dict[str, str]:
        return {"authorization": f"Bearer {TENANT}", "x-weighbridge-ticket": name}

    async def ask(self, streams: bool) -> None:
        counts, name = self._counts, secrets.token_hex(16)
        url = self._urls[1] if counts.killed else self._urls[0]
        counts.open += not counts.killed
        was_killed = counts.killed
        try:
            text = await (self._stream(url, name) if streams else self._whole(url, name))
        except (aiohttp.ClientError, OSError) as error:
            if was_killed:
                raise AssertionError("the gateway that is left broke a connection") from error
            counts.cut += 1
            text = await self._whole(self._urls[1], name)  # the first retry, under the same name
        finally:
            counts.open -= not was_killed
        counts.answered += 1
        if text != WHOLE:
            counts.wrong.append(text)

    async def _whole(self, url: str, name: str) -> str:
        body = {"model": "m", "prompt": "It weighs exactly", "max_tokens": WORDS}
        async with self._session.post(
            url + "/v1/completions", json=body, headers=self._headers(name)
        ) as answer:
            told = await answer.json()
            if answer.status != 200:
                return f"{answer.status}: {told}"
            return str(told["choices"][0]["text"])

    async def _stream(self, url: str, name: str) -> str:
        body = {"model": "m", "prompt": "It weighs exactly", "max_tokens": WORDS, "stream": True}
        headers = {**self._headers(name), "x-weighbridge-resume": "true"}
        seen = _Events()
        try:
            async with self._session.post(url + "/v1/completions", json=body, headers=headers) as answer:
                if answer.status != 200:
                    return f"{answer.status}: {await answer.text()}"
                async for data in answer.content.iter_any():
                    before, _ = seen.last, seen.feed(data)
                    self._counts.begun += not before and seen.last > 0
        except (aiohttp.ClientError, OSError):
            if not seen.last:
                raise  # it had not begun: it is asked again
            self._counts.cut += 1
            self._counts.resumed += 1
            headers = {**self._headers(name), "last-event-id": str(seen.last)}
            async with self._session.get(f"{self._urls[1]}/v1/streams/{name}", headers=headers) as answer:
                if answer.status != 200:
                    return f"{answer.status}: {await answer.text()}"
                async for data in answer.content.iter_any():
                    seen.feed(data)
        finally:
            self._counts.begun -= seen.last > 0
        return seen.text if seen.is_whole else f"{seen.text} (not whole)"


class _Events:
    """The words of a stream, and the number of its last event; an event that was cut counts for nothing."""

    def __init__(self) -> None:
        self.text, self.last, self.is_whole = "", 0, False
        self._rest = b""

    def feed(self, data: bytes) -> None:
        *whole, self._rest = (self._rest + data).split(b"\n\n")
        for event in whole:
            for line in event.splitlines():
                if line.startswith(b"id: "):
                    number = int(line[4:])
                    assert number == self.last + 1, (self.last, event)
                    self.last = number
                elif line == b"data: [DONE]":
                    self.is_whole = True
                elif line.startswith(b"data: "):
                    told = json.loads(line[6:])
                    assert "error" not in told, told
                    self.text += "".join(one["text"] for one in told["choices"])


async def kept(redis: Server, name: str) -> dict[bytes, float]:
    """What Redis has of the tenant under a name: amounts by slot, or reservations by request."""
    from redis.asyncio import Redis

    client = Redis.from_url(redis.url)
    try:
        found = await client.hgetall(f"killed:{{ann}}:{name}")
        if name == "reserved":  # receipts hold nothing
            return {
                key: float(value.split()[0]) for key, value in found.items() if not value.startswith(b"0 ")
            }
        return {key: float(value) for key, value in found.items()}
    finally:
        await client.aclose()


async def asked(gateways: Two, requests: int, at_once: int, kill_after: int) -> Counts:
    counts, left = Counts(), iter(range(requests))
    async with clients() as session:
        client = Client(session, gateways, counts)

        async def work() -> None:
            for number in left:
                await client.ask(streams=number % 2 == 1)

        workers = [asyncio.create_task(work()) for _ in range(at_once)]
        await until(lambda: counts.answered >= kill_after and counts.begun > at_once // 8, 600.0)
        counts.killed, counts.open_at_kill = True, counts.open
        gateways.kill()
        await asyncio.gather(*workers)
    return counts


async def unpaid(gateways: Two, wanted: float) -> int:
    """Answers that nobody paid for, less those that were paid twice, once what the killed gateway held is given back:
    with the next request of the tenant after that gateway counts as gone."""
    counts, extra = Counts(killed=True), 0
    async with clients() as session:
        await asyncio.sleep(GONE_AFTER + 1.5)
        while extra < 60:
            extra += 1
            await Client(session, gateways, counts).ask(streams=False)
            await asyncio.sleep(0.3)
            if not await kept(gateways.redis, "reserved"):
                break
    missing = (wanted + extra * COST - sum((await kept(gateways.redis, "usd")).values())) / COST
    assert missing == pytest.approx(round(missing), abs=1e-6)
    return round(missing)


async def check(folder: Path, redis: Server, requests: int, at_once: int) -> Counts:
    async with two(folder, redis, "usd_per_day: 1000000") as gateways:
        counts = await asked(gateways, requests, at_once, requests // 2)
        assert (counts.answered, counts.wrong) == (requests, [])
        assert 0 < counts.cut <= at_once
        # The kill takes a moment, in which an answer may arrive or its connection be lost in the same instant.
        assert abs(counts.cut - counts.open_at_kill) <= at_once // 4
        assert counts.resumed > 0
        assert await unpaid(gateways, requests * COST) == 0
    return counts


async def test_a_killed_gateway_loses_nothing_but_its_connections(tmp_path: Path, redis: Server) -> None:
    await check(tmp_path, redis, 240, 24)


@pytest.mark.proof
async def test_ten_thousand_requests_and_a_killed_gateway(tmp_path: Path, redis: Server) -> None:
    counts = await check(tmp_path, redis, 10_000, 64)
    print(
        f"10,000 requests: {counts.open_at_kill} open at the kill, {counts.cut} connections cut, {counts.resumed} of "
        "them streams that went on at the other gateway; each answer is charged once"
    )


async def test_what_a_killed_gateway_had_reserved_is_free_again(tmp_path: Path, redis: Server) -> None:
    """Without peers it would be after an hour."""
    async with (
        two(tmp_path, redis, "concurrent_tokens: 100, tokens_per_minute: 100000") as gateways,
        clients() as session,
    ):
        body = {"model": "m", "prompt": "It weighs exactly", "max_tokens": 80, "stream": True}
        headers = {"authorization": f"Bearer {TENANT}"}
        for server in gateways.servers:
            server.gap = 1.0  # it is open as long as we like
        first = await session.post(gateways.urls[0] + "/v1/completions", json=body, headers=headers)
        assert first.status == 200
        async with session.post(gateways.urls[1] + "/v1/completions", json=body, headers=headers) as answer:
            assert answer.status == 429
        gateways.kill()
        first.close()
        for server in gateways.servers:
            server.gap = GAP
        for _ in range(100):
            async with session.post(
                gateways.urls[1] + "/v1/completions", json=body, headers=headers
            ) as answer:
                if answer.status == 200:
                    await answer.read()
                    break
                assert answer.status == 429
            await asyncio.sleep(0.2)
        else:
            raise AssertionError("what the killed gateway held is not free")
        for _ in range(100):
            tokens = sum((await kept(gateways.redis, "tokens")).values())
            if tokens == PROMPT + WORDS:
                break
            await asyncio.sleep(0.1)
        assert tokens == PROMPT + WORDS
