"""Which date it is, for what a wrong clock must not cost: budgets of days, files that expire, windows of batches.

A clock that is set while we run may be put right by it, or be wrong from then on, and be set once more soon. So a step
is believed when the clock has stood by it for as long as it did before, an hour at most; until then time goes on as if
nobody had touched it. What is a matter of dates alone (keys and tokens that end) goes by the clock as it is.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, field

log = logging.getLogger("weighbridge.state")

#: Seconds by which a clock may be put right without being doubted.
CLOSE = 60.0
#: Seconds after which a step is believed, however long the clock stood as it was before.
LONGEST_DOUBT = 3600.0


@dataclass(slots=True)
class BelievedTime:
    """Pure: told what both clocks say, it says which of them to believe."""

    _ahead: float | None = None  # of the wall clock before the steady one, as believed
    _since: float = 0.0  # when that began, on the steady clock
    _doubted: float | None = None  # how far it is ahead since it was set
    _doubted_since: float = 0.0

    @property
    def step(self) -> float:
        """Seconds by which the wall clock was set and is not believed; 0.0: it is."""
        return 0.0 if self._doubted is None or self._ahead is None else self._doubted - self._ahead

    def at(self, wall: float, steady: float) -> float:
        """Seconds since the epoch. `wall`: what the wall clock says of them; `steady`: a clock that nobody sets."""
        ahead = wall - steady
        if self._ahead is None:
            self._ahead, self._since = ahead, steady
        if abs(ahead - self._ahead) <= CLOSE:
            self._ahead, self._doubted = ahead, None
            return wall
        if self._doubted is None or abs(ahead - self._doubted) > CLOSE:
            self._doubted_since = steady
        self._doubted = ahead
        if steady - self._doubted_since >= min(self._doubted_since - self._since, LONGEST_DOUBT):
            self._ahead, self._since, self._doubted = ahead, self._doubted_since, None
            return wall
        return steady + self._ahead


@dataclass(slots=True)
class _Clock:
    """The one of this process. Any thread may ask."""

    _believed: BelievedTime = field(default_factory=BelievedTime)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _told_of: float = 0.0

    def now(self) -> float:
        with self._lock:
            # A step between the two looks is no matter: the next ones tell it.
            now = self._believed.at(time.time(), _steady())
            step, before = self._believed.step, self._told_of
            self._told_of = step
        if step and abs(step - before) > CLOSE:
            log.warning(
                "the clock was set %s by %.0f s; budgets, batches and what expires follow if it stays so for an hour",
                "forward" if step > 0 else "back",
                abs(step),
            )
        return now


def _steady() -> float:
    """Seconds on a clock that nobody sets, and that goes on while the machine sleeps, where there is one."""
    try:
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    except (AttributeError, OSError):
        return time.monotonic()


_clock = _Clock()


def believed_time() -> float:
    """Return the seconds since the epoch, as far as the wall clock is believed."""
    return _clock.now()
