"""A stream that one gateway began is picked up at another one, while the first is there and when it is gone."""

from __future__ import annotations

import asyncio
import logging
import re
from typing import Any

import pytest

from tests.fleet.backends import Backend, Front, all_served, events, until
from tests.fleet.peers.test_membership import configuration, entry, gateways
from tests.fleet.redis_server import Server, needs_redis

pytest.importorskip("redis", reason="the extra `redis` is not installed")
pytestmark = [needs_redis, pytest.mark.usefixtures("quick")]

KEYS = {"ann": "a-long-key-of-ann", "bob": "a-long-key-of-bob"}
NUMBER = re.compile(rb"id: \d+\n")
TENANTS = "tenants: {ann: {key: a-long-key-of-ann}, bob: {key: a-long-key-of-bob}}"


def shared(redis: Server, prefix: str, backend: Backend) -> str:
    text = configuration(redis, prefix, [entry(backend)], TENANTS)
    return text.replace("timeout: 1.0", "timeout: 1.0, streams: 1MiB")


async def begun(front: Front, backend: Backend) -> tuple[str, bytes, Any]:
    """A stream that waits for its gate behind its second word, and what came of it."""
    headers = {"authorization": f"Bearer {KEYS['ann']}", "x-weighbridge-resume": "true"}
    answer = await front.client.post(
        front.url + "/v1/completions", json={"model": "m", "prompt": "x", "stream": True}, headers=headers
    )
    name, came = answer.headers["x-weighbridge-stream"], b""
    while came.count(b"id: ") < 2:
        came += await answer.content.readany()
    return name, came, answer


async def picked_up(front: Front, name: str, after: int, tenant: str = "ann") -> tuple[int, bytes]:
    headers = {"authorization": f"Bearer {KEYS[tenant]}", "last-event-id": str(after)}
    async with front.client.get(f"{front.url}/v1/streams/{name}", headers=headers) as answer:
        return answer.status, await answer.read()


async def test_a_stream_is_read_on_at_another_gateway_while_its_own_writes_it(redis: Server) -> None:
    await redis.ready()
    backend = Backend("first", gate=asyncio.Event(), hold_after=2)
    async with all_served((backend,)), gateways(2, shared(redis, "alive", backend)) as (a, b):
        name, came, answer = await begun(a, backend)
        assert (await picked_up(b, name, 0, "bob"))[0] == 404
        assert (await picked_up(b, "0" * 32, 0))[0] == 404
        answer.close()
        rest = asyncio.create_task(picked_up(b, name, 2))
        await asyncio.sleep(0.1)
        backend.let_go()
        status, more = await rest
        assert status == 200
        texts = [
            c["text"]
            for e in events(NUMBER.sub(b"", came + more))
            if isinstance(e, dict)
            for c in e["choices"]
        ]
        assert "".join(texts) == " t0 t1 t2 t3 t4"
        assert more.endswith(b"data: [DONE]\n\n")
        assert [line for line in (came + more).splitlines() if line.startswith(b"id: ")] == [
            b"id: %d" % n for n in range(1, (came + more).count(b"id: ") + 1)
        ]
        # It is over, and can be read again, also here; what lies in Redis shows nothing of it.
        assert (await picked_up(b, name, 2))[1] == more
        assert len(backend.calls) == 1


async def test_what_is_in_redis_is_unreadable_and_a_log_that_was_changed_ends(
    redis: Server, caplog: pytest.LogCaptureFixture
) -> None:
    from redis.asyncio import Redis

    await redis.ready()
    caplog.set_level(logging.WARNING)
    backend = Backend("first", gate=asyncio.Event(), hold_after=2)
    client = Redis.from_url(redis.url)
    async with all_served((backend,)), gateways(2, shared(redis, "secret", backend)) as (a, b):
        name, _, answer = await begun(a, backend)
        key = f"secret:{{stream-{name}}}:"
        pieces = await client.lrange(key + "log", 0, -1)
        head = await client.hgetall(key + "head")
        assert pieces
        assert not any(word in b"".join([*pieces, *head.values()]) for word in (b"t0", b"prompt", b"ann"))
        await client.lset(key + "log", 0, pieces[0][:-1] + bytes([pieces[0][-1] ^ 1]))
        assert (await picked_up(b, name, 0))[0] == 404
        backend.let_go()
        assert (await answer.read()).endswith(b"[DONE]\n\n")  # its own gateway needs no log
        await client.delete(key + "log")
        await client.set(key + "log", "no list")
        assert (await picked_up(b, name, 0))[0] == 404
    await client.aclose()


async def test_without_room_or_redis_a_stream_is_its_gateways_own(redis: Server) -> None:
    await redis.ready()
    backend = Backend("first", tokens=3)
    async with all_served((backend,)):
        text = shared(redis, "small", backend).replace("streams: 1MiB", "streams: 10")
        async with gateways(2, text) as (a, b):
            name, came, answer = await begun(a, backend)
            came += await answer.read()
            assert came.endswith(b"[DONE]\n\n")
            assert (await picked_up(b, name, 0))[0] == 404
            assert (await picked_up(a, name, 0))[1].endswith(b"[DONE]\n\n")
            await until(lambda: not a.gateway.open_journeys)
