"""Routes over real sockets: placement, failures, fallbacks, money, and what the ticket says of them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.fleet.backends import until
from tests.routes.routes import CONFIG, answer, ask, routed
from tests.routes.stub import BROKEN, BUSY, CUT, HANG, Stub, serving
from weighbridge.errors import NeverFits
from weighbridge.routes.budget import Budgets
from weighbridge.routes.errors import CloudDenied, NoPlaceCan, PolicyForbids
from weighbridge.routes.policy import Residency, ResidencyPolicy, Rule
from weighbridge.routes.settings import CascadeSettings, Window

SURE, UNSURE = -0.01, -3.0


def said(text: str, **options: object) -> Stub:
    return Stub(answer=lambda body: text, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_confident_local_answer_stays_and_costs_nothing(stream: bool) -> None:
    edge, cloud = said("local words here", logprob=SURE), said("remote")
    async with serving(edge, cloud) as urls, routed(urls) as over:
        found = await answer(over, ask(stream=stream))
    ticket = found.ticket
    assert found.message["content"] == "local words here"
    assert (ticket.placement, ticket.cost_usd, ticket.degraded) == ("edge", 0.0, False)
    assert ticket.confidence is not None
    assert ticket.confidence > 0.9
    assert ticket.counterfactual_usd is not None
    assert ticket.counterfactual_usd > 0
    assert cloud.log == []
    assert ticket.left_machine == []
    assert (ticket.finish_reason, ticket.error) == ("stop", None)
    [leg] = ticket.legs
    assert (leg.place, leg.placement, leg.purpose, leg.replica) == ("edge", "edge", "answer", "auto.edge")
    assert (leg.tries, leg.outcome, leg.usd, leg.error) == (1, "stop", 0.0, None)
    assert leg.prompt_tokens == edge.log[0].prompt_tokens
    assert leg.output_tokens == ticket.output_tokens == edge.log[0].output_tokens
    assert "logprobs" not in found.headers
    assert found.headers["x-weighbridge-placement"] == "edge"
    assert found.headers["x-weighbridge-replica"] == "edge:small"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_doubtful_local_answer_is_replaced_before_its_first_byte(stream: bool) -> None:
    edge, cloud = said(" ".join(map(str, range(99))), logprob=UNSURE), said("remote words")
    async with serving(edge, cloud) as urls, routed(urls) as over:
        found = await answer(over, ask(stream=stream))
        spent = over.ledger.spent()
    ticket = found.ticket
    assert found.message["content"] == "remote words"
    assert ticket.placement == "cloud"
    assert ticket.confidence is not None
    assert ticket.confidence < 0.5
    billed = cloud.log[0]
    assert ticket.cost_usd == pytest.approx(
        billed.prompt_tokens * 2.5e-6 + billed.output_tokens * 10e-6, abs=1e-9
    )
    assert spent.settled == pytest.approx(ticket.cost_usd, abs=1e-9)
    first, second = ticket.legs
    assert (first.place, first.outcome, first.usd) == ("edge", "abort" if stream else "stop", 0.0)
    assert (second.place, second.placement, second.outcome) == ("cloud", "cloud", "stop")
    assert second.usd == pytest.approx(ticket.cost_usd, abs=1e-9)
    assert ticket.attempts == 2


async def test_after_the_window_there_is_no_switch() -> None:
    """Doubt that comes after bytes are out changes nothing."""
    edge, cloud = said(" ".join(map(str, range(300))), logprob=SURE, pause=0.001), said("remote")
    cascade = CascadeSettings(window=Window(tokens=8))
    async with serving(edge, cloud) as urls, routed(urls, cascade=cascade) as over:
        found = await answer(over, ask(stream=True))
    assert found.ticket.placement == "edge"
    assert found.message["content"] == " ".join(map(str, range(300)))
    assert len(found.chunks) > 100
    assert cloud.log == []


@pytest.mark.parametrize("fate", [BUSY, BROKEN])
async def test_a_cloud_that_fails_once_is_asked_again(fate: str) -> None:
    edge, cloud = said("local", logprob=UNSURE), said("remote", fates=[fate])
    async with serving(edge, cloud) as urls, routed(urls) as over:
        found = await answer(over, ask())
    assert found.message["content"] == "remote"
    assert len(cloud.log) == 2
    assert not found.ticket.degraded
    assert [(leg.place, leg.usd > 0) for leg in found.ticket.legs] == [
        ("edge", False),
        ("cloud", False),
        ("cloud", True),
    ]


@pytest.mark.parametrize("fates", [[BUSY] * 9, [BROKEN] * 9, [CUT] * 9])
async def test_a_cloud_that_keeps_failing_leaves_the_local_answer(fates: list[str]) -> None:
    edge, cloud = (
        said("local text that stands", logprob=UNSURE),
        said("remote text of some length", fates=fates),
    )
    async with serving(edge, cloud) as urls, routed(urls) as over:
        found = await answer(over, ask())
        assert over.ledger.spent().reserved == 0.0
    assert found.message["content"] == "local text that stands"
    assert found.ticket.degraded
    assert found.ticket.placement == "edge"
    assert len(edge.log) == 1  # what was held back is used, not computed again
    assert len(cloud.log) == 2


async def test_a_stream_cut_after_bytes_are_out_ends_with_an_error_and_is_billed() -> None:
    edge, cloud = said("local"), said("remote text of some length", fates=[CUT], pause=0.01)
    async with serving(edge, cloud) as urls, routed(urls) as over:
        found = await answer(over, ask(stream=True, placement="prefer_cloud"))
        spent = over.ledger.spent()
    ticket = found.ticket
    assert found.error["code"] == "side_failed"
    assert "[DONE]" not in found.chunks
    assert ticket.finish_reason == "error"
    assert ticket.error is not None
    assert "bytes are out" in ticket.decisions[-1]
    assert ticket.cost_estimated
    assert ticket.cost_usd > 0
    assert spent.settled == pytest.approx(ticket.cost_usd, abs=1e-9)
    assert [leg.outcome for leg in ticket.legs] == ["error"]


async def test_an_exhausted_budget_degrades_to_local_and_never_blocks_it() -> None:
    edge, cloud = said("local", logprob=UNSURE), said("remote")
    async with serving(edge, cloud) as urls, routed(urls, budgets=Budgets(total=0.0)) as over:
        found = await answer(over, ask())
        preferred = await answer(over, ask(placement="prefer_cloud"))
        with pytest.raises(CloudDenied, match="budget"):
            await answer(over, ask(placement="only_cloud"))
    assert found.message["content"] == preferred.message["content"] == "local"
    assert found.ticket.degraded
    assert preferred.ticket.degraded
    assert cloud.log == []


async def test_max_usd_is_a_bound() -> None:
    edge, cloud = said("local", logprob=UNSURE), said("remote")
    async with serving(edge, cloud) as urls, routed(urls) as over:
        cheap = await answer(over, ask(max_usd=0.000001, max_tokens=100))
        paid = await answer(over, ask(max_usd=0.01, max_tokens=100))
    assert cheap.message["content"] == "local"
    assert any("max_usd" in reason for reason in cheap.ticket.decisions)
    assert paid.message["content"] == "remote"
    assert paid.ticket.cost_usd <= 0.01


@pytest.mark.parametrize("label", ["patient", "Patient"])
async def test_never_leaves_means_an_error_when_the_edge_is_down(label: str) -> None:
    edge, cloud = Stub(fates=[BROKEN] * 9), said("remote")
    policy = ResidencyPolicy((Rule("health", Residency.NEVER, labels=("PATIENT",)),))
    async with serving(edge, cloud) as urls, routed(urls, policy=policy) as over:
        with pytest.raises(NoPlaceCan, match="policy permits no other side"):
            await answer(over, ask(labels=[label]))
        with pytest.raises(NoPlaceCan, match="policy permits no other side"):
            await answer(over, ask(labels=["other"], headers={"x-weighbridge-labels": label}))
        with pytest.raises(PolicyForbids):
            await answer(over, ask(labels=[label], placement="only_cloud"))
        found = await answer(over, ask())
    assert found.message["content"] == "remote"
    assert len(cloud.log) == 1
    assert found.ticket.rule == "default"


async def test_too_long_for_the_edge_goes_to_the_cloud_unless_it_must_not() -> None:
    edge, cloud = said("local"), said("remote")
    small = CONFIG.replace("model: {model}}}", "model: {model}, capacity: {{max_model_len: 50}}}}")
    async with serving(edge, cloud) as urls, routed(urls, config=small) as over:
        found = await answer(over, ask("long " * 200))
        with pytest.raises(NeverFits):
            await answer(over, ask("long " * 200, placement="only_edge"))
    assert found.message["content"] == "remote"
    assert edge.log == []


async def test_a_race_cancels_the_loser_and_pays_for_what_it_did() -> None:
    race = CascadeSettings(race=True)
    edge, cloud = said("local", logprob=SURE, first=0.3), said("remote", first=300.0)
    async with serving(edge, cloud) as urls, routed(urls, cascade=race) as over:
        found = await asyncio.wait_for(answer(over, ask()), 60)
        assert over.ledger.spent().reserved == 0.0
        assert over.in_flight() == 0
    assert found.message["content"] == "local"
    assert found.ticket.cost_usd > 0
    assert [(leg.place, leg.outcome) for leg in found.ticket.legs] == [("edge", "stop"), ("cloud", "abort")]
    edge, cloud = said("local", first=300.0), said("remote")
    async with serving(edge, cloud) as urls, routed(urls, cascade=race) as over:
        found = await asyncio.wait_for(answer(over, ask()), 60)
        assert over.in_flight() == 0
    assert found.message["content"] == "remote"
    assert found.ticket.placement == "cloud"


async def test_a_cloud_that_hangs_is_left_in_time() -> None:
    edge, cloud = said("local", logprob=UNSURE), said("remote", fates=[HANG] * 3)
    async with serving(edge, cloud) as urls, routed(urls, cloud_attempts=1) as over:
        found = await asyncio.wait_for(answer(over, ask()), 60)
        settled = over.ledger.spent().settled
    assert found.message["content"] == "local"
    assert found.ticket.degraded
    assert settled == pytest.approx(found.ticket.cost_usd, abs=1e-9)
    assert settled > 0  # it may have been worked on


async def test_the_score_decides_and_is_written_down() -> None:
    edge, cloud = said("local", logprob=SURE), said("remote")

    def scorer(prompt: str) -> float:
        return 0.9 if "hard" in prompt else 0.1

    async with serving(edge, cloud) as urls, routed(urls, scorer=scorer, threshold=0.5) as over:
        hard = await answer(over, ask("something hard"))
        easy = await answer(over, ask("something else"))
    assert (hard.message["content"], hard.ticket.score) == ("remote", 0.9)
    assert (easy.message["content"], easy.ticket.score) == ("local", 0.1)


async def test_a_vanished_client_settles_everything() -> None:
    edge, cloud = said("local"), said("remote " * 500, pause=0.002)
    async with serving(edge, cloud) as urls, routed(urls) as over:
        journey = await over.gateway.admit(ask(stream=True, placement="prefer_cloud"))
        await journey.open()
        async for _ in journey.stream():
            break
        assert await journey.close()
        assert not await journey.close()
        assert over.ledger.spent().reserved == 0.0
        assert over.in_flight() == 0
        await until(lambda: not cloud.at_work)
    assert journey.ticket.finish_reason == "abort"
    assert journey.ticket.error is None
    assert 0 < journey.ticket.cost_usd < 0.01


async def test_a_window_ends_by_time_too() -> None:
    """A local answer that takes minutes is judged by what came in the first moments."""
    edge, cloud = said(" ".join(map(str, range(2000))), logprob=UNSURE, pause=0.05), said("remote words")
    cascade = CascadeSettings(window=Window(seconds=0.2))
    async with serving(edge, cloud) as urls, routed(urls, cascade=cascade) as over:
        found = await asyncio.wait_for(answer(over, ask(stream=True)), 60)
    assert found.message["content"] == "remote words"
    assert 0 < edge.log[0].output_tokens < 2000
    assert not edge.log[0].complete
    assert found.ticket.confidence is not None
    assert found.ticket.confidence < 0.5


async def test_a_window_that_ended_by_time_loses_no_event() -> None:
    """The event that was waited for when the window ended goes out with the rest."""
    text = " ".join(map(str, range(40)))
    edge, cloud = said(text, logprob=SURE, pause=0.02), said("remote")
    cascade = CascadeSettings(window=Window(seconds=0.05))
    async with serving(edge, cloud) as urls, routed(urls, cascade=cascade) as over:
        found = await answer(over, ask(stream=True))
    assert found.message["content"] == text
    assert found.chunks.count("[DONE]") == 1


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ({"policy": ResidencyPolicy(default=Residency.NEVER)}, {}),
        ({"budgets": Budgets(total=0.0)}, {}),
        ({}, {"placement": "only_edge"}),
        ({}, {"max_usd": 0.0}),
    ],
)
async def test_a_race_starts_nothing_that_policy_or_money_forbid(options: Any, fields: Any) -> None:
    edge, cloud = said("local", logprob=UNSURE), said("remote")
    race = CascadeSettings(race=True)
    async with serving(edge, cloud) as urls, routed(urls, cascade=race, **options) as over:
        found = await answer(over, ask(**fields))
    assert found.message["content"] == "local"
    assert cloud.log == []


async def test_races_at_once_leave_nothing_behind() -> None:
    """Forty at once over a budget for a few of them: it is never overdrawn, and every loser is cancelled."""
    edge, cloud = said("local", logprob=SURE, first=0.02), said("remote", first=0.01)
    budget, race = 0.02, CascadeSettings(race=True)
    async with (
        serving(edge, cloud) as urls,
        routed(urls, cascade=race, budgets=Budgets(total=budget)) as over,
    ):
        asked = (answer(over, ask(f"number {n}", max_tokens=200, stream=n % 2 == 0)) for n in range(40))
        answers = await asyncio.gather(*asked)
        spent = over.ledger.spent()
        assert over.in_flight() == 0
    assert {found.message["content"] for found in answers} <= {"local", "remote"}
    assert spent.reserved == 0.0
    assert 0.0 < spent.settled <= budget
