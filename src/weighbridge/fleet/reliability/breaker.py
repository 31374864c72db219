"""A circuit breaker per replica. It counts outcomes, never durations: a long healthy generation is a success."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class BreakerSettings:
    """Open after `failures` in a row, or when more than `failure_rate` of at least `minimum` outcomes within
    `window` seconds failed. It stays open `cool_off` seconds, twice as long after each failed trial, at most
    `longest_cool_off`.
    """

    failures: int = 5
    failure_rate: float = 0.5
    minimum: int = 20
    window: float = 30.0
    cool_off: float = 1.0
    longest_cool_off: float = 30.0


class BreakerState(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"  # one request is on trial


class CircuitBreaker:
    """Pure: times are passed in. A success is a first byte, so the length of an answer does not matter."""

    def __init__(self, settings: BreakerSettings) -> None:
        self._settings = settings
        self._outcomes: deque[tuple[float, bool]] = deque()
        self._failed = 0  # of the outcomes in the window
        self._in_a_row = 0
        self._cool_off = settings.cool_off
        self.open_until: float | None = None  # when the next trial may start; None while closed
        self._trial_since: float | None = None

    def state(self, now: float) -> BreakerState:
        if self.open_until is None:
            return BreakerState.CLOSED
        return BreakerState.OPEN if now < self.open_until else BreakerState.HALF_OPEN

    @property
    def is_well(self) -> bool:
        """Whether nothing failed within the window."""
        return self.open_until is None and not self._failed

    def allows(self, now: float) -> bool:
        """Whether a request may go now. Half open, one may until its outcome is known or it took too long."""
        state = self.state(now)
        if state is BreakerState.HALF_OPEN:
            return self._trial_since is None or now - self._trial_since > self._settings.longest_cool_off
        return state is BreakerState.CLOSED

    def sent(self, now: float) -> None:
        """Take note that a request goes out; half open, it is the trial."""
        if self.state(now) is BreakerState.HALF_OPEN:
            self._trial_since = now

    def succeeded(self, now: float) -> None:
        self._in_a_row = 0
        self._note(now, failed=False)
        if self.open_until is not None and now >= self.open_until:
            self._close()

    def failed(self, now: float) -> None:
        self._in_a_row += 1
        self._note(now, failed=True)
        state = self.state(now)
        if state is BreakerState.OPEN:
            return  # requests sent before it opened
        if state is BreakerState.HALF_OPEN:
            self._cool_off = min(2 * self._cool_off, self._settings.longest_cool_off)
            self._open(now)
        elif self._in_a_row >= self._settings.failures or self._mostly_failing():
            self._open(now)

    def gave_up(self) -> None:
        """Free the place of a trial that was cancelled; nothing was learned."""
        self._trial_since = None

    def _open(self, now: float) -> None:
        self.open_until = now + self._cool_off
        self._trial_since = None

    def _close(self) -> None:
        self.open_until = self._trial_since = None
        self._cool_off = self._settings.cool_off
        self._outcomes.clear()
        self._failed = self._in_a_row = 0

    def _mostly_failing(self) -> bool:
        seen = len(self._outcomes)
        return seen >= self._settings.minimum and self._failed > self._settings.failure_rate * seen

    def _note(self, now: float, *, failed: bool) -> None:
        self._outcomes.append((now, failed))
        self._failed += failed
        while self._outcomes[0][0] < now - self._settings.window:
            self._failed -= self._outcomes.popleft()[1]
