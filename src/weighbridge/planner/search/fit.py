"""When a plan does not fit: single changes that make it fit, the least intrusive first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from weighbridge.cost.hardware import Device, devices
from weighbridge.errors import BadInput
from weighbridge.planner.memory.gguf_mix import file_type
from weighbridge.planner.memory.memory import MemoryPlan, longest_request, plan_memory

_UTILIZATION = 0.95
_MIN_LENGTH = 1024
_USEFUL_LENGTH = 4096


@dataclass(frozen=True, slots=True)
class Change:
    """A change in words and as flags; `plan` is the plan after it."""

    words: str
    flags: str
    plan: MemoryPlan
    shortened: bool = False  # it also brings shorter requests, which nobody had asked to be long


def changes(plan: MemoryPlan, limit: int = 4) -> list[Change]:
    """Return changes that each make `plan` fit, best first; none when it fits, or when nothing that is tried helps.

    The order: what costs nothing (share of memory, batch limits), what costs accuracy little (cache type), what
    was not asked for (length), fewer requests, smaller weights, host memory, more devices, another device.
    """
    if plan.fits or plan.device is None:
        return []
    found: list[Change] = []
    for make in (
        _utilization,
        _sequences,
        _cache_type,
        _length,
        _requests,
        _weights,
        _host,
        _more,
        _other_device,
    ):
        change = _first_that_fits(make(plan))
        if change is not None:
            found.append(change)
    return sorted(found, key=lambda change: change.shortened)[:limit]


Try = tuple[str, str, MemoryPlan]


def _first_that_fits(tries: Iterator[Try]) -> Change | None:
    """Where nobody asked for a length, a change may also bring a shorter one."""
    for words, flags, changed in tries:
        try:
            attempt = plan_memory(changed.model, changed.deployment, changed.device)
        except BadInput:
            continue
        if not attempt.fits and changed.deployment.max_model_len is None:
            longest = longest_request(attempt)
            if longest >= _USEFUL_LENGTH:
                shorter = replace(changed.deployment, max_model_len=longest)
                attempt = plan_memory(changed.model, shorter, changed.device)
                words = f"{words}, and serve requests of at most {longest:,} tokens"
                flags = f"{flags} {_length_flag(changed)} {longest}"
        if attempt.fits:
            return Change(
                words, flags, attempt, attempt.deployment.max_model_len != changed.deployment.max_model_len
            )
    return None


def _length_flag(plan: MemoryPlan) -> str:
    return {"llama.cpp": "-c", "sglang": "--context-length"}.get(plan.rules.engine, "--max-model-len")


def _with(plan: MemoryPlan, **flags: object) -> MemoryPlan:
    return replace(plan, deployment=replace(plan.deployment, **flags))  # type: ignore[arg-type]


def _utilization(plan: MemoryPlan) -> Iterator[Try]:
    if plan.rules.engine in ("vllm", "sglang") and plan.rules.utilization < _UTILIZATION:
        changed = _with(plan, gpu_memory_utilization=_UTILIZATION)
        name = "--gpu-memory-utilization" if plan.rules.engine == "vllm" else "--mem-fraction-static"
        yield f"give the engine {_UTILIZATION:.0%} of the memory", f"{name} {_UTILIZATION}", changed


def _sequences(plan: MemoryPlan) -> Iterator[Try]:
    wanted = plan.deployment.concurrency or 1
    for seqs in (256, 128, 64, 32, 16):
        if plan.rules.engine == "vllm" and wanted <= seqs < plan.rules.max_num_seqs:
            words = f"batch at most {seqs} requests, which makes sampling smaller"
            yield words, f"--max-num-seqs {seqs}", _with(plan, max_num_seqs=seqs)


def _cache_type(plan: MemoryPlan) -> Iterator[Try]:
    if plan.deployment.kv_dtype not in ("auto", "bf16", "fp16", "f16"):
        return
    if plan.rules.engine == "llama.cpp":
        flags = "--cache-type-k q8_0 --cache-type-v q8_0"
        yield "keep the cache in 8 bits", flags, _with(plan, kv_dtype="q8_0")
    elif plan.rules.engine == "weighbridge":
        yield "keep the cache in 8 bits", "--kv-dtype int8", _with(plan, kv_dtype="int8")
    else:
        flags = "--kv-cache-dtype fp8" if plan.rules.engine == "vllm" else "--kv-cache-dtype fp8_e4m3"
        yield "keep the cache in 8 bits", flags, _with(plan, kv_dtype="fp8")


def _length(plan: MemoryPlan) -> Iterator[Try]:
    longest = longest_request(plan)
    if longest >= _MIN_LENGTH:
        flags = f"{_length_flag(plan)} {longest}"
        yield f"serve requests of at most {longest:,} tokens", flags, _with(plan, max_model_len=longest)


def _requests(plan: MemoryPlan) -> Iterator[Try]:
    wanted = plan.deployment.concurrency
    if wanted and plan.kv is not None and plan.kv.max_concurrency >= 1 and plan.rules.engine != "llama.cpp":
        held = int(plan.kv.max_concurrency * plan.deployment.dp)
        yield (
            f"expect {held} full-length requests at once",
            f"--max-num-seqs {held}",
            _with(plan, concurrency=held),
        )


#: Weights of another format must be this much smaller to be worth the exchange: 4-bit ones are not, for mxfp4.
_SAVING = 0.9


def _weights(plan: MemoryPlan) -> Iterator[Try]:
    if plan.rules.engine == "weighbridge":
        for scheme in ("int8", "int4"):
            if plan.deployment.quantize != scheme:
                yield f"round weights to {scheme}", f"--quantize {scheme}", _with(plan, quantize=scheme)
        return
    if plan.model.exact:
        return
    gguf = plan.rules.engine == "llama.cpp" or file_type(plan.deployment.weights or "") is not None
    smaller = ("q8_0", "q6_k", "q4_k_m", "q3_k_m", "q2_k") if gguf else ("fp8", "awq")
    sizes = {"fp8": 8.5, "awq": 4.5, "q8_0": 9.0, "q6_k": 7.0, "q4_k_m": 5.0, "q3_k_m": 4.2, "q2_k": 3.5}
    for name in smaller:
        if sizes[name] < _SAVING * plan.stored.bits:
            yield f"use {name} weights", f"--weights {name}", _with(plan, weights=name)


def _host(plan: MemoryPlan) -> Iterator[Try]:
    """llama.cpp: the fewest layers whose experts, or that wholly, stay in host memory."""
    if plan.rules.engine != "llama.cpp":
        return
    layers = len(plan.model.architecture.layers)
    if plan.model.architecture.has_experts:
        for kept in range(plan.deployment.host_experts + 1, layers + 1):
            words = f"keep the experts of {kept} layers in host memory"
            yield words, f"--n-cpu-moe {kept}", _with(plan, host_experts=kept)
    for offloaded in range(layers, -1, -1):
        words = f"compute only {offloaded} layers on the device"
        yield words, f"-ngl {offloaded}", _with(plan, gpu_layers=offloaded)


def _more(plan: MemoryPlan) -> Iterator[Try]:
    if plan.rules.engine in ("llama.cpp", "weighbridge"):
        return
    d = plan.deployment
    for factor in (2, 4, 8, 16):
        tp = d.tp * factor
        if tp > 16:
            return
        changed = _with(plan, tp=tp, ep=tp * d.dp if d.ep > 1 else 1)
        yield (
            f"use {tp * d.pp * d.dp} devices, tensor parallel over {tp}",
            f"--tensor-parallel-size {tp}",
            changed,
        )


def _other_device(plan: MemoryPlan) -> Iterator[Try]:
    """The cheapest larger device of the same kind."""
    assert plan.device is not None
    for device in sorted(devices(), key=lambda x: x.usd_per_hour):
        if _comparable(device, plan.device) and device.memory_gib > plan.device.memory_gib:
            yield f"use {device.name}", f"--device {device.name}", replace(plan, device=device)


def _comparable(device: Device, other: Device) -> bool:
    """Another device on which the same engine runs; unified memory (Strix Halo, Apple) is its own world."""
    if device.kind == other.kind == "consumer":
        return device.vendor == other.vendor
    return device.kind == other.kind or (device.kind == "datacenter" and other.kind == "consumer")
