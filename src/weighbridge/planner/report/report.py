"""A memory plan as JSON, with the keys scripts rely on, and as plain text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from weighbridge.planner.memory.kv_layout import KVPlan
from weighbridge.planner.memory.memory import GIB, MemoryPlan, kv_type_of
from weighbridge.planner.memory.request import Range
from weighbridge.planner.model.tensors import parameters
from weighbridge.planner.search.fit import Change
from weighbridge.planner.search.packing import Placed
from weighbridge.planner.search.search import Recommendation
from weighbridge.planner.search.speed import Speed


def memory_json(plan: MemoryPlan) -> dict[str, Any]:
    """Return the plan under its public keys; every estimated figure also as {value, low, high} under `ranges`."""
    kv, over = plan.kv, plan.overheads
    total, active = parameters(plan.model.architecture)
    d = plan.deployment
    result: dict[str, Any] = {
        "model": plan.model.name,
        "engine": plan.rules.engine,
        "engine_version": ".".join(map(str, plan.rules.version)),
        "device": plan.device.name if plan.device else None,
        "gpus": d.gpus,
        "parallelism": {"tp": d.tp, "pp": d.pp, "ep": d.ep, "dp": d.dp},
        "weight_format": plan.stored.format,
        "parameters": total,
        "active_parameters": active,
        "max_model_len": plan.length,
        "gpu_memory_utilization": plan.rules.utilization,
        "max_num_seqs": plan.rules.max_num_seqs,
        "max_num_batched_tokens": plan.rules.max_num_batched_tokens,
        "fits": plan.fits,
        "problem": plan.problem or None,
        "weights_gib": plan.weights.value,
        "host_weights_gib": plan.gpu.host / GIB,
        "activation_gib": over.activation.value,
        "graphs_gib": over.graphs.value,
        "framework_gib": over.framework.value,
        "overhead_gib": over.framework.value + over.graphs.value,
        "budget_gib": plan.budget.value if plan.budget else None,
        "kv_available_gib": plan.available.value if plan.available else None,
        "remaining_gib": plan.remaining,
    }
    if plan.own is not None:
        keeping = plan.own.keeping
        result |= {
            "cpu": plan.own.kind.name,
            "dtype": keeping.dtype,
            "quantize": keeping.scheme.value,
            "kv_dtype": kv_type_of(plan).name,
            "calibrated": plan.measured is not None,
        }
    result.update(_kv_json(kv))
    result["ranges"] = {name: value.as_dict() for name, value in ranges(plan).items()}
    result["explain"] = list(plan.explain)
    return result


def _kv_json(kv: KVPlan | None) -> dict[str, Any]:
    if kv is None:
        names = ("kv_bytes_per_token", "kv_cache_tokens", "num_blocks", "block_size", "max_concurrency")
        return dict.fromkeys(
            (
                *names,
                "blocks_per_request",
                "request_gib",
                "state_bytes_per_sequence",
                "kv_pool_gib",
                "kv_pools_mib",
            )
        )
    return {
        "kv_bytes_per_token": kv.bytes_per_token,
        "kv_cache_tokens": kv.tokens,
        "num_blocks": kv.num_blocks,
        "block_size": kv.block_size,
        "max_concurrency": kv.max_concurrency,
        "blocks_per_request": kv.blocks_per_request,
        "request_gib": kv.request_bytes / GIB,
        "state_bytes_per_sequence": kv.state_bytes,
        "kv_pool_gib": kv.pool_bytes / GIB,
        "kv_pools_mib": {name: size / 2**20 for name, size in kv.pools},
    }


def ranges(plan: MemoryPlan) -> dict[str, Range]:
    """Return every figure with its bounds; exact ones have all three alike."""
    over = plan.overheads
    found = {
        "weights_gib": plan.weights,
        "activation_gib": over.activation,
        "framework_gib": over.framework,
        "graphs_gib": over.graphs,
        "overhead_gib": over.framework + over.graphs,
    }
    if plan.budget is not None:
        found["budget_gib"] = plan.budget
    if plan.available is not None:
        found["kv_available_gib"] = plan.available
    if plan.kv is not None and plan.kv_low is not None and plan.kv_high is not None:
        value, low, high = plan.kv, plan.kv_low, plan.kv_high
        found["kv_bytes_per_token"] = Range.exact(value.bytes_per_token)
        found["block_size"] = Range.exact(value.block_size)
        found["kv_cache_tokens"] = Range(value.tokens, low.tokens, high.tokens)
        found["num_blocks"] = Range(value.num_blocks, low.num_blocks, high.num_blocks)
        found["max_concurrency"] = Range(value.max_concurrency, low.max_concurrency, high.max_concurrency)
    return found


def plan_json(
    plan: MemoryPlan, speeds: Sequence[Speed], changes: Sequence[Change], command: str
) -> dict[str, Any]:
    """Return the plan with its speed, the changes that would make it fit, and the command that starts it."""
    result = memory_json(plan)
    result["speed"] = [speed_json(speed) for speed in speeds]
    result["changes"] = [{"what": c.words, "flags": c.flags} for c in changes]
    result["command"] = command
    result["explain"] += list(speeds[-1].explain) if speeds else []
    return result


def speed_json(speed: Speed) -> dict[str, Any]:
    """Return times in seconds, each also with the bounds that most measurements lie in."""
    record = {name: value for name, value in asdict(speed).items() if name not in ("explain", "spread")}
    low, high = speed.spread
    record["ranges"] = {
        name: {"value": record[name], "low": record[name] * low, "high": record[name] * high}
        for name in ("ttft", "tpot", "tokens_per_second")
    }
    return record


def price_of(choice: Recommendation) -> tuple[float, str]:
    """Return USD per device-hour, and where that price is from."""
    candidate = choice.candidate
    price = candidate.usd_per_hour / candidate.gpus
    listed = abs(price - candidate.device.usd_per_hour) < 1e-6
    return price, candidate.device.price_note if listed else "as given with --price"


def choice_json(choice: Recommendation) -> dict[str, Any]:
    """Return a recommendation as plain JSON types."""
    candidate, d = choice.candidate, choice.candidate.plan.deployment
    return {
        "device": candidate.device.name,
        "replicas": candidate.replicas,
        "gpus": candidate.gpus,
        "tp": d.tp,
        "weights": candidate.plan.stored.format,
        "kv_dtype": d.kv_dtype,
        "usd_per_hour": candidate.usd_per_hour,
        "price": {
            "usd_per_device_hour": candidate.device.usd_per_hour,
            "source": candidate.device.price_note,
        },
        **asdict(choice.forecast),
        "plan": memory_json(candidate.plan),
    }


def placed_json(placed: Placed, command: str) -> dict[str, Any]:
    """Return a packed model as plain JSON types."""
    return {
        "model": placed.plan.model.name,
        "devices": list(placed.devices),
        "share": placed.share,
        "command": command,
        "plan": memory_json(placed.plan),
    }


def figures(plan: MemoryPlan) -> list[tuple[str, str, str]]:
    """Return the rows of the text report: what, how much, and between which bounds."""

    def row(name: str, value: Range, unit: str, digits: int = 2) -> tuple[str, str, str]:
        text = f"{value.value:,.{digits}f} {unit}".rstrip()
        exact = value.high - value.low < 0.5 * 10**-digits
        return name, text, "" if exact else f"{value.low:,.{digits}f} to {value.high:,.{digits}f}"

    over, kv = plan.overheads, plan.kv
    rows = [
        row("weights", plan.weights, "GiB per GPU"),
        row("activations", over.activation, "GiB"),
        row("framework", over.framework, "GiB"),
    ]
    if over.graphs.value:
        rows.append(row("CUDA graphs", over.graphs, "GiB"))
    if plan.available is not None:
        rows.append(row("left for the cache", plan.available, "GiB per GPU"))
    if kv is not None:
        bounds = ranges(plan)
        rows.append(row("cache per token", bounds["kv_bytes_per_token"], "bytes per GPU", 0))
        if kv.state_bytes:
            rows.append(row("state per sequence", Range.exact(kv.state_bytes / 2**20), "MiB per GPU"))
        rows.append(row("one full request", Range.exact(kv.request_bytes / GIB), "GiB per GPU", 3))
        rows.append(row("cache tokens", bounds["kv_cache_tokens"], "", 0))
        rows.append(row(f"blocks of {kv.block_size:,}", bounds["num_blocks"], "", 0))
        rows.append(row(f"requests of {plan.length:,} at once", bounds["max_concurrency"], "", 2))
    return rows
