"""Whether a candidate meets its objectives, in closed form: one replica as a processor that many requests share.

With requests arriving at rate r, prompts of P and outputs of O tokens on average:

    prompts     busy a share  u = r x prefill(P)  of the time; u >= 1 never ends
    a step      s(B) = decode(B, B x (P + O/2)) / (1 - u): decoding B, with prompts computed in between
    batch       B = r x O x s(B)   (Little), solved by iteration; slots c = what cache and batch limit hold
    TPOT        s at the batch that is exceeded only with probability 1 - p: B + z sqrt(B), as B is Poisson
    TTFT        wait for a slot (Erlang C with c slots, exponential tail) + wait for other prompts (M/G/1,
                Pollaczek and Khinchine, exponential tail) + the longest usual prompt + one step

It knows nothing of bursts inside the busiest minute, of prefix hits or of preemption: a simulation does.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, log, sqrt
from statistics import NormalDist
from typing import Protocol

from weighbridge.cost.hardware import Device
from weighbridge.planner.memory.memory import MemoryPlan
from weighbridge.planner.search.speed import SERVING_SECONDS, step_cost
from weighbridge.workload.slo import Slo
from weighbridge.workload.traffic import Traffic


@dataclass(frozen=True, slots=True)
class Candidate:
    """A deployment that is judged: `replicas` times the plan, on `device`."""

    plan: MemoryPlan
    device: Device
    replicas: int
    usd_per_hour: float

    @property
    def gpus(self) -> int:
        return self.replicas * self.plan.deployment.gpus


@dataclass(frozen=True, slots=True)
class Forecast:
    """Quantiles at the objective's share, in seconds; `load` 1 is the most the candidate can carry."""

    meets: bool
    ttft: float
    tpot: float
    batch: float
    load: float
    why: str


class Evaluate(Protocol):
    """Anything that can judge a candidate: the closed form below, or a simulation."""

    def __call__(self, candidate: Candidate, traffic: Traffic, slo: Slo) -> Forecast: ...


def analytic(candidate: Candidate, traffic: Traffic, slo: Slo) -> Forecast:
    """Judge by the closed form above, at the rate of the busiest minute."""
    plan, device = candidate.plan, candidate.device
    rate = traffic.peak_rate / (candidate.replicas * plan.deployment.dp)
    prompt, output = traffic.prompt, traffic.output
    decode, prefill = step_cost(plan, device, 1.0), step_cost(plan, device, 0.0)
    chunk = max(plan.rules.max_num_batched_tokens, 256)
    mean_prefill = prefill.prefill_seconds(round(prompt), chunk=chunk)
    long_prefill = prefill.prefill_seconds(traffic.prompt_quantile(slo.quantile), chunk=chunk)
    busy = rate * mean_prefill
    slots = slots_of(plan, prompt + output / 2)
    if busy >= 1.0 or slots < 1:
        return Forecast(False, inf, inf, inf, max(busy, 1.0), "prompts alone need more time than there is")

    def step(batch: float) -> float:
        pairs = round(batch * (prompt + output / 2))
        return decode.seconds(max(round(batch), 1), max(round(batch), 1), pairs) / (1.0 - busy)

    batch = _little(step, rate * output, slots)
    load = max(batch / slots, busy)
    if batch >= slots:
        return Forecast(
            False, inf, step(slots), batch, load, f"{slots:.0f} requests fit at once, more would run"
        )
    z = NormalDist().inv_cdf(slo.quantile)
    tpot = step(min(batch + z * sqrt(batch), slots))
    wait_slot = _erlang_wait(batch, slots, output * step(batch), slo.quantile)
    second = mean_prefill * long_prefill  # E[S^2], from below by the mean squared, from above by the longest
    wait_prompt = _tail(rate * second / (2 * (1 - busy)), busy, slo.quantile)
    ttft = SERVING_SECONDS + wait_slot + wait_prompt + long_prefill + tpot
    meets = slo.met(ttft, tpot)
    why = f"about {batch:.0f} of {slots:.0f} requests run at once; prompts take {busy:.0%} of the time"
    return Forecast(meets, ttft, tpot, batch, load, why)


def slots_of(plan: MemoryPlan, context: float) -> float:
    """Return how many requests of average size cache and batch limit hold."""
    if plan.kv is None:
        return 0.0
    held = (
        plan.kv.max_concurrency
        * plan.length
        / max(context, plan.kv.block_size if plan.kv.state_bytes else 1.0)
    )
    return min(held, float(plan.rules.max_num_seqs))


def _little(step: _Step, produced: float, slots: float) -> float:
    """Return the batch B = produced x s(B), the smallest fixed point; `slots` when there is none below."""
    batch = 0.0
    for _ in range(200):
        following = produced * step(max(batch, 1.0))
        if following >= slots:
            return slots
        if abs(following - batch) < 1e-3 * max(batch, 1.0):
            return following
        batch = following
    return batch


class _Step(Protocol):
    def __call__(self, batch: float) -> float: ...


def _tail(mean_wait: float, busy: float, quantile: float) -> float:
    """Return the quantile of a wait that is 0 with probability 1 - busy, else exponential."""
    if busy <= 1.0 - quantile:
        return 0.0
    return mean_wait / max(busy, 1e-9) * log(busy / (1.0 - quantile))


def _erlang_wait(offered: float, slots: float, service: float, quantile: float) -> float:
    """Return the quantile of the wait in M/M/c with `slots` servers and `offered` erlangs of work."""
    servers = max(int(slots), 1)
    if offered >= servers:
        return inf
    waits = _erlang_c(offered, servers)
    if waits <= 1.0 - quantile:
        return 0.0
    return service / (servers - offered) * log(waits / (1.0 - quantile))


def _erlang_c(offered: float, servers: int) -> float:
    """Return the probability that an arrival waits (Erlang C), from the recursion of Erlang B, which is stable."""
    blocked = 1.0
    for count in range(1, servers + 1):
        blocked = offered * blocked / (count + offered * blocked)
    share = offered / servers
    return blocked / (1.0 - share + share * blocked)
