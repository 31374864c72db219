"""Experiments: the knee is enclosed, and the rates around it are tried for the curve."""

from __future__ import annotations

import pytest

from weighbridge.cost import StepCost
from weighbridge.simulator.experiment import CLOSE, Experiment, SyntheticSource
from weighbridge.simulator.fleet import SimulatedEngine, SimulatedFleet, SimulatedReplicaSpec
from weighbridge.workload.slo import Slo
from weighbridge.workload.synthetic import Synthetic

SETTINGS = SimulatedEngine(kv_tokens=65_536, max_model_len=8192).settings()
SLOW = StepCost(overhead=0.004, memory=0.02, per_token=2e-4, per_context_token=1e-7, per_sequence=1e-4)


def experiment(targets: Slo) -> Experiment:
    fleet = SimulatedFleet(replicas=(SimulatedReplicaSpec(cost=SLOW, settings=SETTINGS),))
    workload = Synthetic.parse("poisson:rate=5,requests=150,prompt=400,output=20")
    return Experiment(fleet=fleet, source=SyntheticSource(workload), targets=targets)


def test_the_knee_is_between_a_served_rate_and_one_that_is_not() -> None:
    found = experiment(Slo(0.5, 0.2, 0.95)).find_knee()
    knee = found["knee_rps"]
    rates = {point["rate"]: point["good_share"] for point in found["points"]}
    assert rates[knee] >= 0.95
    above = [rate for rate, share in rates.items() if rate > knee and share < 0.95]
    assert min(above) / knee <= CLOSE * 1.001
    assert list(rates) == sorted(rates)
    assert min(rates) <= knee * 0.3
    assert max(rates) >= knee * 1.9


def test_targets_that_no_rate_keeps_have_no_knee() -> None:
    found = experiment(Slo(1e-4, 1e-4, 0.95)).find_knee()
    assert found["knee_rps"] is None
    assert all(point["good_share"] == pytest.approx(0.0) for point in found["points"])
