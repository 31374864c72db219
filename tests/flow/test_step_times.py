"""How long steps take, and when a second attempt is due."""

from __future__ import annotations

import pytest

from weighbridge.flow.step_times import MIN_HEDGE_SAMPLES, HedgeBudget, StepTimes, hedge_delay


def test_hedge_delay_from_observations() -> None:
    assert hedge_delay([float(n) for n in range(100)], 0.05) == 95.0
    with pytest.raises(ValueError, match="durations"):
        hedge_delay([], 0.05)


def test_hedge_budget_bounds_launches() -> None:
    budget = HedgeBudget(0.05)
    launches = 0
    for _ in range(1000):
        budget.earn()
        launches += budget.take()
    assert launches <= 1000 * 0.05 + 3


def test_a_step_is_hedged_once_enough_is_known() -> None:
    times = StepTimes()
    for n in range(MIN_HEDGE_SAMPLES - 1):
        times.add(float(n))
    assert times.hedge_delay(0.1) is None
    times.add(100.0)
    assert times.hedge_delay(0.1) == pytest.approx(18.001)
    assert times.take_hedge()
    assert not times.take_hedge(), "a token is earned by ten calls"


def test_what_remains_is_the_mean_of_longer_calls() -> None:
    times = StepTimes()
    assert times.remaining(0.25) == 0.75, "a step never seen is assumed to take a second"
    for seconds in (1.0, 2.0, 6.0):
        times.add(seconds)
    assert times.remaining(0.0) == 3.0
    assert times.remaining(1.5) == pytest.approx((0.5 + 4.5) / 2)
    assert times.remaining(7.0) == 0.0
