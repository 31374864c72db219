"""How SGLang, llama.cpp and this engine size their caches.

SGLang     one pool of tokens; with sliding windows a second one, `swa_ratio` times as large. Latent attention
           keeps its vector on every rank. Recurrent states: slots per running request.
llama.cpp  cells reserved at start for the whole context. Sliding layers: window per sequence and one
           micro-batch, padded to 256. Recurrent states: one per sequence, in 32 bits, times one more snapshot
           per draft token.
weighbridge  blocks of 32 tokens over all layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from weighbridge.errors import BadInput
from weighbridge.planner.memory.engines import EngineRules
from weighbridge.planner.memory.kv_dtype import KVType
from weighbridge.planner.memory.kv_layout import CacheSpec, KVPlan, recurrent_bytes
from weighbridge.planner.memory.own import pool_bytes
from weighbridge.planner.memory.request import Deployment
from weighbridge.planner.model.architecture import Attention, Latent, Recurrent

WEIGHBRIDGE_BLOCK = 32
SGLANG_SWA_RATIO = 0.8  # --swa-full-tokens-ratio


@dataclass(frozen=True, slots=True)
class _Bytes:
    """Per token of full and of sliding layers, per sequence of states; `window` is the widest."""

    full: float
    sliding: float
    state: float
    window: int


def _split(cache: CacheSpec, conv_bytes: int, state_bytes: int | None) -> _Bytes:
    d, kv = cache.deployment, cache.kv
    full = sliding = states = 0.0
    window = 0
    for layer in cache.layers:
        match layer.mixer:
            case Recurrent() as r:
                states += recurrent_bytes(r, d.tp, 0, conv_bytes, state_bytes)
            case Latent() as m:
                full += kv.latent_bytes(m) + _latent_extra(m, d, cache.rules, kv)
            case Attention() as a if a.window:
                sliding += kv.attention_bytes(a, d.tp)
                window = max(window, a.window)
            case Attention() as a:
                full += kv.attention_bytes(a, d.tp)
    if not full + sliding + states:
        raise BadInput("the model keeps no cache: nothing to plan")
    return _Bytes(full, sliding, states, window)


def _latent_extra(m: Latent, d: Deployment, rules: EngineRules, kv: KVType) -> float:
    """Beside the compressed vector: the indexer's keys; and before llama.cpp's caches without values (build
    7830, pull request 19067) the compressed part once more."""
    if d.engine == "sglang":
        return float(kv.indexer_bytes(m))
    indexer = m.indexer.dim * kv.value_bytes if m.indexer else 0.0
    return indexer + (m.kv_rank * kv.value_bytes if rules.version < (7830,) else 0.0)


def plan_sglang(cache: CacheSpec, memory: float) -> KVPlan:
    """Size the pools of `memory` bytes: tokens of the full pool (of the sliding one when there is no other)."""
    d, rules, length = cache.deployment, cache.rules, cache.length
    b = _split(cache, 2, None)
    page = d.block_size or 1
    usual = 1.0 if cache.family.startswith("mimo") else SGLANG_SWA_RATIO
    ratio = 1.0 if d.swa_full else d.swa_ratio or usual
    states = b.state * rules.max_num_seqs * (1 + d.num_speculative_tokens)
    free = max(memory - states, 0.0)
    if not b.full:
        tokens = int(free // b.sliding) if b.sliding else rules.max_num_seqs * length
        per_token = b.sliding
    else:
        per_token = b.full + (b.sliding * ratio if b.sliding else 0.0)
        tokens = int(free // per_token)
    tokens = tokens // page * page
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
    reach = min(length, b.window + rules.max_num_batched_tokens)
    return KVPlan(
        bytes_per_token=b.full or b.sliding,
        tokens=tokens,
        num_blocks=tokens // page,
        block_size=page,
        blocks_per_request=ceil(length / page),
        request_bytes=b.full * length + b.sliding * reach + b.state,
        max_concurrency=concurrency,
        pool_bytes=memory,
        state_bytes=b.state,
        explain=tuple(explain),
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


def llama_cpp_pools(cache: CacheSpec) -> LlamaPools:
    """Return the pools for a context of `cache.length` tokens in all (-c)."""
    return _pools(cache, _split(cache, 4, 4))


def _pools(cache: CacheSpec, b: _Bytes) -> LlamaPools:
    d, rules = cache.deployment, cache.rules
    slots = rules.max_num_seqs
    unified = True if d.unified_kv is None else d.unified_kv
    streams = 1 if unified else slots
    cells = _padded(ceil(cache.length / streams), rules.pad_cells)
    window = _padded(b.window * (slots if unified else 1) + d.ubatch, rules.pad_cells)
    window_cells = cells if d.swa_full else min(cells, window)
    return LlamaPools(
        full=b.full * cells * streams,
        sliding=b.sliding * window_cells * streams,
        states=b.state * slots * (1 + d.num_speculative_tokens),
        cells=cells,
        window_cells=window_cells,
        streams=streams,
    )


def plan_llama_cpp(cache: CacheSpec) -> KVPlan:
    """Size what the context takes: llama.cpp reserves it, whatever is free."""
    d, slots = cache.deployment, cache.rules.max_num_seqs
    b = _split(cache, 4, 4)
    pools = _pools(cache, b)
    several = f" x {pools.streams} streams" if pools.streams > 1 else ""
    explain = [f"{b.full:,.0f} B a token x {pools.cells:,} cells{several}"]
    if b.window:
        explain.append(
            f"sliding layers: {b.sliding:,.0f} B a token x {pools.window_cells:,} cells (window {b.window})"
        )
    if b.state:
        explain.append(
            f"states: {b.state:,.0f} B x {slots} sequences x {1 + d.num_speculative_tokens} snapshots"
        )
    return KVPlan(
        bytes_per_token=b.full + (b.sliding if d.swa_full else 0.0),
        tokens=pools.cells * pools.streams,
        num_blocks=pools.cells * pools.streams,
        block_size=1,
        blocks_per_request=pools.cells,
        request_bytes=pools.total / slots,
        max_concurrency=float(slots),
        pool_bytes=pools.total,
        state_bytes=b.state,
        explain=tuple(explain),
        pools=(("full", pools.full), ("sliding", pools.sliding), ("states", pools.states)),
    )


def _padded(cells: int, multiple: int) -> int:
    return -(-cells // multiple) * multiple


def plan_weighbridge(cache: CacheSpec, memory: float) -> KVPlan:
    """Size the cache in blocks of 32 tokens of the `memory` bytes that are left; sliding layers are kept in full."""
    if any(isinstance(layer.mixer, (Recurrent, Latent)) for layer in cache.layers):
        raise BadInput(
            "the weighbridge engine does not run latent or recurrent attention; choose another --engine"
        )
    b, d = _split(cache, 2, None), cache.deployment
    per_token = b.full + b.sliding
    block = d.block_size or WEIGHBRIDGE_BLOCK
    per_request = ceil(cache.length / block)
    request = per_request * block * per_token
    pool = d.kv_cache_memory or pool_bytes(memory, request, d, cache.rules.max_num_seqs)
    blocks = int(pool // (per_token * block))
    taken = blocks * block * per_token
    return KVPlan(
        bytes_per_token=per_token,
        tokens=blocks * block,
        num_blocks=blocks,
        block_size=block,
        blocks_per_request=per_request,
        request_bytes=request,
        max_concurrency=blocks / per_request,
        pool_bytes=taken,
        state_bytes=0.0,
        explain=(
            f"the pool has {taken:,.0f} B of them: {blocks:,} blocks x {block} tokens x {per_token:,.0f} B "
            f"({cache.kv.name}); --kv-cache-memory sets it",
        ),
    )
