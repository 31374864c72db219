"""Length estimates: conditional expectations against closed forms, back-off, drift, bounds."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weighbridge.cost.length import EDGES, NUM_BINS, VAGUE, LengthCurve, OutputLengths, bin_of


@given(st.integers(0, 2**21))
def test_every_length_has_a_bin_at_most_an_eighth_wide(tokens: int) -> None:
    index = bin_of(tokens)
    assert EDGES[index] <= tokens
    assert tokens < EDGES[index + 1] or index == NUM_BINS - 1
    assert EDGES[index + 1] - EDGES[index] <= max(EDGES[index] / 8, 1)


def test_geometric_outputs_are_memoryless() -> None:
    """E[length - n | length > n] of a geometric law is its mean, whatever n."""
    mean, lengths, rng = 200.0, OutputLengths(), random.Random(1)
    for _ in range(20_000):
        lengths.observe("t", "m", "", 1 + int(rng.expovariate(1 / mean)))
    for produced in (0, 50, 200, 400):
        assert lengths.remaining("t", "m", "", produced, 10**6) == pytest.approx(mean, rel=0.2)


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=60), st.integers(0, 6000), st.integers(1, 6000))
def test_remaining_is_bounded_by_max_tokens(seen: list[int], produced: int, most: int) -> None:
    weights = [0.0] * NUM_BINS
    for tokens in seen:
        weights[bin_of(tokens)] += 1.0
    left = LengthCurve(weights).remaining(produced, most)
    assert left == 0.0 if produced >= most else 1.0 <= left <= most - produced


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=60), st.integers(1, 6000))
def test_quantiles_are_in_order_and_within_max_tokens(seen: list[int], most: int) -> None:
    lengths = OutputLengths()
    for tokens in seen:
        lengths.observe("t", "m", "", tokens)
    estimate = lengths.estimate("t", "m", "", most)
    assert 1 <= estimate.p50 <= estimate.p90 <= most
    assert 0.0 < estimate.mean <= most


def test_a_new_key_borrows_from_its_model_and_that_from_all() -> None:
    lengths = OutputLengths()
    for _ in range(300):
        lengths.observe("a", "terse", "", 10)
    unknown_tenant = lengths.estimate("b", "terse", "", 4096)
    unknown_model = lengths.estimate("b", "other", "", 4096)
    assert unknown_tenant.samples == 0
    assert unknown_tenant.mean < unknown_model.mean < VAGUE.mean(4096)


def test_drift_is_followed() -> None:
    lengths = OutputLengths()
    for tokens in [20] * 2000 + [800] * 3000:
        lengths.observe("t", "m", "", tokens)
    assert lengths.estimate("t", "m", "", 4096).mean == pytest.approx(760, rel=0.08)


def test_keys_are_bounded() -> None:
    lengths = OutputLengths(max_keys=8)
    for number in range(100):
        lengths.observe(f"t{number}", f"m{number}", "", 5)
    assert len(lengths._keys) == len(lengths._models) == 8
