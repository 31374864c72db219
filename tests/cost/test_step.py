"""The step cost: recovers known machines from measurements, and sizes chunks exactly."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weighbridge.cost import DEFAULT_STEP_COST, Sample, StepClock, StepCost, fit

SHAPES = [(n, n, n * c) for n in (1, 2, 4, 8, 16, 32, 64) for c in (32, 512, 2048)] + [
    (t, 1, t * c + t * (t + 1) // 2) for t in (32, 64, 128, 256, 512, 1024, 2048) for c in (0, 1024, 4096)
]

positive = st.floats(min_value=1e-9, max_value=1e-2)
costs = st.builds(
    StepCost,
    overhead=st.floats(1e-4, 1e-2),
    memory=st.floats(1e-3, 5e-2),
    per_token=st.floats(1e-5, 1e-2),
    per_context_token=st.floats(1e-8, 1e-5),
    per_sequence=st.floats(1e-6, 1e-3),
)


def measured(cost: StepCost, noise: float = 0.0, seed: int = 0) -> list[Sample]:
    rng = random.Random(seed)
    return [Sample(t, s, c, cost.seconds(t, s, c) * (1 + rng.uniform(-noise, noise))) for t, s, c in SHAPES]


def test_fit_recovers_the_machine_it_was_measured_on() -> None:
    machine = StepCost(0.002, 0.012, 0.0007, 8e-7, 4e-5)
    fitted = fit(measured(machine, noise=0.03))
    for tokens, sequences, context in SHAPES:
        expected = machine.seconds(tokens, sequences, context)
        assert fitted.seconds(tokens, sequences, context) == pytest.approx(expected, rel=0.15)


@given(costs)
def test_fit_never_gives_negative_coefficients(cost: StepCost) -> None:
    assert all(value >= 0 for value in fit(measured(cost, noise=0.2)).as_dict().values())


def test_fit_meets_the_mean_of_iterations_that_are_held_up_now_and_then() -> None:
    """One in ten takes three times as long: what adds up to a latency is 1.2 times the usual, not the usual."""
    machine = StepCost(0.004, 0.002, 0.0005, 4e-7, 1e-4)
    samples = [
        Sample(t, s, c, machine.seconds(t, s, c) * (3.0 if turn == 9 else 1.0))
        for turn in range(10)
        for t, s, c in SHAPES
    ]
    fitted = fit(samples)
    for tokens, sequences, context in SHAPES:
        expected = 1.2 * machine.seconds(tokens, sequences, context)
        assert fitted.seconds(tokens, sequences, context) == pytest.approx(expected, rel=0.03)


def test_fit_refuses_too_few_measurements() -> None:
    with pytest.raises(ValueError, match="five"):
        fit(measured(DEFAULT_STEP_COST)[:4])


@given(costs, st.floats(1e-3, 1.0), st.integers(0, 8000), st.integers(0, 4096), st.integers(0, 64))
def test_largest_chunk_is_the_largest(
    cost: StepCost, target: float, start: int, limit: int, decodes: int
) -> None:
    context = decodes * 300
    chunk = cost.largest_chunk(target, start, limit, decodes, decodes, context)

    def seconds(tokens: int) -> float:
        pairs = context + tokens * start + tokens * (tokens + 1) // 2
        return cost.seconds(decodes + tokens, decodes + 1, pairs)

    assert 0 <= chunk <= limit
    if chunk > 0:
        assert seconds(chunk) <= target
    if chunk < limit:
        assert seconds(chunk + 1) > target


@given(costs, st.integers(1, 6000), st.integers(0, 2000))
def test_more_work_never_takes_less_time(cost: StepCost, tokens: int, cached: int) -> None:
    assert cost.prefill_seconds(tokens, cached) <= cost.prefill_seconds(tokens + 1, cached)
    assert cost.prefill_seconds(tokens, cached) <= cost.prefill_seconds(tokens + cached, 0)


def test_clock_follows_a_machine_that_became_slower() -> None:
    clock = StepClock(DEFAULT_STEP_COST)
    for _ in range(300):
        clock.observe(Sample(16, 16, 4000, 3.0 * DEFAULT_STEP_COST.seconds(16, 16, 4000)))
    assert clock.cost.seconds(16, 16, 4000) == pytest.approx(
        3.0 * DEFAULT_STEP_COST.seconds(16, 16, 4000), rel=0.01
    )


def test_clock_is_not_thrown_by_one_stall() -> None:
    clock = StepClock(DEFAULT_STEP_COST)
    clock.observe(Sample(16, 16, 4000, 60.0))
    assert clock.cost.overhead <= DEFAULT_STEP_COST.overhead * 1.1


def test_clock_learns_every_coefficient_from_what_it_sees() -> None:
    machine = StepCost(0.001, 0.03, 0.0002, 4e-6, 1e-4)
    clock = StepClock(DEFAULT_STEP_COST)
    samples = measured(machine, noise=0.05)
    for _ in range(10):
        for sample in samples:
            clock.observe(sample)
    for tokens, sequences, context in SHAPES:
        expected = machine.seconds(tokens, sequences, context)
        assert clock.cost.seconds(tokens, sequences, context) == pytest.approx(expected, rel=0.3)


def test_clock_needs_different_iterations_before_it_trusts_a_fit() -> None:
    clock = StepClock(DEFAULT_STEP_COST, refit_every=4)
    for _ in range(40):
        clock.observe(Sample(16, 16, 4000, 0.02))
    assert clock.fitted is DEFAULT_STEP_COST
