"""Which deployment carries the traffic for least money: every device, parallelism and format, the fewest replicas."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from weighbridge.cost.hardware import Device, devices
from weighbridge.errors import BadInput
from weighbridge.planner.memory.memory import MemoryPlan, PlannedModel, plan_memory
from weighbridge.planner.memory.request import Deployment
from weighbridge.planner.search.queueing import Candidate, Evaluate, Forecast, analytic
from weighbridge.workload.slo import Slo
from weighbridge.workload.traffic import Traffic

_MAX_REPLICAS = 64
_PARALLEL = (1, 2, 4, 8)


@dataclass(frozen=True, slots=True)
class Recommendation:
    """A candidate that meets the objectives, and what to expect of it."""

    candidate: Candidate
    forecast: Forecast


@dataclass(frozen=True, slots=True)
class Search:
    """What may be varied. None: the search chooses; a value: it stays."""

    devices: Sequence[Device] | None = None
    tp: int | None = None
    weights: str | None = None
    kv_dtype: str | None = None
    gpus: int | None = None  # at most
    usd_per_device_hour: float | None = None  # None: each device's own price


def recommend(
    model: PlannedModel,
    base: Deployment,
    traffic: Traffic,
    slo: Slo,
    search: Search,
    evaluate: Evaluate = analytic,
) -> list[Recommendation]:
    """Return deployments that meet `slo`, cheapest first; of equal cost the least quantised, then the lightest loaded.

    One entry for each device and format: the best of its parallelisms and caches. Raises BadInput when nothing does.
    """
    base = replace(base, max_model_len=base.max_model_len or -(-traffic.longest // 256) * 256)
    best: dict[tuple[str, str | None], Recommendation] = {}
    reason = "no device of the catalogue holds the model"
    for plan, device in _plans(model, base, search):
        choice, problem = _fewest(plan, device, traffic, slo, search, evaluate)
        if choice is None:
            reason = problem
            continue
        key = (device.name, plan.deployment.weights)
        if key not in best or _rank(choice) < _rank(best[key]):
            best[key] = choice
    if not best:
        raise BadInput(f"nothing meets the objectives: {reason}; relax --slo or allow more with --count")
    return sorted(best.values(), key=_rank)


def _plans(model: PlannedModel, base: Deployment, search: Search) -> Iterator[tuple[MemoryPlan, Device]]:
    """Yield plans that fit, over everything that may vary."""
    pool = search.devices or [x for x in devices() if x.kind == "datacenter" and x.rentable]
    local = base.engine in ("llama.cpp", "weighbridge")
    for device in pool:
        for tp in (search.tp,) if search.tp else (1,) if local else _PARALLEL:
            if search.gpus and tp > search.gpus:
                continue
            for weights in _formats(model, base, search, device):
                for kv in _caches(base, search, device):
                    flags = replace(base, tp=tp, weights=weights, kv_dtype=kv)
                    try:
                        plan = plan_memory(model, flags, device)
                    except BadInput:
                        continue
                    if plan.fits:
                        yield plan, device


def _formats(model: PlannedModel, base: Deployment, search: Search, device: Device) -> tuple[str | None, ...]:
    if search.weights or model.exact or base.engine == "weighbridge":
        return (search.weights,)
    if base.engine == "llama.cpp":
        return ("q8_0", "q4_k_m")
    if model.architecture.quantization:  # published quantised: as it is
        return (None,)
    return (None, "fp8", "awq") if device.fp8_tflops else (None, "awq")


def _caches(base: Deployment, search: Search, device: Device) -> tuple[str, ...]:
    if search.kv_dtype:
        return (search.kv_dtype,)
    if base.engine == "llama.cpp":
        return ("auto", "q8_0")
    return ("auto", "fp8") if device.fp8_tflops and base.engine != "weighbridge" else ("auto",)


def _fewest(
    plan: MemoryPlan, device: Device, traffic: Traffic, slo: Slo, search: Search, evaluate: Evaluate
) -> tuple[Recommendation | None, str]:
    """Find the fewest replicas that meet the objectives, by doubling and bisection; else say why not."""
    per_replica = plan.deployment.gpus
    limit = min(_MAX_REPLICAS, (search.gpus or _MAX_REPLICAS * per_replica) // per_replica)

    def judge(replicas: int) -> Recommendation:
        price = device.usd_per_hour if search.usd_per_device_hour is None else search.usd_per_device_hour
        hourly = price * per_replica * replicas
        candidate = Candidate(plan, device, replicas, hourly)
        return Recommendation(candidate, evaluate(candidate, traffic, slo))

    if limit < 1:
        return None, "not enough devices"
    low, high = 0, 1
    while high <= limit and not judge(high).forecast.meets:
        low, high = high, high * 2
    if high > limit:
        last = judge(limit)
        if not last.forecast.meets:
            return None, f"{limit} replicas on {device.name}: {last.forecast.why}"
        high = limit
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if judge(middle).forecast.meets else (middle, high)
    return judge(high), ""


def _rank(choice: Recommendation) -> tuple[float, int, int, float]:
    plan = choice.candidate.plan
    changed = plan.deployment.weights is not None and not plan.model.architecture.quantization
    cheaper_cache = plan.deployment.kv_dtype not in ("auto", "bf16")
    return (round(choice.candidate.usd_per_hour, 2), int(changed), int(cheaper_cache), choice.forecast.load)


def confirmed(
    choices: Sequence[Recommendation],
    traffic: Traffic,
    slo: Slo,
    search: Search,
    evaluate: Evaluate,
    wanted: int = 3,
) -> list[Recommendation]:
    """The cheapest `wanted` of `choices` that `evaluate`, slower and surer, agrees with, cheapest first: one for each
    device, or, where there is only one device, for each format on it.

    A choice that it finds too weak gets more replicas, up to half as many again and at least one more; it may
    then cost more than the next one, which is judged before it is taken. Raises BadInput when none is left.
    """
    waiting = sorted(choices, key=_rank)
    max_replicas = {
        id(choice.candidate.plan): -(-3 * choice.candidate.replicas // 2) + 1 for choice in waiting
    }
    several = len({choice.candidate.device.name for choice in choices}) > 1
    found: list[Recommendation] = []
    while waiting and len(found) < wanted:
        candidate = waiting.pop(0).candidate
        judged = Recommendation(candidate, evaluate(candidate, traffic, slo))
        if judged.forecast.meets:
            found.append(judged)
            if several:
                waiting = [other for other in waiting if other.candidate.device != candidate.device]
            continue
        replicas = candidate.replicas + 1
        gpus = replicas * candidate.plan.deployment.gpus
        if replicas <= max_replicas[id(candidate.plan)] and (search.gpus is None or gpus <= search.gpus):
            hourly = candidate.usd_per_hour / candidate.replicas * replicas
            waiting.append(
                Recommendation(replace(candidate, replicas=replicas, usd_per_hour=hourly), judged.forecast)
            )
            waiting.sort(key=_rank)
    if not found:
        raise BadInput("no deployment holds up in simulation; relax --slo or allow more with --count")
    return found
