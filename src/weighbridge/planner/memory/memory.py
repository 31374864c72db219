"""The whole of one GPU's memory: budget, weights, overheads, cache, and why each is what it is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import ceil

from weighbridge.cost.hardware import Device
from weighbridge.cost.step import StepCost
from weighbridge.errors import BadInput
from weighbridge.models.keeping import FileModel, Keeping
from weighbridge.planner.memory.activation import FITTED, Constants, Overheads, overheads
from weighbridge.planner.memory.engines import EngineRules, rules_for
from weighbridge.planner.memory.kv_dtype import KVType, kv_type
from weighbridge.planner.memory.kv_layout import CacheSpec, KVPlan, cached_layers
from weighbridge.planner.memory.other_kv import plan_llama_cpp, plan_sglang, plan_weighbridge
from weighbridge.planner.memory.own import (
    CpuKind,
    activation,
    cpu_kind,
    framework,
    keeping_of,
    own_adapter_bytes,
    own_kv_type,
    own_weights,
)
from weighbridge.planner.memory.request import Deployment, Range
from weighbridge.planner.memory.vllm_kv import plan_vllm
from weighbridge.planner.memory.weight_formats import Remark
from weighbridge.planner.memory.weights import GpuWeights, Stored, gpu_weights, stored_weights
from weighbridge.planner.model.architecture import Architecture, Attention, Latent

GIB = 1 << 30
#: What loading takes beyond the tensors where engines measure the drop of free memory instead of adding up.
LOADING_FACTOR = {"sglang": 1.03, "rocm": 1.013}
LOADING_GIB = {"sglang": 0.03}
DRIVER_GIB = 0.6  # context that is gone before an engine measures what is free


@dataclass(frozen=True, slots=True)
class PlannedModel:
    """A model to be planned: its architecture, and the bytes of its tensors where a file says them."""

    name: str
    architecture: Architecture
    stored: Stored | None = None
    source: str = ""
    file: FileModel | None = None  # for our own engine

    @property
    def exact(self) -> bool:
        return self.stored is not None

    @property
    def path(self) -> str | None:
        """Where its weights are, if there are some."""
        return self.source if self.exact else None


@dataclass(frozen=True, slots=True)
class OwnEngine:
    """What of a CPU and of flags decides how our own engine keeps a model."""

    kind: CpuKind
    keeping: Keeping


@dataclass(frozen=True, slots=True)
class Room:
    """The engine's share of a device, and what it leaves for the cache. GiB; None: no device is given."""

    budget: Range | None
    available: Range | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """A planned deployment. Everything is in GiB per GPU unless its name says otherwise."""

    model: PlannedModel
    deployment: Deployment
    device: Device | None
    rules: EngineRules
    length: int  # tokens of the longest request
    weights: Range
    stored: Stored
    gpu: GpuWeights
    overheads: Overheads
    room: Room
    kv: KVPlan | None
    kv_low: KVPlan | None
    kv_high: KVPlan | None
    problem: str  # "": it fits
    own: OwnEngine | None = None  # of another engine: None
    measured: StepCost | None = None  # by `calibrate`, of this model on this machine

    @property
    def fits(self) -> bool:
        return not self.problem

    @property
    def budget(self) -> Range | None:
        """What the engine takes of the device; None without one."""
        return self.room.budget

    @property
    def available(self) -> Range | None:
        """What is left for the cache; None without a device."""
        return self.room.available

    @property
    def remaining(self) -> float | None:
        """GiB of the device that nothing uses; below 0 when more is needed than there is."""
        if self.device is None or self.kv is None or self.available is None:
            return None
        over = self.overheads
        used = self.weights.value + over.activation.value + over.framework.value + over.graphs.value
        return self.device.memory_gib - used - self.kv.pool_bytes / GIB

    @property
    def explain(self) -> tuple[str, ...]:
        """The plan as sentences: each figure with the formula and the numbers that made it."""
        return tuple(_sentences(self))


