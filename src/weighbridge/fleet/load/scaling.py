"""How many replicas there should be, from queued token work. Pure: the caller starts and stops them.

Hysteresis in two ways: the bounds are apart, and each must hold for a while. Starting is quick because waiting
requests suffer; stopping is slow because a replica that was just stopped is dear to start again.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ScalingSettings:
    """One more when what waits would take over `high` seconds to work off, for `up_after` seconds; one less when
    the others would still be done with everything in `low` seconds, for `down_after` seconds. After each step
    nothing happens for `settle` seconds: the new replica has to load its model first.
    """

    least: int = 1
    most: int = 1
    high: float = 5.0
    low: float = 1.0
    up_after: float = 2.0
    down_after: float = 60.0
    settle: float = 10.0


class Scaler:
    """`decide` at regular times."""

    def __init__(self, settings: ScalingSettings) -> None:
        self.settings = settings
        self._above_since: float | None = None
        self._below_since: float | None = None
        self._quiet_until = float("-inf")

    def decide(
        self, replicas: int, queued_seconds: float | None, work_seconds: float | None, now: float
    ) -> int:
        """Return how many replicas more there should be: 1, 0 or -1.

        `queued_seconds`: in which all replicas work off what waits to be begun. `work_seconds`: in which they
        work off that and all that is in flight. None: no replica's speed is known; until one's is, only the bounds
        decide.
        """
        rules = self.settings
        if replicas < rules.least:
            return 1
        if replicas > rules.most:
            return -1
        if queued_seconds is None or work_seconds is None:
            self._above_since = self._below_since = None
            return 0
        fewer = work_seconds * replicas / (replicas - 1) if replicas > 1 else float("inf")
        self._above_since = _since(self._above_since, queued_seconds > rules.high, now)
        self._below_since = _since(self._below_since, fewer < rules.low, now)
        if now < self._quiet_until:
            return 0
        if replicas < rules.most and _held(self._above_since, rules.up_after, now):
            return self._step(1, now)
        if replicas > rules.least and _held(self._below_since, rules.down_after, now):
            return self._step(-1, now)
        return 0

    def _step(self, change: int, now: float) -> int:
        self._above_since = self._below_since = None
        self._quiet_until = now + self.settings.settle
        return change


def _since(before: float | None, holds: bool, now: float) -> float | None:
    if not holds:
        return None
    return now if before is None else before


def _held(since: float | None, seconds: float, now: float) -> bool:
    return since is not None and now - since >= seconds
