"""Isotonic regression: scores to probabilities, by pooling adjacent violators (Ayer et al. 1955)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Isotonic:
    """A rising line through `knots` at `levels`; flat beyond the ends."""

    knots: tuple[float, ...]
    levels: tuple[float, ...]

    def __call__(self, score: float) -> float:
        knots, levels = self.knots, self.levels
        right = bisect_right(knots, score)
        if right in (0, len(knots)):
            return levels[0 if right == 0 else -1]
        left = right - 1
        rise = (levels[right] - levels[left]) / (knots[right] - knots[left])
        return levels[left] + rise * (score - knots[left])


def fit(
    scores: Sequence[float] | np.ndarray, outcomes: Sequence[float] | np.ndarray, shrink: float = 2.0
) -> Isotonic:
    """Least squares among rising functions. `shrink`: pseudo-observations of the mean per pool, so that a pool
    of a few never claims certainty. Raises ValueError without data."""
    score, outcome = np.asarray(scores, np.float64), np.asarray(outcomes, np.float64)
    if not len(score):
        raise ValueError("isotonic regression needs at least one observation")
    order = np.argsort(score, kind="stable")
    mean = float(outcome.mean())
    pools: list[list[float]] = []  # sum of outcomes, count, sum of scores
    for x, y in zip(score[order], outcome[order], strict=True):
        pools.append([float(y), 1.0, float(x)])
        while len(pools) > 1 and pools[-2][0] * pools[-1][1] >= pools[-1][0] * pools[-2][1]:
            last = pools.pop()
            for place in range(3):
                pools[-1][place] += last[place]
    levels = np.array([(total + shrink * mean) / (count + shrink) for total, count, _ in pools])
    knots = np.array([at / count for _, count, at in pools])
    return Isotonic(tuple(knots.tolist()), tuple(np.maximum.accumulate(levels).tolist()))


def calibration_error(probabilities: np.ndarray, outcomes: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error over bins of equal count."""
    order = np.argsort(probabilities, kind="stable")
    parts = np.array_split(order, bins)
    gaps = [abs(probabilities[p].mean() - outcomes[p].mean()) * len(p) for p in parts if len(p)]
    return float(sum(gaps) / len(order))
