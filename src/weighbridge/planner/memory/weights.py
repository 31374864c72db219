"""Bytes of weights that the fullest GPU holds: the table of tensors, formats, shards and pipeline stages."""

from __future__ import annotations

from dataclasses import dataclass

from weighbridge.errors import BadInput
from weighbridge.planner.memory.engines import EngineRules
from weighbridge.planner.memory.gguf_mix import FILE_TYPES, arithmetic_of, file_type, gguf_bytes
from weighbridge.planner.memory.request import Deployment
from weighbridge.planner.memory.weight_formats import (
    Arithmetic,
    Remark,
    WeightFormat,
    is_format,
    published_format,
    weight_format,
)
from weighbridge.planner.model.architecture import Architecture, ExpertBlock, Latent, LayerShape
from weighbridge.planner.model.tensors import DRAFT, EMBED, HEAD, Kind, Shard, Tensor, all_tensors

GIB = 1 << 30
_HIDDEN_PAD = 256  # vLLM's mxfp4 kernels want the hidden size of experts in multiples of this


@dataclass(frozen=True, slots=True)
class Stored:
    """Weights of a whole checkpoint: bytes of each tensor, on disk or in one GPU without sharding."""

    tensors: dict[Tensor, float]
    format: str
    bits: float  # of the bulk of the weights
    arithmetic: Arithmetic = Arithmetic.DENSE
    remark: Remark | None = None
    classes: str = ""  # what each class of weights is in memory, of our own engine

    @property
    def total(self) -> float:
        return sum(self.tensors.values())


@dataclass(frozen=True, slots=True)
class GpuWeights:
    """What the fullest GPU keeps. `parts` by kind, in bytes; `host` stays in host memory."""

    parts: dict[str, float]
    host: float
    stage: tuple[int, int]  # its layers: first, last + 1

    @property
    def total(self) -> float:
        return sum(self.parts.values())


def stored_weights(architecture: Architecture, deployment: Deployment, rules: EngineRules) -> Stored:
    """Return bytes by tensor in the format that was asked for, else the published one, else 16 bits."""
    drafts = deployment.speculative == "mtp"
    name = deployment.weights
    gguf = file_type(name) if name and (rules.engine == "llama.cpp" or not is_format(name)) else None
    if name is not None and gguf is not None:
        sizes = gguf_bytes(architecture, name, drafts=drafts)
        tensors = {t: float(n) for t, n in sizes.items() if deployment.towers or t.kind is not Kind.TOWER}
        remark = Remark.SECRET_MIX if gguf.dynamic else None
        return Stored(tensors, name, bulk_bits(tensors), arithmetic_of(gguf.type_name), remark)
    if name is not None and rules.engine == "llama.cpp":
        raise BadInput(f"llama.cpp has no weights of type {name!r}; known: {', '.join(FILE_TYPES)}")
    form = weight_format(name, architecture) if name else published_format(architecture)
    tensors = {
        t: t.elements * form.element_bytes(t, len(architecture.layers)) * _padding(t, form, rules)
        for t in all_tensors(architecture, drafts=drafts)
        if deployment.towers or t.kind is not Kind.TOWER
    }
    return Stored(tensors, form.name, bulk_bits(tensors), form.arithmetic, form.remark)


def bulk_bits(tensors: dict[Tensor, float]) -> float:
    """Return the bits per element of the matrices inside the layers."""
    kinds = {Kind.EXPERT, Kind.MLP, Kind.ATTENTION, Kind.LINEAR}
    inner = {t: size for t, size in tensors.items() if t.kind in kinds}
    elements = sum(t.elements for t in inner)
    return 8 * sum(inner.values()) / elements if elements else 16.0


def _padding(tensor: Tensor, form: WeightFormat, rules: EngineRules) -> float:
    """vLLM pads mxfp4 experts to what its kernels take: hidden size to 256, width to 64 (128 before 0.10.2)."""
    if form.name != "mxfp4" or tensor.kind is not Kind.EXPERT or rules.engine != "vllm":
        return 1.0
    down = tensor.name.startswith("ffn_down")
    hidden, width = (tensor.rows, tensor.columns) if down else (tensor.columns, tensor.rows)
    return _round(hidden, _HIDDEN_PAD) / hidden * _round(width, rules.pad_intermediate) / width


