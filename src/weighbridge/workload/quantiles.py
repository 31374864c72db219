"""Quantiles: exact ones of values that are kept, and close ones of so many durations that they are not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

#: Relative width of a bucket of `GapHistogram`: a quantile is off by half of it at most.
RESOLUTION = 0.005
_LOG_BASE = math.log1p(RESOLUTION)
_SMALLEST = 1e-7  # seconds
_BUCKETS = 6000  # up to some eleven days


def quantiles(values: Sequence[float] | Floats, shares: Sequence[float]) -> list[float]:
    """Interpolate linearly between order statistics; zeros for no values."""
    if len(values) == 0:
        return [0.0] * len(shares)
    return [float(q) for q in np.quantile(np.asarray(values, np.float64), shares)]


def quantile(values: Sequence[float] | Floats, share: float) -> float:
    """Return one of `quantiles`."""
    return quantiles(values, (share,))[0]


def quantiles_ms(seconds: Sequence[float] | Floats, shares: Sequence[float]) -> dict[str, float]:
    """Return quantiles of seconds in milliseconds, called p50, p95 and so on."""
    found = zip(shares, quantiles(seconds, shares), strict=True)
    return {percentile_name(share): value * 1e3 for share, value in found}


def percentile_name(share: float) -> str:
    """Return the name of a quantile in reports: p99 for 0.99."""
    return f"p{round(share * 100)}"


class GapHistogram:
    """Counts durations in buckets of equal relative width (after DDSketch) and keeps no sample."""

    def __init__(self) -> None:
        self._counts = [0] * _BUCKETS
        self.total = 0.0  # seconds of all gaps together

    def add(self, seconds: float, times: int = 1) -> None:
        self._counts[_bucket(seconds)] += times
        self.total += seconds * times

    def add_between(self, ends: Sequence[float], times: int) -> None:
        """Add the gaps from each of `ends` to the next, `times` times. No gap is shorter than the one before it."""
        if len(ends) < 2:
            return
        place = _bucket(ends[1] - ends[0])
        if place == _bucket(ends[-1] - ends[-2]):  # and so are all in between
            self._counts[place] += times * (len(ends) - 1)
        else:
            for before, after in pairwise(ends):
                self._counts[_bucket(after - before)] += times
        self.total += (ends[-1] - ends[0]) * times

    def merge(self, other: GapHistogram) -> None:
        self._counts = [own + more for own, more in zip(self._counts, other._counts, strict=True)]
        self.total += other.total

    @property
    def count(self) -> int:
        return sum(self._counts)

    def quantile(self, share: float) -> float:
        """Return the middle of the bucket that holds the quantile; 0 for no gaps."""
        count = self.count
        if not count:
            return 0.0
        place = int(np.searchsorted(np.cumsum(self._counts), share * (count - 1) + 1.0))
        return _SMALLEST * math.exp((place - 0.5) * _LOG_BASE)


def _bucket(seconds: float) -> int:
    return min(int(math.log(max(seconds / _SMALLEST, 1.0)) / _LOG_BASE) + 1, _BUCKETS - 1)
