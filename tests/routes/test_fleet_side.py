"""A side over a fleet model: what it tells of itself, and what becomes of answers, failures and cancellations."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.fleet.backends import STEP_COST, Backend, Front, fleet, until
from weighbridge.cost.price import FREE, Price
from weighbridge.cost.step import StepCost
from weighbridge.routes.errors import SideFailed
from weighbridge.routes.fleet_side import DoesNotFit, FleetSide, LimitReached, dearest
from weighbridge.routes.side import Chunk, SideRequest, SideSettings, SideStream

BODY = {"messages": [{"role": "user", "content": "What does it weigh?"}]}


def request(**fields: Any) -> SideRequest:
    return SideRequest(BODY, 60, **{"timeout": 5.0, **fields})


@asynccontextmanager
async def side_over(
    *backends: Backend, name: str = "edge", **fields: Any
) -> AsyncIterator[tuple[FleetSide, Front]]:
    """A side over one model with these replicas; every counter must be at zero when the block ends."""
    async with fleet(*backends, **fields) as front:
        yield FleetSide(name, SideSettings("", "m"), front.gateway, "auto"), front


async def chunks_of(side: FleetSide, asked: SideRequest) -> list[Chunk]:
    stream = await side.open(asked)
    return [chunk async for chunk in stream]


def text_of(chunks: list[Chunk]) -> str:
    return "".join(one["delta"].get("content") or "" for chunk in chunks for one in chunk["choices"])


async def test_an_answer_goes_through_the_fleet() -> None:
    backend = Backend(tokens=4)
    async with side_over(backend) as (side, front):
        chunks = await chunks_of(side, request(tenant="jane", priority=3))
        assert text_of(chunks) == " t0 t1 t2 t3"
        assert chunks[-1]["usage"]["completion_tokens"] == 4
        assert backend.calls[0]["weighbridge"] == {"tenant": "jane", "priority": 3, "speculative": False}
        assert (backend.calls[0]["model"], backend.calls[0]["max_tokens"]) == ("m", 1024)
        [ticket] = front.gateway.tickets.recent()
        assert (ticket.tenant, ticket.route, ticket.output_tokens) == ("jane", "auto", 4)
        assert side.estimate_tokens(60) == 11  # learned from what the replica said
        assert side.latency.expected(4) is not None


async def test_a_retry_is_the_fleets_own() -> None:
    broken, sound = Backend("broken", statuses=[500, 503, 500]), Backend("sound")
    async with side_over(broken, sound) as (side, _):
        for _ in range(4):
            assert text_of(await chunks_of(side, request())) == " t0 t1 t2 t3 t4"
    assert broken.finished + sound.finished == 4


async def test_health_follows_the_replicas() -> None:
    one, two = Backend("one"), Backend("two")
    async with side_over(one, two) as (side, front):
        assert side.healthy
        one.load_status = two.load_status = 500
        await until(lambda: not side.healthy)
        two.load_status = 200
        await until(lambda: side.healthy)
        front.gateway.pools["m"].drain("two")
        assert not side.healthy


async def test_expected_seconds_are_those_of_the_quickest_replica() -> None:
    slow = {**STEP_COST, "memory": 0.4, "per_token": 1e-2}
    async with side_over(Backend("quick"), Backend("slow", load={"step_cost": slow})) as (side, front):
        members = front.gateway.pools["m"].members
        await until(lambda: all(one.last_report is not None for one in members.values()))
        cost = StepCost(**STEP_COST)
        alone = cost.prefill_seconds(100) + 50 * cost.seconds(1, 1, 100)
        assert side.expected_seconds(100, 50) == pytest.approx(alone, rel=0.05)
        assert side.queue_seconds() == 0.0
        members["quick"].draining = True
        expected = side.expected_seconds(100, 50)
        assert expected is not None
        assert expected > 20.0


async def test_what_is_queued_counts() -> None:
    backend = Backend(gap=0.05, tokens=40)
    async with side_over(backend, replica=", capacity: {max_sequences: 1}") as (side, front):
        streams = [asyncio.create_task(chunks_of(side, request())) for _ in range(4)]
        await until(lambda: len(front.gateway.pools["m"].dispatcher.queue) == 3)
        assert side.queue_seconds() > 0.1
        for one in streams:
            one.cancel()
        await asyncio.gather(*streams, return_exceptions=True)
        await front.idle()
        assert side.queue_seconds() == 0.0


def test_the_dearest_price_bounds_all() -> None:
    prices = {Price(1.0, 8.0, 0.5), Price(2.0, 4.0), FREE}
    bound = dearest(prices)
    assert bound == Price(2.0, 8.0, 2.0)
    for one in prices:
        for tokens in ((100, 10, 0), (100, 0, 100), (7, 900, 3)):
            assert one.cost(*tokens) <= bound.cost(*tokens)


async def test_an_answer_costs_what_its_own_replica_charges() -> None:
    price = ", price: {input_usd_per_million: 2, output_usd_per_million: 6}"
    async with side_over(Backend(), replica=price) as (side, _):
        assert side.price == Price(2, 6)
        stream = await side.open(request())
        assert stream.price == Price(2, 6)
        await stream.close()


@pytest.mark.parametrize("moment", ["queued", "before its first token", "streaming"])
async def test_whoever_is_cancelled_leaves_nothing(moment: str) -> None:
    backend = Backend(first_delay=0.0 if moment == "streaming" else 0.5, gap=0.02, tokens=500)
    async with side_over(backend, replica=", capacity: {max_sequences: 1}") as (side, front):
        first = asyncio.create_task(chunks_of(side, request()))
        await until(lambda: backend.running == 1)
        second = asyncio.create_task(chunks_of(side, request())) if moment == "queued" else None
        await asyncio.sleep(0.1)
        if second is not None:
            second.cancel()
            with pytest.raises(asyncio.CancelledError):
                await second
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        await until(lambda: backend.cancelled == 1)
        await front.idle()
        tickets = front.gateway.tickets.recent()
        assert {(one.finish_reason, one.error) for one in tickets} == {("abort", None)}


async def test_a_stream_that_is_closed_half_way_is_given_back() -> None:
    backend = Backend(gap=0.02, tokens=500)
    async with side_over(backend) as (side, front):
        stream = await side.open(request())
        async for _ in stream:
            break
        await stream.close()
        await stream.close()
        await until(lambda: backend.cancelled == 1)
        await front.idle()
        [ticket] = front.gateway.tickets.recent()
        assert ticket.finish_reason == "abort"


@pytest.mark.parametrize(
    ("backend", "status", "billable"),
    [
        (Backend(statuses=[400] * 3), 400, False),
        (Backend(statuses=[500] * 3), 500, False),
        (Backend(statuses=[429] * 9, retry_after="60"), 429, False),
        (Backend(first_delay=30.0), 504, True),
    ],
)
async def test_failures_before_the_first_byte(backend: Backend, status: int, billable: bool) -> None:
    async with side_over(backend) as (side, _):
        with pytest.raises(SideFailed) as caught:
            await side.open(request(timeout=2.0 if status == 504 else 5.0))
        failure = caught.value
        assert (failure.status, failure.billable) == (status, billable)
        assert failure.is_request_at_fault == (status == 400)
        if status == 429:
            assert failure.retry_after == pytest.approx(60.0, abs=1.0)


@pytest.mark.parametrize(
    "backend", [Backend(break_after=2), Backend(end_early_after=2), Backend(stall_after=2)]
)
async def test_a_stream_that_breaks_off_has_been_worked_on(backend: Backend) -> None:
    async with side_over(backend) as (side, front):
        stream = await side.open(request(timeout=3.0))
        seen: list[Chunk] = []
        with pytest.raises(SideFailed) as caught:
            await _gather(stream, seen)
        assert caught.value.billable
        assert text_of(seen) == " t0 t1"
        await front.idle()
        [ticket] = front.gateway.tickets.recent()
        assert ticket.finish_reason == "error"


async def _gather(stream: SideStream, seen: list[Chunk]) -> None:
    async for chunk in stream:
        seen.append(chunk)  # noqa: PERF401 - what came before a failure is to be seen


async def test_a_limit_of_the_tenant_is_no_reason_to_go_to_the_cloud() -> None:
    top = "limits: {requests_per_minute: 1}"
    async with side_over(Backend(), top=top) as (edge, front):
        cloud = FleetSide("cloud", SideSettings("", "m"), front.gateway, "auto")
        await chunks_of(edge, request())
        with pytest.raises(LimitReached) as caught:
            await edge.open(request())
        assert (caught.value.status, caught.value.is_request_at_fault) == (429, True)
        assert caught.value.retry_after is not None
        with pytest.raises(SideFailed) as refused:  # the edge may still answer
            await cloud.open(request())
        assert (refused.value.status, refused.value.is_request_at_fault) == (429, False)


async def test_what_is_too_long_for_the_edge_may_fit_the_cloud() -> None:
    async with side_over(Backend(), replica=", capacity: {max_model_len: 40}") as (edge, front):
        assert edge.context_tokens == 40
        long = SideRequest({"messages": [{"role": "user", "content": "word " * 400}]}, 2000, timeout=5.0)
        with pytest.raises(DoesNotFit) as caught:
            await edge.open(long)
        assert not caught.value.is_request_at_fault
        cloud = FleetSide("cloud", SideSettings("", "m"), front.gateway, "auto")
        with pytest.raises(SideFailed) as refused:
            await cloud.open(long)
        assert refused.value.is_request_at_fault


async def test_replicas_of_a_cloud_are_not_told_who_asks() -> None:
    backend = Backend()
    async with side_over(backend, name="cloud") as (side, front):
        await chunks_of(side, request(tenant="jane"))
        assert b"jane" not in backend.raw[0]
        [ticket] = front.gateway.tickets.recent()
        assert ticket.tenant == "jane"
