"""What a flow has learned: how long its steps take, and how its bets turn out at each call site."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from weighbridge.cost.mean import Mean
from weighbridge.flow.bets.gate import Belief, BetVerdict, Stakes, decide
from weighbridge.flow.bets.predict import History
from weighbridge.flow.hooks import ExecutionView, Hook
from weighbridge.flow.runtime import FlowRun
from weighbridge.flow.step_times import RECENT_WEIGHT, StepTimes

#: Outcomes are discounted by this factor each: a window of about 50.
FORGETTING = 0.98
#: Bets in the window over which a call site's realised value is summed, and how many can turn it off.
WINDOW, MIN_BETS = 32, 8


def _mean() -> Mean:
    return Mean(RECENT_WEIGHT)


@dataclass(slots=True)
class Site:
    """One call site of `guess`: how often each kind of prediction is right, and what bets have brought."""

    beliefs: dict[Hashable, Belief] = field(default_factory=dict)
    saving: Mean = field(default_factory=_mean)  # seconds a right guess takes off the critical path
    cost: Mean = field(default_factory=_mean)  # dollars it would start meanwhile
    spent: Mean = field(default_factory=_mean)  # share of that spent by lost bets
    realised: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))  # dollars, per bet

    @property
    def off(self) -> bool:
        """Whether betting here has lost money lately."""
        return len(self.realised) >= MIN_BETS and sum(self.realised) < 0.0

    def verdict(self, stakes: Stakes) -> BetVerdict:
        """Return the gate's verdict, unless the site is off."""
        verdict = decide(stakes)
        if verdict.launch and self.off:
            lost = -sum(self.realised)
            reason = f"the last {len(self.realised)} bets here lost ${lost:.3g} together"
            return replace(verdict, launch=False, reason=reason)
        return verdict


class WatchedServer(Protocol):
    """A server whose other users a bet may keep waiting."""

    def watch(self, run: FlowRun) -> None:
        """Find out how loaded it is, for bets to come."""
        ...

    def queued_seconds(self) -> float:
        """Return the seconds that another call would make all those wait longer who wait there, in total."""
        ...


class Learner(Hook):
    """Shared by all runs of a flow. `history`: what predicts where a guess names nobody."""

    def __init__(self) -> None:
        self.history = History()
        self.servers: set[WatchedServer] = set()
        self.steps: dict[str, StepTimes] = {}
        self.sites: dict[str, Site] = {}
        self._pool: dict[Hashable, Belief] = {}  # per predictor and rank, over all sites

    def finished(self, execution: ExecutionView) -> None:
        span = execution.span
        if execution.error is None and span is not None:
            times = self.step(span.name)
            times.add(span.seconds)
            times.usd.add(span.usd)

    def watch_servers(self, run: FlowRun) -> None:
        """Find out how loaded the servers are that the flow asks, for bets to come."""
        for server in list(self.servers):
            server.watch(run)

    def step(self, name: str) -> StepTimes:
        times = self.steps.get(name)
        if times is None:
            times = self.steps[name] = StepTimes()
        return times

    def site(self, name: str) -> Site:
        site = self.sites.get(name)
        if site is None:
            site = self.sites[name] = Site()
        return site

    def belief(self, site: str, kind: Hashable) -> Belief:
        """Return how often predictions of this `kind` are right at this site.

        A new site starts from what other sites have seen of the kind, counted as at most 20 outcomes; where
        nobody has seen anything, from Beta(2, 2).
        """
        beliefs = self.site(site).beliefs
        belief = beliefs.get(kind)
        if belief is None:
            pool = self._pool.get(kind)
            prior = (2.0, 2.0)
            if pool is not None and pool.count >= 20:
                strength = min(4.0 + pool.count / 10, 20.0)
                prior = (strength * pool.mean, strength * (1.0 - pool.mean))
            belief = beliefs[kind] = Belief(*prior, forgetting=FORGETTING)
        return belief

    def observe(self, site: str, kind: Hashable, right: bool) -> None:
        """A prediction was right or wrong; also learned from bets that were declined."""
        self.belief(site, kind).observe(right)
        self._pool.setdefault(kind, Belief(forgetting=0.998)).observe(right)

    # -- between processes -----------------------------------------------------------------------------

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON types: step durations and site averages, and beliefs with textual kinds."""
        return {
            "history": self.history.as_dict(),
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
        """Take over what `as_dict` of an earlier process gave, maybe of an older version."""
        if "history" in saved:
            self.history.restore(saved["history"])
        for name, seconds in saved.get("steps", {}).items():
            self.step(name).seconds.extend(seconds)
        for name, saved_site in saved.get("sites", {}).items():
            site = self.site(name)
            for kind, prior_won, prior_lost, won, lost in saved_site["beliefs"]:
                site.beliefs[tuple(kind)] = Belief(prior_won, prior_lost, FORGETTING, won, lost)
            for key, (count, value) in saved_site["averages"].items():
                average: Mean = getattr(site, key)
                average.count, average.value = count, value
            site.realised.extend(saved_site["realised"])
