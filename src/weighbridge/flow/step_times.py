"""How long steps take, and when a slow call is worth a second attempt. Pure."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

from weighbridge.cost.mean import Mean

#: Observed durations needed before a step is hedged.
MIN_HEDGE_SAMPLES = 20
#: Only calls slower than the quantile are hedged, not those that take just as long.
HEDGE_SLACK_SECONDS = 0.001
#: Weight of the latest value in what is averaged over calls and runs.
RECENT_WEIGHT = 0.1
#: Assumed duration of a step never seen.
UNKNOWN_SECONDS = 1.0


class StepTimes:
    """Durations of one step, the last 256, in seconds, and what its calls cost."""

    __slots__ = ("_hedges", "seconds", "usd")

    def __init__(self) -> None:
        self.seconds: deque[float] = deque(maxlen=256)
        self.usd = Mean(RECENT_WEIGHT)
        self._hedges: HedgeBudget | None = None

    def add(self, seconds: float) -> None:
        self.seconds.append(seconds)

    def mean(self) -> float:
        return sum(self.seconds) / len(self.seconds) if self.seconds else UNKNOWN_SECONDS

    def remaining(self, elapsed: float) -> float:
        """Return the expected time to go for a call that has run for `elapsed`: the mean residual of longer calls."""
        if not self.seconds:
            return max(UNKNOWN_SECONDS - elapsed, 0.0)
        longer = [seconds - elapsed for seconds in self.seconds if seconds > elapsed]
        return sum(longer) / len(longer) if longer else 0.0

    def hedge_delay(self, share: float) -> float | None:
        """Return the seconds until a second attempt is due; None while too little is known. Earns budget for it."""
        if self._hedges is None:
            self._hedges = HedgeBudget(share)
        self._hedges.earn()
        if len(self.seconds) < MIN_HEDGE_SAMPLES:
            return None
        return hedge_delay(self.seconds, share) + HEDGE_SLACK_SECONDS

    def take_hedge(self) -> bool:
        """Spend budget on a second attempt, if there is some."""
        return self._hedges is not None and self._hedges.take()


def hedge_delay(durations: Sequence[float], budget: float) -> float:
    """Seconds after which a second attempt is launched: d = F⁻¹(1 − β) of observed durations.

    A budget of β further launches per call fixes d (`benchmarks/evidence/hedging.py`). Raises ValueError without
    any durations.
    """
    if not durations:
        raise ValueError("a hedge delay needs observed durations")
    ordered = sorted(durations)
    return ordered[min(math.ceil((1.0 - budget) * len(ordered)), len(ordered) - 1)]


class HedgeBudget:
    """Tokens for further launches: each call earns `share`, each launch costs one; a few may be saved up."""

    __slots__ = ("_saved", "_share", "_tokens")

    def __init__(self, share: float, saved: float = 3.0) -> None:
        self._share = share
        self._saved = saved
        self._tokens = 1.0

    def earn(self) -> None:
        self._tokens = min(self._tokens + self._share, self._saved)

    def take(self) -> bool:
        """Spend a token, if there is one."""
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True
