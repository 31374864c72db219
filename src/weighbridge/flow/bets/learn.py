"""What a flow has learned: how long its steps take, and how its bets turn out at each call site."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from weighbridge.flow.bets.gate import Belief, BetVerdict, HedgeBudget, Stakes, decide, hedge_delay

if TYPE_CHECKING:
    from weighbridge.flow.run import Run

#: Outcomes are discounted by this factor each: a window of about 50.
FORGETTING = 0.98
#: Observed durations needed before a step is hedged.
HEDGE_AFTER = 20
#: Only calls slower than the quantile are hedged, not those that take just as long.
HEDGE_SLACK_SECONDS = 0.001
#: Bets in the window over which a call site's realised value is summed, and the fewest that can turn it off.
WINDOW, FEWEST = 32, 8
#: Event-loop time that placing a bet costs everybody: running the body once more.
BET_OVERHEAD_SECONDS = 0.001
#: Assumed duration of a step never seen.
UNKNOWN_SECONDS = 1.0


@dataclass(slots=True)
class Average:
    """Exponentially weighted mean that starts as a plain one."""

    weight: float = 0.1
    count: int = 0
    value: float = 0.0

    def add(self, sample: float) -> None:
        self.count += 1
        self.value += max(self.weight, 1.0 / self.count) * (sample - self.value)


class StepStats:
    """Durations of one step, the last 256, in seconds."""

    __slots__ = ("_hedges", "seconds", "usd")

    def __init__(self) -> None:
        self.seconds: deque[float] = deque(maxlen=256)
        self.usd = Average()
        self._hedges: HedgeBudget | None = None

    def add(self, seconds: float) -> None:
        self.seconds.append(seconds)

    def mean(self) -> float:
        return sum(self.seconds) / len(self.seconds) if self.seconds else UNKNOWN_SECONDS

    def remaining(self, elapsed: float) -> float:
        """Expected time to go for a call that has run for `elapsed`: the mean residual of longer ones."""
        if not self.seconds:
            return max(UNKNOWN_SECONDS - elapsed, 0.0)
        longer = [seconds - elapsed for seconds in self.seconds if seconds > elapsed]
        return sum(longer) / len(longer) if longer else 0.0

    def hedge_delay(self, share: float) -> float | None:
        """After how long a second copy is launched; None while too little is known. Earns budget."""
        if self._hedges is None:
            self._hedges = HedgeBudget(share)
        self._hedges.earn()
        if len(self.seconds) < HEDGE_AFTER:
            return None
        return hedge_delay(self.seconds, share) + HEDGE_SLACK_SECONDS

    def take_hedge(self) -> bool:
        return self._hedges is not None and self._hedges.take()


@dataclass(slots=True)
class Site:
    """One call site of `guess`: how often each kind of prediction is right, and what bets have brought."""

    beliefs: dict[Hashable, Belief] = field(default_factory=dict)
    saving: Average = field(default_factory=Average)  # seconds a right guess takes off the critical path
    cost: Average = field(default_factory=Average)  # dollars it would start meanwhile
    spent: Average = field(default_factory=Average)  # share of that spent by lost bets
    realised: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))  # dollars, per bet

    @property
    def off(self) -> bool:
        """Whether betting here has lost money lately."""
        return len(self.realised) >= FEWEST and sum(self.realised) < 0.0

    def verdict(self, stakes: Stakes) -> BetVerdict:
        """The gate's verdict, unless the site is off."""
        verdict = decide(stakes)
        if verdict.launch and self.off:
            lost = -sum(self.realised)
            reason = f"the last {len(self.realised)} bets here lost ${lost:.3g} together"
            return replace(verdict, launch=False, reason=reason)
        return verdict


class Queue(Protocol):
    """A server whose other users a bet may keep waiting."""

    def watch(self, run: Run) -> None:
        """Find out how loaded it is, for bets to come."""
        ...

    def queued_seconds(self) -> float:
        """Seconds that those who wait there would wait longer for one more call, all together."""
        ...


class Learner:
    """Shared by all runs of a flow."""

    def __init__(self) -> None:
        self.queues: set[Queue] = set()
        self.steps: dict[str, StepStats] = {}
        self.sites: dict[str, Site] = {}
        self._pool: dict[Hashable, Belief] = {}  # per predictor and rank, over all sites

    def step(self, name: str) -> StepStats:
        stats = self.steps.get(name)
        if stats is None:
            stats = self.steps[name] = StepStats()
        return stats

    def site(self, name: str) -> Site:
        site = self.sites.get(name)
        if site is None:
            site = self.sites[name] = Site()
        return site

    def belief(self, site: str, kind: Hashable) -> Belief:
        """How often predictions of this `kind` are right at this site.

        A new site starts from what other sites have seen of the kind, counted as at most 20 outcomes; where
        nobody has seen anything, from Beta(2, 2).
        """
        beliefs = self.site(site).beliefs
        known = beliefs.get(kind)
        if known is None:
            pool = self._pool.get(kind)
            prior = (2.0, 2.0)
            if pool is not None and pool.count >= 20:
                strength = min(4.0 + pool.count / 10, 20.0)
                prior = (strength * pool.mean, strength * (1.0 - pool.mean))
            known = beliefs[kind] = Belief(*prior, forgetting=FORGETTING)
        return known

    def observe(self, site: str, kind: Hashable, right: bool) -> None:
        """A prediction was right or wrong; also learned from bets that were declined."""
        self.belief(site, kind).observe(right)
        self._pool.setdefault(kind, Belief(forgetting=0.998)).observe(right)

    # -- between processes -----------------------------------------------------------------------------

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types: step durations and site averages, and beliefs with textual kinds."""
        return {
            "steps": {name: list(stats.seconds) for name, stats in self.steps.items()},
            "sites": {
                name: {
                    "beliefs": [
                        [list(kind), b.prior_won, b.prior_lost, b.won, b.lost]
                        for kind, b in site.beliefs.items()
                        if isinstance(kind, tuple) and all(isinstance(part, str | int) for part in kind)
                    ],
                    "averages": {
                        key: [getattr(site, key).count, getattr(site, key).value]
                        for key in ("saving", "cost", "spent")
                    },
                    "realised": list(site.realised),
                }
                for name, site in self.sites.items()
            },
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Take over what `as_dict` of an earlier process gave."""
        for name, seconds in saved.get("steps", {}).items():
            self.step(name).seconds.extend(seconds)
        for name, one in saved.get("sites", {}).items():
            site = self.site(name)
            for kind, prior_won, prior_lost, won, lost in one["beliefs"]:
                site.beliefs[tuple(kind)] = Belief(prior_won, prior_lost, FORGETTING, won, lost)
            for key, (count, value) in one["averages"].items():
                average: Average = getattr(site, key)
                average.count, average.value = count, value
            site.realised.extend(one["realised"])
