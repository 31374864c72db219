"""Coverage of experts against closed forms, simulation and recorded routing; the experts term of the step cost."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.moe_data import moe_data
from weighbridge.cost import DEFAULT_STEP_COST, Sample, StepClock, StepCost, fit
from weighbridge.cost.experts import (
    ExpertUse,
    correlation,
    coverage,
    fit_overlap,
    independent_tokens,
    power_law,
    uniform_coverage,
)

BATCHES = (1, 2, 4, 8, 16, 32, 64)


@pytest.mark.parametrize(
    ("experts", "top_k", "tokens", "expected"),
    [(128, 8, 32, 111.8), (256, 8, 32, 163.3), (128, 4, 32, 81.7), (8, 2, 4, 5.5), (512, 10, 64, 367.1)],
)
def test_uniform_coverage(experts: int, top_k: int, tokens: int, expected: float) -> None:
    assert uniform_coverage(experts, top_k, tokens) == pytest.approx(expected, abs=0.06)
    assert coverage([top_k / experts] * experts, tokens) == pytest.approx(
        uniform_coverage(experts, top_k, tokens)
    )


def test_coverage_of_recorded_routing() -> None:
    """Qwen1.5-MoE, layer 0: random tokens within 2 %, consecutive ones too once their overlap is known."""
    recorded = moe_data("route_stats_qwen15_moe_layer0.json")["qwen15moe_gsm8k"]
    probabilities = [load / recorded["tokens"] for load in recorded["load"]]
    measured = {int(batch): row for batch, row in recorded["coverage"].items()}
    overlap = fit_overlap(probabilities, [(b, measured[b]["consecutive_tokens"]) for b in (2, 8, 32)])
    use = ExpertUse.of([probabilities], overlap)
    for batch in BATCHES:
        random, consecutive = measured[batch]["random_tokens"], measured[batch]["consecutive_tokens"]
        assert coverage(probabilities, batch) == pytest.approx(random, rel=0.02)
        assert use.touched(batch, batch) == pytest.approx(random, rel=0.02)
        assert coverage(probabilities, independent_tokens(batch, 1, overlap)) == pytest.approx(
            consecutive, rel=0.02
        )
    assert overlap > 0.0
    assert use.touched(64, 1) < use.touched(64, 64)


@given(p=st.floats(0.0, 1.0), alike=st.floats(1e-4, 0.9), tokens=st.integers(0, 200))
def test_alike_tokens_touch_less(p: float, alike: float, tokens: int) -> None:
    """Two tokens against the definition of a correlation; any number between one token and independent ones."""
    one, two = coverage([p], 1, alike), coverage([p], 2, alike)
    assert one == pytest.approx(p, abs=1e-9)
    assert two == pytest.approx(1 - (1 - p) ** 2 - alike * p * (1 - p), abs=1e-9)
    touched = coverage([p], tokens, alike)
    assert min(p, tokens) - 1e-9 <= touched <= coverage([p], tokens) + 1e-9
    assert touched <= coverage([p], tokens + 1, alike) + 1e-9  # what lgamma rounds off
    assert coverage([p], tokens, 1e-9) == pytest.approx(coverage([p], tokens), abs=1e-4)


def test_what_sequences_share_predicts_what_they_touch() -> None:
    """Iterations with topics of their own: independent tokens would touch too much, pairs tell how much."""
    rng = np.random.default_rng(0)
    mean = np.array([0.6, 0.5, 0.3, 0.2, 0.2, 0.1, 0.08, 0.02])
    strength = 1 / 0.15 - 1
    topics = rng.beta(mean * strength, (1 - mean) * strength, (4000, 8))
    counts = rng.binomial(64, topics)
    use = (counts.mean(axis=0) / 64).tolist()
    shared = float((counts * (counts - 1)).sum(axis=1).mean() / (64 * 63))
    alike = correlation([use], shared)
    assert alike == pytest.approx(0.15, abs=0.01)
    for tokens in BATCHES:
        touched = (rng.binomial(tokens, topics) > 0).sum(axis=1).mean()
        assert coverage(use, tokens, alike) == pytest.approx(touched, rel=0.02)
    assert coverage(use, 16) > coverage(use, 16, alike) * 1.05


def test_a_correlation_is_bounded() -> None:
    layers = [[0.5, 0.5], [1.0, 0.0]]
    assert correlation(layers, 0.75) == 0.0  # as chance has it
    assert correlation(layers, 0.0) == 0.0
    assert correlation(layers, 1.0) == 0.9
    assert correlation([[1.0, 1.0]], 2.0) == 0.0  # every token uses every expert


@given(
    alpha=st.floats(0.0, 1.0),
    experts=st.sampled_from([8, 60, 128]),
    batch=st.sampled_from(BATCHES),
    seed=st.integers(0, 99),
)
def test_the_compact_form_follows_the_sum(alpha: float, experts: int, batch: int, seed: int) -> None:
    """A power law stands for noisy ones, whatever the skew."""
    rng = np.random.default_rng(seed)
    raw = np.arange(1.0, experts + 1) ** -alpha * rng.uniform(0.7, 1.3, experts)
    probabilities = np.minimum(2 * raw / raw.sum(), 1.0).tolist()
    exact = coverage(probabilities, batch)
    assert ExpertUse.of([probabilities]).touched(batch, batch) == pytest.approx(exact, rel=0.05)


def test_touched_is_bounded_and_grows() -> None:
    use = ExpertUse.of([[0.9, 0.5, 0.3, 0.2, 0.1, 0.0]] * 4, overlap=0.1)
    touched = [use.touched(n, n) for n in range(1, 400)]
    assert touched == sorted(touched)
    assert touched[0] == pytest.approx(4 * 2.0)
    assert touched[-1] <= 24
    assert ExpertUse(8.0, 2.0, 4.0).touched(3, 1) == 8.0
    assert ExpertUse(0.0, 0.0, 0.0).touched(3, 1) == 0.0


@given(experts=st.integers(1, 80), top_k=st.integers(1, 12), skew=st.floats(0.0, 4.0))
def test_a_power_law_adds_up(experts: int, top_k: int, skew: float) -> None:
    probabilities = power_law(experts, min(top_k, experts), skew)
    assert sum(probabilities) == pytest.approx(min(top_k, experts))
    assert all(0.0 <= p <= 1.0 for p in probabilities)
    assert probabilities == sorted(probabilities, reverse=True)


def test_an_overlap_needs_measurements() -> None:
    with pytest.raises(ValueError, match="consecutive"):
        fit_overlap([0.5, 0.5], [(1, 1.0)])


# -- the step cost ------------------------------------------------------------------------------------------


@given(
    tokens=st.integers(1, 4096),
    sequences=st.integers(1, 256),
    pairs=st.integers(0, 10**7),
    e=st.floats(0, 1e3),
)
def test_a_dense_model_is_untouched(tokens: int, sequences: int, pairs: int, e: float) -> None:
    cost = StepCost(0.003, 0.012, 0.0007, 1e-6, 5e-5)
    dense = 0.003 + max(0.012, 0.0007 * tokens) + 1e-6 * pairs + 5e-5 * sequences
    assert cost.seconds(tokens, sequences, pairs) == dense
    assert cost.seconds(tokens, sequences, pairs, experts=e) == dense
    assert set(cost.as_dict()) == {"overhead", "memory", "per_token", "per_context_token", "per_sequence"}


def test_touched_experts_cost_time() -> None:
    use = ExpertUse(240.0, 30.0, 2.0)
    cost = replace(DEFAULT_STEP_COST, per_expert=1e-4).with_expert_use(use)
    dense = DEFAULT_STEP_COST.seconds(4, 4, 400)
    assert cost.seconds(4, 4, 400) == pytest.approx(dense + 1e-4 * use.touched(4, 4))
    assert cost.seconds(4, 4, 400, experts=7) == pytest.approx(dense + 7e-4)
    assert StepCost(**cost.as_dict()) == cost
    assert cost.scaled(2.0).seconds(4, 4, 400) == pytest.approx(2 * cost.seconds(4, 4, 400))


def test_the_fit_finds_the_time_per_expert() -> None:
    truth = StepCost(0.002, 0.004, 0.00025, 2e-7, 1e-5, per_expert=5e-5)
    rng = np.random.default_rng(0)
    samples = []
    for tokens in (1, 2, 4, 8, 16, 32, 64, 128, 256):
        for context in (50, 900):
            experts = float(rng.integers(60, 240))
            seconds = truth.seconds(tokens, tokens, tokens * context, experts=experts)
            samples.append(Sample(tokens, tokens, tokens * context, seconds, experts))
    assert fit(samples).per_expert == pytest.approx(5e-5, rel=0.02)


def test_the_clock_keeps_what_it_learned_of_the_experts() -> None:
    use = ExpertUse(240.0, 30.0, 2.0, 0.4, 0.05)
    truth = StepCost(0.002, 0.004, 0.0003, 2e-7, 1e-5, per_expert=5e-5).with_expert_use(use)
    clock = StepClock(refit_every=32)
    clock.set_expert_use(use)
    for round_number in range(8):
        for tokens in (1, 2, 3, 6, 12, 24, 48, 96, 200):
            touched = use.touched(tokens, tokens) * (1 + 0.1 * (round_number % 3))
            seconds = truth.seconds(tokens, tokens, 100 * tokens, experts=touched)
            clock.observe(Sample(tokens, tokens, 100 * tokens, seconds, touched))
    assert clock.cost.expert_use == use
    assert clock.cost.per_expert > 0.0
    assert clock.cost.seconds(16, 16, 1600) == pytest.approx(truth.seconds(16, 16, 1600), rel=0.1)


def test_expert_latency_recorded_on_a_gpu() -> None:
    """LLMServingSim's Qwen3-30B-A3B layer on one GPU: decode time is a constant and a time per touched expert."""
    rows = [
        (8, 51.638),
        (16, 126.751),
        (32, 225.589),
        (64, 423.073),
    ]  # 8 tokens: touched experts, microseconds
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in itertools.pairwise(rows[1:])]
    assert all(6.0 < slope < 6.6 for slope in slopes)
