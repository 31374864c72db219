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

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from weighbridge.errors import BadInput
from weighbridge.planner.memory.engines import Rules
from weighbridge.planner.memory.kv_dtype import KVType
from weighbridge.planner.memory.kv_layout import KVPlan, recurrent_bytes
from weighbridge.planner.memory.request import Deployment
from weighbridge.planner.model.architecture import Attention, Latent, Layer, Recurrent


@dataclass(frozen=True, slots=True)
class _Spec:
    """One kind of layer: how its pages look and how many a request takes."""

    kind: str  # "full", "sliding", "chunked", "state"
    token_bytes: float = 0.0
    reach: int = 0  # window or chunk
    page: int = 0  # of a state
    latent: bool = False


def plan_vllm(
    layers: Sequence[Layer], d: Deployment, rules: Rules, kv: KVType, memory: float, length: int
) -> KVPlan:
    """The cache that `memory` bytes per GPU hold. Raises BadInput for models without any cache."""
    specs = [_spec(layer, d, kv) for layer in layers]
    if not specs:
        raise BadInput("the model keeps no cache: nothing to plan")
    grouped = rules.kv_groups and not _chunked_off(specs)
    if not grouped:
        specs = [_as_full(spec) for spec in specs]
    kinds = _count(specs)
    if len(kinds) == 1 or {spec.kind for spec in kinds} == {"full"}:
        return _uniform(kinds, d, rules, memory, length)
    return _groups(kinds, d, rules, memory, length)


def _spec(layer: Layer, d: Deployment, kv: KVType) -> _Spec:
    match layer.mixer:
        case Recurrent() as r:
            return _Spec("state", page=recurrent_bytes(r, d.tp, d.num_speculative_tokens, 2))
        case Latent() as m:
            return _Spec("full", kv.latent_bytes(m) + kv.indexer_bytes(m), latent=True)
        case Attention() as a:
            size = kv.attention_bytes(a, d.tp)
            if a.window:
                return _Spec("sliding", size, a.window)
            if a.chunk:
                return _Spec("chunked", size, a.chunk)
            return _Spec("full", size)
    raise AssertionError("a layer without a mixer keeps no cache")


def _chunked_off(specs: Sequence[_Spec]) -> bool:
    """vLLM keeps chunked-local layers in full unless told otherwise: groups made them slower."""
    return any(spec.kind == "chunked" for spec in specs)


def _as_full(spec: _Spec) -> _Spec:
    return spec if spec.kind == "state" else _Spec("full", spec.token_bytes)


def _count(specs: Sequence[_Spec]) -> dict[_Spec, int]:
    kinds: dict[_Spec, int] = {}
    for spec in specs:
        kinds[spec] = kinds.get(spec, 0) + 1
    return kinds


def _default_block(d: Deployment, latent: bool) -> int:
    return d.block_size or (64 if latent else 16)