def plan_memory(
    model: PlannedModel, deployment: Deployment, device: Device | None, constants: Constants = FITTED
) -> MemoryPlan:
    """Plan one deployment. Raises BadInput when the flags cannot go together or the model has no such layout."""
    deployment.check()
    if device is not None and device.kind == "apple" and deployment.engine in ("vllm", "sglang"):
        raise BadInput(
            f"{deployment.engine} does not run on {device.name}; use --engine llama.cpp", param="engine"
        )
    architecture = model.architecture
    _check_parallelism(architecture, deployment)
    if deployment.engine == "llama.cpp" and deployment.concurrency and deployment.max_num_seqs is None:
        deployment = replace(deployment, max_num_seqs=deployment.concurrency)
    length = _length(architecture, deployment)
    rules = rules_for(deployment, device, length)
    own = _own(deployment, device)
    if own is not None:
        stored = own_weights(model.file, architecture, replace(deployment, max_model_len=length), own.keeping)
        over = _own_overheads(architecture, deployment, own.keeping, length, rules)
        kv = own_kv_type(deployment.kv_dtype, own.keeping)
    else:
        stored = model.stored or stored_weights(architecture, deployment, rules)
        over = overheads(architecture, deployment, rules, device, length, constants)
        kv = _kv_type(deployment, architecture, device, rules)
    gpu = gpu_weights(architecture, stored, deployment)
    if own is not None and deployment.lora_rank:
        adapters = own_adapter_bytes(model.file, architecture, deployment, own.keeping)
        gpu = replace(gpu, parts={**gpu.parts, "LoRA adapters": adapters})
    weights = _weights(model, gpu, stored, rules, device)
    room = _room(deployment, device, rules, weights, over)
    layers = cached_layers(architecture, deployment, _cached_stage(architecture, deployment, gpu.stage))
    cache = CacheSpec(layers, deployment, rules, kv, length, architecture.family)
    value, low, high = (_size(cache, gib) for gib in _bounds(room.available))
    return MemoryPlan(
        model=model,
        deployment=deployment,
        device=device,
        rules=rules,
        length=length,
        weights=weights,
        stored=stored,
        gpu=gpu,
        overheads=over,
        room=room,
        kv=value,
        kv_low=low,
        kv_high=high,
        problem=_problem(deployment, rules, room.available, value, length),
        own=own,
    )


def _own(d: Deployment, device: Device | None) -> OwnEngine | None:
    if d.engine != "weighbridge":
        return None
    kind = cpu_kind(d, device)
    return OwnEngine(kind, keeping_of(d, kind))


def _own_overheads(
    architecture: Architecture, d: Deployment, keeping: Keeping, length: int, rules: EngineRules
) -> Overheads:
    working, why = activation(architecture, d, keeping, length, rules.max_num_batched_tokens)
    process, why_process = framework(architecture)
    return Overheads(working, process, Range.exact(0.0), why, why_process, "")


def _check_parallelism(architecture: Architecture, d: Deployment) -> None:
    heads = [m.heads for m in architecture.attention_layers]
    if heads and heads[0] % d.tp:
        raise BadInput(
            f"--tp {d.tp} does not divide the {heads[0]} attention heads; choose a divisor", param="tp"
        )
    if d.pp > len(architecture.layers):
        raise BadInput(f"--pp {d.pp} is more than the {len(architecture.layers)} layers", param="pp")
    for m in architecture.attention_layers:
        if isinstance(m, Attention) and d.tp > m.kv_heads and d.tp % m.kv_heads:
            raise BadInput(f"--tp {d.tp} is no multiple of the {m.kv_heads} key/value heads", param="tp")
    if d.ep > 1 and not architecture.has_experts:
        raise BadInput("--ep is for models with experts; this one has none", param="ep")
    if d.engine in ("llama.cpp", "weighbridge") and d.gpus > 1:
        raise BadInput(f"--engine {d.engine} is planned on one device; leave --tp, --pp and --dp at 1")


