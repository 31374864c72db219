"""A place over a model: what it tells of itself, and what becomes of answers, failures and cancellations there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.fleet.backends import STEP_COST, Backend, Front, fleet, until
from tests.routes.routes import ask
from weighbridge.cost.price import FREE, Price
from weighbridge.cost.step import StepCost
from weighbridge.cost.usage import Usage
from weighbridge.routes.budget import Budgets, Cashier, Ledger
from weighbridge.routes.errors import DoesNotFit, LimitReached, PlaceFailed
from weighbridge.routes.leg import FIRST_TOKEN, LegRun
from weighbridge.routes.place import Place, highest
from weighbridge.routes.policy import Level
from weighbridge.routes.request import RouteRequest
from weighbridge.routes.settings import PlaceSettings

TEXT = "What does it weigh?"


@asynccontextmanager
async def place_over(
    *backends: Backend, level: str = "edge", **fields: Any
) -> AsyncIterator[tuple[Place, Front]]:
    """A place over one model with these replicas; every counter must be at zero when the block ends."""
    async with fleet(*backends, **fields) as front:
        yield place_of(front, level), front


def place_of(front: Front, level: str = "edge") -> Place:
    return Place(PlaceSettings(level, Level(level), "m"), front.gateway, "auto")


def leg_run(place: Place, text: str = TEXT, *, timeout: float = 5.0, **fields: Any) -> LegRun:
    request = RouteRequest(ask(text, **fields))
    cashier = Cashier(Ledger(None, Budgets()))
    ends = asyncio.get_running_loop().time() + timeout
    return LegRun(place, place.ask(request, request.fields(place.level)), cashier, ends=ends)


async def text_of(run: LegRun) -> str:
    """Start, read all of it, and close."""
    run.reads_all = True
    try:
        await run.start(FIRST_TOKEN)
        async for _ in run.rest():
            pass
    finally:
        await run.close()
    return run.text


async def test_an_answer_goes_through_the_fleet() -> None:
    backend = Backend(tokens=4)
    async with place_over(backend) as (place, front):
        run = leg_run(place, tenant="jane", priority=3)
        assert await text_of(run) == " t0 t1 t2 t3"
        assert backend.calls[0]["weighbridge"] == {"tenant": "jane", "priority": 3, "speculative": False}
        assert (backend.calls[0]["model"], backend.calls[0]["max_tokens"]) == ("m", 1024)
        assert front.gateway.tickets.recent() == []
        leg = run.leg
        assert (leg.place, leg.model, leg.replica, leg.outcome) == ("edge", "m", "backend", "stop")
        assert (leg.output_tokens, leg.prompt_tokens, leg.tries) == (4, 11, 1)
        assert leg.weighed_tokens is not None
        assert leg.decisions
        assert not leg.estimated
        assert place.latency.expected(4) is not None


async def test_a_retry_is_the_fleets_own() -> None:
    broken, sound = Backend("broken", statuses=[500, 503, 500]), Backend("sound")
    async with place_over(broken, sound) as (place, _):
        for _ in range(4):
            assert await text_of(leg_run(place)) == " t0 t1 t2 t3 t4"
    assert broken.finished + sound.finished == 4


async def test_health_follows_the_replicas() -> None:
    one, two = Backend("one"), Backend("two")
    async with place_over(one, two) as (place, front):
        assert place.healthy
        one.load_status = two.load_status = 500
        await until(lambda: not place.healthy)
        two.load_status = 200
        await until(lambda: place.healthy)
        front.gateway.pools["m"].drain("two")
        assert not place.healthy


async def test_expected_seconds_are_those_of_the_quickest_replica() -> None:
    slow = {**STEP_COST, "memory": 0.4, "per_token": 1e-2}
    async with place_over(Backend("quick"), Backend("slow", load={"step_cost": slow})) as (place, front):
        members = front.gateway.pools["m"].members
        await until(lambda: all(member.last_report is not None for member in members.values()))
        cost = StepCost(**STEP_COST)
        alone = cost.prefill_seconds(100) + 50 * cost.seconds(1, 1, 100)
        assert place.expected_seconds(100, 50) == pytest.approx(alone, rel=0.05)
        members["quick"].draining = True
        expected = place.expected_seconds(100, 50)
        assert expected is not None
        assert expected > 20.0


async def test_what_is_queued_counts() -> None:
    backend = Backend(gap=0.05, tokens=40)
    async with place_over(backend, replica=", capacity: {max_sequences: 1}") as (place, front):
        await until(lambda: place.expected_seconds(10, 10) is not None)
        alone = place.expected_seconds(10, 10)
        runs = [asyncio.create_task(text_of(leg_run(place))) for _ in range(4)]
        await until(lambda: len(front.gateway.pools["m"].dispatcher.queue) == 3)
        queued = place.expected_seconds(10, 10)
        assert alone is not None
        assert queued is not None
        assert queued > alone + 0.1
        for run in runs:
            run.cancel()
        await asyncio.gather(*runs, return_exceptions=True)
        await front.idle()
        assert place.expected_seconds(10, 10) == pytest.approx(alone, rel=0.05)


def test_the_highest_price_bounds_all() -> None:
    prices = {Price(1.0, 8.0, 0.5), Price(2.0, 4.0), FREE}
    assert highest(prices) == Price(2.0, 8.0, 2.0)
    prices.add(Price(1.0, 1.0, cache_write_usd_per_million=2.5))
    bound = highest(prices)
    assert bound == Price(2.0, 8.0, 2.0, cache_write_usd_per_million=2.5)
    for price in prices:
        for tokens in ((100, 10), (100, 0, 100), (7, 900, 3), (100, 1, 10, 90), (50, 0, 0, 50)):
            usage = Usage(*tokens)
            assert price.usd(usage) <= bound.usd(usage) <= bound.at_most(*tokens[:2])


async def test_an_answer_costs_what_its_own_replica_charges() -> None:
    price = ", price: {input_usd_per_million: 2, output_usd_per_million: 6}"
    async with place_over(Backend(tokens=4), replica=price) as (place, _):
        assert place.price == Price(2, 6)
        run = leg_run(place)
        await text_of(run)
        assert run.leg.usd == run.usd == pytest.approx((11 * 2 + 4 * 6) / 1e6)


@pytest.mark.parametrize("moment", ["queued", "before its first token", "streaming"])
async def test_whoever_is_cancelled_leaves_nothing(moment: str) -> None:
    backend = Backend(first_delay=0.0 if moment == "streaming" else 0.5, gap=0.02, tokens=500)
    async with place_over(backend, replica=", capacity: {max_sequences: 1}") as (place, front):
        runs = [leg_run(place)]
        first = asyncio.create_task(text_of(runs[0]))
        await until(lambda: backend.running == 1)
        if moment == "queued":
            runs.append(leg_run(place))
            second = asyncio.create_task(text_of(runs[1]))
            await asyncio.sleep(0.1)
            second.cancel()
            with pytest.raises(asyncio.CancelledError):
                await second
        else:
            await asyncio.sleep(0.1)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        await until(lambda: backend.cancelled == 1)
        await front.idle()
        assert {(run.leg.outcome, run.leg.error) for run in runs} == {("abort", None)}


async def test_a_stream_that_is_closed_half_way_is_given_back() -> None:
    backend = Backend(gap=0.02, tokens=500)
    async with place_over(backend) as (place, front):
        run = leg_run(place)
        await run.start(FIRST_TOKEN)
        async for _ in run.rest():
            break
        await run.close()
        await run.close()
        await until(lambda: backend.cancelled == 1)
        await front.idle()
        assert run.leg.outcome == "abort"


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
    price = ", price: {input_usd_per_million: 2, output_usd_per_million: 6}"
    async with place_over(backend, replica=price) as (place, _):
        run = leg_run(place, timeout=2.0 if status == 504 else 5.0)
        with pytest.raises(PlaceFailed) as caught:
            await run.start(FIRST_TOKEN)
        failure = caught.value
        assert (failure.status, failure.billable) == (status, billable)
        assert failure.is_request_at_fault == (status == 400)
        assert (run.leg.usd > 0, run.leg.estimated) == (billable, True)
        if status == 429:
            assert failure.retry_after == pytest.approx(60.0, abs=1.0)


@pytest.mark.parametrize(
    "backend", [Backend(break_after=2), Backend(end_early_after=2), Backend(stall_after=2)]
)
async def test_a_stream_that_breaks_off_has_been_worked_on(backend: Backend) -> None:
    async with place_over(backend) as (place, front):
        run = leg_run(place, timeout=3.0)
        run.reads_all = True
        await run.start(FIRST_TOKEN)
        with pytest.raises(PlaceFailed) as caught:
            await _drain(run)
        assert caught.value.billable
        assert run.text == " t0 t1"
        await run.close(str(caught.value))
        await front.idle()
        assert run.leg.outcome == "error"
        assert run.leg.output_tokens > 0


async def _drain(run: LegRun) -> None:
    async for _ in run.rest():
        pass


async def test_a_limit_of_the_tenant_is_no_reason_to_go_to_the_cloud() -> None:
    top = "limits: {requests_per_minute: 1}"
    async with place_over(Backend(), top=top) as (edge, front):
        cloud = place_of(front, "cloud")
        await text_of(leg_run(edge))
        with pytest.raises(LimitReached) as caught:
            await text_of(leg_run(edge))
        assert (caught.value.status, caught.value.is_request_at_fault) == (429, True)
        assert caught.value.retry_after is not None
        with pytest.raises(PlaceFailed) as refused:  # the edge may still answer
            await text_of(leg_run(cloud))
        assert (refused.value.status, refused.value.is_request_at_fault) == (429, False)


async def test_what_is_too_long_for_the_edge_may_fit_the_cloud() -> None:
    async with place_over(Backend(), replica=", capacity: {max_model_len: 40}") as (edge, front):
        assert edge.context_tokens == 40
        with pytest.raises(DoesNotFit) as caught:
            await text_of(leg_run(edge, "word " * 400))
        assert not caught.value.is_request_at_fault
        with pytest.raises(PlaceFailed) as refused:
            await text_of(leg_run(place_of(front, "cloud"), "word " * 400))
        assert refused.value.is_request_at_fault


async def test_replicas_of_a_cloud_are_not_told_who_asks_nor_what_its_client_sends_beside() -> None:
    backend = Backend()
    headers = {"traceparent": "00-jane-01", "baggage": "user=jane"}
    async with place_over(backend, level="cloud") as (place, _):
        fields = {"tenant": "jane", "user": "jane", "metadata": {"who": "jane"}, "logit_bias": {"5": 1}}
        await text_of(leg_run(place, headers=headers, **fields))
        assert b"jane" not in backend.raw[0]
        assert b"logit_bias" not in backend.raw[0]
        request = RouteRequest(ask(TEXT, headers=headers, **fields))
        assert place.ask(request, request.fields(Level.CLOUD)).headers == {}


def test_a_body_of_any_depth_has_a_size() -> None:
    parameters: dict[str, object] = {}
    for _ in range(900):  # as deep as a body may be
        parameters = {"a": parameters}
    tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    assert RouteRequest.read(ask(TEXT, tools=tools)).size > 900 * 5
