"""What a run says: latencies, throughput, goodput, use of the machines; and intervals over several seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from weighbridge.simulator.fleet import Run, SimulatedFleet
from weighbridge.workload.quantiles import percentile_name, quantiles_ms
from weighbridge.workload.slo import Slo

SHARES = (0.5, 0.9, 0.95, 0.99)

#: Two-sided 95 % quantiles of Student's t by degrees of freedom; beyond, the normal's.
_T95 = (
    12.706,
    4.303,
    3.182,
    2.776,
    2.571,
    2.447,
    2.365,
    2.306,
    2.262,
    2.228,
    2.201,
    2.179,
    2.160,
    2.145,
    2.131,
)


def summary(run: Run, fleet: SimulatedFleet, targets: Slo, warm_up: float = 0.0) -> dict[str, Any]:
    """Return all figures of a run as plain JSON types. Latencies in ms, rates per second, shares from 0 to 1.

    Requests that arrived before `warm_up` seconds are left out of those that are per request or token of them.
    """
    outcomes = run.outcomes.arrived_from(warm_up) if warm_up else run.outcomes
    seconds = (run.seconds - warm_up) or 1.0
    tokens = int(np.sum(outcomes.output_tokens)) if len(outcomes) else 0
    prompts = int(np.sum(outcomes.prompt_tokens)) if len(outcomes) else 0
    cached = int(np.sum(outcomes.cached_tokens)) if len(outcomes) else 0
    good = int(np.sum((outcomes.ttft <= targets.ttft_s) & (outcomes.tpot <= targets.tpot_s)))
    failed = sum(outcomes.errors.values())
    usd, replicas = _usd(run, fleet), _replicas(run, fleet)
    return {
        "requests": len(outcomes) + failed,
        "failed": failed,
        "errors": dict(sorted(outcomes.errors.items())),
        "left_out": run.left_out,
        "seconds": seconds,
        "ttft_ms": _quantiles_ms(outcomes.ttft),
        "tpot_ms": _quantiles_ms(outcomes.tpot[np.asarray(outcomes.output_tokens) > 1]),
        "itl_ms": {percentile_name(share): run.gaps.quantile(share) * 1e3 for share in SHARES},
        "e2e_ms": _quantiles_ms(outcomes.e2e),
        "gateway_wait_ms": _quantiles_ms(np.asarray(outcomes.dispatched) - np.asarray(outcomes.arrived)),
        "requests_per_s": len(outcomes) / seconds,
        "output_tokens_per_s": tokens / seconds,
        "total_tokens_per_s": (tokens + prompts) / seconds,
        "goodput_rps": good / seconds,
        "good_share": good / (len(outcomes) + failed) if len(outcomes) + failed else 0.0,
        "prefix_hit_rate": cached / prompts if prompts else 0.0,
        "preemptions": outcomes.preemptions,
        "retries": outcomes.retries,
        "imbalance": run.imbalance,
        "peak_gateway_queue": run.peak_queue,
        "mean_replicas": sum(run.present.values()) / run.seconds if run.seconds else 0.0,
        "most_replicas": max((size for at, size in run.sizes if at <= run.seconds), default=0),
        "usd": usd,
        "usd_per_million_output_tokens": usd / tokens * 1e6 if tokens else 0.0,
        "utilization": _mean([replica["utilization"] for replica in replicas.values()]),
        "kv_occupancy": _mean([replica["kv_occupancy"] for replica in replicas.values()]),
        "replicas": replicas,
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _quantiles_ms(seconds: Any) -> dict[str, float]:
    mean = float(np.mean(seconds)) if len(seconds) else 0.0
    return {"mean": mean * 1e3, **quantiles_ms(seconds, SHARES)}


def _replicas(run: Run, fleet: SimulatedFleet) -> dict[str, dict[str, float]]:
    settings = fleet.replicas[0].settings
    pool = settings.num_blocks * settings.block_size
    return {
        name: {
            "utilization": work.busy / max(run.present.get(name.partition("@")[0], run.seconds), 1e-9),
            "iterations": work.iterations,
            "tokens_per_iteration": work.batch_tokens / work.iterations if work.iterations else 0.0,
            "sequences_per_iteration": work.sequences / work.iterations if work.iterations else 0.0,
            "kv_occupancy": work.context_seconds
            / (pool * max(run.present.get(name.partition("@")[0], run.seconds), 1e-9)),
            "requests": run.outcomes.replicas.get(name, 0),
        }
        for name, work in run.work.items()
    }


def _usd(run: Run, fleet: SimulatedFleet) -> float:
    hourly = [replica.price.usd_per_hour for replica in fleet.replicas]
    by_name = {f"r{number}": price for number, price in enumerate(hourly)}
    return sum(by_name.get(name, hourly[0]) * seconds / 3600.0 for name, seconds in run.present.items())


# -- over seeds ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Estimate:
    """Return the mean over seeds with its 95 % confidence interval (Student's t); of a single seed, only the value."""

    mean: float
    low: float
    high: float

    @staticmethod
    def of(values: Sequence[float]) -> Estimate:
        mean = statistics.fmean(values)
        if len(values) < 2:
            return Estimate(mean, mean, mean)
        freedom = len(values) - 1
        t = _T95[freedom - 1] if freedom <= len(_T95) else 1.96
        half = t * statistics.stdev(values) / math.sqrt(len(values))
        return Estimate(mean, mean - half, mean + half)

    def as_dict(self) -> dict[str, float]:
        return {"mean": self.mean, "low": self.low, "high": self.high}


def over_seeds(summaries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the same figures, each the mean over seeds (of a replica, over those it was there in); those that differ
    with their interval under `intervals`.
    """
    merged: dict[str, Any] = {}
    intervals: dict[str, Any] = {}
    for key in summaries[0]:
        values = [figures[key] for figures in summaries]
        if isinstance(values[0], Mapping):
            if key == "errors":
                merged[key] = {
                    name: sum(v.get(name, 0) for v in values) for name in sorted(set().union(*values))
                }
                continue
            if key == "replicas":
                merged[key] = _mean_of_replicas(values)
                continue
            merged[key] = {name: _mean([value[name] for value in values]) for name in values[0]}
            intervals[key] = {
                name: Estimate.of([value[name] for value in values]).as_dict() for name in values[0]
            }
        else:
            merged[key] = _mean(values)
            intervals[key] = Estimate.of(values).as_dict()
    return {"seeds": len(summaries), **merged, "intervals": intervals}


def _mean_of_replicas(values: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    return {
        name: {key: _mean([figures[key] for figures in there]) for key in there[0]}
        for name in sorted(set().union(*values), key=_numbered)
        if (there := [value[name] for value in values if name in value])
    }


def _numbered(name: str) -> tuple[str, int, str]:
    """Return a sort key that puts r2 before r10."""
    word = name.partition("@")[0].rstrip("0123456789")
    digits = name.partition("@")[0][len(word) :]
    return word, int(digits or 0), name
