"""How fast a planned deployment runs, and what its tokens cost: the roofline's step cost, read off at a batch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil

from weighbridge.cost.hardware import Device
from weighbridge.cost.roofline import Demand, efficiency_of, expert_use, roofline
from weighbridge.cost.step import StepCost
from weighbridge.planner.memory.kv_layout import cached_layers
from weighbridge.planner.memory.memory import MemoryPlan, kv_type_of
from weighbridge.planner.memory.weight_formats import Arithmetic
from weighbridge.planner.memory.weights import shard_share
from weighbridge.planner.model.architecture import Attention, ExpertBlock, Latent
from weighbridge.planner.model.tensors import DRAFT, Kind, all_tensors

DEFAULT_PROMPT, DEFAULT_OUTPUT = 1024, 256
SERVING_SECONDS = 0.02  # HTTP, tokenizing and the way to the first delta
#: Of a step cost that was measured on the machine itself.
MEASURED_SPREAD = (0.8, 1.2)
#: Single estimates of a roofline lie within these factors of measurements nine times of ten: docs/measured/planner.md.
SPREAD = (0.75, 1.5)


@dataclass(frozen=True, slots=True)
class Speed:
    """A replica at `batch` running requests of `prompt` and `output` tokens. Seconds, tokens, USD."""

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
    spread: tuple[float, float] = SPREAD


def demand(plan: MemoryPlan) -> Demand:
    """Return what one GPU of the replica does per step, token, pair and sequence."""
    architecture, d = plan.model.architecture, plan.deployment
    always, routed = _weight_bytes(plan)
    blocks = [x.feed_forward for x in architecture.layers if isinstance(x.feed_forward, ExpertBlock)]
    experts, used = (blocks[-1].count, blocks[-1].active) if blocks else (0, 0)
    flops, routed_flops = _flops(plan)
    layers = len(architecture.layers)
    return Demand(
        weight_bytes=always * d.pp,  # stages run one after the other
        expert_bytes=routed * d.pp / (experts * len(blocks)) if blocks else 0.0,
        experts=experts,
        experts_used=used,
        expert_layers=len(blocks),
        flops_per_token=flops / d.tp,
        expert_flops_per_token=routed_flops / d.tp,
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


def _weight_bytes(plan: MemoryPlan) -> tuple[float, float]:
    """Return the bytes on one GPU that every step reads, and those of routed experts."""
    # An output matrix with memory of its own is read, and not the embedding that it equals.
    own_output = any(tensor.kind is Kind.HEAD and tensor.rows > 1 for tensor in plan.stored.tensors)
    shared = plan.model.architecture.tied and not own_output
    always = routed = 0.0
    for tensor, size in plan.stored.tensors.items():
        if tensor.layer == DRAFT or tensor.kind in (Kind.TOWER, Kind.COPY):
            continue
        share = size * shard_share(tensor, plan.deployment) / plan.deployment.pp
        if tensor.kind is Kind.EXPERT:
            routed += share
        elif tensor.kind is not Kind.EMBED or shared:
            always += share
    return always, routed


def _flops(plan: MemoryPlan) -> tuple[float, float]:
    """Return the FLOPs of a token in what every token passes through, and in routed experts."""
    architecture = plan.model.architecture
    always = routed = 0.0
    for tensor in all_tensors(architecture):
        flops = 2.0 * tensor.elements * tensor.used
        if tensor.kind is Kind.EXPERT:
            routed += flops
        elif tensor.kind is not Kind.EMBED:
            always += flops
    if architecture.tied:
        always += 2.0 * architecture.vocab * architecture.hidden
    return always, routed


def _kv_bytes(plan: MemoryPlan) -> float:
    """Return the cached bytes that a decode step reads per token of context. Windows read less and count as nothing."""
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
    """Return the FLOPs of one (query, key) pair over all layers: scores and sums, 2 FLOPs per element each."""
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
    """Return the replica's step cost on `device`, which is what the simulator and the engine's scheduler take.

    What was measured of this very model and machine counts more than any data sheet.
    """
    if plan.measured is not None:
        per_gpu = demand(plan)
        return plan.measured.with_expert_use(expert_use(per_gpu)) if per_gpu.experts else plan.measured
    return roofline(device, demand(plan), decode_share, efficiency_of(device, plan.deployment.engine))


def time_per_token(decode: StepCost, prefill: StepCost, batch: float, prompt: float, output: float) -> float:
    """Return the TPOT of one of `batch` running requests: a decode step, and its share of the others' prompts.

    Engines compute prompts beside the decodes, so a prompt adds its tokens and pairs to steps that run anyway.
    """
    step = decode.seconds(round(batch), round(batch), round(batch * (prompt + output / 2)))
    beside = prefill.per_token * prompt + prefill.per_prompt_pair * prompt * prompt / 2
    return step + (batch - 1) * beside / output


def usual_batches(most: int) -> list[int]:
    """One request, `most`, and the powers of four between: the batches whose speed is shown."""
    return sorted({1, most, *(4**power for power in range(1, 6) if 4**power < most)})


def measure(
    plan: MemoryPlan, device: Device, batch: int, prompt: int, output: int, price: float | None = None
) -> Speed:
    """Return the speed of a replica with `batch` requests running, and the money its tokens cost at full use.

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
    source = device.price_note if price is None else "price given"
    return Speed(
        batch=batch,
        prompt=prompt,
        output=output,
        ttft=ttft,
        tpot=tpot,
        tokens_per_second=tokens_per_second,
        prefill_tokens_per_second=prompt / alone * d.dp,
        usd_per_hour=hourly,
        usd_per_million_output=hourly / produced * 1e6 if hourly else 0.0,
        usd_per_million_input=hourly / read * 1e6 if hourly else 0.0,
        explain=(
            _explain_step(plan, device, decode, batch, context),
            f"{hourly:.2f} USD per hour for {d.gpus} x {device.name} ({source})",
        ),
        spread=SPREAD if plan.measured is None else MEASURED_SPREAD,
    )


