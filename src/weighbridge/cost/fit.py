"""A step cost from measured iterations, by least squares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from weighbridge.cost.step import Sample, StepCost

#: How much `fit` heeds that pairs of prompts may cost what context tokens do, in usual samples.
_LEANING = 0.05

#: Rounds of reweighting in `fit`: further ones change nothing that can be seen.
_FIT_ROUNDS = 3


def fit(samples: Sequence[Sample]) -> StepCost:
    """Least squares of `StepCost` over measured iterations, every coefficient >= 0.

    The maximum makes the model piecewise linear: the knee (tokens at which compute takes over from memory)
    is searched over the observed token counts, and each side is solved as non-negative least squares on
    relative errors, so that short and long iterations count alike. Errors are relative to what the round before
    predicted, not to what was measured: iterations of one kind that now and then lose their core for a while are
    met in their mean, which is what adds up to latencies; dividing by each measurement would favour the quick
    ones. Where every sample says how many experts it touched, the time per expert is fitted too.

    Raises ValueError with fewer than five samples.
    """
    if len(samples) < 5:
        raise ValueError("fitting a step cost needs at least five measured iterations")
    seconds = np.array([s.seconds for s in samples])
    sparse = all(s.experts is not None for s in samples)
    columns = np.array(
        [[1.0, s.tokens, s.context_tokens, s.sequences, s.prompt_pairs, s.experts or 0.0] for s in samples],
        dtype=np.float64,
    )[:, : 6 if sparse else 5]
    expected = seconds
    for _ in range(_FIT_ROUNDS):
        cost, predicted = _best_knee(columns, seconds, expected)
        expected = np.maximum(predicted, 1e-3 * seconds)
    return cost


def _best_knee(columns: np.ndarray, seconds: np.ndarray, expected: np.ndarray) -> tuple[StepCost, np.ndarray]:
    """The fit with the least squared error relative to `expected`, and what it predicts of each sample."""
    best: tuple[float, StepCost, np.ndarray] | None = None
    leaning = _leaning(columns, expected)
    for knee in np.unique(columns[:, 1]):
        bent = columns.copy()
        bent[:, 1] = np.maximum(columns[:, 1], knee)
        rows = np.vstack([bent / expected[:, None], leaning])
        solution = _non_negative_least_squares(rows, np.append(seconds / expected, 0.0))
        predicted = bent @ solution
        error = float((((predicted - seconds) / expected) ** 2).sum())
        if best is None or error < best[0]:
            overhead, per_token, per_context, per_sequence, per_pair, *per_expert = map(float, solution)
            memory = per_token * float(knee)
            cost = StepCost(overhead, memory, per_token, per_context, per_sequence, *per_expert)
            best = error, replace(cost, per_prompt_pair=per_pair), predicted
    assert best is not None
    return best[1], best[2]


def _leaning(columns: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """One row that says, in a low voice, that a prompt pair costs what a context token does.

    Without prompt pairs, nothing else tells their price; with few kinds of chunks, noise would.
    """
    usual = math.sqrt(float(np.mean((columns[:, 4] / expected) ** 2)))
    row = np.zeros(columns.shape[1])
    row[2], row[4] = -1.0, 1.0
    return row * (_LEANING * usual or 1.0)


def _non_negative_least_squares(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Active-set search over the few columns: drop the most negative coefficient until none is left."""
    active = list(range(a.shape[1]))
    while active:
        scale = np.linalg.norm(a[:, active], axis=0)
        scale[scale == 0.0] = 1.0
        solution = np.linalg.lstsq(a[:, active] / scale, b, rcond=None)[0] / scale
        if (solution >= 0.0).all():
            break
        active.pop(int(np.argmin(solution * scale)))
    result = np.zeros(a.shape[1])
    if active:
        result[active] = solution
    return result
