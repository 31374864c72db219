"""Which gateways have given a sign of life, also while Redis's clock is set, by which they are dated. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from weighbridge.fleet.peers.board import GONE_AFTER

#: Seconds by which a look may take longer than another before a clock was set between them.
CLOSE = 2.5


class SignsOfLife:
    """Ages of signs, in seconds. Behind a step of Redis's clock all of them are as old as the step, or are gone from
    Redis: nobody who was there counts as gone until each has had the time to give another."""

    def __init__(self) -> None:
        self._ages: dict[str, float] = {}
        self._looked: tuple[float, float] | None = None  # by Redis's clock, and by our own
        self._doubted_until = float("-inf")

    def read(self, seen: Mapping[str, float], at: float, now: float) -> dict[str, float]:
        """Return the ages to go by. `seen`: those that Redis tells at `at` by its clock, 0.0 where it did not say;
        `now`: on a clock that nobody sets."""
        before, self._looked = self._looked, (at, now)
        if at and before is not None and abs((at - before[0]) - (now - before[1])) > CLOSE:
            self._doubted_until = now + GONE_AFTER
        if now < self._doubted_until:
            there = {name: age for name, age in self._ages.items() if age <= GONE_AFTER}
            self._ages = there | {name: min(age, self._ages.get(name, age)) for name, age in seen.items()}
        else:
            self._ages = dict(seen)
        return dict(self._ages)