def _uniform(kinds: dict[_Spec, int], d: Deployment, rules: Rules, memory: float, length: int) -> KVPlan:
    """Layers of one kind, or full layers of several sizes: one page of each layer makes a block."""
    if all(spec.kind == "state" for spec in kinds):
        return _states_only(kinds, d, rules, memory, length)
    per_token = sum(spec.token_bytes * count for spec, count in kinds.items())
    block = _default_block(d, any(spec.latent for spec in kinds))
    blocks = int(memory // (per_token * block))
    spec = next(iter(kinds))
    per_request = _request_blocks(spec, block, d, rules, length)
    concurrency = blocks / per_request
    tokens = int(concurrency * length) if rules.prints_concurrency else blocks * block * d.dcp
    if not rules.prints_concurrency and spec.kind == "full":
        concurrency = tokens / length
    explain = (
        f"{sum(kinds.values())} layers x {per_token / sum(kinds.values()):,.0f} B a token = {per_token:,.0f} B "
        f"per token per GPU; {memory:,.0f} B // ({per_token:,.0f} x {block}) = {blocks:,} blocks of {block} tokens",
    )
    return KVPlan(
        per_token,
        tokens,
        blocks,
        block,
        per_request,
        per_request * block * per_token,
        concurrency,
        memory,
        0.0,
        explain,
    )


def _states_only(kinds: dict[_Spec, int], d: Deployment, rules: Rules, memory: float, length: int) -> KVPlan:
    per_request = (2 if rules.prefix_caching else 1) + d.num_speculative_tokens
    size = sum(spec.page * count for spec, count in kinds.items())
    blocks = int(memory // size)
    explain = (f"a state of {size:,} B per sequence; {blocks:,} of them fit",)
    concurrency = blocks / per_request
    return KVPlan(
        0.0,
        int(concurrency * length),
        blocks,
        length,
        per_request,
        size * per_request,
        concurrency,
        memory,
        size,
        explain,
    )


def _groups(kinds: dict[_Spec, int], d: Deployment, rules: Rules, memory: float, length: int) -> KVPlan:
    blocks_of, page, notes = _pages(kinds, d)
    size = group_size(list(kinds.values()), rules)
    counts = {spec: ceil(count / size) for spec, count in kinds.items()}
    padding = sum(counts[spec] * size - count for spec, count in kinds.items())
    blocks = int(memory // (size * page))
    per_request = sum(
        groups * _request_blocks(spec, blocks_of[spec], d, rules, length) for spec, groups in counts.items()
    )
    concurrency = blocks / per_request
    smallest = min(block for spec, block in blocks_of.items() if spec.kind != "state")
    old = blocks // sum(counts.values()) * smallest * d.dcp
    tokens = int(concurrency * length) if rules.prints_concurrency else old
    growing = [spec for spec in kinds if spec.kind == "full"]
    per_token = sum(counts[spec] * size * page / blocks_of[spec] for spec in growing)
    explain = (
        *notes,
        f"groups of {size} layers: "
        + ", ".join(f"{counts[s]} of {s.kind} ({n} layers)" for s, n in kinds.items())
        + (f"; {padding} padding layers" if padding else ""),
        f"{memory:,.0f} B // ({size} layers x {page:,} B) = {blocks:,} blocks; a request of {length:,} tokens takes "
        f"{per_request:,}: {concurrency:.2f} at once",
    )
    return KVPlan(
        per_token,
        tokens,
        blocks,
        smallest,
        per_request,
        per_request * size * page,
        concurrency,
        memory,
        float(sum(spec.page * count for spec, count in kinds.items() if spec.kind == "state")),
        explain,
    )


def _pages(kinds: dict[_Spec, int], d: Deployment) -> tuple[dict[_Spec, int], int, list[str]]:
    """Block size of each kind and the one page size, in bytes, that all are brought to."""
    attention = [spec for spec in kinds if spec.kind != "state"]
    states = [spec for spec in kinds if spec.kind == "state"]
    latent = any(spec.latent for spec in kinds)
    block, alignment = _default_block(d, latent), 64 if latent else 16
    if states:
        state = max(spec.page for spec in states)
        per_token = max(spec.token_bytes for spec in attention)
        aligned = max(alignment * ceil(state / (alignment * per_token)), block if block > 64 else 0)
        note = (
            f"a state of {state:,} B needs attention blocks of {aligned:,} tokens "
            f"({per_token:,.0f} B a token, rounded up to {alignment})"
        )
        block, notes = aligned, [note]
    else:
        notes = []
    largest = max(spec.token_bytes for spec in attention)
    page = ceil(block * largest)
    sizes = {spec: block * max(1, int(largest // spec.token_bytes)) for spec in attention}
    return {**sizes, **dict.fromkeys(states, block)}, page, notes


def group_size(counts: list[int], rules: Rules) -> int:
    """Layers in a group: the rarest kind's number, or the commonest's when both are near."""
    near = 1.5 if rules.version >= (0, 20) else 1.25
    return max(counts) if max(counts) < min(counts) * near else min(counts)


def _request_blocks(spec: _Spec, block: int, d: Deployment, rules: Rules, length: int) -> int:
    """Blocks of one group that a request of `length` tokens can hold at a time."""
    match spec.kind:
        case "state":
            return (2 if rules.prefix_caching else 1) + d.num_speculative_tokens
        case "sliding":
            reach = min(spec.reach - 1 + rules.max_num_batched_tokens, length)
            return ceil(reach / block) + 1
        case "chunked":
            return ceil(min(spec.reach + rules.max_num_batched_tokens, length) / block)
    return ceil(length / (block * d.dcp))
