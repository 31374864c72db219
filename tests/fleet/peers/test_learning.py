"""What gateways tell each other of speeds and prefixes: few bytes, believed a little, refused where it is nobody's."""

from __future__ import annotations

import asyncio
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fleet.backends import Backend, all_served, until
from tests.fleet.peers.known import PEERS
from tests.fleet.peers.test_membership import configuration, entry, gateways
from tests.fleet.redis_server import Server, needs_redis
from weighbridge.fleet.load.speed import LearnedSpeed, Observed, SpeedLearner
from weighbridge.fleet.peers import learning as learning_module
from weighbridge.fleet.peers.prefix_news import LARGEST, MOST_BLOCKS, PrefixNews, read_news


def taught(per_token: float, step: float, count: int = 200, seed: int = 1) -> SpeedLearner:
    """A learner of a replica that takes so many seconds."""
    rng, learner = random.Random(seed), SpeedLearner()
    for _ in range(count):
        tokens, beside = rng.randint(20, 2000), rng.randint(1, 8)
        noise = math.exp(rng.gauss(0.0, 0.1))
        first = Observed((tokens * per_token + step) * noise, 1.0, tokens, 1.0, beside)
        learner.observe(first)
        learner.observe(Observed(16 * step * math.exp(rng.gauss(0.0, 0.1)), 0.0, 0.0, 16.0, 16.0 * beside))
    return learner


PROMPT, STREAM = (1.0, 1000.0, 1.0, 2.0, 0.0), (0.0, 0.0, 16.0, 32.0, 0.0)


@given(st.floats(1e-5, 1e-2), st.floats(1e-3, 0.2))
def test_what_is_taken_over_predicts_the_same_and_is_less_certain(per_token: float, step: float) -> None:
    old, new = taught(per_token, step, 30), SpeedLearner()
    known = old.summary()
    assert known is not None
    assert new.begin_with(known)
    for row in (PROMPT, STREAM):
        assert new.seconds(row) == pytest.approx(old.seconds(row), rel=1e-6)
    assert new.error() > old.error()
    assert not new.begin_with(known)  # what is known here is not replaced


def test_what_was_taken_over_and_is_wrong_is_soon_forgotten() -> None:
    wrong = taught(1e-3, 0.05).summary()
    assert wrong is not None
    misled, fresh = SpeedLearner(), SpeedLearner()
    misled.begin_with(wrong)
    for learner in (misled, fresh):
        rng = random.Random(3)
        for _ in range(12):
            tokens = rng.randint(100, 2000)
            learner.observe(Observed(tokens * 1e-4 + 0.005, 1.0, tokens, 1.0, 2.0))
            learner.observe(Observed(16 * 0.005, 0.0, 0.0, 16.0, 32.0))
    for row, true in ((PROMPT, 0.105), (STREAM, 0.08)):
        assert fresh.seconds(row) == pytest.approx(true, rel=0.3)
        assert misled.seconds(row) == pytest.approx(true, rel=0.5)


@pytest.mark.parametrize(
    "known",
    [
        LearnedSpeed((0.0, 0.0, math.nan, 0.0, 0.0), 5, 5, 0.1),
        LearnedSpeed((0.0, 0.0, math.inf, 0.0, 0.0), 5, 5, 0.1),
        LearnedSpeed((-1.0, 0.0, 1.0, 0.0, 0.0), 5, 5, 0.1),
        LearnedSpeed((0.0, 0.0, 0.0, 0.0, 0.0), 5, 5, 0.1),
        LearnedSpeed((0.0, 0.0, 1.0, 0.0, 0.0), 0, 5, 0.1),
        LearnedSpeed((0.0, 0.0, 1.0, 0.0, 0.0), 5, 5, math.nan),
    ],
)
def test_a_speed_that_cannot_be_is_not_taken(known: LearnedSpeed) -> None:
    learner = SpeedLearner()
    assert not learner.begin_with(known)
    assert not learner.known