def _explain_step(plan: MemoryPlan, device: Device, cost: StepCost, batch: int, context: float) -> str:
    per_gpu = demand(plan)
    step = cost.seconds(batch, batch, round(batch * context))
    how = "measured by calibrate" if plan.measured is not None else f"{device.bandwidth_gbs:,.0f} GB/s"
    parts = [f"weights {cost.memory * 1e3:.2f} ms ({per_gpu.weight_bytes / 1e9:.1f} GB per GPU, {how})"]
    if cost.per_expert:
        touched = cost.expert_use.touched(batch, batch)
        parts.append(
            f"experts {cost.per_expert * touched * 1e3:.2f} ms ({touched / per_gpu.expert_layers:.0f} of "
            f"{per_gpu.experts} touched in a layer)"
        )
    parts += [
        f"cache {cost.per_context_token * batch * context * 1e3:.2f} ms ({batch} x {context:,.0f} tokens)",
        f"overhead {cost.overhead * 1e3:.2f} ms",
    ]
    return f"a decode step of {batch} takes {step * 1e3:.1f} ms: " + ", ".join(parts)


def typical_batch(plan: MemoryPlan, prompt: int, output: int) -> int:
    """Return how many requests of this size run at once: what the cache holds on average, at most the batch limit."""
    if plan.kv is None or plan.kv.tokens <= 0:
        return 1
    mean = prompt + output / 2
    held = plan.kv.max_concurrency * plan.length / max(mean, 1.0)
    if plan.kv.state_bytes:
        held = min(held, plan.kv.max_concurrency * plan.length / max(mean, plan.kv.block_size))
    wanted = plan.deployment.concurrency or plan.rules.max_num_seqs
    return max(1, min(int(held), wanted, plan.rules.max_num_seqs))
