"""Engines that are not ours: who gets requests where speeds are unknown or told wrong, and what else was tried.

Elsewhere: what another engine lacks, refuses or is (`test_abilities.py`), its patience and its headers
(`test_neighbours.py`), estimates that refuse nobody (`test_gateway_weigher.py`), one that becomes slower
(`test_slowdown.py`).
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.fleet.backends import Backend, fleet
from weighbridge.cost.step import StepCost
from weighbridge.fleet.policies import make_policy
from weighbridge.simulator.fleet import SimulatedEngine, SimulatedFleet, SimulatedReplicaSpec, Simulation
from weighbridge.workload.requests import SimulatedRequest, Span

#: A request of 100 tokens and 25 of answer takes about a second.
COST = StepCost(0.01, 0.025, 1e-3, 0.0, 1e-3)
ONE_AT_A_TIME = SimulatedEngine(profile="vllm", max_sequences=1, enable_prefix_cache=False).settings()


def spec(slower: float, claims: float | None) -> SimulatedReplicaSpec:
    """An engine that serves one at a time; `claims`: how many times the truth it tells of its cost, None: nothing."""
    cost = COST.scaled(slower)
    return SimulatedReplicaSpec(
        cost=cost,
        settings=ONE_AT_A_TIME,
        concurrency=256,
        tells_speed=claims is not None,
        claims=None if claims is None else cost.scaled(claims),
    )


def run(
    policy: str, specs: tuple[SimulatedReplicaSpec, ...], rate: float, count: int
) -> tuple[Any, Any, Any]:
    """Requests by replica, seconds to each first token, and the simulation."""
    rng, at, requests = random.Random(1), 0.0, []
    for n in range(count):
        at += rng.expovariate(rate)
        requests.append(SimulatedRequest(f"q{n}", at, (Span(n + 1, 100),), 25, 100, answer=n))
    simulation = Simulation(
        SimulatedFleet(replicas=specs, prefix_index=False),
        requests,
        policy=make_policy(policy, random.Random(1)),
    )
    outcomes = simulation.run().outcomes
    return Counter(outcomes.replicas), np.asarray(outcomes.first) - np.asarray(outcomes.arrived), simulation


@pytest.mark.parametrize(
    "claims",
    [(None, 20.0), (20.0, None), (None, 0.05), (None, 1.0), (20.0, 0.05), (None, None)],
    ids=str,
)
def test_of_equal_speeds_each_gets_about_half_whatever_they_tell(
    claims: tuple[float | None, float | None],
) -> None:
    specs = spec(1.0, claims[0]), spec(1.0, claims[1])
    placed, firsts, _ = run("weigh", specs, 1.5, 120)
    _, others, _ = run("round_robin", specs, 1.5, 120)
    assert min(placed.values()) >= 42, placed
    assert firsts.mean() <= 1.1 * others.mean()
    assert firsts.max() <= 1.1 * others.max()


@pytest.mark.parametrize(
    "claims", [(None, 1.0), (1.0, None), (None, None), (20.0, None), (None, 0.05)], ids=str
)
def test_most_go_to_the_quicker_one_whatever_they_tell(claims: tuple[float | None, float | None]) -> None:
    """The second takes three times as long."""
    specs = spec(1.0, claims[0]), spec(3.0, claims[1])
    placed, firsts, _ = run("weigh", specs, 1.0, 120)
    assert placed["r0"] > 2 * placed["r1"] > 0
    for policy in ("round_robin", "least_requests"):
        _, others, _ = run(policy, specs, 1.0, 120)
        assert firsts.mean() < others.mean()


@pytest.mark.parametrize("claims", [None, 20.0, 0.05])
def test_what_is_predicted_comes_to_what_is_measured(claims: float | None) -> None:
    """Waits were predicted at a hundredth of what they came to, and never corrected."""
    specs = spec(1.0, claims), spec(2.0, None)
    _, _, simulation = run("weigh", specs, 1.2, 150)
    for state in simulation.gateway.states.values():
        assert state.experience.score.count > 20
        assert 0.5 < np.exp(state.experience.score.bias.value) < 2.0
        assert state.step_cost is not None


def test_a_cost_that_gives_prompts_no_price_is_not_gone_by() -> None:
    """As a fit comes out on a busy machine that saw small requests alone."""
    odd = replace(
        spec(1.0, 1.0), claims=replace(COST, per_token=0.0, overhead=0.0, memory=0.0, per_sequence=1.0)
    )
    placed, _, simulation = run("weigh", (odd, spec(1.0, 1.0)), 1.5, 80)
    assert min(placed.values()) >= 25, placed
    assert not simulation.gateway.states["r0"].believed


async def test_usage_that_counts_one_choice_of_several_is_less_than_was_seen_to_come() -> None:
    """llama-server's, for `n: 2`; a floor is what came."""

    def choice(index: int, text: str) -> dict[str, Any]:
        return {"index": index, "text": text, "finish_reason": "stop"}

    usage = {"prompt_tokens": 3, "completion_tokens": 6, "total_tokens": 9}
    text = "one two three four five six"
    whole = {
        "id": "c",
        "object": "text_completion",
        "choices": [choice(0, text), choice(1, text)],
        "usage": usage,
    }
    backend = Backend("counts one", pages={"/v1/completions": whole})
    async with fleet(backend) as front:
        async with front.post("/v1/completions", prompt="count", n=2, max_tokens=64) as answer:
            assert answer.status == 200
            await answer.read()
        ticket = front.gateway.tickets.recent(1)[0]
        assert ticket.output_tokens > usage["completion_tokens"]
