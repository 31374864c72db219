"""Machines for which queueing theory knows the answer, built from the real scheduler, policies and queue."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from weighbridge.cost import StepCost
from weighbridge.fleet.load.queue import QueueSettings
from weighbridge.simulator.fleet import Run, SimulatedEngine, SimulatedFleet, SimulatedReplicaSpec, Simulation
from weighbridge.workload.requests import SimulatedRequest, Span

#: Two-sided 99 % quantiles of Student's t by degrees of freedom 1 to 11.
T99 = (63.66, 9.925, 5.841, 4.604, 4.032, 3.707, 3.499, 3.355, 3.250, 3.169, 3.106)

MOST = 40_000


@dataclass(frozen=True)
class Interval:
    mean: float
    half: float

    def holds(self, value: float) -> bool:
        return abs(value - self.mean) <= self.half

    def __str__(self) -> str:
        return f"{self.mean:.4g} ± {self.half:.2g}"


def interval(values: Sequence[float]) -> Interval:
    """The mean with its 99 % confidence interval."""
    half = T99[len(values) - 2] * statistics.stdev(values) / math.sqrt(len(values))
    return Interval(statistics.fmean(values), half)


def constant_step(seconds: float) -> StepCost:
    """Every iteration takes this long, whatever is in it."""
    return StepCost(overhead=seconds, memory=0.0, per_token=0.0, per_context_token=0.0, per_sequence=0.0)


def single_server(step: float, concurrency: int | None = None) -> SimulatedReplicaSpec:
    """Serves one request at a time, first come first served, for `step` seconds per output token.

    `concurrency` None: further requests wait in the replica, else (1) in the gateway.
    """
    settings = SimulatedEngine(
        profile="vllm", kv_tokens=MOST + 64, max_model_len=MOST, max_sequences=1, enable_prefix_cache=False
    ).settings()
    return SimulatedReplicaSpec(
        cost=constant_step(step), settings=settings, concurrency=concurrency or 1 << 30
    )


def fleet_of(
    *replicas: SimulatedReplicaSpec, policy: str = "random", ageing: float | None = None
) -> SimulatedFleet:
    # Who is served is served to the end, as in the books: nobody is sent to a replica that would let others give way.
    queue = QueueSettings(max_requests=1 << 30, ageing_seconds=ageing, tenant_patience=math.inf)
    return SimulatedFleet(replicas=replicas, policy=policy, queue=queue, prefix_index=False)


def poisson(
    rate: float,
    number: int,
    outputs: Callable[[random.Random], int],
    seed: int,
    *,
    prompts: Callable[[random.Random], int] = lambda rng: 1,
    priority: Callable[[int], int] = lambda output: 0,
) -> Iterator[SimulatedRequest]:
    """`number` Poisson arrivals with these lengths; `priority` by the output's true length."""
    rng, now = random.Random(f"queueing {seed}"), 0.0
    for index in range(number):
        now += rng.expovariate(rate)
        output, prompt = outputs(rng), prompts(rng)
        yield SimulatedRequest(
            f"r{index}",
            now,
            (Span(2 * index + 1, prompt),),
            output,
            20_000,
            2 * index + 2,
            priority=priority(output),
        )


def runs(
    fleet: SimulatedFleet,
    make: Callable[[int], Iterator[SimulatedRequest]],
    seeds: int,
    figure: Callable[[Run], float],
) -> Interval:
    return interval([figure(Simulation(fleet, make(seed), seed).run()) for seed in range(seeds)])


def waiting(step: float) -> Callable[[Run], float]:
    """Mean seconds before a request's first iteration begins: its prompt is one iteration."""
    return lambda run: float(run.outcomes.ttft.mean()) - step


def sojourn(run: Run) -> float:
    return float(run.outcomes.e2e.mean())