def _length(architecture: Architecture, d: Deployment) -> int:
    if d.max_model_len is None:
        return architecture.max_positions
    if d.engine == "weighbridge" and d.max_model_len > architecture.max_positions:
        raise BadInput(
            f"--max-model-len {d.max_model_len} is more than the {architecture.max_positions} positions this model was "
            "trained for, and the server refuses it",
            param="max_model_len",
        )
    if d.engine == "llama.cpp" and d.concurrency and d.max_num_seqs == d.concurrency:
        return d.max_model_len * d.concurrency  # -c is shared by all slots
    return d.max_model_len


def _kv_type(d: Deployment, architecture: Architecture, device: Device | None, rules: EngineRules) -> KVType:
    """vLLM's fp8 cache of sparse latent attention has a layout of its own before Blackwell (FlashMLA)."""
    name = d.kv_dtype
    sparse = any(isinstance(m, Latent) and m.indexer for m in architecture.attention_layers)
    older = device is not None and device.architecture in ("hopper", "ampere", "ada")
    if sparse and older and rules.engine == "vllm" and name.lower().startswith("fp8"):
        name = "fp8_ds_mla"
    return kv_type(name)


def kv_type_of(plan: MemoryPlan) -> KVType:
    """Return the cache type of a plan."""
    if plan.own is not None:
        return own_kv_type(plan.deployment.kv_dtype, plan.own.keeping)
    return _kv_type(plan.deployment, plan.model.architecture, plan.device, plan.rules)


def _weights(
    model: PlannedModel, gpu: GpuWeights, stored: Stored, rules: EngineRules, device: Device | None
) -> Range:
    factor = 1.0
    if rules.engine == "sglang":
        factor = LOADING_FACTOR["sglang"]
    elif rules.engine == "vllm" and device is not None and device.vendor == "amd":
        factor = LOADING_FACTOR["rocm"]
    value = gpu.total * factor / GIB + LOADING_GIB.get(rules.engine, 0.0)
    if model.exact:
        spread = 0.003
    elif any(assumption.rough for assumption in model.architecture.assumptions):
        spread = 0.3
    elif stored.remark is Remark.SECRET_MIX:
        spread = 0.1
    else:
        spread = 0.01 if stored.bits > 15 else 0.025
    low, high = gpu.total / GIB * (1 - spread), value * (1 + spread) + (0.03 if not model.exact else 0.0)
    return Range(value, low, high)


def _room(d: Deployment, device: Device | None, rules: EngineRules, weights: Range, over: Overheads) -> Room:
    if d.kv_cache_memory is not None and (device is None or rules.engine != "weighbridge"):
        budget = Range.exact(device.memory_gib * rules.utilization) if device else None
        return Room(budget, Range.exact(d.kv_cache_memory / GIB))
    if device is None:
        return Room(None, None)
    total = device.memory_gib
    budget = Range.exact(total * rules.utilization)
    taken = weights + over.framework
    if rules.engine == "sglang":  # a share of what is free as it starts
        free = total - DRIVER_GIB
        budget = Range(free * rules.utilization, (free - 0.6) * rules.utilization, total * rules.utilization)
    else:
        taken = weights + over.activation + over.framework
    if rules.engine == "vllm" and rules.graphs_counted:
        taken = taken + over.graphs
    left = Range(budget.value - taken.value, budget.low - taken.high, budget.high - taken.low)
    return Room(budget, left)


def _bounds(available: Range | None) -> list[float | None]:
    if available is None:
        return [None, None, None]
    return [available.value, available.low, available.high]


def _size(cache: CacheSpec, gib: float | None) -> KVPlan | None:
    """The cache in `gib` GiB per GPU; None without a device. Pipeline stages all get the smallest's blocks."""
    if cache.rules.engine == "llama.cpp":
        return plan_llama_cpp(cache)
    if gib is None:
        return None
    memory = max(gib, 0.0) * GIB
    if cache.rules.engine == "sglang":
        return plan_sglang(cache, memory)
    if cache.rules.engine == "weighbridge":
        return plan_weighbridge(cache, memory)
    return plan_vllm(cache, memory)


