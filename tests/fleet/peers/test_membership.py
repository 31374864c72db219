"""Two gateways, one Redis: what an operator does at one is so at the other, and after restarts of either."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from msgspec.structs import replace

from tests.fleet.backends import Backend, Front, all_served, fleet, until
from tests.fleet.peers.known import PEERS
from tests.fleet.redis_server import Server, needs_redis
from weighbridge.fleet.peers.peers import Peers
from weighbridge.fleet.peers.records import MemberRecord, Rest
from weighbridge.fleet.peers.registers import CLOCKS_APART, REMOVED_KEPT

pytest.importorskip("redis", reason="the extra `redis` is not installed")
pytestmark = [needs_redis, pytest.mark.usefixtures("quick", "known_peers")]

KEY = "a-long-key-of-the-operator"
HEADERS = {"authorization": f"Bearer {KEY}"}


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> str:
    return request.node.name


def configuration(redis: Server, prefix: str, entries: list[str], more: str = "", key: str = KEY) -> str:
    shared = f"shared: {{redis: '{redis.url}', prefix: '{prefix}', timeout: 1.0}}"
    return (
        f"admin_key: {key}\n{shared}\n{more}\nhealth: {{interval: 0.05, slow_start: 0}}\n"
        f"models: {{m: {{replicas: [{', '.join(entries)}]}}}}\n"
    )


def entry(backend: Backend) -> str:
    return f"{{name: {backend.name}, url: '{backend.url}', dialect: weighbridge}}"


@asynccontextmanager
async def gateways(count: int, text: str) -> AsyncIterator[list[Front]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(fleet(config=text)) for _ in range(count)]


async def change(front: Front, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    async with front.client.request(method, front.url + path, json=body, headers=HEADERS) as answer:
        return answer.status, await answer.json()


async def add(front: Front, backend: Backend, **more: Any) -> tuple[int, Any]:
    body = {"url": backend.url, "dialect": "weighbridge", "name": backend.name, **more}
    return await change(front, "POST", "/admin/replicas", body)


def standing(front: Front) -> dict[str, bool]:
    """The replicas, and whether each is to rest."""
    members = front.gateway.pools["m"].members
    return {name: member.draining for name, member in members.items()}


def agreed(fronts: list[Front], wanted: dict[str, bool]) -> Callable[[], bool]:
    return lambda: all(standing(front) == wanted for front in fronts)


@asynccontextmanager
async def two_of_three_named(redis: Server, prefix: str) -> AsyncIterator[tuple[str, Backend]]:
    """Serve three; return the text of a file that names the first and the third, and the second."""
    await redis.ready()
    first, second, third = Backend("first"), Backend("second"), Backend("third")
    async with all_served((first, second, third)):
        yield configuration(redis, prefix, [entry(first), entry(third)]), second


async def test_what_is_changed_at_one_is_so_at_all_and_after_restarts(redis: Server, prefix: str) -> None:
    async with two_of_three_named(redis, prefix) as (text, second):
        async with gateways(2, text) as (a, b):
            assert (await add(a, second))[0] == 201
            await until(agreed([a, b], {"first": False, "second": False, "third": False}))
            async with b.post(messages=[{"role": "user", "content": "x"}]) as answer:
                assert answer.status == 200
            assert (await change(b, "POST", "/admin/replicas/first/drain"))[0] == 200
            await until(agreed([a, b], {"first": True, "second": False, "third": False}))
            assert (await change(a, "DELETE", "/admin/replicas/third"))[0] == 200
            await until(agreed([a, b], {"first": True, "second": False}))
            told = (await b.get("/health"))["shared"]
            assert (told["redis"], told["gateways"], told["records"]) == ("up", 2, 3)
            page = await (await b.client.get(b.url + "/metrics", headers=HEADERS)).text()
            assert "weighbridge_gateway_shared_up 1.0" in page
        async with gateways(1, text) as (c,):  # both are gone; the file's own that was removed stays so
            await until(agreed([c], {"first": True, "second": False}))
            assert (await change(c, "POST", "/admin/replicas/first/undrain"))[0] == 200
            assert (await change(c, "DELETE", "/admin/replicas/second"))[0] == 200
        async with gateways(1, text) as (d,):
            await until(agreed([d], {"first": False}))
            assert (await add(d, Backend("third", url=second.url)))[0] == 201  # other than in the file


async def test_of_two_changes_of_the_same_the_second_is_told_who_was_quicker(
    redis: Server, prefix: str
) -> None:
    await redis.ready()
    first, second = Backend("first"), Backend("second")
    async with (
        all_served((first, second)),
        gateways(2, configuration(redis, prefix, [entry(first)])) as (a, b),
    ):
        for front in (a, b):  # neither looks: each knows only what it did itself
            service_peers(front)._looking.cancel()  # type: ignore[union-attr]
        assert (await add(a, second))[0] == 201
        status, told = await add(b, second)
        assert (status, told["error"]["code"]) == (409, "changed_meanwhile")
        assert "was added or undrained at" in told["error"]["message"]
        assert service_peers(a).me in told["error"]["message"]
        assert standing(b) == {"first": False, "second": False}  # and it knows now
        assert (await change(b, "POST", "/admin/replicas/second/drain"))[0] == 200
        assert (await change(a, "DELETE", "/admin/replicas/second"))[0] == 409
        assert standing(a) == standing(b)
        assert (await change(a, "DELETE", "/admin/replicas/second"))[0] == 200


def service_peers(front: Front) -> Peers:
    found = PEERS[id(front.gateway)]
    assert found is not None
    return found


async def test_while_redis_is_away_each_goes_on_and_both_agree_when_it_is_back(
    prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    server = Server()
    server.start()
    try:
        await server.ready()
        first, second, third = Backend("first"), Backend("second"), Backend("third")
        async with (
            all_served((first, second, third)),
            gateways(2, configuration(server, prefix, [entry(first)])) as (a, b),
        ):
            assert (await add(a, second))[0] == 201
            await until(agreed([a, b], {"first": False, "second": False}))
            server.end()
            await until(lambda: all(service_peers(f).away_since is not None for f in (a, b)))
            assert (await a.get("/health"))["shared"]["redis"] == "away"
            status, told = await add(a, third)
            assert status == 201, told
            assert (await change(b, "POST", "/admin/replicas/second/drain"))[0] == 200
            async with b.post() as answer:
                assert answer.status == 200
            assert standing(a) == {"first": False, "second": False, "third": False}
            assert standing(b) == {"first": False, "second": True}
            server.start()  # it has lost everything that it knew
            await server.ready()
            await until(agreed([a, b], {"first": False, "second": True, "third": False}))
            assert (await a.get("/health"))["shared"]["redis"] == "up"
        said = [one.message for one in caplog.records if one.levelno == logging.WARNING]
        assert sum("Redis is away" in one for one in said) == 2
        assert sum("Redis is back" in one for one in said) == 2
    finally:
        server.end()


async def test_what_others_wrote_into_redis_is_refused(
    redis: Server, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    await redis.ready()
    first, second = Backend("first"), Backend("second")
    async with all_served((first, second)), gateways(1, configuration(redis, prefix, [entry(first)])) as (a,):
        client = service_peers(a).board._redis
        key, count = f"{prefix}:{{fleet}}:members", f"{prefix}:{{fleet}}:changes"
        hostile = {
            "evil": b"1 1.000000 " + b"0" * 32 + b' {"name":"evil","model":"m","rest":"here","version":1,'
            b'"at":1.0,"by":"x","entry":{"url":"http://127.0.0.1:1","key_env":"HOME"}}',
            "second": b"999999999999999 99.000000 " + b"0" * 32 + b" {}",
            "\x00\xff": b"\xff" * 40_000,
            "": b"",
        }
        await client.hset(key, mapping=hostile)
        await client.hincrby(count, "n", 1)
        await until(lambda: service_peers(a).refused == 4)
        assert standing(a) == {"first": False}
        assert (await add(a, second))[0] == 201  # nothing of theirs stands against it
        async with gateways(1, configuration(redis, prefix, [entry(first)])) as (b,):
            await until(agreed([a, b], {"first": False, "second": False}))
        other = configuration(redis, prefix, [entry(first)], key="another-key-of-an-operator")
        async with gateways(1, other) as (c,):
            await until(lambda: service_peers(c).refused > 0)
            assert standing(c) == {"first": False}
        await client.delete(key)
        await client.set(key, "no hash at all")
        await client.hincrby(count, "n", 1)
        await until(lambda: service_peers(a).away_since is not None)
        async with a.post() as answer:
            assert answer.status == 200
        await client.delete(key)
        await until(lambda: service_peers(a).away_since is None)
        assert "is not sealed with this gateway's admin_key" in caplog.text


async def test_secrets_are_not_shared_and_what_is_started_here_is_ones_own(
    redis: Server, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    await redis.ready()
    first, second = Backend("first"), Backend("second", key="s3cret-of-this-server")
    async with (
        all_served((first, second)),
        gateways(2, configuration(redis, prefix, [entry(first)])) as (a, b),
    ):
        assert (await add(a, second, key="s3cret-of-this-server"))[0] == 201
        client = service_peers(a).board._redis
        kept = await client.hgetall(f"{prefix}:{{fleet}}:members")
        assert b"second" in kept
        assert b"s3cret" not in kept[b"second"]
        await until(lambda: "name a variable (`key_env`) instead" in caplog.text)
        assert standing(b) == {"first": False}


def removed_long_ago(name: str, **more: Any) -> MemberRecord:
    at = time.time() - REMOVED_KEPT - CLOCKS_APART - 60.0
    return MemberRecord(name=name, model="m", rest=Rest.REMOVED, version=7, at=at, by="ann", **more)


async def kept(front: Front, prefix: str) -> set[str]:
    """The names of the replicas that Redis has a record of."""
    return {
        name.decode() for name in await service_peers(front).board._redis.hkeys(f"{prefix}:{{fleet}}:members")
    }


async def kept_are(front: Front, prefix: str, wanted: set[str]) -> None:
    async with asyncio.timeout(60.0):
        while True:  # Redis tells nobody of a change
            if await kept(front, prefix) == wanted:
                return
            await asyncio.sleep(0.02)


async def test_a_gateway_whose_clock_is_ahead_has_no_removal_forgotten(
    redis: Server, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await redis.ready()
    first = Backend("first")
    async with all_served((first,)), gateways(1, configuration(redis, prefix, [entry(first)])) as (a,):
        removed = MemberRecord(
            name="gone", model="m", rest=Rest.REMOVED, version=7, at=time.time(), by="ann", entry={"url": "u"}
        )
        now = time.time
        monkeypatch.setattr(time, "time", lambda: now() + 365 * 86_400.0)
        await service_peers(a).board.put(removed, None)
        for _ in range(3):
            await service_peers(a).look()
        assert "gone" in await kept(a, prefix)
        assert service_peers(a).members.roster.get("gone") is not None


async def test_a_removal_is_a_files_or_ends_with_time(redis: Server, prefix: str) -> None:
    """Whoever added a replica and removed it has nothing that brings it back; a file has."""
    async with two_of_three_named(redis, prefix) as (text, second), gateways(2, text) as (a, b):
        assert (await add(a, second))[0] == 201
        await until(agreed([a, b], {"first": False, "second": False, "third": False}))
        assert (await change(b, "DELETE", "/admin/replicas/second"))[0] == 200
        assert (await change(b, "DELETE", "/admin/replicas/third"))[0] == 200
        await until(agreed([a, b], {"first": False}))
        known = [service_peers(one).members.roster for one in (a, b)]  # type: ignore[union-attr]
        await until(lambda: all({"second", "third"} <= one.all().keys() for one in known))
        assert [one.all()["second"].is_a_files for one in known] == [False, False]
        assert [one.all()["third"].is_a_files for one in known] == [True, True]
        long_ago = removed_long_ago("gone", entry={"url": second.url}), removed_long_ago("gone-of-a-file")
        for record in long_ago:
            assert [one.take(record) for one in known] == [True, True]
            await service_peers(a).board.put(record, None)
        await kept_are(a, prefix, {"second", "third", "gone-of-a-file"})
        await until(lambda: not any("gone" in one.all() for one in known))
        assert (await add(b, Backend("another", url=second.url)))[0] == 201  # all is read and written again
        await until(agreed([a, b], {"first": False, "another": False}))
        await kept_are(a, prefix, {"second", "third", "gone-of-a-file", "another"})


async def test_what_was_added_and_is_in_a_file_stays_removed(redis: Server, prefix: str) -> None:
    await redis.ready()
    first, second = Backend("first"), Backend("second")
    async with all_served((first, second)):
        text = configuration(redis, prefix, [entry(first)])
        named = configuration(redis, prefix, [entry(first), entry(second)])
        async with gateways(1, text) as (a,), gateways(1, named) as (b,):
            assert (await add(a, second))[0] == 201
            assert (await change(a, "DELETE", "/admin/replicas/second"))[0] == 200
            known = [service_peers(one).members.roster for one in (a, b)]  # type: ignore[union-attr]
            await until(lambda: all(one.version("second") == 3 for one in known))
            assert {one.all()["second"].is_a_files for one in known} == {True}
            assert standing(b) == {"first": False}
            assert not service_peers(b).members.own_removed()  # type: ignore[union-attr]


async def test_who_was_away_for_long_still_hears_of_a_removal(redis: Server, prefix: str) -> None:
    await redis.ready()
    first, second = Backend("first"), Backend("second")
    async with (
        all_served((first, second)),
        gateways(2, configuration(redis, prefix, [entry(first)])) as (a, b),
    ):
        assert (await add(a, second))[0] == 201
        await until(agreed([a, b], {"first": False, "second": False}))
        gone = removed_long_ago("second", entry={"url": second.url})
        await service_peers(a).board.put(replace(gone, at=gone.at + 2 * 60.0 + CLOCKS_APART / 2), None)
        await until(agreed([a, b], {"first": False}))


async def test_a_look_costs_one_command_and_a_request_none(redis: Server, prefix: str) -> None:
    await redis.ready()
    first = Backend("first")
    async with all_served((first,)), gateways(1, configuration(redis, prefix, [entry(first)])) as (a,):
        peers = service_peers(a)
        looking = peers._looking
        assert looking is not None
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)
        await peers.look()  # behind what it had asked for
        client = peers.board._redis
        before = (await client.info("commandstats"))["cmdstat_evalsha"]["calls"]
        for _ in range(20):
            await peers.look()
        async with a.post() as answer:
            assert answer.status == 200
        after = (await client.info("commandstats"))["cmdstat_evalsha"]["calls"]
        assert after - before == 20
