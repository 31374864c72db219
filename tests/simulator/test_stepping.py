"""Strides are a shortcut, not a model: with them and without, the same numbers to the last bit."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from weighbridge.cost import StepCost
from weighbridge.simulator.fleet import Act, SimulatedEngine, SimulatedFleet, SimulatedReplicaSpec, Simulation
from weighbridge.workload.requests import SimulatedRequest
from weighbridge.workload.synthetic import Synthetic

COST = StepCost(overhead=0.004, memory=0.012, per_token=6e-5, per_context_token=2e-8, per_sequence=5e-5)


def outcome(spec: SimulatedFleet, requests: list[SimulatedRequest], seed: int = 0) -> tuple[object, ...]:
    """All that a run measures, exactly, after checking that nothing is left over."""
    simulation = Simulation(spec, requests, seed)
    run = simulation.run()
    simulation.gateway.check_integrity()
    for replica in simulation.replicas.values():
        replica.scheduler.check_integrity()
        assert not replica.computing
        assert replica.dead or not replica.scheduler.has_work()
    columns = (run.outcomes.first, run.outcomes.finished, run.outcomes.dispatched, run.outcomes.cached_tokens)
    times = tuple(column.tobytes() for column in columns)
    errors = tuple(sorted(run.outcomes.errors.items()))
    gaps = tuple(run.gaps.quantile(share) for share in (0.01, 0.5, 0.9, 0.99, 1.0))
    counts = (run.outcomes.preemptions, run.gaps.count, run.imbalance, run.peak_queue, run.left_out)
    iterations = tuple((work.iterations, work.batch_tokens, work.sequences) for work in run.work.values())
    caches = tuple(
        (r.scheduler.load().kv_blocks_cached, r.scheduler.load().kv_blocks_free)
        for r in simulation.replicas.values()
        if not r.dead  # it took blocks for an iteration that never ended
    )
    return times, errors, gaps, counts, iterations, caches


@pytest.mark.parametrize("batching", ["continuous", "static"])
@pytest.mark.parametrize("profile", ["weighbridge", "vllm"])
@pytest.mark.parametrize(
    "workload",
    [
        "poisson:rate=6,requests=70",
        "bursts:rate=8,requests=70,output=exponential:120",
        "heavy_tail:rate=5,requests=60",
        "shared_prefix:rate=8,requests=70,prefixes=5",
        "sessions:rate=5,requests=60,think=1",
        "gamma:rate=8,requests=70,tenants=3",
    ],
)
def test_strides_change_nothing(workload: str, profile: str, batching: str) -> None:
    requests = list(Synthetic.parse(workload).generate(3))
    # A small cache, so that blocks run out, requests give way and cached blocks are evicted.
    engine = SimulatedEngine(
        profile=profile, kv_tokens=24_576, max_sequences=24, batching=batching
    ).settings()
    replica = SimulatedReplicaSpec(cost=COST, settings=engine, concurrency=64)
    fleet = SimulatedFleet(replicas=(replica, replica.slowed(2.0)), policy="least_tokens")
    assert outcome(fleet, requests) == outcome(replace(fleet, stride=1), requests)


@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 10**6),
    kind=st.sampled_from(["poisson", "bursts", "shared_prefix", "sessions", "agents", "heavy_tail"]),
    policy=st.sampled_from(["weigh", "round_robin", "power_of_two", "prefix_affinity"]),
    kv_tokens=st.sampled_from([9_000, 20_000, 100_000]),
    seats=st.integers(2, 32),
    priorities=st.booleans(),
    deadlines=st.booleans(),
    script=st.booleans(),
)
@example(  # a request takes the place of one that expires while its own replica schedules
    seed=465990,
    kind="agents",
    policy="weigh",
    kv_tokens=9_000,
    seats=2,
    priorities=False,
    deadlines=True,
    script=True,
)
def test_strides_change_nothing_whatever_happens(
    seed: int,
    kind: str,
    policy: str,
    kv_tokens: int,
    seats: int,
    priorities: bool,
    deadlines: bool,
    script: bool,
) -> None:
    rng = random.Random(seed)
    spec = Synthetic.parse(f"{kind}:rate=6,requests=40,prompt=lognormal:300:0.8,tenants=2,context=6000")
    requests = [
        replace(
            one,
            priority=rng.choice((0, 0, 5)) if priorities else 0,
            deadline=rng.choice((None, 3.0, 20.0)) if deadlines else None,
        )
        for one in spec.generate(seed)
    ]
    engine = SimulatedEngine(kv_tokens=kv_tokens, max_sequences=seats, max_model_len=8000).settings()
    acts = (Act(2.0, "fail", "r1"), Act(4.0, "add", "r1"), Act(5.0, "drain", "r0")) if script else ()
    replica = SimulatedReplicaSpec(cost=COST, settings=engine, concurrency=rng.choice((None, 48)))
    fleet = SimulatedFleet(replicas=(replica, replica.slowed(1.7)), policy=policy, script=acts)
    assert outcome(fleet, requests, seed) == outcome(replace(fleet, stride=1), requests, seed)
