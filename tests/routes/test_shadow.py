"""Shadow evaluation and the bandit at work over real sockets: bounded in number, money, caps and policy."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.fleet.backends import until
from tests.routes.routes import Routed, answer, ask, routed
from tests.routes.stub import BROKEN, Stub, serving
from weighbridge.routes.budget import Budgets
from weighbridge.routes.caps import CapSettings
from weighbridge.routes.difficulty.labels import read_labels
from weighbridge.routes.learn.bandit import ThresholdBandit
from weighbridge.routes.learn.shadow import Shadow
from weighbridge.routes.policy import Residency, ResidencyPolicy, Rule
from weighbridge.routes.settings import ShadowSettings

SURE = -0.01


def said(text: str, **options: Any) -> Stub:
    return Stub(answer=lambda body: text, **options)


@asynccontextmanager
async def shadowed(
    urls: list[str], path: Path | None = None, bandit: ThresholdBandit | None = None, **options: Any
) -> AsyncIterator[Routed]:
    """A route of which every request is shadowed; what else is set goes to the route."""
    names = ("judge", "max_concurrent", "keep_texts", "share")
    chosen = {name: options.pop(name) for name in names if name in options}
    settings = ShadowSettings(**{"share": 1.0, **chosen})
    shadow = Shadow(settings, random.Random(0).random, path, bandit)
    async with routed(urls, observer=shadow, **options) as over:
        yield over


async def settled(over: Routed) -> None:
    """Until all comparisons have ended."""
    await until(lambda: not over.route.observer._tasks)  # type: ignore[union-attr]


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


async def test_a_hundred_at_once_are_all_answered_while_two_are_compared_at_a_time(tmp_path: Path) -> None:
    """The cloud is asked only by comparisons; its stub saw never more than two at once."""
    edge, cloud = said("it is 4", logprob=SURE), said("so it is 4", first=0.02)
    path = tmp_path / "shadow.jsonl"
    async with serving(edge, cloud) as urls, shadowed(urls, path, max_concurrent=2) as over:
        asked = (answer(over, ask(f"number {n}", stream=n % 2 == 0)) for n in range(100))
        answers = await asyncio.gather(*asked)
        await settled(over)
        spent = over.ledger.spent()
        assert len(over.tickets.recent(1000)) == 100
        assert (
            b'gateway_requests_finished_total{model="auto.cloud",reason="stop"}'
            in await over.metrics.exposition()
        )
    assert all(found.message["content"] == "it is 4" for found in answers)
    assert all(found.ticket.cost_usd == 0.0 for found in answers)
    assert cloud.most_at_work <= 2
    rows = rows_of(path)
    assert 2 <= len(rows) == len(cloud.log)
    assert all(row["edge_quality"] == 1.0 and row["cloud_usd"] > row["edge_usd"] == 0.0 for row in rows)
    assert all(len(row["features"]) == 30 and "prompt" not in row for row in rows)
    assert spent.reserved == 0.0
    assert spent.settled > 0.0


@pytest.mark.parametrize("judge", ["agreement", "cloud"])
async def test_a_budget_bounds_shadows_and_what_judges_them(judge: str) -> None:
    edge, cloud = said("it is 4", logprob=SURE), said("SAME")
    budget = 0.012  # a bound on one answer of 100 tokens is about 0.0011 USD
    async with (
        serving(edge, cloud) as urls,
        shadowed(urls, judge=judge, budgets=Budgets(total=budget)) as over,
    ):
        for n in range(60):
            found = await answer(over, ask(f"number {n}", max_tokens=100))
            await settled(over)
            degraded = over.ledger.spent().settled > budget
            assert (found.message["content"], found.ticket.degraded) == ("it is 4", degraded)
            assert over.ledger.spent().settled <= budget
        assert over.ledger.spent().reserved == 0.0
    assert len(cloud.log) > 0


@pytest.mark.parametrize(
    ("policy", "fields"),
    [
        (ResidencyPolicy(default=Residency.NEVER), {}),
        (ResidencyPolicy(default=Residency.REDACT), {}),
        (ResidencyPolicy((Rule("health", Residency.NEVER, labels=("patient",)),)), {"labels": ["Patient"]}),
        (ResidencyPolicy((Rule("mail", Residency.NEVER, types=("EMAIL",)),)), {}),
        (ResidencyPolicy(), {"placement": "only_edge"}),
    ],
)
async def test_what_must_not_leave_is_never_shadowed(policy: ResidencyPolicy, fields: dict[str, Any]) -> None:
    """Nor by a bandit that would send everything."""
    edge, cloud = said("it is 4", logprob=SURE), said("so it is 4")
    bandit = ThresholdBandit((0.0, 1.01), 0.01, random.Random(1).betavariate)
    async with (
        serving(edge, cloud) as urls,
        shadowed(urls, bandit=bandit, policy=policy, scorer=lambda prompt: 0.0) as over,
    ):
        asked = [ask(f"write to ann{n}@example.com", **fields) for n in range(30)]
        answers = await asyncio.gather(*(answer(over, request) for request in asked))
        await settled(over)
    leaving = [entry for entry in cloud.log if "@example.com" in entry.raw]
    assert leaving == []
    if policy.default is not Residency.REDACT:  # redacted, the bandit may send it; shadows never may
        assert cloud.log == []
        assert all(found.ticket.placement == "edge" for found in answers)
    else:
        assert len(cloud.log) == sum(found.ticket.placement == "cloud" for found in answers)


async def test_a_bandit_that_wants_everything_meets_caps_and_budgets() -> None:
    """Both arms send all; the cap lets a fifth through, and the budget is never overdrawn."""
    edge, cloud = said("it is 4", logprob=SURE), said("so it is 4")
    bandit = ThresholdBandit((0.0, 0.1), 0.01, random.Random(2).betavariate)
    options: dict[str, Any] = {
        "caps": CapSettings(cloud_share=0.2, share_after=10),
        "budgets": Budgets(total=0.05),
        "scorer": lambda prompt: 0.9,
    }
    async with serving(edge, cloud) as urls, shadowed(urls, bandit=bandit, share=0.5, **options) as over:
        for _ in range(10):
            await asyncio.gather(*(answer(over, ask("which number", max_tokens=50)) for _ in range(10)))
            await settled(over)
        spent = over.ledger.spent()
    assert 10 <= len(cloud.log) <= 0.2 * 100 + 10
    assert spent.reserved == 0.0
    assert spent.settled <= 0.05
    assert sum(bandit.wins) + sum(bandit.losses) > 4.0  # it has learned from what was compared


async def test_a_cloud_that_fails_leaves_no_row_and_no_reservation(tmp_path: Path) -> None:
    edge, cloud = said("it is 4", logprob=SURE), said("so", fates=[BROKEN] * 50)
    path = tmp_path / "shadow.jsonl"
    async with serving(edge, cloud) as urls, shadowed(urls, path) as over:
        for n in range(5):
            found = await answer(over, ask(f"number {n}"))
            await settled(over)
            assert found.message["content"] == "it is 4"
        spent = over.ledger.spent()
    assert path.read_text(encoding="utf-8") == ""
    assert spent.reserved == spent.settled == 0.0


async def test_closing_ends_comparisons_and_pays_for_what_they_did() -> None:
    edge, cloud = said("it is 4", logprob=SURE), said("word " * 400, pause=0.05)
    async with serving(edge, cloud) as urls, shadowed(urls) as over:
        await answer(over, ask("which number"))
        await until(lambda: bool(cloud.log))
        await asyncio.wait_for(over.route.close(), 60)
        assert over.ledger.spent().reserved == 0.0
        assert over.in_flight() == 0


async def test_texts_are_kept_only_where_asked_for_and_train_a_router(tmp_path: Path) -> None:
    rng = random.Random(3)
    edge = Stub(answer=lambda body: str(rng.randint(4, 5)), logprob=SURE)
    path = tmp_path / "shadow.jsonl"
    async with serving(edge, said("4")) as urls, shadowed(urls, path, keep_texts=True) as over:
        for n in range(60):
            await answer(over, ask(f"what is 2 and 2, for the time number {n}", stream=n % 2 == 0))
            await settled(over)
    labels = read_labels(path)
    assert len(labels) == 60
    assert {label.edge for label in labels} == {0.0, 1.0}
    assert all(label.edge_response in ("4", "5") and label.cloud == 1.0 for label in labels)
