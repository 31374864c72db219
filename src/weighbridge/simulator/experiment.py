"""Experiments: one fleet over several seeds, several fleets side by side, and rates up to the knee."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from weighbridge.errors import BadInput
from weighbridge.simulator.fleet import SimulatedFleet, Simulation
from weighbridge.simulator.report import over_seeds, summary
from weighbridge.simulator.side_by_side import Mapper
from weighbridge.workload.requests import SimulatedRequest
from weighbridge.workload.slo import USUAL, Slo
from weighbridge.workload.synthetic import Synthetic

#: How closely the knee is searched, as a ratio of rates.
CLOSE = 1.05
#: Rates a knee's curve is drawn by, as factors of the knee.
AROUND = (0.25, 0.5, 0.75, 1.25, 1.5, 2.0)
_ROUNDS = 12


class RequestSource(Protocol):
    """Where requests come from. Bounded, the same for the same seed and rate."""

    @property
    def shares(self) -> bool:
        """Return whether prompts share their beginnings."""
        ...

    @property
    def rate(self) -> float:
        """Return how many requests a second come on average, unscaled."""
        ...

    def requests(self, seed: int, rate: float | None = None) -> Iterable[SimulatedRequest]: ...


@dataclass(frozen=True, slots=True)
class SyntheticSource:
    spec: Synthetic

    @property
    def shares(self) -> bool:
        return self.spec.shares

    @property
    def rate(self) -> float:
        return self.spec.rate

    def requests(self, seed: int, rate: float | None = None) -> Iterable[SimulatedRequest]:
        spec = self.spec if rate is None else replace(self.spec, rate=rate)
        return spec.generate(seed)


@dataclass(frozen=True, slots=True)
class RecordedSource:
    """A trace. Seed 0 is the trace as it is; each further seed begins elsewhere in it and goes round."""

    recorded: Sequence[SimulatedRequest]
    shares: bool = False

    @property
    def rate(self) -> float:
        span = self.recorded[-1].at - self.recorded[0].at
        return (len(self.recorded) - 1) / span if span > 0.0 else 0.0

    def requests(self, seed: int, rate: float | None = None) -> Iterable[SimulatedRequest]:
        own = self.rate
        if rate is not None and not own:
            raise BadInput(
                "this trace has all its requests at one time: it has no rate to change", param="rate"
            )
        factor = own / rate if rate else 1.0
        span = self.recorded[-1].at + (1.0 / own if own else 0.0)
        start = seed * 7919 % len(self.recorded)
        turned = [*self.recorded[start:], *(replace(one, at=one.at + span) for one in self.recorded[:start])]
        first = turned[0].at
        return [replace(one, at=(one.at - first) * factor) for one in turned]


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """A fleet and what it is asked. `report` hears of (done, all) runs; `mapper` carries them out (`side_by_side`)."""

    fleet: SimulatedFleet
    source: RequestSource
    targets: Slo = USUAL
    seeds: Sequence[int] = (0,)
    rate: float | None = None
    report: Callable[[int, int], None] | None = None
    mapper: Mapper = map

    def run(self) -> dict[str, Any]:
        """Return the figures over all seeds; see `report.summary`."""
        return self._over_seeds([(self.fleet, self.rate)])[0]

    def compare(self, fleets: Mapping[str, SimulatedFleet]) -> dict[str, dict[str, Any]]:
        """Return the figures of each of `fleets` under the same requests."""
        results = self._over_seeds([(fleet, self.rate) for fleet in fleets.values()])
        return dict(zip(fleets, results, strict=True))

    def sweep(self, rates: Sequence[float]) -> dict[str, Any]:
        """Return figures at each rate, and the knee: the highest rate at which as many are good as `targets` ask."""
        points = self._at(*sorted(rates))
        good = [point["rate"] for point in points if point["good_share"] >= self.targets.quantile]
        return {"served_share": self.targets.quantile, "knee_rps": max(good, default=None), "points": points}

    def find_knee(self, start: float | None = None) -> dict[str, Any]:
        """Double or halve from `start` (None: the workload's own rate) until the knee is enclosed, then bisect; last
        the rates around it that a curve needs (`AROUND`)."""
        rate = start or self.source.rate or 1.0
        points = self._at(rate)
        for _ in range(_ROUNDS):
            served = [p["rate"] for p in points if p["good_share"] >= self.targets.quantile]
            missed = [p["rate"] for p in points if p["good_share"] < self.targets.quantile]
            low, high = max(served, default=0.0), min(missed, default=float("inf"))
            if low and high < float("inf") and high / low <= CLOSE:
                break
            if not low:
                rate = high / 2
            elif high == float("inf"):
                rate = low * 2
            else:
                rate = (low * high) ** 0.5
            points += self._at(rate)
        knee = max((p["rate"] for p in points if p["good_share"] >= self.targets.quantile), default=None)
        around = [knee * factor for factor in AROUND] if knee is not None else []
        missing = [r for r in around if all(abs(math.log(r / p["rate"])) > math.log(1.1) for p in points)]
        points += self._at(*missing)
        points.sort(key=lambda point: float(point["rate"]))
        served = [p["rate"] for p in points if p["good_share"] >= self.targets.quantile]
        return {
            "served_share": self.targets.quantile,
            "knee_rps": max(served, default=None),
            "points": points,
        }

    def _at(self, *rates: float) -> list[dict[str, Any]]:
        results = self._over_seeds([(self.fleet, rate) for rate in rates])
        return [{"rate": rate, **result} for rate, result in zip(rates, results, strict=True)]

    def _over_seeds(self, cases: Sequence[tuple[SimulatedFleet, float | None]]) -> list[dict[str, Any]]:
        """Return the figures of each (fleet, rate) over all seeds."""
        jobs = [
            _Job(fleet, self.source, self.targets, seed, rate) for fleet, rate in cases for seed in self.seeds
        ]
        summaries = []
        for one in self.mapper(_Job.measure, jobs):
            summaries.append(one)
            if self.report is not None:
                self.report(len(summaries), len(jobs))
        each = len(self.seeds)
        return [over_seeds(summaries[i : i + each]) for i in range(0, len(jobs), each)]


@dataclass(frozen=True, slots=True)
class _Job:
    """Run one fleet once and return its figures."""

    fleet: SimulatedFleet
    source: RequestSource
    targets: Slo
    seed: int
    rate: float | None

    def measure(self) -> dict[str, Any]:
        run = Simulation(self.fleet, self.source.requests(self.seed, self.rate), self.seed).run()
        return summary(run, self.fleet, self.targets)
