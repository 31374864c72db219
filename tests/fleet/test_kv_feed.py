"""KV events over real ZeroMQ sockets: missed ones, a server that goes and comes, one that sends nonsense."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest
import zmq
import zmq.asyncio
from hypothesis import given
from hypothesis import strategies as st

from weighbridge.fleet.kv import feed as feed_module
from weighbridge.fleet.kv import share
from weighbridge.fleet.kv.blocks import KnownBlocks
from weighbridge.fleet.kv.feed import KvFeed
from weighbridge.fleet.kv.following import Following
from weighbridge.models.text.block_digests import block_digests, root


class Server:
    """Publishes as vLLM does. `kept`: batches that it sends again."""

    def __init__(self, port: int | None = None, replay_port: int | None = None) -> None:
        self.context = zmq.asyncio.Context()
        self.publish = self.context.socket(zmq.PUB)
        self.replay = self.context.socket(zmq.ROUTER)
        self.port = self._bind(self.publish, port)
        self.replay_port = self._bind(self.replay, replay_port)
        self.kept: list[tuple[int, bytes]] = []
        self.number = 0
        self.tokens = 0
        self.asked = 0
        self.answering = asyncio.create_task(self._answer())

    def _bind(self, socket: Any, port: int | None) -> int:
        if port is None:
            return int(socket.bind_to_random_port("tcp://127.0.0.1"))
        socket.bind(f"tcp://127.0.0.1:{port}")
        return port

    async def _answer(self) -> None:
        while True:
            client, _, start = await self.replay.recv_multipart()
            self.asked += 1
            for number, payload in self.kept:
                if number >= int.from_bytes(start, "big"):
                    parts = [client, b"", b"", number.to_bytes(8, "big"), payload]
                    await self.replay.send_multipart(parts)
            end = (-1).to_bytes(8, "big", signed=True)
            await self.replay.send_multipart([client, b"", b"", end, b""])

    async def tell(self, *, lost: bool = False, data: bytes | None = None) -> None:
        """Store a block of four tokens more; `lost`: nobody hears of it."""
        start = self.tokens
        self.tokens += 4
        parent = start or None
        event = {"type": "BlockStored", "block_hashes": [self.tokens], "parent_block_hash": parent}
        event |= {
            "token_ids": list(range(start, start + 4)),
            "block_size": 4,
            "lora_id": None,
            "medium": "GPU",
        }
        payload = data or msgspec.msgpack.encode([time.time(), [event], 0])
        self.kept.append((self.number, payload))
        if not lost:
            await self.publish.send_multipart([b"", self.number.to_bytes(8, "big"), payload])
        self.number += 1

    def stop(self) -> None:
        self.answering.cancel()
        self.context.destroy(linger=0)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    one = Server()
    yield one
    one.stop()


@pytest.fixture
async def following(server: Server) -> AsyncIterator[Following]:
    one = Following(KnownBlocks(4))
    replay = f"tcp://127.0.0.1:{server.replay_port}"
    feed = KvFeed("r", f"tcp://127.0.0.1:{server.port}", replay, one, time.monotonic)
    await until(lambda: server.asked > 0)  # the line stands, and it has asked for what it missed
    await asyncio.sleep(0.1)  # its subscription may be behind that
    yield one
    await feed.close()


async def until(reached: Callable[[], bool]) -> None:
    async with asyncio.timeout(10.0):
        while not reached():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def cached(one: Following) -> int | None:
    tokens = list(range(41))
    return one.cached_tokens(block_digests(root(), tokens, 0, 41, 4), 41, time.monotonic())


async def test_a_server_that_never_told_anything_holds_nothing(following: Following) -> None:
    await until(lambda: cached(following) == 0)


async def test_what_is_published_is_known(server: Server, following: Following) -> None:
    for _ in range(3):
        await server.tell()
    await until(lambda: cached(following) == 12)


async def test_what_was_stored_before_is_asked_for() -> None:
    server = Server()
    for _ in range(5):
        await server.tell(lost=True)
    one = Following(KnownBlocks(4))
    replay = f"tcp://127.0.0.1:{server.replay_port}"
    feed = KvFeed("r", f"tcp://127.0.0.1:{server.port}", replay, one, time.monotonic)
    await until(lambda: cached(one) == 20)
    assert one.account.gaps == 0
    await feed.close()
    server.stop()


async def test_a_gap_is_filled(server: Server, following: Following) -> None:
    await server.tell()
    await until(lambda: cached(following) == 4)
    await server.tell(lost=True)
    await server.tell()
    await until(lambda: cached(following) == 12)
    assert following.account.gaps == 0


async def test_a_gap_that_cannot_be_filled_ends_what_was_known(server: Server, following: Following) -> None:
    await server.tell()
    await until(lambda: cached(following) == 4)
    await server.tell(lost=True)
    server.kept.clear()
    await server.tell()
    await until(lambda: following.account.gaps == 1)
    assert cached(following) is None


async def test_a_server_that_comes_back_has_forgotten_all(server: Server, following: Following) -> None:
    for _ in range(3):
        await server.tell()
    await until(lambda: cached(following) == 12)
    server.stop()
    await until(lambda: cached(following) is None)  # no line, no knowledge
    again = Server(server.port, server.replay_port)
    await again.tell()
    await until(lambda: cached(following) == 4)
    assert following.blocks.unplaced == 0
    again.stop()


async def test_nonsense_ends_what_was_known_and_nothing_else(server: Server, following: Following) -> None:
    await server.tell()
    await until(lambda: cached(following) == 4)
    await server.tell(data=b"\xc1 nonsense")
    await until(lambda: following.account.unreadable > 0)
    assert cached(following) is None


FLOOD = """
import sys, time
import msgspec, zmq
socket = zmq.Context().socket(zmq.PUB)
socket.setsockopt(zmq.SNDHWM, 64)
print(socket.bind_to_random_port("tcp://127.0.0.1"), flush=True)
event = {"type": "BlockStored", "parent_block_hash": None, "block_size": 4, "medium": "GPU"}
events = [event | {"block_hashes": [one], "token_ids": [one, 1, 2, 3]} for one in range(32)]
number, until = 0, time.monotonic() + 60
while time.monotonic() < until:
    payload = msgspec.msgpack.encode([time.time(), events, 0])
    socket.send_multipart([b"", number.to_bytes(8, "big"), payload])
    number += 1
