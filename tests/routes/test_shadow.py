"""Shadow evaluation and the bandit at work over real sockets: bounded in number, money, caps and policy."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.routes.routes import answer, ask, make_router
from tests.routes.stub import BROKEN, Stub, serving
from weighbridge.routes.budget import Budgets
from weighbridge.routes.caps import CapSettings
from weighbridge.routes.learn.bandit import ThresholdBandit
from weighbridge.routes.learn.shadow import Shadow
from weighbridge.routes.policy import Policy, Residency, Rule
from weighbridge.routes.router import HybridRouter
from weighbridge.routes.settings import ShadowSettings

SURE = -0.01


def said(text: str, **options: Any) -> Stub:
    return Stub(answer=lambda body: text, **options)


def shadowed(
    urls: list[str], path: Path | None = None, bandit: ThresholdBandit | None = None, **options: Any
) -> HybridRouter:
    """A route of which every request is shadowed; what else is set goes to the route."""
    names = ("judge", "max_concurrent", "keep_texts", "share")
    chosen = {name: options.pop(name) for name in names if name in options}
    settings = ShadowSettings(**{"share": 1.0, **chosen})
    shadow = Shadow(settings, random.Random(0).random, path, bandit)
    router = make_router(urls, observer=shadow, **options)
    shadow.router = router
    return router


async def settled(router: HybridRouter) -> None:
    """Until all comparisons have ended."""
    await until(lambda: not router.observer._tasks)  # type: ignore[union-attr]


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


async def test_a_hundred_at_once_are_all_answered_while_two_are_compared_at_a_time(tmp_path: Path) -> None:
    """The cloud is asked only by comparisons; its stub saw never more than two at once."""
    edge, cloud = said("it is 4", logprob=SURE), said("so it is 4", first=0.02)
    path = tmp_path / "shadow.jsonl"
    async with serving(edge, cloud) as urls:
        router = shadowed(urls, path, max_concurrent=2)
        asked = (answer(router, ask(f"number {n}", stream=n % 2 == 0)) for n in range(100))
        answers = await asyncio.gather(*asked)
        await settled(router)
        await router.close()
    assert all(message["content"] == "it is 4" for message, _ in answers)
    assert all(ticket.cost_usd == 0.0 for _, ticket in answers)
    assert cloud.most_at_work <= 2
    rows = rows_of(path)
    assert 2 <= len(rows) == len(cloud.log)
    assert all(row["edge_quality"] == 1.0 and row["cloud_usd"] > row["edge_usd"] == 0.0 for row in rows)
    assert all(len(row["features"]) == 30 and "prompt" not in row for row in rows)
    spent = router.ledger.spent()
    assert spent.reserved == 0.0
    assert spent.settled > 0.0


@pytest.mark.parametrize("judge", ["agreement", "cloud"])
async def test_a_budget_bounds_shadows_and_what_judges_them(judge: str) -> None:
    edge, cloud = said("it is 4", logprob=SURE), said("SAME")
    budget = 0.012  # a bound on one answer of 100 tokens is about 0.0011 USD
    async with serving(edge, cloud) as urls:
        router = shadowed(urls, judge=judge, budgets=Budgets(total=budget))
        for n in range(60):
            message, ticket = await answer(router, ask(f"number {n}", max_tokens=100))
            await settled(router)
            assert (message["content"], ticket.degraded) == (
                "it is 4",
                router.ledger.spent().settled > budget,
            )
            assert router.ledger.spent().settled <= budget
        await router.close()
    assert len(cloud.log) > 0
    assert router.ledger.spent().reserved == 0.0


@pytest.mark.parametrize(
    ("policy", "fields"),
    [
        (Policy(default=Residency.NEVER), {}),
        (Policy(default=Residency.REDACT), {}),
        (Policy((Rule("health", Residency.NEVER, labels=("patient",)),)), {"labels": ["patient"]}),
        (Policy((Rule("mail", Residency.NEVER, types=("EMAIL",)),)), {}),
        (Policy(), {"placement": "only_edge"}),
    ],
)
async def test_what_must_not_leave_is_never_shadowed(policy: Policy, fields: dict[str, Any]) -> None:
    """Nor by a bandit that would send everything."""
    edge, cloud = said("it is 4", logprob=SURE), said("so it is 4")
    bandit = ThresholdBandit((0.0, 1.01), 0.01, random.Random(1).betavariate)
    async with serving(edge, cloud) as urls:
        router = shadowed(urls, bandit=bandit, policy=policy, scorer=lambda prompt: 0.0)
        asked = [ask(f"write to ann{n}@example.com", **fields) for n in range(30)]
        answers = await asyncio.gather(*(answer(router, one) for one in asked))
        await settled(router)
        await router.close()
    leaving = [entry for entry in cloud.log if "@example.com" in entry.raw]
    assert leaving == []
    if policy.default is not Residency.REDACT:  # redacted, the bandit may send it; shadows never may
        assert cloud.log == []
        assert all(ticket.placement == "edge" for _, ticket in answers)
    else:
        assert len(cloud.log) == sum(ticket.placement == "cloud" for _, ticket in answers)


async def test_a_bandit_that_wants_everything_meets_caps_and_budgets() -> None:
    """Both arms send all; the cap lets a fifth through, and the budget is never overdrawn."""
    edge, cloud = said("it is 4", logprob=SURE), said("so it is 4")
    bandit = ThresholdBandit((0.0, 0.1), 0.01, random.Random(2).betavariate)
    caps = CapSettings(cloud_share=0.2, share_after=10)
    async with serving(edge, cloud) as urls:
        router = shadowed(
            urls, bandit=bandit, share=0.5, caps=caps, budgets=Budgets(total=0.05), scorer=lambda prompt: 0.9
        )
        for _ in range(10):
            await asyncio.gather(*(answer(router, ask("which number", max_tokens=50)) for _ in range(10)))
            await settled(router)
        spent = router.ledger.spent()
        await router.close()
    assert 10 <= len(cloud.log) <= 0.2 * 100 + 10
    assert spent.reserved == 0.0
    assert spent.settled <= 0.05
    assert sum(bandit.wins) + sum(bandit.losses) > 4.0  # it has learned from what was compared


async def test_a_cloud_that_fails_leaves_no_row_and_no_reservation(tmp_path: Path) -> None:
    edge, cloud = said("it is 4", logprob=SURE), said("so", fates=[BROKEN] * 50)
    path = tmp_path / "shadow.jsonl"
    async with serving(edge, cloud) as urls:
        router = shadowed(urls, path)
        for n in range(5):
            message, _ = await answer(router, ask(f"number {n}"))
            await settled(router)
            assert message["content"] == "it is 4"
        await router.close()
    assert path.read_text(encoding="utf-8") == ""
    assert router.ledger.spent().reserved == router.ledger.spent().settled == 0.0


async def test_closing_ends_comparisons_and_pays_for_what_they_did() -> None:
    edge, cloud = said("it is 4", logprob=SURE), said("word " * 400, pause=0.05)
    async with serving(edge, cloud) as urls:
        router = shadowed(urls)
        await answer(router, ask("which number"))
        await until(lambda: bool(cloud.log))
        await asyncio.wait_for(router.close(), 60)
    assert router.ledger.spent().reserved == 0.0
    assert router.cloud.in_flight == 0


async def test_texts_are_kept_only_where_asked_for_and_train_a_router(tmp_path: Path) -> None:
    from weighbridge.routes.difficulty.labels import read_labels

    rng = random.Random(3)
    edge = Stub(answer=lambda body: str(rng.randint(4, 5)), logprob=SURE)
    path = tmp_path / "shadow.jsonl"
    async with serving(edge, said("4")) as urls:
        router = shadowed(urls, path, keep_texts=True)
        for n in range(60):
            await answer(router, ask(f"what is 2 and 2, for the time number {n}"))
            await settled(router)
        await router.close()
    labels = read_labels(path)
    assert len(labels) == 60
    assert {one.edge for one in labels} == {0.0, 1.0}
    assert all(one.edge_response in ("4", "5") and one.cloud == 1.0 for one in labels)
