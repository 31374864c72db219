"""What is neither weights nor cache: the peak of a forward pass, libraries, CUDA graphs. Estimates with bounds.

vLLM runs a dummy batch of max_num_batched_tokens and, after it, the sampler for max_num_seqs requests; what
remains of the budget becomes cache. Two candidates for the peak, whichever is larger:

    sampler   max_num_seqs x vocabulary x 40 bytes (16- and 32-bit logits, sort keys and indices
              with their work space, probabilities and their sums): the dominant one at default settings
    layers    max_num_batched_tokens x 2 bytes x (gate, up and product of the widest MLP / tp, or of the experts
              a token uses, + 5 hidden vectors)

The constants were fitted on half of the recorded starts and checked on the other: `docs/measured/planner.md`.
"""

from __future__ import annotations

from dataclasses import dataclass

from weighbridge.cost.hardware import Device
from weighbridge.planner.memory.engines import EngineRules
from weighbridge.planner.memory.request import Deployment, Range
from weighbridge.planner.model.architecture import (
    Architecture,
    Attention,
    DenseBlock,
    ExpertBlock,
    Latent,
    Recurrent,
)

GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Constants:
    """Fitted constants: bytes that sampling takes per request and logit, GiB of CUDA graphs per layer."""

    sampler_bytes: float = 40.0
    graph_gib: float = 0.015


FITTED = Constants()


@dataclass(frozen=True, slots=True)
class Overheads:
    """Overheads in GiB per GPU, each with its reason."""

    activation: Range
    framework: Range
    graphs: Range
    why_activation: str
    why_framework: str
    why_graphs: str


def overheads(
    architecture: Architecture,
    d: Deployment,
    rules: EngineRules,
    device: Device | None,
    length: int,
    constants: Constants = FITTED,
) -> Overheads:
    """Estimate the overheads of one GPU of the deployment, for requests up to `length` tokens."""
    if rules.engine == "llama.cpp":
        activation, why = _llama_cpp(architecture, d, rules, length)
    else:
        activation, why = _gpu_engine(architecture, d, rules, constants)
    framework, why_framework = _framework(d, rules, device)
    graphs, why_graphs = _graphs(architecture, d, rules, constants)
    return Overheads(activation, framework, graphs, why, why_framework, why_graphs)


def _gpu_engine(
    architecture: Architecture, d: Deployment, rules: EngineRules, constants: Constants
) -> tuple[Range, str]:
    tokens, seqs = rules.max_num_batched_tokens, rules.max_num_seqs
    sampler = seqs * architecture.vocab * constants.sampler_bytes / GIB
    layers = tokens * layer_bytes_per_token(architecture, d.tp) / GIB
    tower = 0.6 if architecture.towers and d.towers else 0.0
    value = max(sampler, layers) + tower
    bound = "sampler" if sampler >= layers else "layers"
    why = (
        f"the larger of sampling ({seqs} requests x {architecture.vocab:,} logits x "
        f"{constants.sampler_bytes:g} B = {sampler:.2f} GiB) and a layer's work on {tokens:,} tokens "
        f"({layers:.2f} GiB): the {bound}"
    )
    if tower:
        why += f"; and about {tower} GiB to profile the encoder"
    return Range(value, 0.75 * sampler if bound == "sampler" else 0.4 * value, 1.35 * value + 0.25), why


def layer_bytes_per_token(architecture: Architecture, tp: int) -> float:
    """Return the bytes that the widest layer keeps alive per token of a batch, residuals included."""
    widest = 0.0
    for layer in set(architecture.layers):
        block = layer.feed_forward
        width = 0.0
        match block:
            case DenseBlock(intermediate, gated):
                width = (3 if gated else 2) * intermediate / tp
            case ExpertBlock():
                width = block.active * (
                    2.0 * block.intermediate / tp + max(2.0 * block.intermediate / tp, architecture.hidden)
                )
        match layer.mixer:
            case Attention() as a:
                width = max(width, 2.0 * (a.heads * a.key_dim + a.kv_heads * (a.key_dim + a.value_dim)) / tp)
            case Latent() as m:
                width = max(width, 2.0 * m.heads * (m.nope_dim + m.rope_dim + m.value_dim) / tp)
            case Recurrent() as r:
                width = max(width, 4.0 * r.conv_dim / tp)
        widest = max(widest, width)
    return 2.0 * (widest + 5 * architecture.hidden)


def _llama_cpp(
    architecture: Architecture, d: Deployment, rules: EngineRules, length: int
) -> tuple[Range, str]:
    """The compute buffer: logits of a micro-batch with flash attention, all attention scores without."""
    batch = d.ubatch
    hidden = 4.0 * batch * 4 * architecture.hidden
    if rules.flash_attention:
        value = (4.0 * batch * architecture.vocab + hidden / 4) / GIB
        why = f"logits of one micro-batch: {batch} x {architecture.vocab:,} x 4 B"
        return Range(value, 0.4 * value, 1.8 * value), why
    heads = max((m.heads for m in architecture.attention_layers), default=1)
    value = (4.0 * batch * length * (heads + 1) + hidden) / GIB
    why = f"attention scores of one micro-batch: ({heads} heads + mask) x {batch} x {length:,} x 4 B"
    return Range(value, 0.6 * value, 1.5 * value), why


def _framework(d: Deployment, rules: EngineRules, device: Device | None) -> tuple[Range, str]:
    if rules.engine == "llama.cpp":
        return Range(0.35, 0.1, 0.6), "the driver's context and kernels"
    if rules.engine == "sglang":  # counted in what loading takes from free memory
        return Range(0.1, 0.0, 0.5), "libraries beyond what loading already took"
    if device is not None and device.vendor == "amd":
        return Range(1.2, 0.2, 2.2), "ROCm counts its context and libraries here"
    if d.tp * d.pp > 1:
        return Range(0.45, 0.1, 1.1), "NCCL and all-reduce buffers, the CUDA context"
    return Range(0.12, 0.05, 0.5), "the CUDA context and libraries"


def _graphs(
    architecture: Architecture, d: Deployment, rules: EngineRules, constants: Constants
) -> tuple[Range, str]:
    if rules.engine != "vllm" or d.enforce_eager:
        return Range.exact(0.0), "no CUDA graphs are captured, or they lie outside the budget"
    layers = len(architecture.layers) / d.pp
    factor = (2.0 if architecture.has_experts else 1.0) * (1.5 if d.tp >= 4 else 1.0)
    factor *= 1.4 if architecture.latent else 1.0
    if rules.version < (0, 10):
        factor *= 3.0
    value = constants.graph_gib * layers * factor
    counted = "taken from the budget" if rules.graphs_counted else "outside the budget in this version"
    why = f"{layers:.0f} layers x {constants.graph_gib * factor:.3f} GiB; {counted}"
    return Range(value, 0.3 * value, 2.2 * value + 0.1), why