"""


async def test_events_without_end_take_a_share_of_a_core_and_no_turn_from_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(share, "BURST", 0.1)
    monkeypatch.setattr(share, "OF_ONE", 0.02)
    monkeypatch.setattr(feed_module, "MOST_REST", 0.5)
    flood = await asyncio.create_subprocess_exec(sys.executable, "-c", FLOOD, stdout=asyncio.subprocess.PIPE)
    assert flood.stdout is not None
    port = int(await flood.stdout.readline())
    one = Following(KnownBlocks(4))
    feed = KvFeed("r", f"tcp://127.0.0.1:{port}", None, one, time.monotonic)
    try:
        await until(lambda: one.account.stored > 0)
        began, worked, turns = time.monotonic(), time.thread_time(), 0
        while time.monotonic() - began < 1.0 or (not one.account.paused and time.monotonic() - began < 20.0):
            await asyncio.sleep(0.005)
            turns += 1
        took = time.monotonic() - began
        assert one.account.paused > 0
        assert not one.whole, "what is not heard is guessed"
        assert turns > 10 * took, "others have turns meanwhile"
        assert time.thread_time() - worked < 0.3 + 0.25 * took, (
            "its share, what is not measured, and this loop"
        )
    finally:
        await feed.close()
        flood.kill()
        await flood.wait()


@given(st.lists(st.tuples(st.floats(1e-5, 0.5), st.floats(0, 2)), max_size=60), st.integers(1, 9))
def test_whoever_rests_as_told_works_no_more_than_its_share(
    steps: list[tuple[float, float]], replicas: int
) -> None:
    one, now, worked = share.Share(), 0.0, 0.0
    of_core = min(share.OF_ONE, share.OF_ALL / replicas)
    for seconds, idle in steps:
        worked += seconds
        now += seconds
        now += one.worked(seconds, now, replicas) + idle
        assert worked <= share.BURST + of_core * now + seconds
