"""How many replicas there should be, from queued token work and from what clients see. Pure: the caller starts and
stops them.

Hysteresis in two ways: the bounds are apart, and each must hold for a while. Starting is quick because waiting
requests suffer; stopping is slow because a replica that was just stopped is dear to start again.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

#: Seconds that are looked back on; first tokens of them that are kept; seconds of one part of the rest.
WINDOW, MOST_FIRSTS, PART = 10.0, 512, 0.5
#: Fewer first tokens than this say nothing of the slowest tenth.
ENOUGH = 5
#: One replica less is to leave what clients see within so much of the bounds.
WELL_WITHIN = 0.8


@dataclass(frozen=True, slots=True)
class ScalingSettings:
    """One more when what waits would take over `high` seconds to work off, for `up_after` seconds; one less when
    the others would still be done with everything in `low` seconds, for `down_after` seconds. After each step
    nothing happens for `settle` seconds: the new replica has to load its model first.

    `ttft`, `itl`: seconds to the first token of nine requests of ten, and between two tokens, beyond which there is to
    be one more as well, whatever waits; and none less unless both stay well within. None: not looked at.
    """

    least: int = 1
    most: int = 1
    high: float = 5.0
    low: float = 1.0
    up_after: float = 2.0
    down_after: float = 60.0
    settle: float = 10.0
    ttft: float | None = None
    itl: float | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """What clients see, in seconds; None: not known."""

    ttft: float | None = None
    itl: float | None = None


UNMEASURED = Measured()


@dataclass(slots=True)
class _Part:
    """Some time: seconds that streams were open for, all together, and tokens that they brought."""

    began: float
    stream_seconds: float = 0.0
    tokens: int = 0


class Pulse:
    """How soon answers begin and how quickly tokens follow, over the last seconds of one model. Times are those of the
    caller's clock."""

    def __init__(self) -> None:
        self._firsts: deque[tuple[float, float]] = deque(maxlen=MOST_FIRSTS)
        self._parts: deque[_Part] = deque()
        self._seen: tuple[float, int] | None = None

    def first(self, seconds: float, now: float) -> None:
        """Take note of a first token that came so many seconds after its request."""
        self._firsts.append((now, seconds))

    def sample(self, streams: int, produced: int, now: float) -> None:
        """Take note of how many streams are open, and how many tokens there have ever been; called at regular times."""
        before, self._seen = self._seen, (now, produced)
        while self._parts and self._parts[0].began < now - WINDOW:
            self._parts.popleft()
        if before is None or now <= before[0]:
            return
        if not self._parts or now - self._parts[-1].began >= PART:
            self._parts.append(_Part(before[0]))
        part = self._parts[-1]
        part.stream_seconds += streams * (now - before[0])
        part.tokens += max(produced - before[1], 0)

    def ttft(self, now: float) -> float | None:
        """Seconds within which nine of ten requests had their first token; None where there were too few."""
        lately = sorted(seconds for at, seconds in self._firsts if at >= now - WINDOW)
        return lately[min(int(0.9 * len(lately)), len(lately) - 1)] if len(lately) >= ENOUGH else None

    def itl(self) -> float | None:
        """Mean seconds between two tokens of a stream; None where there were no streams."""
        seconds = sum(part.stream_seconds for part in self._parts)
        tokens = sum(part.tokens for part in self._parts)
        if seconds < PART:
            return None
        return seconds / max(tokens, 1)


class Scaler:
    """`decide` at regular times."""

    def __init__(self, settings: ScalingSettings) -> None:
        self.settings = settings
        self._above_since: float | None = None
        self._below_since: float | None = None
        self._quiet_until = float("-inf")

    def decide(
        self,
        replicas: int,
        queued_seconds: float | None,
        work_seconds: float | None,
        now: float,
        measured: Measured = UNMEASURED,
    ) -> int:
        """Return how many replicas more there should be: 1, 0 or -1.

        `queued_seconds`: in which all replicas work off what waits to be begun. `work_seconds`: in which they
        work off that and all that is in flight. None: no replica's speed is known; until one's is, only the bounds
        and what was `measured` decide.
        """
        rules = self.settings
        if replicas < rules.least:
            return 1
        if replicas > rules.most:
            return -1
        late = _beyond(measured.ttft, rules.ttft) or _beyond(measured.itl, rules.itl)
        if queued_seconds is None or work_seconds is None:
            above, below = late, False
        else:
            above = late or queued_seconds > rules.high
            below = self._fewer_would_do(replicas, work_seconds, measured)
        self._above_since = _since(self._above_since, above, now)
        self._below_since = _since(self._below_since, below, now)
        if now < self._quiet_until:
            return 0
        if replicas < rules.most and _held(self._above_since, rules.up_after, now):
            return self._step(1, now)
        if replicas > rules.least and _held(self._below_since, rules.down_after, now):
            return self._step(-1, now)
        return 0

    def _fewer_would_do(self, replicas: int, work_seconds: float, measured: Measured) -> bool:
        """Whether one replica less would still do all that there is, and clients would hardly see it."""
        if replicas < 2:
            return False
        rules, more = self.settings, replicas / (replicas - 1)
        well = [
            seen is None or bound is None or seen * more <= WELL_WITHIN * bound
            for seen, bound in ((measured.ttft, rules.ttft), (measured.itl, rules.itl))
        ]
        return work_seconds * more < rules.low and all(well)

    def _step(self, change: int, now: float) -> int:
        self._above_since = self._below_since = None
        self._quiet_until = now + self.settings.settle
        return change


def _since(before: float | None, holds: bool, now: float) -> float | None:
    if not holds:
        return None
    return now if before is None else before


def _beyond(seen: float | None, bound: float | None) -> bool:
    return seen is not None and bound is not None and seen > bound


def _held(since: float | None, seconds: float, now: float) -> bool:
    return since is not None and now - since >= seconds
