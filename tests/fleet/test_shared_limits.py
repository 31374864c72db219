"""Limits that several gateways share through Redis: exact together, local while Redis is away."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.fleet.backends import Backend, config_of, fleet, until
from tests.fleet.redis_server import SERVER, Server
from tests.server.running import free_port
from weighbridge.errors import BadInput, RateLimited
from weighbridge.fleet.config.load import parse_config
from weighbridge.fleet.limits import shared as shared_limits
from weighbridge.fleet.limits.periods import calendar, day_at
from weighbridge.fleet.limits.shared import SharedLimits
from weighbridge.fleet.limits.tenant import Limiter, TenantLimits
from weighbridge.secret import Secret

Redis = pytest.importorskip("redis", reason="the extra `redis` is not installed").Redis

real = [
    pytest.mark.proof,
    pytest.mark.skipif(SERVER is None, reason="no redis-server; name one in WEIGHBRIDGE_REDIS_SERVER"),
]


@pytest.fixture
def redis() -> Iterator[Server]:
    server = Server()
    server.start()
    yield server
    server.end()


class Door:
    """What one gateway does at the door, without the gateway."""

    def __init__(self, url: str, limits: TenantLimits) -> None:
        self.local = Limiter(default=limits, calendar=calendar(lambda: 0.0))
        self.shared = SharedLimits(Secret(url), self.local, timeout=10.0)

    async def reserve(self, name: str, tokens: int, usd: float = 0.0) -> None:
        self.local.reserve("t", name, tokens, usd, 0.0)
        try:
            await self.shared.reserve("t", name, tokens, usd)
        except RateLimited:
            self.local.withdraw(name)
            raise

    async def settle(self, name: str, tokens: int, usd: float = 0.0) -> None:
        self.local.settle(name, tokens, usd, 0.0)
        self.shared.settle("t", name, tokens, usd)
        await until(lambda: not self.shared._tasks)

    async def admits(self, name: str, tokens: int, usd: float = 0.0) -> bool:
        try:
            await self.reserve(name, tokens, usd)
        except RateLimited:
            return False
        return True


def doors(redis: Server, **limits: Any) -> list[Door]:
    return [Door(redis.url, TenantLimits(**limits)) for _ in range(3)]


async def closed(*doors: Door) -> None:
    for one in doors:
        one.local.check_integrity()
        await one.shared.close()


class TestWithRedis:
    pytestmark = real

    async def test_500_at_three_gateways_overshoot_by_nothing(self, redis: Server) -> None:
        await redis.ready()
        three = doors(redis, tokens_per_minute=10_000)
        jobs = (three[n % 3].admits(f"q{n}", 150) for n in range(500))
        admitted = sum(await asyncio.gather(*jobs))
        assert admitted * 150 <= 10_000 < (admitted + 1) * 150
        assert not any(one.shared.fallbacks for one in three)
        await closed(*three)

    async def test_what_is_not_used_is_everybodys_again(self, redis: Server) -> None:
        await redis.ready()
        a, b, _ = three = doors(redis, tokens_per_minute=1000, concurrent_tokens=900, usd_per_day=2.0)
        await a.reserve("one", 800, 1.5)
        with pytest.raises(RateLimited, match="concurrent_tokens 900, 800 are used") as refused:
            await b.reserve("two", 150, 0.1)
        assert refused.value.retry_after == 1.0
        with pytest.raises(RateLimited, match="usd_per_day") as refused:
            await b.reserve("two", 50, 1.0)
        assert 3600 < (refused.value.retry_after or 0) <= 25 * 3600
        await a.settle("one", 100, 0.2)
        await b.reserve("two", 850, 1.5)
        with pytest.raises(RateLimited, match="tokens_per_minute") as refused:
            await a.reserve("three", 100)
        assert 30 < (refused.value.retry_after or 0) <= 62
        await closed(*three)

    async def test_what_was_reserved_is_given_back_though_the_limits_are_others_by_then(
        self, redis: Server
    ) -> None:
        await redis.ready()
        a, b, _ = three = doors(redis, concurrent_tokens=900, usd_per_day=2.0)
        for later in (TenantLimits(), TenantLimits(usd_per_day=1.0, zone="UTC")):
            a.local.set_limits("t", b.local.limits("t"))
            await a.reserve("one", 800, 1.5)
            a.local.set_limits("t", later)
            await a.settle("one", 100, 0.25)
            assert not await a.shared._redis.hlen("weighbridge:{t}:reserved")
        assert sum(map(float, await a.shared._redis.hvals("weighbridge:{t}:usd"))) == 0.5
        assert not await a.shared._redis.exists("weighbridge:{t}:usd-by-day")
        assert await b.admits("two", 850, 1.0)
        await closed(*three)

    async def test_money_by_the_days_of_a_zone_is_one_sum_at_all_gateways(self, redis: Server) -> None:
        await redis.ready()
        zone = "Asia/Kathmandu"
        a, b, _ = three = doors(redis, usd_per_day=2.0, zone=zone)
        await a.shared.reserve("t", "one", 1, 1.5)
        with pytest.raises(RateLimited, match=r"usd_per_day 2, 1\.5 are used") as refused:
            await b.shared.reserve("t", "two", 1, 1.0)
        left = day_at(time.time(), zone).ends - time.time()
        assert (refused.value.retry_after or 0) == pytest.approx(left, abs=60)
        a.shared.settle("t", "one", 1, 0.25)
        await until(lambda: not a.shared._tasks)
        await b.shared.reserve("t", "two", 1, 1.5)
        yesterday = int(day_at(time.time(), zone).begins // 900) - 1
        await a.shared._redis.hset(a.shared._keys("t")[2], yesterday, "50")
        await b.shared.reserve("t", "three", 1, 0.2)
        await closed(*three)

    async def test_requests_per_minute_and_tenants_apart(self, redis: Server) -> None:
        await redis.ready()
        a, b, _ = three = doors(redis, requests_per_minute=2)
        assert [await one.admits(name, 1) for one, name in ((a, "1"), (b, "2"), (a, "3"), (b, "4"))] == [
            True,
            True,
            False,
            False,
        ]
        await b.shared.reserve("somebody else", "5", 1, 0.0)
        await closed(*three)

    async def test_a_gateway_that_died_holds_nothing_for_ever(
        self, redis: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await redis.ready()
        monkeypatch.setattr(shared_limits, "LEASE_SECONDS", 1)
        a, b, _ = three = doors(redis, concurrent_tokens=100)
        await a.reserve("lost", 100)
        assert not await b.admits("next", 50)
        await asyncio.sleep(1.1)
        assert await b.admits("next", 50)
        await closed(*three)

    async def test_a_client_that_leaves_while_redis_is_asked_leaves_nothing(self, redis: Server) -> None:
        await redis.ready()
        a, b, _ = three = doors(redis, concurrent_tokens=100)
        job = asyncio.create_task(a.shared.reserve("t", "gone", 100, 0.0))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        job.cancel()
        await asyncio.gather(job, return_exceptions=True)
        await until(lambda: not a.shared._tasks)
        assert await b.admits("next", 100)
        await closed(*three)

    async def test_redis_goes_and_comes_back(self, redis: Server, caplog: pytest.LogCaptureFixture) -> None:
        await redis.ready()
        logging.getLogger("weighbridge").propagate = True
        a, b, _ = three = doors(redis, tokens_per_minute=1000, usd_per_day=10.0)
        await a.reserve("before", 600, 1.0)
        redis.end()
        with caplog.at_level(logging.WARNING, "weighbridge"):
            assert not await a.admits("own", 500, 1.0)  # its own limits are known here
            assert await a.admits("meanwhile", 300, 8.0)
            assert a.shared.away
            assert a.shared.fallbacks == 1
            await a.settle("meanwhile", 300, 8.0)
            redis.start()
            await redis.ready()
            await until(lambda: not a.shared.away)
            assert await a.admits("after", 10, 0.5)
            await a.settle("after", 10, 0.5)
        messages = [one.getMessage() for one in caplog.records if "Redis" in one.getMessage()]
        assert ["away" in one for one in messages] == [True, False]
        assert not await b.admits("dear", 10, 2.0)  # 8.5 of 10 dollars are gone: it has heard of all of them
        assert await b.admits("cheap", 10, 1.0)
        await closed(*three)

    async def test_two_gateways_hold_one_limit(self, redis: Server) -> None:
        await redis.ready()
        top = f"shared_limits: {{redis: '{redis.url}', timeout: 10}}\nlimits: {{requests_per_minute: 5}}"
        backend = Backend("a")
        async with fleet(backend, top=top) as one, fleet(config=config_of([backend], top=top)) as two:
            statuses, left = [], []
            for n in range(10):
                async with (one, two)[n % 2].post() as answer:
                    statuses.append(answer.status)
                    left.append(answer.headers["x-ratelimit-remaining-requests"])
                    assert answer.headers["x-ratelimit-limit-requests"] == "5"
                    assert answer.headers["x-ratelimit-reset-requests"].endswith("s")
            async with one.client.get(one.url + "/metrics") as answer:
                page = await answer.text()
        assert (statuses.count(200), statuses.count(429)) == (5, 5)
        assert left == ["4", "3", "2", "1", "0", "0", "0", "0", "0", "0"]  # of both together
        assert "weighbridge_gateway_shared_limits_up 1.0" in page


class Slow:
    """A way to a Redis whose answers can be held up."""

    def __init__(self, port: int) -> None:
        self._to = port
        self.delay = 0.0
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> str:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        theirs, ours = await asyncio.open_connection("127.0.0.1", self._to)
        for one in (self._pass(reader, ours, False), self._pass(theirs, writer, True)):
            task = asyncio.create_task(one)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, is_answer: bool
    ) -> None:
        with suppress(OSError):
            while data := await reader.read(1 << 16):
                if is_answer:
                    await asyncio.sleep(self.delay)
                writer.write(data)
        writer.close()


def counted(redis: Server, kind: str) -> dict[str, str]:
    with Redis.from_url(redis.url) as client:
        return {
            name.decode(): one.decode() for name, one in client.hgetall(f"weighbridge:{{t}}:{kind}").items()
        }


class TestReceipts:
    """Between the charge and the last byte its gateway may be killed, and its client then asks another one."""

    pytestmark = real

    async def peers(self, redis: Server) -> tuple[Door, Door]:
        await redis.ready()
        first, other, _ = doors(redis, usd_per_day=100.0, concurrent_tokens=1000)
        first.shared.gateway, other.shared.gateway = "first", "other"
        return first, other

    async def behind_the_kill(self, other: Door) -> None:
        """The first one is gone, and what it held is looked at with the next request."""
        other.shared.gone = lambda: ["first"]
        await other.reserve("two", 1)
        await other.settle("two", 0)

    async def test_what_is_charged_before_its_end_is_charged_once_and_as_it_ended(
        self, redis: Server
    ) -> None:
        first, other = await self.peers(redis)
        await first.reserve("one", 900, 3.0)
        await first.shared.charge("t", "one", 20, 2.0)
        assert (used(redis, "usd"), used(redis, "tokens")) == (2.0, 20)
        assert await other.admits("two", 900)  # nothing is held any more
        await first.settle("one", 21, 2.1)
        assert (used(redis, "usd"), used(redis, "tokens")) == (2.1, 921)
        assert list(counted(redis, "reserved")) == ["other/two"]
        await other.settle("two", 0)
        await closed(first, other)

    @pytest.mark.parametrize("when", ["before the charge", "behind it", "behind the end"])
    async def test_what_a_gateway_charged_that_was_killed_is_given_back_where_it_is_asked_again(
        self, redis: Server, when: str
    ) -> None:
        first, other = await self.peers(redis)
        await first.reserve("one", 900, 3.0)
        if when == "before the charge":
            other.local.set_limits("t", TenantLimits(usd_per_day=100.0))
            await other.reserve("one", 900, 3.0)
        await first.shared.charge("t", "one", 20, 2.0)
        if when == "behind it":
            await other.reserve("one", 900, 3.0)
        other.shared.gone = lambda: ["first"]
        if when == "behind the end":
            await other.reserve("one", 900, 3.0)
        await other.settle("one", 30, 2.5)
        await other.reserve("more", 1, 0.25)
        await other.settle("more", 1, 0.25)
        assert (used(redis, "usd"), used(redis, "tokens")) == (2.75, 31)
        assert counted(redis, "reserved") == {}
        await closed(first, other)

    async def test_who_asks_two_gateways_under_one_name_pays_both(self, redis: Server) -> None:
        first, other = await self.peers(redis)
        await first.reserve("one", 400, 3.0)
        await first.shared.charge("t", "one", 20, 2.0)
        await other.reserve("one", 400, 3.0)
        await first.settle("one", 20, 2.0)
        await other.shared.charge("t", "one", 20, 2.0)
        await other.settle("one", 20, 2.0)
        await self.behind_the_kill(other)
        assert (used(redis, "usd"), used(redis, "tokens"), counted(redis, "reserved")) == (4.0, 40, {})
        await closed(first, other)

    async def test_another_name_that_ends_alike_is_another_request(self, redis: Server) -> None:
        first, other = await self.peers(redis)
        await first.reserve("mine/one", 400, 3.0)
        await first.shared.charge("t", "mine/one", 20, 2.0)
        await other.reserve("one", 400, 3.0)
        await other.settle("one", 20, 2.0)
        await self.behind_the_kill(other)
        assert used(redis, "usd") == 4.0
        await closed(first, other)


def used(redis: Server, kind: str) -> float:
    return round(sum(map(float, counted(redis, kind).values())), 6)


class TestSlowRedis:
    """Answers that come too late: what was asked has been done, and nobody here knows."""

    pytestmark = real

    async def door(self, redis: Server, **limits: Any) -> tuple[Door, Slow]:
        await redis.ready()
        slow = Slow(redis.port)
        url = await slow.start()
        door = Door(url, TenantLimits(**limits))
        door.shared = SharedLimits(Secret(url), door.local, timeout=0.5)
        await door.reserve("first", 10, 0.1)  # so that there is a connection, and the scripts are known
        await door.settle("first", 10, 0.1)
        return door, slow

    async def test_what_was_settled_too_late_to_be_heard_of_is_counted_once(self, redis: Server) -> None:
        door, slow = await self.door(redis, usd_per_day=10.0, concurrent_tokens=1000)
        await door.reserve("one", 10, 1.0)
        slow.delay = 1.0
        await door.settle("one", 20, 2.0)
        assert door.shared.away
        slow.delay = 0.0
        await until(lambda: not door.shared._untold)
        assert (used(redis, "usd"), used(redis, "tokens"), counted(redis, "reserved")) == (2.1, 30, {})
        await closed(door)

    @pytest.mark.parametrize("ends_late", [False, True])
    async def test_what_was_charged_too_late_to_be_heard_of_is_counted_once(
        self, redis: Server, ends_late: bool
    ) -> None:
        door, slow = await self.door(redis, usd_per_day=10.0, concurrent_tokens=1000)
        door.shared.gateway = "one"
        await door.reserve("one", 10, 1.0)
        slow.delay = 1.0 if not ends_late else 0.0
        await door.shared.charge("t", "one", 20, 2.0)
        assert door.shared.away != ends_late
        slow.delay = 1.0
        await door.settle("one", 21, 2.5)
        slow.delay = 0.0
        await until(lambda: not door.shared._untold and not door.shared._tasks)
        assert (used(redis, "usd"), used(redis, "tokens"), counted(redis, "reserved")) == (2.6, 31, {})
        await closed(door)

    async def test_what_was_charged_while_redis_could_not_be_written_is_counted_once(
        self, redis: Server
    ) -> None:
        door, _ = await self.door(redis, usd_per_day=10.0, concurrent_tokens=1000)
        door.shared.gateway = "one"
        await door.reserve("one", 900, 3.0)
        with Redis.from_url(redis.url) as client:
            client.replicaof("127.0.0.1", free_port())
            await door.shared.charge("t", "one", 20, 2.0)
            assert len(door.shared._untold) == 1
            await door.settle("one", 21, 2.5)
            client.replicaof("NO", "ONE")
        await until(lambda: not door.shared._untold)
        assert (used(redis, "usd"), used(redis, "tokens"), counted(redis, "reserved")) == (2.6, 31, {})
        await closed(door)

    async def test_what_was_reserved_too_late_to_be_heard_of_is_given_back(self, redis: Server) -> None:
        door, slow = await self.door(redis, usd_per_day=10.0, concurrent_tokens=1000)
        slow.delay = 1.0
        await door.reserve("one", 900, 3.0)  # by the gateway's own limits
        assert door.shared.fallbacks == 1
        await until(lambda: len(counted(redis, "reserved")) == 1)  # and it was done all the same
        await door.settle("one", 20, 2.0)
        slow.delay = 0.0
        await until(lambda: not door.shared._untold and not door.shared._tasks)
        assert counted(redis, "reserved") == {}
        await door.reserve("two", 900, 1.0)
        await door.settle("two", 10, 1.0)
        assert used(redis, "usd") == 3.1
        await closed(door)

    async def test_what_ends_while_redis_is_left_alone_is_settled_and_counted_once(
        self, redis: Server
    ) -> None:
        door, slow = await self.door(redis, usd_per_day=10.0, concurrent_tokens=1000)
        await door.reserve("one", 900, 3.0)
        slow.delay = 1.0
        await door.reserve("two", 50, 1.0)
        assert door.shared.away
        await door.settle("one", 20, 2.0)
        slow.delay = 0.0
        await until(lambda: not door.shared._untold and not door.shared._tasks)
        await door.settle("two", 20, 0.5)
        assert (used(redis, "usd"), counted(redis, "reserved")) == (2.6, {})
        await closed(door)

    async def test_a_redis_that_is_only_read_is_told_when_it_is_written_again(self, redis: Server) -> None:
        door, _ = await self.door(redis, usd_per_day=10.0, concurrent_tokens=1000)
        await door.reserve("one", 900, 3.0)
        with Redis.from_url(redis.url) as client:
            client.replicaof("127.0.0.1", free_port())
            await door.settle("one", 20, 2.0)
            assert door.shared.away
            assert len(door.shared._untold) == 1
            client.replicaof("NO", "ONE")
        await until(lambda: not door.shared._untold)
        assert (used(redis, "usd"), counted(redis, "reserved")) == (2.1, {})
        await closed(door)

    async def test_the_clock_of_one_gateway_does_not_end_the_day_for_all(
        self, redis: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await redis.ready()
        right, wrong, _ = three = doors(redis, usd_per_day=2.0, zone="UTC")
        await right.reserve("one", 1, 1.9)
        await right.settle("one", 1, 1.9)
        with monkeypatch.context() as patch:
            real_time = time.time
            patch.setattr(shared_limits.time, "time", lambda: real_time() + 86_400)
            await wrong.reserve("two", 1, 0.05)  # before it knows Redis's time
            assert not await wrong.admits("three", 1, 0.2)
        assert not await right.admits("four", 1, 0.2)
        assert used(redis, "usd-by-day") == 1.95
        await closed(*three)


async def test_without_redis_a_gateway_holds_its_own_limits() -> None:
    top = f"shared_limits: {{redis: 'redis://127.0.0.1:{free_port()}/0'}}\nlimits: {{requests_per_minute: 3}}"
    async with fleet(Backend("a"), top=top) as front:
        statuses = []
        for _ in range(5):
            async with front.post() as answer:
                statuses.append(answer.status)
        async with front.client.get(front.url + "/metrics") as answer:
            page = await answer.text()
    assert statuses == [200, 200, 200, 429, 429]
    assert "weighbridge_gateway_limit_fallbacks_total 3.0" in page


async def test_a_redis_that_does_not_answer_holds_nobody_up() -> None:
    silent = await asyncio.start_server(lambda reader, writer: asyncio.sleep(3600), "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    top = f"shared_limits: {{redis: 'redis://127.0.0.1:{port}/0', timeout: 0.1}}\nlimits: {{requests_per_minute: 9}}"
    async with fleet(Backend("a"), top=top) as front:
        async with asyncio.timeout(60):
            for _ in range(4):
                async with front.post() as answer:
                    assert answer.status == 200
        assert front.gateway.shared_limits is not None
        assert front.gateway.shared_limits.fallbacks == 4
    silent.close()


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ("{}", "redis: is missing"),
        ("{redis: 'localhost:6379'}", "is no URL of a Redis"),
        ("{redis_env: NOBODY_SET_THIS}", "NOBODY_SET_THIS is not set"),
        ("{redis: 'redis://h/0', timeout: 0}", "timeout"),
        ("{redis: 'redis://h/0', url: x}", "url: is not a setting"),
    ],
)
def test_what_is_wrong_is_said(section: str, said: str) -> None:
    text = config_of([Backend("a", url="http://127.0.0.1:1")], top=f"shared_limits: {section}")
    with pytest.raises(BadInput, match=said):
        parse_config(text, "weighbridge.yaml", Path("."))


# -- Redis's clock is set --------------------------------------------------------------------------------------

DAY = 86_400


class SetClock:
    """Redis's scripts with a clock that is `ahead` of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ahead = 0
        self._real = shared_limits.RESERVE, shared_limits.SETTLE
        self._patch = monkeypatch

    def set(self, ahead: int, *doors: Door) -> None:
        self.ahead = ahead
        read = f"local clock = redis.call('TIME') clock[1] = tostring(tonumber(clock[1]) + {ahead})"
        reserve, settle = (one.replace("local clock = redis.call('TIME')", read) for one in self._real)
        for door in doors:
            door.shared._reserve = door.shared._redis.register_script(reserve)
            door.shared._settle = door.shared._redis.register_script(settle)


