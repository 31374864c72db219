"""An architecture as its table of tensors: the one list that weights, shards, GGUF sizes and FLOPs come from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from weighbridge.planner.model.architecture import (
    Architecture,
    Attention,
    DenseBlock,
    ExpertBlock,
    Latent,
    LayerShape,
    Recurrent,
)

EMBED, HEAD = -1, -2  # `Tensor.layer` of what lies around the layers
DRAFT = -3
#: The name of what is added in routed experts.
EXPERT_BIAS = "ffn_exps_bias"


class Kind(StrEnum):
    """What a tensor is for; quantisation formats choose by it."""

    EMBED = "embedding"
    HEAD = "head"
    ATTENTION = "attention"
    MLP = "mlp"
    SHARED = "shared expert"
    EXPERT = "expert"
    ROUTER = "router"
    LINEAR = "linear attention"  # projections of recurrent mixers
    SMALL = "norms and biases"
    TOWER = "tower"
    COPY = "dense copies for many tokens"


class Shard(StrEnum):
    """How tensor parallelism divides a tensor."""

    SPLIT = "split"
    HEADS = "by key/value head"  # at least one head a rank
    WHOLE = "whole"  # every rank keeps all of it
    EXPERT = "experts"  # by rank, inside experts (TP) or between them (EP): the same bytes


@dataclass(frozen=True, slots=True)
class Tensor:
    """`copies` matrices of rows x columns. `name` is llama.cpp's, without layer number and ".weight"."""

    name: str
    layer: int
    rows: int
    columns: int
    kind: Kind
    shard: Shard = Shard.SPLIT
    copies: int = 1
    heads: int = 1  # of Shard.HEADS
    used: float = 1.0  # share of the copies that one token passes through

    @property
    def elements(self) -> int:
        return self.rows * self.columns * self.copies


def all_tensors(architecture: Architecture, *, drafts: bool = False) -> Iterator[Tensor]:
    """Yield every tensor of the checkpoint; the model's own draft layers only with `drafts`."""
    hidden, vocab = architecture.hidden, architecture.vocab
    yield Tensor("token_embd", EMBED, vocab, hidden, Kind.EMBED)
    if architecture.gated_vocab:
        yield Tensor("per_layer_token_embd", EMBED, vocab, architecture.gated_vocab, Kind.EMBED)
    for index, layer in enumerate(architecture.layers):
        yield from layer_tensors(layer, index, hidden)
    yield Tensor("output_norm", HEAD, 1, hidden, Kind.SMALL, Shard.WHOLE)
    if not architecture.tied:
        yield Tensor("output", HEAD, vocab, hidden, Kind.HEAD)
    for tower in architecture.towers:
        yield Tensor(tower.name, EMBED, 1, tower.parameters, Kind.TOWER, Shard.WHOLE, used=0.0)
    if drafts:
        for layer in architecture.drafts:
            yield Tensor("nextn.eh_proj", DRAFT, hidden, 2 * hidden, Kind.ATTENTION, Shard.WHOLE)
            yield from layer_tensors(layer, DRAFT, hidden)


def layer_tensors(layer: LayerShape, index: int, hidden: int) -> Iterator[Tensor]:
    """Yield the tensors of layer number `index`."""
    match layer.mixer:
        case Attention() as attention:
            yield from _attention(attention, index, hidden)
        case Latent() as latent:
            yield from _latent(latent, index, hidden)
        case Recurrent() as recurrent:
            yield from _recurrent(recurrent, index, hidden)
    match layer.feed_forward:
        case DenseBlock(width, gated):
            yield from _mlp("", index, hidden, width, gated, Kind.MLP)
        case ExpertBlock() as experts:
            yield from _experts(experts, index, hidden)
    yield Tensor("norms", index, 2, hidden, Kind.SMALL, Shard.WHOLE)


def _attention(a: Attention, index: int, hidden: int) -> Iterator[Tensor]:
    rows = a.heads * a.key_dim
    kind = Kind.ATTENTION
    yield Tensor("attn_q", index, rows * (2 if a.gated else 1), hidden, kind)
    if a.owns_cache:
        yield Tensor("attn_k", index, a.kv_heads * a.key_dim, hidden, kind, Shard.HEADS, heads=a.kv_heads)
    if a.owns_cache and not a.keys_are_values:
        yield Tensor("attn_v", index, a.kv_heads * a.value_dim, hidden, kind, Shard.HEADS, heads=a.kv_heads)
    yield Tensor("attn_output", index, hidden, a.heads * a.value_dim, kind)
    if a.norms or a.sinks:
        yield Tensor("attn_scales", index, 1, a.norms + a.heads * a.sinks, Kind.SMALL, Shard.WHOLE)
    if a.bias:
        width = rows + a.kv_heads * (a.key_dim + a.value_dim)
        yield Tensor("attn_bias", index, 1, width + hidden * a.output_bias, Kind.SMALL)