def _cached_stage(architecture: Architecture, d: Deployment, heaviest: tuple[int, int]) -> tuple[int, int]:
    stages = architecture.stages(d.pp)
    return max(stages, key=lambda s: (s[1] - s[0], s == heaviest))


def _problem(
    d: Deployment, rules: EngineRules, available: Range | None, kv: KVPlan | None, length: int
) -> str:
    """What keeps the engine from starting, or from holding what was asked for; "" when nothing does."""
    if available is None or kv is None:
        return ""
    if available.value <= 0:
        return f"weights and overheads need {-available.value:.2f} GiB more than there is"
    if rules.engine == "llama.cpp":
        needed = kv.pool_bytes / GIB
        if needed > available.value:
            return f"the context takes {needed:.2f} GiB and {available.value:.2f} GiB are left for it"
        return ""
    if rules.engine == "weighbridge" and kv.pool_bytes > available.value * GIB:
        return f"the cache takes {kv.pool_bytes / GIB:.2f} GiB and {available.value:.2f} GiB are left for it"
    if kv.max_concurrency < 1:
        need = kv.request_bytes / GIB
        return f"one request of {length:,} tokens needs {need:.2f} GiB of cache; {available.value:.2f} GiB are left"
    wanted = d.concurrency or 1
    if kv.max_concurrency * d.dp < wanted:
        held = kv.max_concurrency * d.dp
        return f"{wanted} requests of {length:,} tokens were asked for; {held:.2f} fit at once"
    if kv.state_bytes and rules.engine == "vllm" and d.max_num_seqs and kv.num_blocks < d.max_num_seqs:
        return f"--max-num-seqs {d.max_num_seqs} is more than the {kv.num_blocks} blocks for states"
    return ""


def _sentences(plan: MemoryPlan) -> Iterator[str]:
    gpu, over, stored, available = plan.gpu, plan.overheads, plan.stored, plan.available
    parts = ", ".join(
        f"{kind} {size / GIB:.2f}"
        for kind, size in sorted(gpu.parts.items(), key=lambda x: -x[1])
        if size > 1e6
    )
    if plan.own is not None:
        keeping, kind = plan.own.keeping, plan.own.kind
        yield f"on a CPU with {kind.name}: computed in {keeping.dtype}, weights kept by --quantize {keeping.scheme}"
        if stored.classes:
            yield f"weights in memory: {stored.classes}"
    yield f"weights {plan.weights.value:.2f} GiB per GPU in {stored.format} (GiB: {parts})"
    if gpu.host:
        yield f"{gpu.host / GIB:.2f} GiB of weights stay in host memory"
    if stored.remark is not None:
        yield str(stored.remark)
    yield f"activations {over.activation.value:.2f} GiB: {over.why_activation}"
    yield f"framework {over.framework.value:.2f} GiB: {over.why_framework}"
    if over.graphs.value:
        yield f"CUDA graphs {over.graphs.value:.2f} GiB: {over.why_graphs}"
    if plan.budget is not None and available is not None:
        yield (
            f"cache {available.value:.2f} GiB (between {available.low:.2f} and {available.high:.2f}) is what remains "
            f"of {plan.budget.value:.2f} GiB = memory x {plan.rules.utilization:g}"
        )
    if plan.kv is not None:
        yield from plan.kv.explain
    sentences = (assumption.sentence for assumption in plan.model.architecture.assumptions)
    yield from (f"assumed: {sentence}" for sentence in dict.fromkeys(sentences))


def longest_request(plan: MemoryPlan) -> int:
    """Return the longest request length at which the wanted number fits at once; 0 when none does."""
    if plan.available is None or plan.available.value <= 0:
        return 0
    low, high = 0, ceil(plan.length / 256)
    while low < high:
        middle = (low + high + 1) // 2
        shorter = replace(plan.deployment, max_model_len=middle * 256)
        if plan_memory(plan.model, shorter, plan.device).fits:
            low = middle
        else:
            high = middle - 1
    return low * 256