def _round(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def gpu_weights(architecture: Architecture, stored: Stored, deployment: Deployment) -> GpuWeights:
    """Return the fullest pipeline stage's share on one of its GPUs."""
    stages = architecture.stages(deployment.pp)
    candidates = [_stage(architecture, stored, deployment, stage, stages) for stage in stages]
    return max(candidates, key=lambda weights: weights.total)


def _stage(
    architecture: Architecture,
    stored: Stored,
    deployment: Deployment,
    stage: tuple[int, int],
    stages: list[tuple[int, int]],
) -> GpuWeights:
    parts: dict[str, float] = {}
    host = 0.0
    last = stage == stages[-1]
    for tensor, size in stored.tensors.items():
        here = stage[0] <= tensor.layer < stage[1]
        around = tensor.layer == EMBED and (stage == stages[0] or (last and architecture.tied))
        around = around or (tensor.layer in (HEAD, DRAFT) and last)
        if not here and not around:
            continue
        share = size * shard_share(tensor, deployment)
        if _on_host(tensor, deployment, architecture):
            host += share
        else:
            parts[tensor.kind.value] = parts.get(tensor.kind.value, 0.0) + share
    absorbed = _absorbed(architecture, stage, deployment)
    if absorbed and deployment.engine in ("vllm", "sglang"):
        parts["absorbed projections"] = absorbed
    if deployment.engine == "vllm":
        parts["rotary tables"] = 2.0 * architecture.max_positions * architecture.rotary_dim
    if deployment.lora_rank:
        parts["LoRA adapters"] = lora_bytes(stored, deployment, stage)
    return GpuWeights(parts, host, stage)


def shard_share(tensor: Tensor, deployment: Deployment) -> float:
    """Return the part of a tensor that one rank keeps."""
    tp = deployment.tp
    match tensor.shard:
        case Shard.SPLIT:
            return 1 / tp
        case Shard.HEADS:
            return max(1, tensor.heads // tp) / tensor.heads
        case Shard.EXPERT:
            return 1 / (deployment.ep if deployment.ep > 1 else tp)
        case Shard.WHOLE:
            return 1.0


def _absorbed(architecture: Architecture, stage: tuple[int, int], deployment: Deployment) -> float:
    """Latent attention multiplies by kv_b's two halves at decode: engines keep 16-bit copies of them."""
    layers: list[LayerShape] = list(architecture.layers[stage[0] : stage[1]])
    return sum(
        2.0 * m.heads * (m.nope_dim + m.value_dim) * m.kv_rank / deployment.tp
        for m in (layer.mixer for layer in layers)
        if isinstance(m, Latent)
    )


def _on_host(tensor: Tensor, deployment: Deployment, architecture: Architecture) -> bool:
    """llama.cpp: the input embedding is looked up by the CPU; `-ngl` and `--n-cpu-moe` keep more there."""
    if deployment.engine != "llama.cpp":
        return False
    if tensor.kind is Kind.EMBED:
        return not architecture.tied
    layers, offloaded = len(architecture.layers), deployment.gpu_layers
    if offloaded is not None and offloaded <= layers:
        first = layers - offloaded
        if tensor.layer == HEAD or 0 <= tensor.layer < first:
            return True
    return tensor.kind is Kind.EXPERT and 0 <= tensor.layer < deployment.host_experts


def lora_bytes(stored: Stored, deployment: Deployment, stage: tuple[int, int]) -> float:
    """Return the bytes of `max_loras` adapters on every linear layer: rank x (rows + columns) in 16 bits.

    The half that meets the unsharded side is kept whole by every rank, as vLLM does.
    """
    rank, slots = deployment.lora_rank, max(deployment.max_loras, 1)
    total = 0.0
    for tensor in stored.tensors:
        if tensor.kind in (Kind.ATTENTION, Kind.LINEAR, Kind.MLP) and stage[0] <= tensor.layer < stage[1]:
            total += 2.0 * rank * (tensor.rows / deployment.tp + tensor.columns)
    return total * slots


def expert_bytes(architecture: Architecture, stored: Stored) -> tuple[float, int, int]:
    """Return the bytes of one routed expert over all its layers, experts in a layer, experts a token uses."""
    for layer in architecture.layers:
        if isinstance(layer.feed_forward, ExpertBlock):
            block = layer.feed_forward
            size = sum(b for t, b in stored.tensors.items() if t.kind is Kind.EXPERT and t.layer >= 0)
            return size / block.count, block.count, block.active
    return 0.0, 0, 0
