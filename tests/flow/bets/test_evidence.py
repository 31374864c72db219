"""The closed forms behind bets and hedges, against the figures derived for them and against simulation."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from statistics import NormalDist

import pytest
from benchmarks.evidence.hedging import (
    exponential_hedged_mean,
    hedge_all_helps,
    hedged_quantile,
    hedged_survival,
    quantile,
    single_r,
    slow_somewhere,
)
from benchmarks.evidence.speculation import (
    action_speculation_reduction,
    best_of,
    tool_speculation_seconds,
)


def test_tool_speculation_closed_form() -> None:
    def seconds(n: int, g: float, t: float, guess: float, hits: float) -> tuple[float, float]:
        return tool_speculation_seconds(n, g, t, guess, 0.0), tool_speculation_seconds(n, g, t, guess, hits)

    assert seconds(10, 4, 2, 1, 0.6) == pytest.approx((60, 48))
    assert seconds(10, 4, 4, 0, 0.8) == pytest.approx((80, 48))
    before, after = seconds(10, 9.5, 0.5, 0.5, 0.6)
    assert 1 - after / before == pytest.approx(0.03)


def test_action_speculation_closed_form() -> None:
    assert action_speculation_reduction(0.55, 1, 1) == pytest.approx(0.177, abs=5e-4)
    assert action_speculation_reduction(0.55, 1e9, 1) == pytest.approx(0.355, abs=5e-4)


def simulated_reduction(hits: float, draw: Callable[[], float], steps: int, seeded: random.Random) -> float:
    """Share of time saved in `steps` calls of one agent whose next call is guessed at once.

    Every call the agent makes launches the guessed next one beside it. A hit leaves both running together:
    the pair takes as long as its longer call. The call that a hit has brought forward guesses nothing itself,
    so pairs do not chain, which is what p/(1+p) counts. After a miss the next call starts afresh.
    """
    sequential = elapsed = 0.0
    done = 0
    while done < steps:
        first = draw()
        sequential, elapsed, done = sequential + first, elapsed + first, done + 1
        if seeded.random() < hits:
            second = draw()
            sequential, elapsed, done = sequential + second, elapsed + max(second - first, 0.0), done + 1
    return 1.0 - elapsed / sequential


def test_action_speculation_by_simulation() -> None:
    """The closed form holds for fixed call times and instant guesses; exponential times bring half of it."""
    seeded = random.Random(20)
    instant = action_speculation_reduction(0.55, 1e9, 1)
    fixed = simulated_reduction(0.55, lambda: 1.0, 200_000, seeded)
    assert fixed == pytest.approx(0.355, abs=0.003)
    assert fixed == pytest.approx(instant, abs=0.003)
    exponential = simulated_reduction(0.55, lambda: seeded.expovariate(1.0), 200_000, seeded)
    assert exponential == pytest.approx(0.178, abs=0.003)
    assert exponential == pytest.approx(instant / 2, abs=0.003)


def two_speeds(t: float) -> float:
    return 1.0 if t < 1 else 0.1 if t < 5 else 0.0


def lognormal(t: float) -> float:
    return 1.0 if t <= 0 else 1.0 - NormalDist().cdf(math.log(t) / 0.8)


def test_hedge_of_two_speeds() -> None:
    assert hedged_survival(two_speeds, 2.0, 1.0) == pytest.approx(0.01)
    assert two_speeds(1.0) == pytest.approx(0.10), "share of calls launched twice"


def test_hedge_of_exponential() -> None:
    assert exponential_hedged_mean(1.0, 1e9) == pytest.approx(1.0)
    assert exponential_hedged_mean(1.0, math.log(2)) == pytest.approx(0.75)


def test_hedge_of_lognormal() -> None:
    assert quantile(lognormal, 0.99, 1e3) == pytest.approx(6.43, abs=5e-3)
    five = quantile(lognormal, 0.95, 1e3)
    assert five == pytest.approx(3.73, abs=5e-3)
    assert hedged_quantile(lognormal, 0.99, five, 1.0, 1e3) == pytest.approx(4.89, abs=5e-3)
    two = quantile(lognormal, 0.98, 1e3)
    assert hedged_quantile(lognormal, 0.99, two, 1.0, 1e3) == pytest.approx(5.80, abs=5e-3)
    assert hedged_quantile(lognormal, 0.99, 4.35, 0.605, 1e3) == pytest.approx(5.59, abs=5e-3)
    delay, probability, p99 = single_r(lognormal, 0.02, 0.99, 1e3)
    assert p99 == pytest.approx(5.59, abs=5e-3)
    assert (delay, probability) == pytest.approx((4.35, 0.605), abs=0.03)


def test_hedging_everything_helps_only_below_a_third() -> None:
    assert hedge_all_helps(0.33)
    assert not hedge_all_helps(0.34)
    assert slow_somewhere(0.01, 100) == pytest.approx(0.634, abs=5e-4)


def test_best_of_n() -> None:
    chance, draws = best_of(0.6, 4)
    assert chance == pytest.approx(0.974, abs=5e-4)
    assert draws == pytest.approx(1.62, abs=5e-3)
