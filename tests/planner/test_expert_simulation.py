"""Expert-parallel groups: tokens are conserved, skew costs, placement helps, drift makes placements stale."""

from __future__ import annotations

import numpy as np
import pytest

from weighbridge.errors import BadInput
from weighbridge.planner.experts.local_search import balance
from weighbridge.planner.experts.placement import Devices, ExpertPlacement, Floats, eplb, static_placement
from weighbridge.planner.experts.simulation import (
    ExpertTraffic,
    LoadGenerator,
    Times,
    fitted_traffic,
    simulate,
)

TRAFFIC = ExpertTraffic(layers=6, experts=64, top_k=4, tokens=512, skew=0.9)
DEVICES = Devices(gpus=8, replicas=80)


def static(loads: Floats, _: ExpertPlacement | None = None) -> ExpertPlacement:
    return static_placement(len(loads), loads.shape[1], DEVICES.replicas)


def run(traffic: ExpertTraffic, place, steps: int = 300, **options):  # type: ignore[no-untyped-def]
    return simulate(traffic, DEVICES, place, steps, np.random.default_rng(4), **options)


def test_every_step_holds_all_tokens() -> None:
    generator = LoadGenerator(TRAFFIC, np.random.default_rng(0))
    for _ in range(20):
        assert (generator.step().sum(axis=1) == 512 * 4).all()


def test_the_same_seed_gives_the_same_outcome() -> None:
    assert run(TRAFFIC, static) == run(TRAFFIC, static)


def test_a_step_of_even_load_has_a_closed_form() -> None:
    even = ExpertTraffic(layers=2, experts=8, top_k=1, tokens=80_000, skew=0.0, noise=0.0)
    times = Times(other=0.001, per_token=1e-6, per_expert=1e-5)
    devices = Devices(gpus=4, replicas=8)
    outcome = simulate(
        even, devices, lambda loads, _: eplb(loads, devices), 50, np.random.default_rng(0), times
    )
    assert outcome.mean_step == pytest.approx(0.001 + 2 * (2 * 1e-5 + 20_000 * 1e-6), rel=0.02)


def test_placement_raises_throughput_and_lowers_p99() -> None:
    plain = run(TRAFFIC, static)
    placed = run(TRAFFIC, lambda loads, _: eplb(loads, DEVICES))
    better = run(TRAFFIC, lambda loads, current: balance(loads, DEVICES, current=current))
    assert placed.balancedness > plain.balancedness + 0.1
    assert placed.tokens_per_second > plain.tokens_per_second
    assert placed.p99_step < plain.p99_step
    assert better.mean_step <= placed.mean_step * 1.01


def test_drift_makes_a_placement_stale_and_replacing_helps() -> None:
    drifting = ExpertTraffic(layers=6, experts=64, top_k=4, tokens=512, skew=0.9, drift=1.0)

    def place(loads: Floats, _: ExpertPlacement | None) -> ExpertPlacement:
        return eplb(loads, DEVICES)

    steady, stale = run(TRAFFIC, place, 2000), run(drifting, place, 2000)
    fresh = run(drifting, place, 2000, replace_every=200)
    assert stale.balancedness < steady.balancedness - 0.05
    assert fresh.balancedness > stale.balancedness + 0.03
    assert fresh.fetched_experts > 0


def test_only_experts_that_a_gpu_lacked_count_as_fetched() -> None:
    """The same experts in other slots of their GPU cost nothing; two GPUs that trade theirs fetch all of them."""
    devices, traffic = Devices(gpus=2, replicas=8), ExpertTraffic(layers=3, experts=8, top_k=2, tokens=64)
    order, shuffled, traded = [0, 1, 2, 3, 4, 5, 6, 7], [3, 2, 1, 0, 5, 4, 7, 6], [4, 5, 6, 7, 0, 1, 2, 3]

    def fetched(*rows: list[int]) -> int:
        placements = iter([ExpertPlacement.of(np.array([row] * 3), 8) for row in rows])
        rng = np.random.default_rng(0)
        outcome = simulate(traffic, devices, lambda *_: next(placements), 10, rng, replace_every=10)
        return outcome.fetched_experts

    assert fetched(order, shuffled) == 0
    assert fetched(order, traded) == 3 * 8
    assert fetched(order, [4, 1, 2, 3, 0, 5, 6, 7]) == 3 * 2


def test_renewal_that_keeps_gpus_in_place_fetches_less_for_the_same_balance() -> None:
    drifting = ExpertTraffic(layers=6, experts=64, top_k=4, tokens=512, skew=0.9, drift=1.0)
    anew = run(drifting, lambda loads, _: balance(loads, DEVICES), 1000, replace_every=200)
    kept = run(
        drifting, lambda loads, current: balance(loads, DEVICES, current=current), 1000, replace_every=200
    )
    assert kept.balancedness == pytest.approx(anew.balancedness, rel=1e-6)
    assert 0 < kept.fetched_experts < anew.fetched_experts


def test_traffic_is_fitted_to_counts() -> None:
    generator = LoadGenerator(TRAFFIC, np.random.default_rng(1))
    counts = np.sum([generator.step() for _ in range(200)], axis=0)
    assert fitted_traffic(counts, 4, 512).skew == pytest.approx(0.9, abs=0.15)


@pytest.mark.parametrize(
    "traffic",
    [
        ExpertTraffic(1, 1, 1, 5),
        ExpertTraffic(1, 8, 9, 5),
        ExpertTraffic(1, 8, 2, 0),
        ExpertTraffic(1, 8, 2, 5, correlation=1.0),
        ExpertTraffic(1, 8, 2, 5, skew=-1.0),
    ],
)
def test_traffic_that_cannot_be_is_named(traffic: ExpertTraffic) -> None:
    with pytest.raises(BadInput):
        LoadGenerator(traffic, np.random.default_rng(0))
