"""Least squares of five quantities with nothing below 0, against all 32 ways of which are 0."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weighbridge.cost.non_negative import ALL, AT, PAIRS, SUMS, WIDTH, Free, solve

NUMBERS = st.floats(-3.0, 3.0).map(lambda value: round(value, 2))
ROWS = st.lists(st.tuples(*[NUMBERS] * (WIDTH + 1)), min_size=1, max_size=12)
FREE = st.tuples(*[st.booleans()] * WIDTH)


def sums_of(rows: list[tuple[float, ...]]) -> tuple[list[float], np.ndarray, np.ndarray]:
    """The sums of rows, a little of a prior with them so that there is one solution; and the same as matrices."""
    table = np.array(rows)
    matrix = table[:, :WIDTH].T @ table[:, :WIDTH] + 0.01 * np.eye(WIDTH)
    right = table[:, :WIDTH].T @ table[:, WIDTH]
    return [*(matrix[i, j] for i, j in PAIRS), *right], matrix, right


def least(matrix: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The best of the solutions with any of the quantities left out that have nothing below 0."""
    best, lowest = np.zeros(WIDTH), 0.0
    for free in product((False, True), repeat=WIDTH):
        kept = [place for place, one in enumerate(free) if one]
        if not kept:
            continue
        at = np.zeros(WIDTH)
        at[kept] = np.linalg.solve(matrix[np.ix_(kept, kept)], right[kept])
        cost = 0.5 * at @ matrix @ at - right @ at
        if at.min() >= -1e-12 and cost < lowest:
            best, lowest = at, cost
    return best


@given(ROWS, FREE)
def test_it_is_the_least_of_all_ways_whatever_was_0_before(
    rows: list[tuple[float, ...]], before: Free
) -> None:
    sums, matrix, right = sums_of(rows)
    solved = solve(sums, before)
    assert solved is not None
    found, free = solved
    assert min(found) >= 0.0
    assert all(value == 0.0 or one for value, one in zip(found, free, strict=True))
    best = least(matrix, right)
    cost = [0.5 * at @ matrix @ at - right @ at for at in (np.array(found), best)]
    assert cost[0] == pytest.approx(cost[1], rel=1e-6, abs=1e-7)
    assert found == pytest.approx(best, rel=1e-3, abs=1e-4)


def test_what_the_sums_do_not_determine_has_no_solution() -> None:
    assert solve([0.0] * SUMS, ALL) is None
    row = (1.0, 2.0, 0.0, 0.0, 0.0)
    sums = [row[i] * row[j] for i, j in PAIRS] + [3.0 * part for part in row]
    assert solve(sums, ALL) is None
    assert solve([float("nan")] * SUMS, ALL) is None


def test_every_pair_stands_once_in_the_sums() -> None:
    assert sorted({AT[i][j] for i in range(WIDTH) for j in range(WIDTH)}) == list(range(len(PAIRS)))
    assert all(AT[i][j] == AT[j][i] for i in range(WIDTH) for j in range(WIDTH))
