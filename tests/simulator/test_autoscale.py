"""Replicas that come and go: by script, and by the fleet's own rule under the virtual clock."""

from __future__ import annotations

from dataclasses import replace

import pytest

from weighbridge.cost import StepCost
from weighbridge.errors import BadInput
from weighbridge.fleet.load.scaling import ScalingSettings
from weighbridge.simulator.autoscale import Autoscaling
from weighbridge.simulator.fleet import (
    Act,
    Run,
    SimulatedEngine,
    SimulatedFleet,
    SimulatedReplicaSpec,
    Simulation,
)
from weighbridge.simulator.report import over_seeds, summary
from weighbridge.workload.requests import SimulatedRequest, Span
from weighbridge.workload.slo import USUAL

COST = StepCost(overhead=0.004, memory=0.012, per_token=6e-5, per_context_token=2e-8, per_sequence=5e-5)
ONE = SimulatedReplicaSpec(cost=COST, settings=SimulatedEngine(enable_prefix_cache=False).settings())
RULE = Autoscaling.parse("min=1,max=4,high=2,low=0.5,up=2,down=20,settle=5,startup=10")


def rush(rate: float, begin: float, seconds: float) -> list[SimulatedRequest]:
    """A steady trickle of a request in ten seconds until 300 s, and `rate` requests a second in between."""
    times = [10.0 * i for i in range(30)] + [begin + i / rate for i in range(round(rate * seconds))]
    return [
        SimulatedRequest(f"q{i}", at, (Span(i + 1, 2000),), 200, 400, answer=-i - 1)
        for i, at in enumerate(sorted(times))
    ]


def run(fleet: SimulatedFleet, requests: list[SimulatedRequest]) -> Run:
    simulation = Simulation(fleet, requests)
    found = simulation.run()
    simulation.gateway.check_integrity()
    return found


def test_the_fleet_grows_in_a_rush_and_shrinks_after_it() -> None:
    requests = rush(20.0, 50.0, 40.0)
    fixed = SimulatedFleet(replicas=(ONE,), prefix_index=False)
    scaled = replace(fixed, autoscale=RULE)
    alone, grown = run(fixed, requests), run(scaled, requests)
    assert not grown.outcomes.errors
    assert len(grown.outcomes) == len(requests)
    sizes = [size for _, size in grown.sizes]
    assert max(sizes) > 1 == sizes[0]
    assert all(1 <= size <= 4 for size in sizes)
    first_growth = next(at for at, size in grown.sizes if size == 2)
    assert 52.0 <= first_growth <= 90.0  # `up` seconds after work began to pile up
    late = [size for at, size in grown.sizes if at < 290.0][-1]
    assert late == 1  # the trickle needs one
    assert max(grown.outcomes.ttft) < max(alone.outcomes.ttft)
    paid, most = sum(grown.present.values()), 4 * grown.seconds
    assert grown.seconds < paid < most
    assert summary(grown, scaled, USUAL)["most_replicas"] == max(sizes)


def test_the_same_seed_scales_alike() -> None:
    requests = rush(20.0, 50.0, 40.0)
    fleet = SimulatedFleet(replicas=(ONE,), prefix_index=False, autoscale=RULE)
    first, second = run(fleet, requests), run(fleet, requests)
    assert first.sizes == second.sizes
    assert first.outcomes.finished == second.outcomes.finished
    step_by_step = run(replace(fleet, stride=1), requests)
    assert first.sizes == step_by_step.sizes
    assert first.outcomes.finished == step_by_step.outcomes.finished


def test_a_fleet_that_lost_all_its_replicas_gets_new_ones() -> None:
    fleet = SimulatedFleet(
        replicas=(ONE,), prefix_index=False, autoscale=RULE, script=(Act(5.0, "fail", "r0"),)
    )
    found = run(fleet, rush(1.0, 20.0, 10.0))
    assert not found.outcomes.errors.get("no_replica")
    assert set(found.outcomes.replicas) == {"r0", "auto0"}


def test_a_drained_replica_is_paid_for_until_its_work_is_done() -> None:
    requests = rush(20.0, 50.0, 5.0)
    fleet = SimulatedFleet(replicas=(ONE, ONE), prefix_index=False, script=(Act(52.0, "drain", "r1"),))
    found = run(fleet, requests)
    assert not found.outcomes.errors
    assert found.present["r0"] == found.seconds
    assert 52.0 < found.present["r1"] < found.seconds
    assert found.outcomes.replicas["r1"] > 0


def test_a_drained_replica_can_be_kept_after_all() -> None:
    script = (
        Act(52.0, "drain", "r1"),
        Act(52.5, "add", "r1"),
        Act(54.0, "fail", "r0"),
        Act(80.0, "add", "r0"),
    )
    found = run(SimulatedFleet(replicas=(ONE, ONE), prefix_index=False, script=script), rush(20.0, 50.0, 5.0))
    assert found.present["r1"] == found.seconds
    assert set(found.outcomes.errors) <= {"replica_lost"}


def test_seeds_may_have_had_different_replicas() -> None:
    fleet = SimulatedFleet(replicas=(ONE,), prefix_index=False, autoscale=RULE)
    busy = summary(run(fleet, rush(20.0, 50.0, 40.0)), fleet, USUAL)
    calm = summary(run(fleet, rush(0.1, 50.0, 10.0)), fleet, USUAL)
    merged = over_seeds([calm, busy])
    assert set(merged["replicas"]) == set(busy["replicas"]) > set(calm["replicas"])


def test_rules_are_read() -> None:
    found = Autoscaling.parse("min=2,max=8,startup=40,down=90")
    assert found == Autoscaling(ScalingSettings(least=2, most=8, down_after=90.0), startup=40.0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("2,8", "write min=2,max=8"),
        ("min=2,max=nan", "write min=2,max=8"),
        ("min=1.5,max=8", "write min=2,max=8"),
        ("min=4,max=2", "1 <= min <= max"),
        ("min=0,max=2", "1 <= min <= max"),
        ("min=1,max=2,low=5", "must be below high"),
        ("min=1,max=2,every=0", "more than 0 seconds"),
    ],
)
def test_wrong_rules_are_said(text: str, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        Autoscaling.parse(text)


def test_a_fleet_larger_than_its_rule_is_refused() -> None:
    with pytest.raises(BadInput, match="max=4"):
        SimulatedFleet(replicas=(ONE,) * 5, autoscale=RULE)
