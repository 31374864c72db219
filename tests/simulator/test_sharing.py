"""Several simulated gateways: one alone is the simulation that there was, and of many each request is counted once."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weighbridge.cost import StepCost
from weighbridge.errors import BadInput
from weighbridge.fleet.health import QUIET_RATE
from weighbridge.simulator.fleet import Act, SimulatedEngine, SimulatedFleet, SimulatedReplicaSpec, Simulation
from weighbridge.simulator.sharing import AS_LIVE, SharedRun, SharedSimulation, SharingPace
from weighbridge.workload.synthetic import Synthetic

COST = StepCost(overhead=0.003, memory=0.010, per_token=6e-5, per_context_token=6e-8, per_sequence=2e-5)
ALONE = SharingPace(probe=None, look=None)
MIXES = (
    "poisson:prompt=lognormal:700:0.9,output=lognormal:40:0.8",
    "shared_prefix:prefixes=8,prefix=640,prompt=lognormal:100:0.7,output=lognormal:30:0.7",
    "sessions:turns=3,think=1,prompt=lognormal:200:0.7,output=lognormal:30:0.7",
)


def fleet(replicas: int = 4, *, tells_speed: bool = True, seats: int = 16) -> SimulatedFleet:
    engine = SimulatedEngine(kv_tokens=60_000, max_sequences=seats, tokens_per_block=64)
    one = SimulatedReplicaSpec(cost=COST, settings=engine.settings(), tells_speed=tells_speed)
    return SimulatedFleet(replicas=(one,) * replicas)


def workload(mix: str, rate: float, requests: int) -> Synthetic:
    return replace(Synthetic.parse(mix), rate=rate, requests=requests)


def shared(
    mix: str, gateways: int, sharing: SharingPace = AS_LIVE, *, seed: int = 0, rate: float = 40.0,
    requests: int = 150, **of_fleet: object,
) -> tuple[SharedSimulation, SharedRun]:  # fmt: skip
    requested = workload(mix, rate, requests).generate(seed)
    simulation = SharedSimulation(fleet(**of_fleet), requested, gateways, seed, sharing)  # type: ignore[arg-type]
    run = simulation.run()
    simulation.check_integrity()
    return simulation, run


@pytest.mark.parametrize("mix", MIXES)
def test_one_gateway_that_is_told_nothing_is_the_simulation_of_one(mix: str) -> None:
    _, run = shared(mix, 1, ALONE)
    usual = Simulation(fleet(), workload(mix, 40.0, 150).generate(0)).run()
    assert run.outcomes == usual.outcomes
    assert run.commands == {}
    assert (run.probes, run.crowded) == (0, 0.0)


@settings(max_examples=12, deadline=None)
@given(st.sampled_from(MIXES), st.integers(1, 6), st.integers(0, 99), st.booleans(), st.booleans())
def test_each_request_ends_once_whoever_it_came_to(
    mix: str, gateways: int, seed: int, tells_speed: bool, told: bool
) -> None:
    """Also where all seats are taken, so that some wait; and twice the same comes to the same."""
    sharing = AS_LIVE if told else ALONE
    options = {"seed": seed, "rate": 120.0, "requests": 80, "tells_speed": tells_speed, "seats": 4}
    simulation, run = shared(mix, gateways, sharing, **options)  # type: ignore[arg-type]
    assert len(run.outcomes) + sum(run.outcomes.errors.values()) == 80
    assert not run.outcomes.errors
    assert all(state.requests == 0 for one in simulation.gateways for state in one.states.values())
    assert shared(mix, gateways, sharing, **options)[1] == run  # type: ignore[arg-type]


def test_the_load_of_others_is_known_from_the_next_probe_on() -> None:
    simulation = SharedSimulation(
        fleet(1), workload(MIXES[0], 50.0, 40).generate(1), 2, 1, SharingPace(probe=0.1)
    )
    replica = simulation.replicas["r0"]
    simulation._feed.start()
    simulation.clock.run(until=0.5)
    first, second = (one.states["r0"] for one in simulation.gateways)
    now = simulation.clock.now
    there = replica.scheduler.load()
    for peer, state, other in zip(simulation._peers, (first, second), (second, first), strict=True):
        assert state.total_requests(now) == state.requests  # of the other's it knows nothing
        simulation._probe(peer, "r0", now)
        assert state.total_requests(now) == there.queued_requests + there.running_requests
        assert state.others.queued_requests == other.requests > 0


def test_prefixes_that_one_has_sent_are_known_to_the_others_by_the_news() -> None:
    told, deaf = [shared(MIXES[1], 4, sharing, rate=10.0, requests=400)[1] for sharing in (AS_LIVE, ALONE)]
    hits = [sum(run.outcomes.cached_tokens) for run in (told, deaf)]
    assert hits[0] > hits[1]
    assert told.news_bytes["read"] >= 3 * told.news_bytes["written"] > 0  # each reads all, also its own


def test_speeds_that_nobody_tells_are_written_and_asked_for() -> None:
    _, run = shared(MIXES[0], 3, rate=10.0, requests=400, tells_speed=False)
    assert run.commands["speeds written"] > 0
    assert run.commands["speeds read"] > 0


def test_looks_and_probes_are_as_many_as_a_second_has() -> None:
    """A look a second by each gateway; and a probe of each busy replica, fewer where nothing happens."""
    gateways, replicas = 3, 4
    _, run = shared(MIXES[0], gateways, rate=10.0, requests=300)
    assert run.commands["looks"] == pytest.approx(gateways * run.seconds, rel=0.15)
    assert replicas < QUIET_RATE  # so few are asked every second also where they are idle
    assert run.probes == pytest.approx(gateways * replicas * run.seconds, rel=0.15)


def test_a_fleet_that_changes_is_refused() -> None:
    spec = replace(fleet(), script=(Act(1.0, "fail", "r0"),))
    with pytest.raises(BadInput, match="stays as it is"):
        SharedSimulation(spec, [], 2)
