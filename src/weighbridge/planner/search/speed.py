"""How fast a planned deployment runs, and what its tokens cost: the roofline's step cost, read off at a batch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil

from weighbridge.cost.hardware import Device
from weighbridge.cost.roofline import Demand, efficiency_of, roofline
from weighbridge.cost.step import StepCost
from weighbridge.planner.memory.kv_layout import cached_layers
from weighbridge.planner.memory.memory import MemoryPlan, kv_type_of
from weighbridge.planner.memory.weight_formats import Arithmetic
from weighbridge.planner.memory.weights import shard_share
from weighbridge.planner.model.architecture import Attention, Experts, Latent
from weighbridge.planner.model.tensors import DRAFT, Kind, all_tensors

DEFAULT_PROMPT, DEFAULT_OUTPUT = 1024, 256
SERVING_SECONDS = 0.02  # HTTP, tokenizing and the way to the first delta
#: Single estimates of a roofline lie within these factors of measurements nine times of ten: docs/measured/planner.md.
SPREAD = (0.75, 1.5)


@dataclass(frozen=True, slots=True)
class Speed:
    """One replica at `batch` running requests of `prompt` and `output` tokens. Seconds, tokens, USD."""

    batch: int
    prompt: int
    output: int
    ttft: float
    tpot: float
    tokens_per_second: float  # produced, with prompts paid for
    prefill_tokens_per_second: float
    usd_per_hour: float
    usd_per_million_output: float
    usd_per_million_input: float
    explain: tuple[str, ...]


def demand(plan: MemoryPlan) -> Demand:
    """What one GPU of the replica does per step, token, pair and sequence."""
    architecture, d = plan.model.architecture, plan.deployment
    always, experts, expert_layers = 0.0, 0.0, 0
    count = used = 0
    for tensor, size in plan.stored.tensors.items():
        if tensor.layer == DRAFT or tensor.kind is Kind.TOWER:
            continue
        share = size * shard_share(tensor, d) / d.pp
        if tensor.kind is Kind.EXPERT:
            experts += share
        elif tensor.kind is not Kind.EMBED or architecture.tied:
            always += share
    for layer in architecture.layers:
        if isinstance(layer.feed_forward, Experts):
            expert_layers += 1
            count, used = layer.feed_forward.count, layer.feed_forward.active
    used_flops = {True: 0.0, False: 0.0}  # by whether they are of routed experts
    for tensor in all_tensors(architecture):
        if tensor.kind is not Kind.EMBED:
            used_flops[tensor.kind is Kind.EXPERT] += 2.0 * tensor.elements * tensor.used
    flops = used_flops[False]
    if architecture.tied:
        flops += 2.0 * architecture.vocab * architecture.hidden
    layers = len(architecture.layers)
    return Demand(
        weight_bytes=always * d.pp,  # stages run one after the other
        expert_bytes=experts * d.pp / (count * expert_layers) if count else 0.0,
        experts=count,
        experts_used=used,
        expert_layers=expert_layers,
        flops_per_token=flops / d.tp,
        expert_flops_per_token=used_flops[True] / d.tp,
        kv_bytes_per_pair=_kv_bytes(plan),
        flops_per_pair=_pair_flops(plan),
        state_bytes_per_sequence=plan.kv.state_bytes if plan.kv else 0.0,
        hidden_bytes=2.0 * architecture.hidden,
        layers=layers,
        all_reduces=2 * layers,
        tp=d.tp,
        weight_bits=plan.stored.bits,
        ranks=d.dp,
        indexer_layers=sum(
            isinstance(m, Latent) and m.indexer is not None for m in architecture.attention_layers
        ),
        quantized_layers=layers if plan.stored.arithmetic is Arithmetic.QUANTIZED else 0,
        integer=plan.stored.arithmetic is Arithmetic.UNPACKED,
    )


def _kv_bytes(plan: MemoryPlan) -> float:
    """Cached bytes that one decode step reads per token of context; windows read less, and count as nothing."""
    kv, d = kv_type_of(plan), plan.deployment
    layers = cached_layers(
        plan.model.architecture, replace(d, speculative=None), (0, len(plan.model.architecture.layers))
    )
    total = 0.0
    for layer in layers:
        match layer.mixer:
            case Attention() as a if not a.window:
                total += kv.attention_bytes(a, d.tp)
            case Latent() as m if m.indexer is None:
                total += kv.latent_bytes(m)
            case Latent() as m:
                total += kv.indexer_bytes(m)
    return total


def _pair_flops(plan: MemoryPlan) -> float:
    """FLOPs of one (query, key) pair over all layers: scores and sums, 2 FLOPs per element each."""
    total = 0.0
    for m in plan.model.architecture.attention_layers:
        if isinstance(m, Attention) and not m.window:
            total += 2.0 * m.heads * (m.key_dim + m.value_dim)
        elif isinstance(m, Latent):
            inner = (
                m.indexer.heads * m.indexer.dim
                if m.indexer
                else m.heads * (m.nope_dim + m.rope_dim + m.value_dim)
            )
            total += 2.0 * inner
    return total / plan.deployment.tp


def step_cost(plan: MemoryPlan, device: Device, decode_share: float = 1.0) -> StepCost:
    """The replica's step cost on `device`: what the simulator and the engine's scheduler take."""
    return roofline(device, demand(plan), decode_share, efficiency_of(device, plan.deployment.engine))


def time_per_token(decode: StepCost, prefill: StepCost, batch: float, prompt: float, output: float) -> float:
    """TPOT of one of `batch` running requests: a decode step, and its share of the others' prompts.

    Engines compute prompts beside the decodes, so a prompt adds its tokens and pairs to steps that run anyway.
    """
    step = decode.seconds(round(batch), round(batch), round(batch * (prompt + output / 2)))
    beside = prefill.per_token * prompt + prefill.per_prompt_pair * prompt * prompt / 2
    return step + (batch - 1) * beside / output


def measure(
    plan: MemoryPlan, device: Device, batch: int, prompt: int, output: int, price: float | None = None
) -> Speed:
    """Speed of one replica with `batch` requests running, and the money its tokens cost at full use.

    TTFT: the prompt computed in chunks beside the decodes of the others. TPOT: a decode step, and the prompts of
    others computed in between, as engines that batch both together measure it.
    """
    d = plan.deployment
    decode, prefill = step_cost(plan, device, 1.0), step_cost(plan, device, 0.0)
    context = prompt + output / 2
    step = decode.seconds(batch, batch, round(batch * context))
    chunk = max(plan.rules.max_num_batched_tokens, 256)
    alone = prefill.prefill_seconds(prompt, chunk=chunk)
    ttft = SERVING_SECONDS + alone + (step * ceil(prompt / chunk) if batch > 1 else 0.0)
    tpot = time_per_token(decode, prefill, batch, prompt, output)
    tokens_per_second = batch * output / (alone + output * tpot) * d.dp
    hourly = (device.usd_per_hour if price is None else price) * d.gpus
    produced = tokens_per_second * 3600
    read = prompt / alone * 3600 * d.dp
    return Speed(
        batch,
        prompt,
        output,
        ttft,
        tpot,
        tokens_per_second,
        prompt / alone * d.dp,
        hourly,
        hourly / produced * 1e6 if hourly else 0.0,
        hourly / read * 1e6 if hourly else 0.0,
        _explain(plan, device, decode, batch, context, hourly, price),
    )


def _explain(
    plan: MemoryPlan,
    device: Device,
    cost: StepCost,
    batch: int,
    context: float,
    hourly: float,
    price: float | None,
) -> tuple[str, ...]:
    asked = demand(plan)
    step = cost.seconds(batch, batch, round(batch * context))
    experts = cost.per_expert * cost.expert_use.touched(batch, batch) if cost.per_expert else 0.0
    parts = [
        f"weights {cost.memory * 1e3:.2f} ms ({asked.weight_bytes / 1e9:.1f} GB per GPU, "
        f"{device.bandwidth_gbs:,.0f} GB/s)",
        f"cache {cost.per_context_token * batch * context * 1e3:.2f} ms ({batch} x {context:,.0f} tokens)",
        f"overhead {cost.overhead * 1e3:.2f} ms",
    ]
    if experts:
        touched = cost.expert_use.touched(batch, batch) / asked.expert_layers
        parts.insert(
            1, f"experts {experts * 1e3:.2f} ms ({touched:.0f} of {asked.experts} touched in a layer)"
        )
    source = device.price_note if price is None else "price given"
    return (
        f"a decode step of {batch} takes {step * 1e3:.1f} ms: " + ", ".join(parts),
        f"{hourly:.2f} USD per hour for {plan.deployment.gpus} x {device.name} ({source})",
    )


def typical_batch(plan: MemoryPlan, prompt: int, output: int) -> int:
    """How many requests of this size run at once: what the cache holds on average, at most the batch limit."""
    if plan.kv is None or plan.kv.tokens <= 0:
        return 1
    mean = prompt + output / 2
    held = plan.kv.max_concurrency * plan.length / max(mean, 1.0)
    if plan.kv.state_bytes:
        held = min(held, plan.kv.max_concurrency * plan.length / max(mean, plan.kv.block_size))
    wanted = plan.deployment.concurrency or plan.rules.max_num_seqs
    return max(1, min(int(held), wanted, plan.rules.max_num_seqs))