def _latent(m: Latent, index: int, hidden: int) -> Iterator[Tensor]:
    kind, whole = Kind.ATTENTION, Shard.WHOLE
    query = m.heads * (m.nope_dim + m.rope_dim)
    if m.q_rank:
        yield Tensor("attn_q_a", index, m.q_rank, hidden, kind, whole)
        yield Tensor("attn_q_b", index, query, m.q_rank, kind)
    else:
        yield Tensor("attn_q", index, query, hidden, kind)
    yield Tensor("attn_kv_a_mqa", index, m.kv_rank + m.rope_dim, hidden, kind, whole)
    yield Tensor("attn_kv_b", index, m.heads * (m.nope_dim + m.value_dim), m.kv_rank, kind)
    yield Tensor("attn_output", index, hidden, m.heads * m.value_dim, kind)
    yield Tensor("attn_scales", index, 1, m.q_rank + m.kv_rank, Kind.SMALL, whole)
    if m.indexer is not None:
        yield Tensor("indexer.attn_q_b", index, m.indexer.heads * m.indexer.dim, m.q_rank, kind, whole)
        yield Tensor("indexer.attn_k", index, m.indexer.dim, hidden, kind, whole)
        yield Tensor("indexer.proj", index, m.indexer.heads, hidden, kind, whole)


def _recurrent(r: Recurrent, index: int, hidden: int) -> Iterator[Tensor]:
    names = {"linear_qkv": "attn_qkv", "linear_gate": "attn_gate", "linear_out": "ssm_out"}
    for role, rows, columns in r.projections:
        kind = Kind.ROUTER if role == "linear_ba" else Kind.LINEAR
        yield Tensor(names.get(role, role), index, rows, columns, kind)
    yield Tensor("ssm_conv1d", index, r.conv_dim, r.kernel, Kind.SMALL)
    yield Tensor("ssm_parameters", index, 1, 4 * r.state_heads, Kind.SMALL)


def _mlp(suffix: str, index: int, hidden: int, width: int, gated: bool, kind: Kind) -> Iterator[Tensor]:
    if gated:
        yield Tensor("ffn_gate" + suffix, index, width, hidden, kind)
    yield Tensor("ffn_up" + suffix, index, width, hidden, kind)
    yield Tensor("ffn_down" + suffix, index, hidden, width, kind)


def _experts(e: ExpertBlock, index: int, hidden: int) -> Iterator[Tensor]:
    inner = e.latent or hidden
    used = e.active / e.count
    names = ("ffn_gate_exps", "ffn_up_exps") if e.gated else ("ffn_up_exps",)
    for name in names:
        yield Tensor(name, index, e.intermediate, inner, Kind.EXPERT, Shard.EXPERT, e.count, used=used)
    yield Tensor("ffn_down_exps", index, inner, e.intermediate, Kind.EXPERT, Shard.EXPERT, e.count, used=used)
    if e.bias:
        width = (2 if e.gated else 1) * e.intermediate + inner
        yield Tensor(EXPERT_BIAS, index, e.count, width, Kind.SMALL, used=used)
    yield Tensor("ffn_gate_inp", index, e.count, hidden, Kind.ROUTER, Shard.WHOLE)
    if e.router_bias:
        yield Tensor("exp_probs_b", index, 1, e.count, Kind.SMALL, Shard.WHOLE)
    if e.shared_intermediate:
        yield from _mlp("_shexp", index, hidden, e.shared_intermediate, e.gated, Kind.SHARED)
    if e.shared_gate:
        yield Tensor("ffn_gate_inp_shexp", index, 1, hidden, Kind.ROUTER, Shard.WHOLE)
    if e.dense_intermediate:
        yield from _mlp("", index, hidden, e.dense_intermediate, e.gated, Kind.MLP)
    if e.latent:
        yield Tensor("ffn_latent", index, 2 * e.latent, hidden, Kind.MLP, Shard.WHOLE)


def parameters(architecture: Architecture) -> tuple[int, int]:
    """Count the parameters, and those that a token passes through (without the embedding look-up)."""
    total, active = 0, 0.0
    for tensor in all_tensors(architecture):
        total += tensor.elements
        if tensor.kind is not Kind.EMBED:
            active += tensor.elements * tensor.used
    if architecture.tied:
        active += architecture.vocab * architecture.hidden
    return total, round(active)
