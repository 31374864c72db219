"""Replicas whose speed nobody tells beside one that reports its own: `weigh` must not take silence for speed.

Each engine computes one request at a time and lets the others line up, as small servers do. The policy, queue and
states are the product's; what the replicas really cost, only the simulated machine knows.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from weighbridge.cost import DEFAULT_STEP_COST
from weighbridge.simulator.fleet import Run, SimulatedEngine, SimulatedFleet, SimulatedReplicaSpec, Simulation
from weighbridge.workload.requests import SimulatedRequest, Span

#: Twenty times the default: a request of `streams` takes about a second.
QUICK = SimulatedReplicaSpec(
    cost=DEFAULT_STEP_COST.scaled(20.0),
    settings=SimulatedEngine(profile="vllm", max_sequences=1).settings(),
    concurrency=256,
)


def silent(slower: float = 1.0) -> SimulatedReplicaSpec:
    return replace(QUICK.slowed(slower), tells_speed=False)


def streams(count: int, rate: float) -> list[SimulatedRequest]:
    rng, at, requests = random.Random(3), 0.0, []
    for n in range(count):
        at += rng.expovariate(rate)
        requests.append(SimulatedRequest(f"q{n}", at, (Span(n + 1, 16),), 3, 3, answer=1000 + n))
    return requests


def run(policy: str, replicas: Sequence[SimulatedReplicaSpec], requests: list[SimulatedRequest]) -> Run:
    fleet = SimulatedFleet(replicas=tuple(replicas), policy=policy, prefix_index=False)
    return Simulation(fleet, requests, seed=1).run()


def waits(measured: Run) -> np.ndarray:
    return np.asarray(measured.outcomes.first) - np.asarray(measured.outcomes.arrived)


def test_equals_share_the_work_though_only_one_tells_its_speed() -> None:
    """Forty of forty went to the silent one while its unknown cost was taken for the default."""
    fleet, requests = (QUICK, silent()), streams(40, 1.5)
    measured, fair = run("weigh", fleet, requests), run("round_robin", fleet, requests)
    assert len(measured.outcomes) == 40
    assert 15 <= measured.outcomes.replicas["r0"] <= 25
    assert np.median(waits(measured)) <= 1.1 * np.median(waits(fair))
    assert waits(measured).max() <= 1.1 * waits(fair).max() + 1.0


@pytest.mark.parametrize(("rate", "share"), [(0.7, 1.0), (1.0, 1.5)])
def test_a_slower_silent_one_gets_less(rate: float, share: float) -> None:
    fleet, requests = (QUICK, silent(3.0)), streams(40, rate)
    measured, simple = run("weigh", fleet, requests), run("least_requests", fleet, requests)
    assert measured.outcomes.replicas["r0"] > share * measured.outcomes.replicas["r1"]
    assert np.median(waits(measured)) <= np.median(waits(simple))
    assert np.quantile(waits(measured), 0.95) <= np.quantile(waits(simple), 0.95)


def test_among_three_engines_it_is_no_worse_than_the_simple_policies() -> None:
    """One tells, two do not, and all differ; counted is who had a first token in time."""
    fleet, requests = (QUICK, silent(2.0), silent(4.0)), streams(60, 1.4)

    def answered(policy: str) -> int:
        return int((waits(run(policy, fleet, requests)) < 4.0).sum())

    best = max(answered(name) for name in ("round_robin", "random", "least_requests", "power_of_two"))
    assert answered("weigh") >= best


def test_where_all_tell_seconds_are_compared() -> None:
    """The same machines, told: the slow one gets what its speed deserves."""
    told = (QUICK, QUICK.slowed(3.0))
    requests = streams(40, 1.0)
    known, unknown = run("weigh", told, requests), run("weigh", (QUICK, silent(3.0)), requests)
    assert np.quantile(waits(known), 0.95) <= 1.5 * np.quantile(
        waits(unknown), 0.95
    )  # a seat each is learned by both