class TestARedisWhoseClockIsSet:
    pytestmark = real

    @pytest.mark.parametrize("step", [3600, DAY, 365 * DAY])
    async def test_that_was_ahead_limits_by_the_minute_are_not_full_for_longer(
        self, redis: Server, monkeypatch: pytest.MonkeyPatch, step: int
    ) -> None:
        await redis.ready()
        three = doors(redis, tokens_per_minute=1000, requests_per_minute=10)
        a, b, _ = three
        clock = SetClock(monkeypatch)
        clock.set(step, *three)
        await a.reserve("one", 900)
        await a.settle("one", 800)
        clock.set(0, *three)
        with pytest.raises(RateLimited, match="tokens_per_minute 1000, 800 are used") as refused:
            await b.shared.reserve("t", "two", 300, 0.0)
        assert (refused.value.retry_after or 0) <= 62
        clock.set(62, *three)
        await b.shared.reserve("t", "three", 1000, 0.0)
        await closed(*three)

    @pytest.mark.parametrize("zone", [None, "Europe/Berlin"])
    @pytest.mark.parametrize("step", [3 * DAY, 365 * DAY])
    async def test_that_was_ahead_money_counts_for_a_day_and_not_for_longer(
        self, redis: Server, monkeypatch: pytest.MonkeyPatch, step: int, zone: str | None
    ) -> None:
        await redis.ready()
        more = {} if zone is None else {"zone": zone}
        three = doors(redis, usd_per_day=2.0, **more)
        a, b, _ = three
        clock = SetClock(monkeypatch)
        clock.set(step, *three)
        await a.shared.reserve("t", "one", 1, 1.5)
        clock.set(0, *three)
        with pytest.raises(RateLimited, match=r"usd_per_day 2, 1\.5 are used") as refused:
            await b.shared.reserve("t", "two", 1, 0.75)
        assert (refused.value.retry_after or 0) <= DAY + 1500
        a.shared.settle(
            "t", "one", 1, 0.75
        )  # what was reserved under the other clock is settled all the same
        await until(lambda: not a.shared._tasks)
        await b.shared.reserve("t", "three", 1, 1.25)
        clock.set(2 * DAY, *three)
        with suppress(RateLimited):  # from the answer it learns which day it is there
            await b.shared.reserve("t", "four", 1, 2.0)
        await b.shared.reserve("t", "four", 1, 2.0)
        await closed(*three)

    async def test_that_was_ahead_what_died_is_given_back_within_a_lease(
        self, redis: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await redis.ready()
        three = doors(redis, concurrent_tokens=100)
        a, b, _ = three
        clock = SetClock(monkeypatch)
        clock.set(365 * DAY, *three)
        await a.shared.reserve("t", "lost", 100, 0.0)
        clock.set(0, *three)
        with pytest.raises(RateLimited):
            await b.shared.reserve("t", "next", 50, 0.0)
        clock.set(shared_limits.LEASE_SECONDS + 5, *three)
        await b.shared.reserve("t", "next", 50, 0.0)
        await closed(*three)

    @pytest.mark.parametrize("step", [-365 * DAY, -3 * DAY, 3 * DAY, 365 * DAY])
    async def test_a_gateways_own_clock_that_is_set_spends_no_day_twice(
        self, redis: Server, monkeypatch: pytest.MonkeyPatch, step: int
    ) -> None:
        await redis.ready()
        three = doors(redis, usd_per_day=2.0, zone="Europe/Berlin")
        a, b, c = three
        now = time.time
        await a.shared.reserve("t", "one", 1, 1.5)
        monkeypatch.setattr(shared_limits.time, "time", lambda: now() + step)
        for n, one in enumerate((a, b, c, a, b, c)):
            with pytest.raises(RateLimited):
                await one.shared.reserve("t", f"two {n}", 1, 1.0)
        await closed(*three)
