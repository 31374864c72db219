"""The step cost: recovers known machines from measurements, and sizes chunks exactly."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weighbridge.cost import DEFAULT_STEP_COST, Sample, StepClock, StepCost, attention, fit

#: Arguments of `StepCost.seconds`: decodes, and prompt chunks.
SHAPES = [(n, n, n * c, 0) for n in (1, 2, 4, 8, 16, 32, 64) for c in (32, 512, 2048)] + [
    (t, 1, *attention(c, t)) for t in (32, 64, 128, 256, 512, 1024, 2048) for c in (0, 1024, 4096)
]

costs = st.builds(
    StepCost,
    overhead=st.floats(1e-4, 1e-2),
    memory=st.floats(1e-3, 5e-2),
    per_token=st.floats(1e-5, 1e-2),
    per_context_token=st.floats(1e-8, 1e-5),
    per_sequence=st.floats(1e-6, 1e-3),
    per_prompt_pair=st.floats(1e-10, 1e-5),
)


def measured(cost: StepCost, noise: float = 0.0, seed: int = 0) -> list[Sample]:
    rng = random.Random(seed)
    return [sample(shape, cost.seconds(*shape) * (1 + rng.uniform(-noise, noise))) for shape in SHAPES]


def sample(shape: tuple[int, int, int, int], seconds: float) -> Sample:
    tokens, sequences, context, pairs = shape
    return Sample(tokens, sequences, context, seconds, prompt_pairs=pairs)


@given(st.integers(0, 5000), st.integers(1, 3000))
def test_attention_counts_every_query_over_every_key_before_it(start: int, count: int) -> None:
    context, pairs = attention(start, count)
    assert context == start + count
    assert context + pairs == sum(start + i + 1 for i in range(count))


@given(costs)
def test_a_prompt_pair_costs_what_a_context_token_does_unless_told(cost: StepCost) -> None:
    fields = {name: value for name, value in cost.as_dict().items() if name != "per_prompt_pair"}
    plain = StepCost(**fields)
    assert plain.per_prompt_pair == plain.per_context_token
    assert plain.as_dict() == fields
    assert StepCost(**cost.as_dict()) == cost
    assert plain.seconds(64, 1, 0, 1000) == pytest.approx(plain.seconds(64, 1, 1000))


@pytest.mark.parametrize("per_prompt_pair", [2e-7, 8e-7, 2e-6])
def test_fit_recovers_the_machine_it_was_measured_on(per_prompt_pair: float) -> None:
    machine = StepCost(0.002, 0.012, 0.0007, 8e-7, 4e-5, per_prompt_pair=per_prompt_pair)
    fitted = fit(measured(machine, noise=0.03))
    for shape in SHAPES:
        assert fitted.seconds(*shape) == pytest.approx(machine.seconds(*shape), rel=0.15)
    assert fitted.per_prompt_pair == pytest.approx(per_prompt_pair, rel=0.2)


def test_fit_prices_pairs_it_never_saw_as_context_tokens() -> None:
    decodes = [one for one in measured(DEFAULT_STEP_COST) if not one.prompt_pairs]
    fitted = fit(decodes)
    assert fitted.per_prompt_pair == pytest.approx(fitted.per_context_token) == pytest.approx(1e-6, rel=0.01)


@given(costs)
def test_fit_never_gives_negative_coefficients(cost: StepCost) -> None:
    assert all(value >= 0 for value in fit(measured(cost, noise=0.2)).as_dict().values())


def test_fit_meets_the_mean_of_iterations_that_are_held_up_now_and_then() -> None:
    """One in ten takes three times as long: what adds up to a latency is 1.2 times the usual, not the usual."""
    machine = StepCost(0.004, 0.002, 0.0005, 4e-7, 1e-4, per_prompt_pair=2e-7)
    samples = [
        sample(shape, machine.seconds(*shape) * (3.0 if turn == 9 else 1.0))
        for turn in range(10)
        for shape in SHAPES
    ]
    fitted = fit(samples)
    for shape in SHAPES:
        assert fitted.seconds(*shape) == pytest.approx(1.2 * machine.seconds(*shape), rel=0.03)


def test_fit_refuses_too_few_measurements() -> None:
    with pytest.raises(ValueError, match="five"):
        fit(measured(DEFAULT_STEP_COST)[:4])


@given(costs, st.floats(1e-3, 1.0), st.integers(0, 8000), st.integers(0, 4096), st.integers(0, 64))
def test_largest_chunk_is_the_largest(
    cost: StepCost, target: float, start: int, limit: int, decodes: int
) -> None:
    held = decodes, decodes, decodes * 300, 70
    chunk = cost.largest_chunk(target, start, limit, *held)

    def seconds(count: int) -> float:
        context, pairs = attention(start, count)
        return cost.seconds(decodes + count, decodes + 1, decodes * 300 + context, 70 + pairs)

    assert 0 <= chunk <= limit
    if chunk > 0:
        assert seconds(chunk) <= target
    if chunk < limit:
        assert seconds(chunk + 1) > target


@given(costs, st.integers(1, 6000), st.integers(0, 2000))
def test_more_work_never_takes_less_time(cost: StepCost, tokens: int, cached: int) -> None:
    assert cost.prefill_seconds(tokens, cached) <= cost.prefill_seconds(tokens + 1, cached)
    # Behind a cache, chunks end later: each of them reads up to as many keys more as are cached.
    chunks = -(-tokens // 2048)
    read = cost.per_context_token * chunks * cached
    assert cost.prefill_seconds(tokens, cached) <= cost.prefill_seconds(tokens + cached, 0) + read


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
    machine = StepCost(0.001, 0.03, 0.0002, 4e-6, 1e-4, per_prompt_pair=1e-6)
    clock = StepClock(DEFAULT_STEP_COST)
    samples = measured(machine, noise=0.05)
    for _ in range(10):
        for one in samples:
            clock.observe(one)
    for shape in SHAPES:
        assert clock.cost.seconds(*shape) == pytest.approx(machine.seconds(*shape), rel=0.3)


def test_clock_needs_different_iterations_before_it_trusts_a_fit() -> None:
    clock = StepClock(DEFAULT_STEP_COST, refit_every=4)
    for _ in range(40):
        clock.observe(Sample(16, 16, 4000, 0.02))
    assert clock.fitted is DEFAULT_STEP_COST


mixtures = st.builds(
    StepCost,
    overhead=st.floats(1e-4, 1e-2),
    memory=st.floats(1e-3, 5e-2),
    per_token=st.floats(1e-5, 1e-3),
    per_context_token=st.floats(1e-8, 1e-6),
    per_sequence=st.floats(1e-6, 1e-3),
    per_expert=st.sampled_from([0.0, 1e-5, 1e-4]),
    experts=st.just(512.0),
    expert_layers=st.just(8.0),
    expert_top_k=st.just(4.0),
    expert_skew=st.floats(0.0, 1.0),
)


@given(mixtures, st.integers(0, 60), st.integers(1, 1500), st.integers(0, 2000))
def test_a_line_of_one_prompt_takes_the_iteration_it_fits_into(
    cost: StepCost, streams: int, fresh: int, cached: int
) -> None:
    """Half of the iteration under way, then one with the prompt and a token of every stream."""
    context = 300 * streams
    seconds = cost.line_seconds(cost.prefill_work(fresh, cached), fresh, streams, context, 1 << 20, 16)
    pairs = fresh * cached + fresh * (fresh + 1) // 2
    whole = cost.seconds(fresh + streams, streams + 1, context, pairs)
    # Where memory bounds the iteration, attention to the prompt is computed meanwhile.
    before = 0.5 * cost.seconds(streams, streams + 1, context) if streams else 0.0
    assert seconds <= (whole + before) * 1.02
    assert seconds >= (whole + before - cost.per_prompt_pair * pairs) * 0.97


@given(mixtures, st.integers(0, 60), st.integers(2, 12))
def test_a_long_line_takes_as_many_iterations_as_it_fills(cost: StepCost, streams: int, filled: int) -> None:
    room = 1024 - streams
    work, context = cost.per_token * room * (filled + 0.5), 100 * streams
    seconds = cost.line_seconds(work, room * (filled + 0.5), streams, context, 1024, 16)
    each = cost.seconds(1024, streams + 1, context)
    last = cost.seconds(room // 2 + streams, streams + 1, context)
    before = 0.5 * cost.seconds(streams, streams + 1, context) if streams else 0.0
    most = filled * max(each, cost.seconds(1024, streams + 1, context)) + last + before
    assert seconds == pytest.approx(most, rel=0.05, abs=(filled + 1) * cost.memory)


@given(mixtures, st.integers(0, 200))
def test_the_share_of_prompts_is_what_streams_leave(cost: StepCost, streams: int) -> None:
    share = cost.prompt_share(streams, 50 * streams, 2048)
    assert 0.0 < share <= 1.0
    assert share >= cost.prompt_share(streams + 8, 50 * streams + 400, 2048)
