"""Hedging on time to first token: when a second copy of a request is worth starting (Dean and Barroso, 2013)."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from dataclasses import dataclass

from weighbridge.fleet.reliability.retry import EarnedBudget

#: Prompt tokens of extra work that may be saved up, so that a quiet night does not pay for a storm of hedges.
LARGEST_SAVING = 65_536.0


@dataclass(frozen=True, slots=True)
class HedgeSettings:
    """A second copy starts once `quantile` of first tokens would have come, no sooner than `minimum_delay`
    seconds, and second copies add at most a share of `extra_work` to the prompt tokens that are sent."""

    enabled: bool = False
    quantile: float = 0.95
    extra_work: float = 0.05
    minimum_delay: float = 0.05
    minimum_samples: int = 50


class SlidingQuantile:
    """Exact quantiles of the last `size` observations, kept sorted: O(log n) to find, O(n) moves, n small."""

    def __init__(self, size: int = 512) -> None:
        self._size = size
        self._order: deque[float] = deque()
        self._sorted: list[float] = []

    def __len__(self) -> int:
        return len(self._sorted)

    def observe(self, value: float) -> None:
        if len(self._order) == self._size:
            del self._sorted[bisect_left(self._sorted, self._order.popleft())]
        self._order.append(value)
        insort(self._sorted, value)

    def quantile(self, q: float) -> float:
        """The smallest value that at least `q` of the observations do not exceed. Needs one observation."""
        index = min(max(int(-(-q * len(self._sorted) // 1)) - 1, 0), len(self._sorted) - 1)
        return self._sorted[index]


class Hedger:
    """Learns how long first tokens take per unit of predicted time, and says when to start a second copy.

    A long prompt takes longer by nature. So what is learned is the ratio of the measured to the predicted
    time to first token. Replicas whose speed is not known predict nothing: theirs are plain seconds, kept apart.
    """

    def __init__(self, settings: HedgeSettings) -> None:
        self.settings = settings
        self._ratios = SlidingQuantile()
        self._seconds = SlidingQuantile()
        self._budget = EarnedBudget(settings.extra_work, LARGEST_SAVING)

    def observe(self, seconds: float, predicted: float | None) -> None:
        """Learn from a first token that came after `seconds`; None: nothing was predicted."""
        if not self.settings.enabled:
            return
        if predicted is not None and predicted > 0.0:
            self._ratios.observe(seconds / predicted)
        else:
            self._seconds.observe(seconds)

    def sent(self, tokens: float) -> None:
        """Count a request of so many prompt tokens; its share of extra work may be used later."""
        self._budget.earn(tokens)

    def delay(self, predicted: float | None) -> float | None:
        """Seconds to wait for the first token before a second copy; None: no hedging (yet)."""
        unit = predicted if predicted is not None and predicted > 0.0 else None
        learned = self._seconds if unit is None else self._ratios
        if not self.settings.enabled or len(learned) < self.settings.minimum_samples:
            return None
        late = learned.quantile(self.settings.quantile)
        return max(late if unit is None else late * unit, self.settings.minimum_delay)

    def take(self, tokens: float) -> bool:
        """Whether the budget allows one more copy of so many prompt tokens; counts it."""
        return self._budget.spend(tokens)
