"""Routes over real sockets: placement, failures, fallbacks, money, and what the ticket says of them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.routes.routes import answer, ask, make_router
from tests.routes.stub import BROKEN, BUSY, CUT, HANG, Stub, serving
from weighbridge.errors import NeverFits
from weighbridge.routes.attempt import Window
from weighbridge.routes.budget import Budgets
from weighbridge.routes.errors import CloudDenied, NoSideCan, PolicyForbids, SideFailed
from weighbridge.routes.policy import Policy, Residency, Rule
from weighbridge.routes.settings import CascadeSettings

SURE, UNSURE = -0.01, -3.0


def said(text: str, **options: object) -> Stub:
    return Stub(answer=lambda body: text, **options)  # type: ignore[arg-type]


async def test_a_confident_local_answer_stays_and_costs_nothing() -> None:
    edge, cloud = said("local words here", logprob=SURE), said("remote")
    async with serving(edge, cloud) as urls:
        router = make_router(urls)
        message, ticket = await answer(router, ask())
        await router.close()
    assert message["content"] == "local words here"
    assert (ticket.placement, ticket.cost_usd, ticket.degraded) == ("edge", 0.0, False)
    assert ticket.confidence > 0.9
    assert ticket.counterfactual_usd > 0
    assert cloud.log == []
    assert ticket.left_machine == []


@pytest.mark.parametrize("stream", [False, True])
async def test_a_doubtful_local_answer_is_replaced_before_its_first_byte(stream: bool) -> None:
    edge, cloud = said(" ".join(map(str, range(99))), logprob=UNSURE), said("remote words")
    async with serving(edge, cloud) as urls:
        router = make_router(urls)
        message, ticket = await answer(router, ask(stream=stream))
        await router.close()
    assert message["content"] == "remote words"
    assert ticket.placement == "cloud"
    assert ticket.confidence < 0.5
    billed = cloud.log[0]
    assert ticket.cost_usd == pytest.approx(
        billed.prompt_tokens * 2.5e-6 + billed.output_tokens * 10e-6, abs=1e-9
    )
    assert router.ledger.spent().settled == pytest.approx(ticket.cost_usd, abs=1e-9)
    assert router.edge.in_flight == 0


async def test_after_the_window_there_is_no_switch() -> None:
    """Doubt that comes after bytes are out changes nothing."""
    edge, cloud = said(" ".join(map(str, range(300))), logprob=SURE, pause=0.001), said("remote")
    async with serving(edge, cloud) as urls:
        router = make_router(urls, cascade=CascadeSettings(window=Window(tokens=8)))
        stream = await router.open(ask(stream=True))
        chunks = [chunk async for chunk in stream]
        await router.close()
    assert stream.ticket.placement == "edge"
    assert len(chunks) > 100
    assert cloud.log == []


@pytest.mark.parametrize("fate", [BUSY, BROKEN])
async def test_a_cloud_that_fails_once_is_asked_again(fate: str) -> None:
    edge, cloud = said("local", logprob=UNSURE), said("remote", fates=[fate])
    async with serving(edge, cloud) as urls:
        router = make_router(urls)
        message, ticket = await answer(router, ask())
        await router.close()
    assert message["content"] == "remote"
    assert len(cloud.log) == 2
    assert not ticket.degraded


@pytest.mark.parametrize("fates", [[BUSY] * 9, [BROKEN] * 9, [CUT] * 9])
async def test_a_cloud_that_keeps_failing_leaves_the_local_answer(fates: list[str]) -> None:
    edge, cloud = (
        said("local text that stands", logprob=UNSURE),
        said("remote text of some length", fates=fates),
    )
    async with serving(edge, cloud) as urls:
        router = make_router(urls)
        message, ticket = await answer(router, ask())
        await router.close()
    assert message["content"] == "local text that stands"
    assert ticket.degraded
    assert ticket.placement == "edge"
    assert len(edge.log) == 1  # what was held back is used, not computed again
    assert router.ledger.spent().reserved == 0.0


async def test_a_stream_cut_after_bytes_are_out_ends_with_an_error_and_is_billed() -> None:
    edge, cloud = said("local"), said("remote text of some length", fates=[CUT], pause=0.01)
    async with serving(edge, cloud) as urls:
        router = make_router(urls)
        stream = await router.open(ask(stream=True, placement="prefer_cloud"))
        with pytest.raises(SideFailed):
            async for _ in stream:
                pass
        await router.close()
    ticket = stream.ticket
    assert ticket.finish_reason == "error"
    assert ticket.cost_estimated
    assert ticket.cost_usd > 0
    assert router.ledger.spent().settled == pytest.approx(ticket.cost_usd, abs=1e-9)


async def test_an_exhausted_budget_degrades_to_local_and_never_blocks_it() -> None:
    edge, cloud = said("local", logprob=UNSURE), said("remote")
    async with serving(edge, cloud) as urls:
        router = make_router(urls, budgets=Budgets(total=0.0))
        message, ticket = await answer(router, ask())
        preferred, second = await answer(router, ask(placement="prefer_cloud"))
        with pytest.raises(CloudDenied, match="budget"):
            await router.open(ask(placement="only_cloud"))
        await router.close()
    assert message["content"] == preferred["content"] == "local"
    assert ticket.degraded
    assert second.degraded
    assert cloud.log == []


async def test_max_usd_is_a_bound() -> None:
    edge, cloud = said("local", logprob=UNSURE), said("remote")
    async with serving(edge, cloud) as urls:
        router = make_router(urls)
        message, ticket = await answer(router, ask(max_usd=0.000001, max_tokens=100))
        dear, paid = await answer(router, ask(max_usd=0.01, max_tokens=100))
        await router.close()
    assert message["content"] == "local"
    assert any("max_usd" in one for one in ticket.decisions)
    assert dear["content"] == "remote"
    assert paid.cost_usd <= 0.01


async def test_never_leaves_means_an_error_when_the_edge_is_down() -> None:
    edge, cloud = Stub(fates=[BROKEN] * 9), said("remote")
    policy = Policy((Rule("health", Residency.NEVER, labels=("patient",)),))
    async with serving(edge, cloud) as urls:
        router = make_router(urls, policy=policy)
        with pytest.raises(NoSideCan):
            await router.open(ask(labels=["patient"]))
        with pytest.raises(PolicyForbids):
            await router.open(ask(labels=["patient"], placement="only_cloud"))
        message, ticket = await answer(router, ask())
        await router.close()
    assert message["content"] == "remote"
    assert len(cloud.log) == 1
    assert ticket.rule == "default"


async def test_too_long_for_the_edge_goes_to_the_cloud_unless_it_must_not() -> None:
    edge, cloud = said("local"), said("remote")
    async with serving(edge, cloud) as urls:
        router = make_router(urls, edge={"context_tokens": 50})
        message, _ = await answer(router, ask("long " * 200))
        with pytest.raises(NeverFits):
            await router.open(ask("long " * 200, placement="only_edge"))
        await router.close()
    assert message["content"] == "remote"


async def test_a_race_cancels_the_loser_and_pays_for_what_it_did() -> None:
    edge, cloud = said("local", logprob=SURE), said("remote", first=300.0)
    async with serving(edge, cloud) as urls:
        router = make_router(urls, cascade=CascadeSettings(race=True))
        message, ticket = await asyncio.wait_for(answer(router, ask()), 60)
        slow_edge, quick = said("local", first=300.0), said("remote")
        async with serving(slow_edge, quick) as others:
            second = make_router(others, cascade=CascadeSettings(race=True))
            remote, won = await asyncio.wait_for(answer(second, ask()), 60)
            await second.close()
        await router.close()
    assert message["content"] == "local"
    assert remote["content"] == "remote"
    assert won.placement == "cloud"
    assert ticket.cost_usd > 0
    assert router.cloud.in_flight == second.edge.in_flight == 0
    assert router.ledger.spent().reserved == 0.0


async def test_a_cloud_that_hangs_is_left_in_time() -> None:
    edge, cloud = said("local", logprob=UNSURE), said("remote", fates=[HANG] * 3)
    async with serving(edge, cloud) as urls:
        router = make_router(urls, cloud_attempts=1)
        message, ticket = await asyncio.wait_for(answer(router, ask()), 60)
        await router.close()
    assert message["content"] == "local"
    assert ticket.degraded


async def test_the_score_decides_and_is_written_down() -> None:
    edge, cloud = said("local", logprob=SURE), said("remote")
    async with serving(edge, cloud) as urls:
        router = make_router(urls, scorer=lambda prompt: 0.9 if "hard" in prompt else 0.1, threshold=0.5)
        hard, first = await answer(router, ask("something hard"))
        easy, second = await answer(router, ask("something else"))
        await router.close()
    assert (hard["content"], first.score) == ("remote", 0.9)
    assert (easy["content"], second.score) == ("local", 0.1)


async def test_a_vanished_client_settles_everything() -> None:
    edge, cloud = said("local"), said("remote " * 500, pause=0.002)
    async with serving(edge, cloud) as urls:
        router = make_router(urls)
        stream = await router.open(ask(stream=True, placement="prefer_cloud"))
        async for _ in stream:
            break
        await stream.close()
        await router.close()
    assert stream.ticket.finish_reason == "abort"
    assert router.ledger.spent().reserved == 0.0
    assert router.cloud.in_flight == 0
    assert 0 < stream.ticket.cost_usd < 0.01


async def test_a_window_ends_by_time_too() -> None:
    """A local answer that takes minutes is judged by what came in the first moments."""
    edge, cloud = said(" ".join(map(str, range(2000))), logprob=UNSURE, pause=0.05), said("remote words")
    async with serving(edge, cloud) as urls:
        router = make_router(urls, cascade=CascadeSettings(window=Window(seconds=0.2)))
        message, ticket = await asyncio.wait_for(answer(router, ask(stream=True)), 60)
        await router.close()
    assert message["content"] == "remote words"
    assert 0 < edge.log[0].output_tokens < 2000
    assert not edge.log[0].complete
    assert ticket.confidence < 0.5


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ({"policy": Policy(default=Residency.NEVER)}, {}),
        ({"budgets": Budgets(total=0.0)}, {}),
        ({}, {"placement": "only_edge"}),
        ({}, {"max_usd": 0.0}),
    ],
)
async def test_a_race_starts_nothing_that_policy_or_money_forbid(options: Any, fields: Any) -> None:
    edge, cloud = said("local", logprob=UNSURE), said("remote")
    async with serving(edge, cloud) as urls:
        router = make_router(urls, cascade=CascadeSettings(race=True), **options)
        message, _ = await answer(router, ask(**fields))
        await router.close()
    assert message["content"] == "local"
    assert cloud.log == []


async def test_races_at_once_leave_nothing_behind() -> None:
    """Forty at once over a budget for a few of them: it is never overdrawn, and every loser is cancelled."""
    edge, cloud = said("local", logprob=SURE, first=0.02), said("remote", first=0.01)
    budget = 0.02
    async with serving(edge, cloud) as urls:
        router = make_router(urls, cascade=CascadeSettings(race=True), budgets=Budgets(total=budget))
        asked = (answer(router, ask(f"number {n}", max_tokens=200, stream=n % 2 == 0)) for n in range(40))
        answers = await asyncio.gather(*asked)
        spent = router.ledger.spent()
        await router.close()
    assert {message["content"] for message, _ in answers} <= {"local", "remote"}
    assert router.edge.in_flight == router.cloud.in_flight == 0
    assert spent.reserved == 0.0
    assert 0.0 < spent.settled <= budget
