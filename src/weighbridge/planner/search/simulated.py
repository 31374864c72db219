"""The evaluator that simulates: the engine's own scheduler and the fleet's policy under a virtual clock.

It sits in the same seat as `queueing.analytic`. The busiest part of the trace runs through the candidate's
replicas, each with the plan's cache, batch limits and step cost; the quantiles asked for are read off.
"""

from __future__ import annotations

import numpy as np

from weighbridge.cost.price import Price
from weighbridge.cost.roofline import decode_share
from weighbridge.planner.search.queueing import Candidate, Forecast, slots_of
from weighbridge.planner.search.speed import SERVING_SECONDS, step_cost
from weighbridge.simulator.fleet import Run, SimulatedEngine, SimulatedFleet, SimulatedReplicaSpec, Simulation
from weighbridge.workload.quantiles import quantile
from weighbridge.workload.requests import SimulatedRequest, Span, TraceRow
from weighbridge.workload.slo import Slo
from weighbridge.workload.traffic import Traffic, busiest_arrivals

#: Requests simulated: enough for a 99th percentile, few enough for seconds.
MAX_REQUESTS = 1500


def simulated(candidate: Candidate, traffic: Traffic, slo: Slo) -> Forecast:
    """Judge by simulating up to `MAX_REQUESTS` requests around the busiest minute."""
    arrivals = busiest_arrivals(traffic, MAX_REQUESTS)
    fleet = SimulatedFleet(
        replicas=(_replica(candidate, traffic),) * (candidate.replicas * candidate.plan.deployment.dp)
    )
    run = Simulation(fleet, [_request(i, a) for i, a in enumerate(arrivals)], 0).run()
    return _read_off(run, len(arrivals), fleet.replicas[0].settings.max_sequences, slo)


def _replica(candidate: Candidate, traffic: Traffic) -> SimulatedReplicaSpec:
    """The plan as a simulated replica. Where layers keep windows or states, its cache is told in full requests."""
    plan = candidate.plan
    assert plan.kv is not None
    context = traffic.prompt + traffic.output / 2
    seats = max(min(plan.rules.max_num_seqs, int(slots_of(plan, context))), 1)
    own = plan.rules.engine == "weighbridge"
    settings = SimulatedEngine(
        profile="weighbridge" if own else "vllm",
        kv_tokens=max(int(plan.kv.max_concurrency * plan.length), plan.length),
        max_model_len=plan.length,
        max_batch_tokens=max(plan.rules.max_num_batched_tokens, seats),
        max_sequences=seats,
        enable_prefix_cache=False,  # a trace of lengths shares nothing
    ).settings()
    cost = step_cost(plan, candidate.device, decode_share(traffic.prompt, traffic.output))
    hourly = candidate.usd_per_hour / (candidate.replicas * plan.deployment.dp)
    return SimulatedReplicaSpec(cost=cost, settings=settings, price=Price(usd_per_hour=hourly))


def _request(number: int, row: TraceRow) -> SimulatedRequest:
    prompt = (Span(2 * number + 1, row.prompt_tokens),)
    length = row.output_tokens
    return SimulatedRequest(f"q{number}", row.at, prompt, length, length, answer=2 * number + 2)


def _read_off(run: Run, requests: int, seats: int, slo: Slo) -> Forecast:
    outcomes = run.outcomes
    failed = requests - len(outcomes)
    several = np.asarray(outcomes.output_tokens) > 1
    ttft = SERVING_SECONDS + (quantile(outcomes.ttft, slo.quantile) if len(outcomes) else np.inf)
    tpot = quantile(outcomes.tpot[several], slo.quantile)
    busy = [work.busy / max(run.seconds, 1e-9) for work in run.work.values()]
    batches = sum(work.sequences for work in run.work.values())
    iterations = sum(work.iterations for work in run.work.values())
    meets = not failed and slo.met(ttft, tpot)
    batch = batches / max(iterations, 1)
    why = (
        f"simulated {requests:,} requests of the busiest time: on average {batch:.1f} of {seats} seats taken, "
        f"something to compute for {max(busy):.0%} of it"
    )
    if failed:
        why += f", {failed} failed"
    return Forecast(meets, ttft, tpot, batch, batch / seats, why)
