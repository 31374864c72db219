"""What would have been different: requests that came lately, through a fleet as it is and as it might be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from msgspec import Meta, Struct

from weighbridge.cost.price import Price
from weighbridge.cost.step import StepCost
from weighbridge.errors import BadInput
from weighbridge.simulator.fleet import (
    Run,
    SimulatedEngine,
    SimulatedFleet,
    SimulatedReplicaSpec,
    Simulation,
)
from weighbridge.simulator.report import summary
from weighbridge.workload.requests import SimulatedRequest, Span
from weighbridge.workload.slo import Slo

#: The largest question that is answered.
MOST_REQUESTS, MOST_REPLICAS = 2000, 64
#: Points of a curve over the time of a run.
POINTS = 40

_FIGURES = (
    "requests",
    "failed",
    "ttft_ms",
    "tpot_ms",
    "e2e_ms",
    "gateway_wait_ms",
    "goodput_rps",
    "good_share",
    "output_tokens_per_s",
    "prefix_hit_rate",
    "preemptions",
    "utilization",
    "kv_occupancy",
    "usd",
)


class ReplicaNow(Struct):
    """A replica as it is known: its step cost in seconds, and what it holds."""

    cost: dict[str, float]
    kv_tokens: Annotated[int, Meta(ge=1, le=10**10)]
    max_sequences: Annotated[int, Meta(ge=1, le=10**5)] = 256
    max_batch_tokens: Annotated[int, Meta(ge=1, le=10**6)] = 2048
    max_model_len: Annotated[int, Meta(ge=2, le=10**8)] = 32_768
    usd_per_hour: Annotated[float, Meta(ge=0.0, le=1e6)] = 0.0


class Came(Struct):
    """A request that came: `at` seconds after the first, its tokens, and how many of its prompt were cached."""

    at: Annotated[float, Meta(ge=0.0, le=1e7)]
    prompt_tokens: Annotated[int, Meta(ge=0, le=10**8)]
    output_tokens: Annotated[int, Meta(ge=0, le=10**8)]
    cached_tokens: Annotated[int, Meta(ge=0, le=10**8)] = 0
    tenant: Annotated[str, Meta(max_length=200)] = "default"


class WhatIf(Struct):
    """A question. `more`: replicas like the first that come, or how many go; `rate`: times as many requests."""

    replicas: Annotated[list[ReplicaNow], Meta(min_length=1, max_length=MOST_REPLICAS)]
    requests: Annotated[list[Came], Meta(min_length=1, max_length=MOST_REQUESTS)]
    policy: str = "weigh"
    more: Annotated[int, Meta(ge=-MOST_REPLICAS, le=MOST_REPLICAS)] = 1
    rate: Annotated[float, Meta(ge=0.05, le=20.0)] = 1.0
    ttft_s: Annotated[float, Meta(gt=0.0, le=1e4)] = 1.0
    tpot_s: Annotated[float, Meta(gt=0.0, le=1e4)] = 0.1


def answer(asked: WhatIf) -> dict[str, Any]:
    """Both runs: the fleet as it is, and changed. Raises BadInput for a fleet that would have nobody or too many."""
    count = len(asked.replicas) + asked.more
    if not 1 <= count <= MOST_REPLICAS:
        raise BadInput(
            f"more: {asked.more} would make it {count} replicas; 1 to {MOST_REPLICAS} can be simulated"
        )
    now = [_replica(one) for one in asked.replicas]
    changed = (now + [now[0]] * max(asked.more, 0))[:count]
    targets = Slo(asked.ttft_s, asked.tpot_s)
    requests, same_rate = _requests(asked.requests, asked.rate), _requests(asked.requests, 1.0)
    return {
        "as_is": _run(now, asked.policy, same_rate, targets),
        "changed": _run(changed, asked.policy, requests, targets),
    }


def _replica(one: ReplicaNow) -> SimulatedReplicaSpec:
    """Raises BadInput for a step cost that is none."""
    try:
        cost = StepCost(**one.cost)
    except TypeError:
        raise BadInput("cost: has other fields than those of a step cost") from None
    engine = SimulatedEngine(
        kv_tokens=one.kv_tokens,
        max_model_len=one.max_model_len,
        max_batch_tokens=one.max_batch_tokens,
        max_sequences=one.max_sequences,
    )
    return SimulatedReplicaSpec(
        cost=cost, settings=engine.settings(), price=Price(usd_per_hour=one.usd_per_hour)
    )


def _requests(came: Sequence[Came], rate: float) -> list[SimulatedRequest]:
    """The same requests, `rate` times as close to each other.

    What of a prompt was cached is taken for a beginning that its tenant's prompts share; nothing else is known of it.
    """
    tenants = {name: number for number, name in enumerate(dict.fromkeys(one.tenant for one in came), 1)}
    found, first = [], len(tenants) + 1
    for number, one in enumerate(sorted(came, key=lambda each: each.at)):
        shared = min(one.cached_tokens, max(one.prompt_tokens - 1, 0))
        own = max(one.prompt_tokens, 1) - shared
        spans = (*((Span(tenants[one.tenant], shared),) if shared else ()), Span(first + 2 * number, own))
        output = max(one.output_tokens, 1)
        found.append(
            SimulatedRequest(
                str(number), one.at / rate, spans, output, output, first + 2 * number + 1, one.tenant
            )
        )
    return found


def _run(
    replicas: Sequence[SimulatedReplicaSpec], policy: str, requests: Sequence[SimulatedRequest], targets: Slo
) -> dict[str, Any]:
    fleet = SimulatedFleet(replicas=tuple(replicas), policy=policy)
    run = Simulation(fleet, requests).run()
    told = summary(run, fleet, targets)
    return {
        "replicas": len(replicas),
        "seconds": told["seconds"],
        "busy": {name: one["utilization"] for name, one in told["replicas"].items()},
        "curve": _curve(run),
        **{name: told[name] for name in _FIGURES},
    }


def _curve(run: Run) -> dict[str, list[float | None]]:
    """Time to first token of the requests that arrived in each part of the run, in ms."""
    arrived, ttft = np.asarray(run.outcomes.arrived), run.outcomes.ttft * 1e3
    end = max(run.seconds, 1e-9)
    part = np.minimum((arrived / end * POINTS).astype(int), POINTS - 1)
    curve: dict[str, list[float | None]] = {"seconds": [], "ttft_p50_ms": [], "ttft_p95_ms": []}
    for number in range(POINTS):
        there = ttft[part == number]
        curve["seconds"].append(round((number + 0.5) * end / POINTS, 3))
        for name, share in (("ttft_p50_ms", 0.5), ("ttft_p95_ms", 0.95)):
            curve[name].append(round(float(np.quantile(there, share)), 3) if len(there) else None)
    return curve
