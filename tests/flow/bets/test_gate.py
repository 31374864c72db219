"""The gate, its beliefs and the hedge against every figure derived for them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from benchmarks.evidence.speculation import (
    deepest,
    expected_steps,
    graham_bound,
    makespan,
    spent_share,
    tokens_usd,
    widest,
)
from hypothesis import given
from hypothesis import strategies as st

from weighbridge.cost.step import StepCost
from weighbridge.flow.bets.gate import (
    Belief,
    Node,
    ServerLoad,
    Stakes,
    beta_cdf,
    beta_quantile,
    break_even,
    critical_path,
    decide,
    queue_usd,
    saving,
    seat_seconds,
)

COST = tokens_usd(800, 300, 0.5, 1.5)


def stakes(probability: float, spent: float = 1.0, **more: float) -> Stakes:
    return Stakes(probability, 0.001, 2.0, COST, spent, **more)


def test_a_model_calls_cost_and_break_even() -> None:
    assert pytest.approx(0.00085) == COST
    assert break_even(stakes(0.5)) == pytest.approx(0.298, abs=5e-4)
    cancelled_at_40_percent = spent_share(800 * 0.5e-6, 300 * 1.5e-6, 0.4)
    assert break_even(stakes(0.5, cancelled_at_40_percent)) == pytest.approx(0.225, abs=5e-4)
    assert stakes(0.6).expected_value == pytest.approx(0.00086, abs=5e-6)


def test_width_limits_itself() -> None:
    assert pytest.approx(3.35, abs=5e-3) == 1 + 0.001 * 2 / COST
    assert widest(stakes(1.0)) == 3
    assert decide(stakes(1 / 3)).launch
    assert not decide(stakes(1 / 4)).launch


def test_depth_limits_itself() -> None:
    threshold = break_even(stakes(0.7))
    assert math.log(threshold) / math.log(0.7) == pytest.approx(3.39, abs=5e-3)
    assert deepest(0.7, threshold) == 3
    assert decide(stakes(0.7**3)).launch
    assert not decide(stakes(0.7**4)).launch
    assert expected_steps(0.7, 3) == pytest.approx(2.533, abs=5e-4)
    assert expected_steps(1.0, 3) == 4.0


def test_harm_to_others_stops_a_bet() -> None:
    cost = StepCost(
        overhead=0.002, memory=0.008, per_token=0.0001, per_context_token=0.0, per_sequence=0.0005
    )
    load = ServerLoad(waiting=4, running=2, step_cost=cost)
    # 500 prompt tokens of 0.1 ms, and half of 100 iterations of 2 + 8 + 2 * 0.5 ms.
    assert seat_seconds(load, 500, 100, took=9.0) == pytest.approx(0.05 + 0.55)
    assert seat_seconds(ServerLoad(4, 2), 500, 100, took=2.0) == 1.0, "a gateway says nothing of iterations"
    assert seat_seconds(ServerLoad(4, 0), 500, 100, took=2.0) == 2.0
    harm = queue_usd(0.001, 4 * 1.0)
    assert harm == pytest.approx(0.004)
    assert decide(stakes(0.9)).launch
    assert not decide(stakes(0.9, queue_usd=harm)).launch
    assert not decide(stakes(0.9, risk_usd=0.01)).launch
    free = Stakes(0.9, 0.001, 2.0, 0.0, queue_usd=queue_usd(0.001, 1.79))
    assert decide(free).launch, "1.8 s are expected to be won, others wait 1.79 s longer"
    assert not decide(replace(free, queue_usd=queue_usd(0.001, 1.81))).launch


def test_nothing_saved_is_never_worth_it() -> None:
    verdict = decide(Stakes(1.0, 0.001, 0.0, 0.0))
    assert not verdict.launch
    assert "critical path" in verdict.reason
    assert decide(Stakes(0.1, 0.001, 1.0, 0.0)).launch, "free work that may help is worth starting"


@given(
    st.floats(0.01, 1),
    st.floats(1e-5, 0.1),
    st.floats(0.01, 60),
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(0, 0.01),
)
def test_break_even_is_where_the_verdict_turns(
    p: float, value: float, seconds: float, cost: float, share: float, harm: float
) -> None:
    bet = Stakes(p, value, seconds, cost, share, harm)
    threshold = break_even(bet)
    if abs(p - threshold) > 1e-6:
        assert decide(bet).launch == (p > threshold)


@given(st.floats(1e-5, 0.1), st.floats(0.01, 60), st.floats(1e-6, 1), st.floats(0, 0.01))
def test_widest_is_the_last_width_that_pays(value: float, seconds: float, cost: float, harm: float) -> None:
    width = widest(Stakes(1.0, value, seconds, cost, 1.0, harm))

    def margin(k: int) -> float:
        return Stakes(1 / k, value, seconds, cost, 1.0, harm).expected_value

    if 0 < width < 10**6:
        assert margin(width) > -1e-9
        assert margin(width + 1) < 1e-9


def test_young_beliefs_are_careful() -> None:
    belief = Belief()
    for success in [True] * 14 + [False] * 6:
        belief.observe(success)
    assert belief.mean == pytest.approx(0.667, abs=5e-4)
    assert belief.lower() == pytest.approx(0.504, abs=5e-4)
    young = Belief()
    young.observe(True)
    assert young.mean == pytest.approx(0.600)
    assert young.lower() == pytest.approx(0.249, abs=5e-4)
    assert not decide(stakes(young.lower())).launch
    assert decide(stakes(belief.lower())).launch


def test_beliefs_forget() -> None:
    belief = Belief(forgetting=0.98)
    for _ in range(1000):
        belief.observe(True)
    assert belief.count == pytest.approx(50, rel=1e-3)
    for _ in range(50):
        belief.observe(False)
    assert belief.mean < 0.45


@given(st.floats(0.001, 0.999), st.floats(0.2, 200), st.floats(0.2, 200))
def test_beta_quantile_inverts_its_distribution(q: float, a: float, b: float) -> None:
    x = beta_quantile(q, a, b)
    assert beta_cdf(x - 1e-8, a, b) - 1e-9 <= q <= beta_cdf(x + 1e-8, a, b) + 1e-9


def test_beta_distribution_against_closed_forms() -> None:
    for x in (0.1, 0.5, 0.9):
        assert beta_cdf(x, 1, 1) == pytest.approx(x)
        assert beta_cdf(x, 3, 1) == pytest.approx(x**3)
        assert beta_cdf(x, 2, 2) == pytest.approx(3 * x**2 - 2 * x**3)


def test_longest_path_and_graham() -> None:
    assert graham_bound(10, 4, 3) == pytest.approx(6)
    nodes = [Node(2), Node(3), Node(1, (0, 1)), Node(4, (0,))]
    assert makespan(nodes) == 6
    assert critical_path(nodes) == [0, 3]


def test_saving_is_zero_off_the_critical_path() -> None:
    chain = [Node(1), Node(2, (0,), usd=0.5)]
    assert saving(chain, 0).seconds == pytest.approx(1)
    assert saving(chain, 0).usd == 0.5
    slack = [Node(1), Node(2, (0,)), Node(9), Node(0, (1, 2))]
    assert saving(slack, 0).seconds == 0.0
    write = [Node(1), Node(2, (0,), writes=True)]
    assert saving(write, 0).seconds == 0.0
    before_a_write = [Node(3), Node(2, (0,)), Node(1, (1,), writes=True)]
    assert saving(before_a_write, 0).seconds == pytest.approx(2)
