"""The one exponentially weighted mean."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from weighbridge.cost.mean import Mean

values = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=100)


@given(values, st.floats(0.01, 1.0))
def test_a_mean_stays_among_its_values(added: list[float], weight: float) -> None:
    mean = Mean(weight)
    for value in added:
        mean.add(value)
    assert min(added) - 1e-3 <= mean.value <= max(added) + 1e-3
    assert mean.count == len(added)


def test_without_a_prior_the_first_values_count_alike() -> None:
    mean = Mean(0.1)
    for value in (1.0, 2.0, 6.0):
        mean.add(value)
    assert mean.value == 3.0


def test_a_prior_fades_with_each_value() -> None:
    mean = Mean(0.5, 8.0)
    mean.add(4.0)
    assert mean.value == 6.0
    mean.add(4.0)
    assert mean.value == 5.0