def chain(name: int, blocks: int) -> list[bytes]:
    return [(name * 1000 + at).to_bytes(32, "big") for at in range(blocks)]


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 40)), max_size=300))
def test_news_fit_and_tell_each_beginning_once(sent: list[tuple[int, int]]) -> None:
    news, wanted = PrefixNews(), set()
    for name, blocks in sent:
        news.note("m", "r", chain(name, blocks), 0.0)
        wanted.add(tuple(chain(name, blocks)[:MOST_BLOCKS]))
    found = []
    while data := news.take(0.0):
        assert len(data) <= LARGEST + 1024
        found += [tuple(blocks) for _, _, blocks in read_news(data)]
    assert sorted(found) == sorted(wanted)
    for name, blocks in sent:
        news.note("m", "r", chain(name, blocks), 59.0)
    assert news.take(59.0) == b""
    for name, blocks in sent:
        news.note("m", "r", chain(name, blocks), 61.0)
    assert bool(news.take(61.0)) == bool(sent)


@given(st.binary(max_size=100))
def test_what_is_no_news_is_refused(data: bytes) -> None:
    try:
        list(read_news(data))
    except ValueError:
        return


pytest.importorskip("redis", reason="the extra `redis` is not installed")


@pytest.fixture(autouse=True)
def told_at_once(monkeypatch: pytest.MonkeyPatch, quick: None, known_peers: None) -> None:
    monkeypatch.setattr(learning_module, "NEWS_EVERY", 0.1)
    monkeypatch.setattr(learning_module, "SPEEDS_EVERY", 0.1)
    monkeypatch.setattr(learning_module, "ASK_AGAIN", 0.1)


@needs_redis
async def test_a_new_gateway_begins_with_what_its_peers_know(redis: Server) -> None:
    await redis.ready()
    slow, quick = (
        Backend(n, load={"step_cost": None}, first_delay=d) for n, d in (("slow", 0.08), ("quick", 0.0))
    )
    async with all_served((slow, quick)):
        text = configuration(redis, "learned", [entry(slow), entry(quick)])
        async with gateways(1, text) as (a,):
            prompt = [{"role": "user", "content": "the same long beginning " * 40}]
            for at in range(6):  # two at a time, so that both have some
                others = [[{"role": "user", "content": f"{at} {n} " * 20}] for n in range(2)]
                await asyncio.gather(*(a.stream(messages=one) for one in others))
            async with a.post(messages=prompt) as asked:
                holder = asked.headers["x-weighbridge-replica"]
            members = a.gateway.pools["m"].members
            await until(lambda: all(m.state.speed_known for m in members.values()))
            async with gateways(1, text) as (b,):
                pool = b.gateway.pools["m"]
                await until(lambda: all(m.state.speed_known for m in pool.members.values()))
                await until(lambda: pool.prefixes.blocks(holder) > 0)
                took = PEERS[id(b.gateway)].learning
                assert took is not None
                assert took.taken["speeds"] == 2
                assert "as another gateway had learned" in pool.members["slow"].as_dict(0.0)["speed"]
                answer = await b.client.post(
                    b.url + "/v1/chat/completions", json={"model": "m", "messages": prompt}
                )
                assert answer.headers["x-weighbridge-replica"] == holder
                answer.close()
            peers = PEERS[id(a.gateway)]
            assert peers.learning is not None
            client = peers.board._redis
            await client.xadd("learned:{fleet}:news", {"t": b"0" * 32 + b"evil " + b"\xff" * 10})
            await client.hset("learned:{fleet}:speeds", "m/slow", b"0" * 32 + b"{}")
            await until(lambda: peers.learning.refused > 0)  # type: ignore[union-attr]
            before = peers.board.operations
            await asyncio.sleep(0.3)
            assert peers.board.operations - before < 12  # looks, and nothing for what is not new
