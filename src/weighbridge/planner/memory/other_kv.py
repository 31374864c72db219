"""How SGLang, llama.cpp and this engine size their caches.

SGLang     one pool of tokens; with sliding windows a second one, `swa_ratio` times as large. Latent attention
           keeps its vector on every rank. Recurrent states: slots per running request.
llama.cpp  cells reserved at start for the whole context. Sliding layers: window per sequence and one
           micro-batch, padded to 256. Recurrent states: one per sequence, in 32 bits, times one more snapshot
           per draft token.
weighbridge  blocks of 32 tokens over all layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from weighbridge.errors import BadInput
from weighbridge.planner.memory.engines import Rules
from weighbridge.planner.memory.kv_dtype import KVType
from weighbridge.planner.memory.kv_layout import KVPlan, recurrent_bytes
from weighbridge.planner.memory.request import Deployment
from weighbridge.planner.model.architecture import Attention, Latent, Layer, Recurrent

WEIGHBRIDGE_BLOCK = 32
SGLANG_SWA_RATIO = 0.8  # --swa-full-tokens-ratio


@dataclass(frozen=True, slots=True)
class _Bytes:
    """Per token of full and of sliding layers, per sequence of states; `window` is the widest."""

    full: float
    sliding: float
    state: float
    window: int


def _split(
    layers: Sequence[Layer], d: Deployment, rules: Rules, kv: KVType, conv: int, state: int | None
) -> _Bytes:
    full = sliding = states = 0.0
    window = 0
    for layer in layers:
        match layer.mixer:
            case Recurrent() as r:
                states += recurrent_bytes(r, d.tp, 0, conv, state)
            case Latent() as m:
                full += kv.latent_bytes(m) + _latent_extra(m, d, rules, kv)
            case Attention() as a if a.window:
                sliding += kv.attention_bytes(a, d.tp)
                window = max(window, a.window)
            case Attention() as a:
                full += kv.attention_bytes(a, d.tp)
    if not full + sliding + states:
        raise BadInput("the model keeps no cache: nothing to plan")
    return _Bytes(full, sliding, states, window)


def _latent_extra(m: Latent, d: Deployment, rules: Rules, kv: KVType) -> float:
    """Beside the compressed vector: the indexer's keys; and before llama.cpp's caches without values (build
    7830, pull request 19067) the compressed part once more."""
    if d.engine == "sglang":
        return float(kv.indexer_bytes(m))
    indexer = m.indexer.dim * kv.value_bytes if m.indexer else 0.0
    return indexer + (m.kv_rank * kv.value_bytes if rules.version < (7830,) else 0.0)


def plan_sglang(
    layers: Sequence[Layer], d: Deployment, rules: Rules, kv: KVType, memory: float, length: int, family: str
) -> KVPlan:
    """Pools of `memory` bytes: tokens of the full pool (of the sliding one when there is no other)."""
    b = _split(layers, d, rules, kv, 2, None)
    page = d.block_size or 1
    ratio = 1.0 if d.swa_full else d.swa_ratio or (1.0 if family.startswith("mimo") else SGLANG_SWA_RATIO)
    states = b.state * rules.max_num_seqs * (1 + d.num_speculative_tokens)
    free = max(memory - states, 0.0)
    if not b.full:
        tokens = int(free // b.sliding) if b.sliding else rules.max_num_seqs * length
        per_token = b.sliding
    else:
        per_token = b.full + (b.sliding * ratio if b.sliding else 0.0)
        tokens = int(free // per_token)
    tokens = tokens // page * page
    request = b.full * length + b.sliding * min(length, b.window + rules.max_num_batched_tokens) + b.state
    concurrency = tokens / length
    if b.state:
        concurrency = min(concurrency, rules.max_num_seqs)
    explain = [f"{memory:,.0f} B // {per_token:,.0f} B a token = {tokens:,} tokens"]
    if b.sliding and b.full:
        explain.append(
            f"{b.full:,.0f} B in full layers and {b.sliding:,.0f} B in sliding ones, whose pool holds {ratio:g} "
            "times as many tokens (--swa-full-tokens-ratio)"
        )
    if b.state:
        explain.append(f"{states:,.0f} B of states for {rules.max_num_seqs} running requests come first")
    blocks = tokens // page
    return KVPlan(
        b.full or b.sliding,
        tokens,
        blocks,
        page,
        ceil(length / page),
        request,
        concurrency,
        memory,
        b.state,
        tuple(explain),
    )


@dataclass(frozen=True, slots=True)
class LlamaPools:
    """The pools that llama.cpp reserves and prints, in bytes; cells are per stream."""

    full: float
    sliding: float
    states: float
    cells: int
    window_cells: int
    streams: int

    @property
    def total(self) -> float:
        return self.full + self.sliding + self.states


def llama_cpp_pools(
    layers: Sequence[Layer], d: Deployment, rules: Rules, kv: KVType, length: int
) -> LlamaPools:
    """Pools for a context of `length` tokens in all (-c)."""
    b = _split(layers, d, rules, kv, 4, 4)
    slots = rules.max_num_seqs
    unified = True if d.unified_kv is None else d.unified_kv
    streams = 1 if unified else slots
    cells = _padded(ceil(length / streams), rules.pad_cells)
    window = _padded(b.window * (slots if unified else 1) + d.ubatch, rules.pad_cells)
    window_cells = cells if d.swa_full else min(cells, window)
    return LlamaPools(
        b.full * cells * streams,
        b.sliding * window_cells * streams,
        b.state * slots * (1 + d.num_speculative_tokens),
        cells,
        window_cells,
        streams,
    )


def plan_llama_cpp(layers: Sequence[Layer], d: Deployment, rules: Rules, kv: KVType, length: int) -> KVPlan:
    """What the context takes: llama.cpp reserves it, whatever is free. `length` is the whole context (-c)."""
    pools = llama_cpp_pools(layers, d, rules, kv, length)
    b = _split(layers, d, rules, kv, 4, 4)
    slots, streams = rules.max_num_seqs, pools.streams
    explain = [
        f"{b.full:,.0f} B a token x {pools.cells:,} cells{f' x {streams} streams' if streams > 1 else ''}"
    ]
    if b.window:
        explain.append(
            f"sliding layers: {b.sliding:,.0f} B a token x {pools.window_cells:,} cells (window {b.window})"
        )
    if b.state:
        explain.append(
            f"states: {b.state:,.0f} B x {slots} sequences x {1 + d.num_speculative_tokens} snapshots"
        )
    growing = b.full + (b.sliding if d.swa_full else 0.0)
    cells = pools.cells * streams
    return KVPlan(
        growing,
        cells,
        cells,
        1,
        pools.cells,
        pools.total / slots,
        float(slots),
        pools.total,
        b.state,
        tuple(explain),
        (("full", pools.full), ("sliding", pools.sliding), ("states", pools.states)),
    )


def _padded(cells: int, multiple: int) -> int:
    return -(-cells // multiple) * multiple


def plan_weighbridge(
    layers: Sequence[Layer], d: Deployment, rules: Rules, kv: KVType, memory: float, length: int
) -> KVPlan:
    """Blocks of 32 tokens; sliding layers are kept in full."""
    if any(isinstance(layer.mixer, (Recurrent, Latent)) for layer in layers):
        raise BadInput(
            "the weighbridge engine does not run latent or recurrent attention; choose another --engine"
        )
    whole = _split(layers, d, rules, kv, 2, None)
    per_token = whole.full + whole.sliding
    block = d.block_size or WEIGHBRIDGE_BLOCK
    blocks = int(memory // (per_token * block))
    per_request = ceil(length / block)
    explain = (f"{memory:,.0f} B // ({per_token:,.0f} B a token x {block}) = {blocks:,} blocks",)
    return KVPlan(
        per_token,
        blocks * block,
        blocks,
        block,
        per_request,
        per_request * block * per_token,
        blocks / per_request,
        memory,
        0.0,
        explain,
    )
