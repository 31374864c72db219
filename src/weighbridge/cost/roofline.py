"""From a device and what a model asks of it to a `StepCost`: the roofline, and what practice leaves of it.

Of one iteration, per GPU:

    memory              bytes of the weights that every step reads / (bandwidth x efficiency)
    per_expert          bytes of one routed expert / (bandwidth x efficiency)
    per_token           FLOPs of a token / (FLOP/s x efficiency) + all-reduce bytes of a token / link speed
    per_context_token   its cached bytes / bandwidth
    per_prompt_pair     FLOPs of a (query, key) pair of a prompt, whose queries share what they read
    per_sequence        recurrent state read and written, sampling
    overhead            launches and synchronisation of each layer, latency of all-reduces, the engine's own work

`Peak` holds the seconds at data-sheet speed and the counts that cost time of their own, `Efficiency` what becomes of
them, and `coefficients` puts both together; all three take arrays for numbers, so that the fit in
`benchmarks/evidence/speed_fit.py` could find the efficiencies. `docs/measured/planner.md` shows how far they are off,
on models and GPUs that were not used to find them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from weighbridge.cost.experts import ExpertUse, uniform_coverage
from weighbridge.cost.hardware import Device
from weighbridge.cost.step import StepCost


@dataclass(frozen=True, slots=True)
class Efficiency:
    """Shares of the data sheet that engines reach, and what each layer costs whatever it computes.

    Arithmetic is a share of the 16-bit peak; of a faster format's advantage g arrives g ** gain. Factors are of
    time: what is multiplied by them takes longer above 1.
    """

    bandwidth: float
    expert_bandwidth: float
    cache_bandwidth: float
    arithmetic: float
    expert_arithmetic: float  # small matrices, uneven batches, and the exchange between ranks
    attention_arithmetic: float
    gain: float
    expert_gain: float
    link: float
    step_seconds: float  # scheduler, sampling, Python
    layer_seconds: float  # launches of one layer, inside a graph
    expert_layer_seconds: float  # more in a layer with experts: router, sorting, gathering
    indexer_seconds: float  # more in a layer with a sparse-attention indexer
    quantizing_seconds: float  # more in a layer whose activations are quantized on the way
    all_reduce_seconds: (
        float  # one small all-reduce of one GPU with itself: times `all_reduce_growth` per doubling
    )
    all_reduce_growth: float
    exchange_seconds: float  # dispatch and combine of one layer's experts between data-parallel ranks
    sequence_seconds: float
    four_bit: float = 1.0  # factor on reading dense weights of 5 bits and fewer
    four_bit_experts: float = 1.0
    unpacked_experts: float = 1.0  # factor on top where the device has no 4-bit units
    reading: float = 1.0  # factor on reading weights
    overhead: float = 1.0  # factor on all per layer
    prompts: float = 1.0  # factor on computing prompts beside decodes


#: Fitted to measured TPOT by `benchmarks/plan_speed.py --fit`, rounded; the corrections below with it. A factor below
#: 1 for experts of few bits says that skewed routing touches fewer of them than an even one would.
DATACENTER = Efficiency(
    bandwidth=0.87,
    expert_bandwidth=0.92,
    cache_bandwidth=0.93,
    arithmetic=0.81,
    expert_arithmetic=0.235,
    attention_arithmetic=0.49,
    gain=0.80,
    expert_gain=0.875,
    link=0.41,
    step_seconds=0.60e-3,
    layer_seconds=20e-6,
    expert_layer_seconds=27.5e-6,
    indexer_seconds=67e-6,
    quantizing_seconds=18.6e-6,
    all_reduce_seconds=7.5e-6,
    all_reduce_growth=1.34,
    exchange_seconds=24e-6,
    sequence_seconds=16e-6,
    four_bit=1.31,
    four_bit_experts=0.70,
    unpacked_experts=1.48,
)


@dataclass(frozen=True, slots=True)
class Correction:
    """Factors of time against vLLM on Hopper."""

    reading: float = 1.0
    overhead: float = 1.0
    prompts: float = 1.0


BY_ARCHITECTURE = {"blackwell": Correction(reading=1.16, overhead=0.82)}
BY_ENGINE = {
    "sglang": Correction(overhead=1.27, prompts=1.65),
    "trtllm": Correction(overhead=0.79),
}

#: Not in the table: chosen by the few published timings of `tests/planner/test_speed.py` and common reports.
_ELSEWHERE = Efficiency(
    bandwidth=0.75,
    expert_bandwidth=0.75,
    cache_bandwidth=0.60,
    arithmetic=0.50,
    expert_arithmetic=0.20,
    attention_arithmetic=0.35,
    gain=1.0,
    expert_gain=1.0,
    link=0.40,
    step_seconds=1.5e-3,
    layer_seconds=15e-6,
    expert_layer_seconds=0.0,
    indexer_seconds=0.0,
    quantizing_seconds=0.0,
    all_reduce_seconds=25e-6,
    all_reduce_growth=1.2,
    exchange_seconds=50e-6,
    sequence_seconds=4e-6,
)
BY_KIND = {
    "datacenter": DATACENTER,
    "consumer": replace(_ELSEWHERE, bandwidth=0.85, expert_bandwidth=0.85, arithmetic=0.75),
    "apple": replace(
        _ELSEWHERE,
        bandwidth=0.70,
        expert_bandwidth=0.70,
        arithmetic=0.60,
        expert_arithmetic=0.4,
        step_seconds=0.8e-3,
    ),
    "cpu": replace(
        _ELSEWHERE, cache_bandwidth=0.5, arithmetic=0.35, expert_arithmetic=0.25, layer_seconds=1.2e-4
    ),
}


def efficiency_of(device: Device, engine: str = "vllm") -> Efficiency:
    """What `engine` makes of `device`; engines and architectures without measurements are taken as vLLM, Hopper."""
    base = BY_KIND[device.kind]
    if device.kind != "datacenter":
        return base
    known = Correction()
    chip, software = BY_ARCHITECTURE.get(device.architecture, known), BY_ENGINE.get(engine, known)
    return replace(
        base,
        reading=chip.reading * software.reading,
        overhead=chip.overhead * software.overhead,
        prompts=chip.prompts * software.prompts,
    )


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
    ranks: int = 1  # data-parallel ranks whose tokens meet in the same experts
    indexer_layers: int = 0
    quantized_layers: int = 0  # whose activations are quantized before each product
    integer: bool = False  # weights of few bits are integers: no unit multiplies them, they are unpacked


@dataclass(frozen=True, slots=True)
class Peak:
    """A demand on a device at the speed of its data sheet, in seconds, and counts of what costs time of its own."""

    reading: float  # the weights that every step reads
    expert: float  # one routed expert
    cache: float  # one (query, key) pair of a decode
    state: float  # one sequence's recurrent state, read and written
    computing: float  # one token at the 16-bit peak
    expert_computing: float
    pair: float  # of a prompt
    exchange: float  # all-reduces of one token over the link
    advantage: float  # of the weights' format over 16 bits, in FLOP/s
    four_bit: float  # 1 or 0
    unpacked: float  # 1 or 0
    layers: float
    expert_layers: float
    indexer_layers: float
    quantized_layers: float
    all_reduces: float  # 0 on one GPU
    doublings: float  # log2 of the GPUs in one
    exchanges: float  # layers whose experts are spread over data-parallel ranks


def at_data_sheet(device: Device, demand: Demand) -> Peak:
    bandwidth = device.bandwidth_gbs * 1e9
    flops = device.bf16_tflops * 1e12
    four_bit = demand.weight_bits <= 5
    unpacked = four_bit and (demand.integer or not device.fp4_tflops)
    advantage = 1.0 if unpacked else device.tflops(demand.weight_bits) / device.bf16_tflops
    ring = 2 * (demand.tp - 1) / demand.tp
    return Peak(
        reading=demand.weight_bytes / bandwidth,
        expert=demand.expert_bytes / bandwidth,
        cache=demand.kv_bytes_per_pair / bandwidth,
        state=2 * demand.state_bytes_per_sequence / bandwidth,
        computing=demand.flops_per_token / flops,
        expert_computing=demand.expert_flops_per_token / flops,
        pair=demand.flops_per_pair / flops,
        exchange=demand.all_reduces * demand.hidden_bytes * ring / (max(device.link_gbs, 1.0) * 1e9),
        advantage=advantage,
        four_bit=float(four_bit),
        unpacked=float(unpacked),
        layers=demand.layers,
        expert_layers=demand.expert_layers,
        indexer_layers=demand.indexer_layers,
        quantized_layers=demand.quantized_layers,
        all_reduces=demand.all_reduces if demand.tp > 1 else 0,
        doublings=math.log2(demand.tp),
        exchanges=demand.expert_layers if demand.ranks > 1 else 0,
    )


@dataclass(frozen=True, slots=True)
class Coefficients:
    """Those of a step cost, with the price of a pair and a token apart for decodes and prompts."""

    overhead: float
    memory: float
    token: float
    prompt_token: float
    decode_pair: float
    prompt_pair: float
    sequence: float
    expert: float


def coefficients(e: Efficiency, p: Peak) -> Coefficients:
    """Plain arithmetic on floats, or on arrays of equal length in either."""
    per_layer = (
        e.layer_seconds * p.layers
        + e.expert_layer_seconds * p.expert_layers
        + e.indexer_seconds * p.indexer_layers
        + e.quantizing_seconds * p.quantized_layers
        + e.all_reduce_seconds * e.all_reduce_growth**p.doublings * p.all_reduces
        + e.exchange_seconds * p.exchanges
    )
    token = (
        p.computing / (e.arithmetic * p.advantage**e.gain)
        + p.expert_computing / (e.expert_arithmetic * p.advantage**e.expert_gain)
        + p.exchange / e.link
    )
    four_bit_experts = e.four_bit_experts**p.four_bit * e.unpacked_experts**p.unpacked
    return Coefficients(
        overhead=e.step_seconds + per_layer * e.overhead,
        memory=p.reading / e.bandwidth * e.reading * e.four_bit**p.four_bit,
        token=token,
        prompt_token=token * e.prompts,
        decode_pair=p.cache / e.cache_bandwidth,
        prompt_pair=p.pair / e.attention_arithmetic * e.prompts,
        sequence=e.sequence_seconds + p.state / e.cache_bandwidth,
        expert=p.expert / e.expert_bandwidth * e.reading * four_bit_experts,
    )


def roofline(
    device: Device, demand: Demand, decode_share: float = 1.0, efficiency: Efficiency | None = None
) -> StepCost:
    """The step cost of a replica on `device`.

    `decode_share`: how far a token costs what it does in a decode and not in a prompt, where engines reach another
    share of the data sheet; 1 prices decoding alone, 0 prompts alone.
    """
    c = coefficients(efficiency or efficiency_of(device), at_data_sheet(device, demand))
    prompt_share = 1 - decode_share
    cost = StepCost(
        overhead=c.overhead,
        memory=c.memory,
        per_token=decode_share * c.token + prompt_share * c.prompt_token,
        per_context_token=c.decode_pair,
        per_sequence=c.sequence,
        per_expert=c.expert,
        per_prompt_pair=c.prompt_pair,
    )
    return cost.with_expert_use(expert_use(demand)) if demand.experts else cost


def expert_use(demand: Demand) -> ExpertUse:
    """Of one GPU's experts, how many its step touches: the tokens of all data-parallel ranks meet in them."""
    used = uniform_coverage(demand.experts, demand.experts_used, demand.ranks)
    layers = float(demand.expert_layers)
    return ExpertUse(demand.experts * layers, layers, used)


def decode_share(prompt_tokens: float, output_tokens: float) -> float:
    """Of the pairs of a request, those of its decoding: O (P + O/2) of them, against P^2 / 2 of its prompt."""
    decode = output_tokens * (prompt_tokens + output_tokens / 2)
    total = decode + prompt_tokens * prompt_tokens / 2
    return decode / total if total else 1.0
