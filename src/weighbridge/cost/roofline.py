"""From a device and what a model asks of it to a `StepCost`: the roofline, and what practice leaves of it.

Of one iteration, per GPU:

    memory              bytes of the weights that every step reads / (bandwidth x efficiency)
    per_expert          bytes of one routed expert / (bandwidth x efficiency)
    per_token           FLOPs of a token / (FLOP/s x efficiency) + all-reduce bytes of a token / link speed
    per_context_token   a (query, key) pair: its cached bytes / bandwidth when decoding, its FLOPs when a prompt
                        is computed, whose queries share what they read
    per_sequence        recurrent state read and written, sampling
    overhead            launches and synchronisation of each layer, latency of all-reduces, the engine's own work

The efficiencies are where a roofline is wrong: `docs/planner.md` shows how far, per device and model.
`corrected` scales a cost to measurements of one's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from weighbridge.cost.experts import ExpertUse
from weighbridge.cost.hardware import Device
from weighbridge.cost.step import Sample, StepCost


@dataclass(frozen=True, slots=True)
class Efficiency:
    """Shares of the data sheet that engines reach, and what each layer costs whatever it computes."""

    bandwidth: float = 0.75
    attention_bandwidth: float = 0.60
    arithmetic: float = 0.50
    expert_arithmetic: float = 0.20  # small matrices, uneven batches, and the exchange between ranks
    attention_arithmetic: float = 0.35
    link: float = 0.50
    layer_seconds: float = 15e-6  # launches of one layer, inside a graph
    all_reduce_seconds: float = 10e-6  # one small all-reduce between two GPUs, more for more
    step_seconds: float = 1.5e-3  # scheduler, sampling, Python


DEFAULT = Efficiency()
BY_KIND = {
    "datacenter": DEFAULT,
    "consumer": Efficiency(bandwidth=0.85, arithmetic=0.75, link=0.4, all_reduce_seconds=25e-6),
    "apple": Efficiency(bandwidth=0.70, arithmetic=0.60, expert_arithmetic=0.4, step_seconds=0.8e-3),
    "cpu": Efficiency(
        bandwidth=0.75, attention_bandwidth=0.5, arithmetic=0.35, expert_arithmetic=0.25, layer_seconds=1.2e-4
    ),
}


@dataclass(frozen=True, slots=True)
class Demand:
    """What one GPU of a replica must do. Bytes and FLOPs; `layers` counts those of all pipeline stages."""

    weight_bytes: float  # read by every step: all but routed experts
    expert_bytes: float  # of one routed expert in one layer
    experts: int  # in a layer; 0: dense
    experts_used: int  # by one token, in each layer
    expert_layers: int
    flops_per_token: float  # of all but routed experts
    expert_flops_per_token: float
    kv_bytes_per_pair: float
    flops_per_pair: float
    state_bytes_per_sequence: float
    hidden_bytes: float  # of one token's residual, exchanged by each all-reduce
    layers: int
    all_reduces: int  # per step
    tp: int
    weight_bits: float


def roofline(
    device: Device, demand: Demand, decode_share: float = 1.0, efficiency: Efficiency | None = None
) -> StepCost:
    """The step cost of a replica on `device`.

    `decode_share`: of the (query, key) pairs of a workload, those of decoding. A step cost has one price per pair;
    a workload's share makes its total attention time right. 1 prices decoding alone, 0 prompts alone.
    """
    e = efficiency or BY_KIND[device.kind]
    bandwidth = device.bandwidth_gbs * 1e9
    flops = device.tflops(demand.weight_bits) * 1e12
    multiplying = demand.flops_per_token / e.arithmetic + demand.expert_flops_per_token / e.expert_arithmetic
    exchanged, latency = 0.0, 0.0
    if demand.tp > 1:
        ring = 2 * (demand.tp - 1) / demand.tp
        exchanged = (
            demand.all_reduces * demand.hidden_bytes * ring / (max(device.link_gbs, 1.0) * 1e9 * e.link)
        )
        latency = demand.all_reduces * e.all_reduce_seconds * (1 + 0.15 * (demand.tp - 2))
    reading = demand.kv_bytes_per_pair / (bandwidth * e.attention_bandwidth)
    computing = demand.flops_per_pair / (device.bf16_tflops * 1e12 * e.attention_arithmetic)
    use = ExpertUse(
        float(demand.experts * demand.expert_layers), float(demand.expert_layers), float(demand.experts_used)
    )
    cost = StepCost(
        overhead=e.step_seconds + demand.layers * e.layer_seconds + latency,
        memory=demand.weight_bytes / (bandwidth * e.bandwidth),
        per_token=multiplying / flops + exchanged,
        per_context_token=decode_share * reading + (1 - decode_share) * computing,
        per_sequence=2 * demand.state_bytes_per_sequence / (bandwidth * e.attention_bandwidth) + 4e-6,
        per_expert=demand.expert_bytes / (bandwidth * e.bandwidth),
    )
    return cost.with_expert_use(use) if demand.experts else cost


def decode_share(prompt_tokens: float, output_tokens: float) -> float:
    """Of the pairs of a request, those of its decoding: O (P + O/2) of them, against P^2 / 2 of its prompt."""
    decode = output_tokens * (prompt_tokens + output_tokens / 2)
    total = decode + prompt_tokens * prompt_tokens / 2
    return decode / total if total else 1.0


def corrected(cost: StepCost, samples: Sequence[Sample]) -> StepCost:
    """`cost` scaled so that the median measured iteration is met; unchanged without measurements."""
    ratios = [
        s.seconds / cost.seconds(s.tokens, s.sequences, s.context_tokens) for s in samples if s.seconds > 0
    ]
    return cost.scaled(median(ratios)) if ratios else cost
