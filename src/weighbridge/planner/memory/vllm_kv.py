"""How vLLM sizes its cache, to the block.

Source: vllm/v1/core/kv_cache_utils.py and kv_cache_interface.py; checked against printed logs.

One kind of layer: num_blocks = memory // (layers x page), page = block_size x bytes per token of a layer.

Several kinds (sliding windows, recurrent states): all pages get one size, layers form groups of equal number
(the smallest kind's, or the largest's when it is within 1.25, later 1.5 times), kinds are padded up to whole
groups, and a block of the pool is one page of every layer of a group. A request takes, of each group: its
length in blocks (full), the window and a batch in blocks and one more (sliding), or one state, three with
prefix caching (recurrent), each with its speculative copies.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil

from weighbridge.errors import BadInput
from weighbridge.planner.memory.engines import EngineRules
from weighbridge.planner.memory.kv_dtype import KVType
from weighbridge.planner.memory.kv_layout import CacheSpec, KVPlan, recurrent_bytes
from weighbridge.planner.memory.request import Deployment
from weighbridge.planner.model.architecture import Attention, Latent, LayerShape, Recurrent


@dataclass(frozen=True, slots=True)
class _Kind:
    """One kind of layer: how its pages look and how many a request takes."""

    name: str  # "full", "sliding", "chunked", "state"
    token_bytes: float = 0.0
    reach: int = 0  # window or chunk
    page: int = 0  # of a state
    latent: bool = False


def plan_vllm(cache: CacheSpec, memory: float) -> KVPlan:
    """Size the cache that `memory` bytes per GPU hold. Raises BadInput for models without any cache."""
    kinds = [_kind(layer, cache.deployment, cache.kv) for layer in cache.layers]
    if not kinds:
        raise BadInput("the model keeps no cache: nothing to plan")
    grouped = cache.rules.kv_groups and not _chunked_off(kinds)
    if not grouped:
        kinds = [_as_full(kind) for kind in kinds]
    counts = Counter(kinds)
    if len(counts) == 1 or {kind.name for kind in counts} == {"full"}:
        return _uniform(counts, cache, memory)
    return _groups(counts, cache, memory)


def _kind(layer: LayerShape, d: Deployment, kv: KVType) -> _Kind:
    match layer.mixer:
        case Recurrent() as r:
            return _Kind("state", page=recurrent_bytes(r, d.tp, d.num_speculative_tokens, 2))
        case Latent() as m:
            return _Kind("full", kv.latent_bytes(m) + kv.indexer_bytes(m), latent=True)
        case Attention() as a:
            size = kv.attention_bytes(a, d.tp)
            if a.window:
                return _Kind("sliding", size, a.window)
            if a.chunk:
                return _Kind("chunked", size, a.chunk)
            return _Kind("full", size)
    raise AssertionError("a layer without a mixer keeps no cache")


def _chunked_off(kinds: Sequence[_Kind]) -> bool:
    """vLLM keeps chunked-local layers in full unless told otherwise: groups made them slower."""
    return any(kind.name == "chunked" for kind in kinds)


def _as_full(kind: _Kind) -> _Kind:
    return kind if kind.name == "state" else _Kind("full", kind.token_bytes)


def _default_block(d: Deployment, latent: bool) -> int:
    return d.block_size or (64 if latent else 16)


def _uniform(counts: Mapping[_Kind, int], cache: CacheSpec, memory: float) -> KVPlan:
    """Layers of one kind, or full layers of several sizes: one page of each layer makes a block."""
    if all(kind.name == "state" for kind in counts):
        return _states_only(counts, cache, memory)
    length, layers = cache.length, sum(counts.values())
    per_token = sum(kind.token_bytes * count for kind, count in counts.items())
    block = _default_block(cache.deployment, any(kind.latent for kind in counts))
    blocks = int(memory // (per_token * block))
    first = next(iter(counts))
    per_request = _request_blocks(first, block, cache)
    concurrency = blocks / per_request
    tokens = int(concurrency * length)
    if not cache.rules.prints_concurrency:
        tokens = blocks * block * cache.deployment.dcp
        concurrency = tokens / length if first.name == "full" else concurrency
    explain = (
        f"{layers} layers x {per_token / layers:,.0f} B a token = {per_token:,.0f} B "
        f"per token per GPU; {memory:,.0f} B // ({per_token:,.0f} x {block}) = {blocks:,} blocks of {block} tokens",
    )
    return KVPlan(
        bytes_per_token=per_token,
        tokens=tokens,
        num_blocks=blocks,
        block_size=block,
        blocks_per_request=per_request,
        request_bytes=per_request * block * per_token,
        max_concurrency=concurrency,
        pool_bytes=memory,
        state_bytes=0.0,
        explain=explain,
    )


def _states_only(counts: Mapping[_Kind, int], cache: CacheSpec, memory: float) -> KVPlan:
    per_request = _states_per_request(cache)
    size = sum(kind.page * count for kind, count in counts.items())
    blocks = int(memory // size)
    concurrency = blocks / per_request
    return KVPlan(
        bytes_per_token=0.0,
        tokens=int(concurrency * cache.length),
        num_blocks=blocks,
        block_size=cache.length,
        blocks_per_request=per_request,
        request_bytes=size * per_request,
        max_concurrency=concurrency,
        pool_bytes=memory,
        state_bytes=size,
        explain=(f"a state of {size:,} B per sequence; {blocks:,} of them fit",),
    )


def _groups(counts: Mapping[_Kind, int], cache: CacheSpec, memory: float) -> KVPlan:
    d, rules, length = cache.deployment, cache.rules, cache.length
    blocks_of, page, notes = _pages(counts, d)
    size = group_size(list(counts.values()), rules)
    groups = {kind: ceil(count / size) for kind, count in counts.items()}
    padding = sum(groups[kind] * size - count for kind, count in counts.items())
    blocks = int(memory // (size * page))
    per_request = sum(
        number * _request_blocks(kind, blocks_of[kind], cache) for kind, number in groups.items()
    )
    concurrency = blocks / per_request
    smallest = min(block for kind, block in blocks_of.items() if kind.name != "state")
    old = blocks // sum(groups.values()) * smallest * d.dcp
    growing = [kind for kind in counts if kind.name == "full"]
    explain = (
        *notes,
        f"groups of {size} layers: "
        + ", ".join(f"{groups[k]} of {k.name} ({n} layers)" for k, n in counts.items())
        + (f"; {padding} padding layers" if padding else ""),
        f"{memory:,.0f} B // ({size} layers x {page:,} B) = {blocks:,} blocks; a request of {length:,} tokens takes "
        f"{per_request:,}: {concurrency:.2f} at once",
    )
    return KVPlan(
        bytes_per_token=sum(groups[kind] * size * page / blocks_of[kind] for kind in growing),
        tokens=int(concurrency * length) if rules.prints_concurrency else old,
        num_blocks=blocks,
        block_size=smallest,
        blocks_per_request=per_request,
        request_bytes=per_request * size * page,
        max_concurrency=concurrency,
        pool_bytes=memory,
        state_bytes=float(sum(kind.page * count for kind, count in counts.items() if kind.name == "state")),
        explain=explain,
    )


def _pages(counts: Mapping[_Kind, int], d: Deployment) -> tuple[dict[_Kind, int], int, list[str]]:
    """Block size of each kind and the one page size, in bytes, that all are brought to."""
    attention = [kind for kind in counts if kind.name != "state"]
    states = [kind for kind in counts if kind.name == "state"]
    latent = any(kind.latent for kind in counts)
    block, alignment = _default_block(d, latent), 64 if latent else 16
    notes = []
    if states:
        state = max(kind.page for kind in states)
        per_token = max(kind.token_bytes for kind in attention)
        block = max(alignment * ceil(state / (alignment * per_token)), block if block > 64 else 0)
        notes = [
            f"a state of {state:,} B needs attention blocks of {block:,} tokens "
            f"({per_token:,.0f} B a token, rounded up to {alignment})"
        ]
    largest = max(kind.token_bytes for kind in attention)
    page = ceil(block * largest)
    sizes = {kind: block * max(1, int(largest // kind.token_bytes)) for kind in attention}
    return {**sizes, **dict.fromkeys(states, block)}, page, notes


def group_size(counts: list[int], rules: EngineRules) -> int:
    """Layers in a group: the rarest kind's number, or the commonest's when both are near."""
    near = 1.5 if rules.version >= (0, 20) else 1.25
    return max(counts) if max(counts) < min(counts) * near else min(counts)


def _request_blocks(kind: _Kind, block: int, cache: CacheSpec) -> int:
    """Blocks of one group that a request of full length can hold at a time."""
    length, batch = cache.length, cache.rules.max_num_batched_tokens
    match kind.name:
        case "state":
            return _states_per_request(cache)
        case "sliding":
            return ceil(min(kind.reach - 1 + batch, length) / block) + 1
        case "chunked":
            return ceil(min(kind.reach + batch, length) / block)
    return ceil(length / (block * cache.deployment.dcp))


def _states_per_request(cache: CacheSpec) -> int:
    return (2 if cache.rules.prefix_caching else 1) + cache.deployment.num_speculative_tokens
