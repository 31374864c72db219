"""A mixture of experts in numbers: total and active parameters by formula, what must be resident, what moves.

Counted from a `config.json` alone, embeddings included, multi-token-prediction layers not. Active: what one
token runs through, with the embedding table and the output matrix counted whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from weighbridge.errors import BadInput
from weighbridge.models.files.fields import Fields, whole_number


@dataclass(frozen=True, slots=True)
class Parameters:
    """The parameters of a model by what happens to them when it runs, as counts of elements."""

    attention: int  # all layers
    dense_mlp: int  # feed-forward blocks of layers without experts, all of them
    shared_experts: int  # all layers
    routers: int  # all layers
    embeddings: int  # input table and output matrix
    norms: int
    expert: int  # one expert of one layer
    experts: int  # of a layer
    top_k: int
    sparse_layers: int

    @property
    def routed(self) -> int:
        """All routed experts of all layers."""
        return self.sparse_layers * self.experts * self.expert

    @property
    def resident(self) -> int:
        """What every token needs, which is everything but the routed experts."""
        every = self.attention + self.dense_mlp + self.shared_experts + self.routers
        return every + self.embeddings + self.norms

    @property
    def total(self) -> int:
        return self.resident + self.routed

    @property
    def active(self) -> int:
        """What one token computes with."""
        return self.resident + self.sparse_layers * self.top_k * self.expert


def count_parameters(config: dict[str, Any]) -> Parameters:
    """Count the parameters of the mixture of experts that `config`, a parsed config.json, describes.

    Knows Mixtral, Qwen2/3-MoE, OLMoE, gpt-oss and DeepSeek-shaped models (V2, V3, R1, Kimi K2). Raises BadInput
    for a dense model or a missing field.
    """
    fields = Fields(config.get("text_config") or config)
    hidden, layers = fields.whole("hidden_size"), fields.layers("num_hidden_layers")
    experts = _first(fields, "num_local_experts", "num_experts", "n_routed_experts")
    if experts is None:
        raise BadInput("config.json names no experts: this is a dense model")
    top_k = _first(fields, "num_experts_per_tok", "experts_per_token") or 2
    width = _first(fields, "moe_intermediate_size") or fields.whole("intermediate_size")
    sparse = _sparse_layers(fields, layers)
    gpt_oss = fields.get("model_type") == "gpt_oss"
    biases = 2 * width + hidden if gpt_oss else 0  # gpt-oss: of gate, up and down
    attention, norms = _attention(fields, hidden)
    router = experts * hidden
    if gpt_oss or fields.get("topk_method") == "noaux_tc":
        router += experts  # a bias for each expert's score
    tables = 1 if fields.get("tie_word_embeddings") else 2
    return Parameters(
        attention=layers * attention,
        dense_mlp=(layers - sparse) * 3 * hidden * fields.whole("intermediate_size", default=width, min=0),
        shared_experts=sparse * _shared(fields, hidden, width),
        routers=sparse * router,
        embeddings=tables * fields.whole("vocab_size") * hidden,
        norms=layers * (2 * hidden + norms) + hidden,
        expert=3 * hidden * width + biases,
        experts=experts,
        top_k=top_k,
        sparse_layers=sparse,
    )


def _sparse_layers(fields: Fields, layers: int) -> int:
    dense_first = _first(fields, "first_k_dense_replace")
    if dense_first is not None:
        step = fields.whole("moe_layer_freq", default=1)
        return sum(index >= dense_first and index % step == 0 for index in range(layers))
    step, dense = fields.whole("decoder_sparse_step", default=1), fields.get("mlp_only_layers") or []
    return sum(index not in dense and (index + 1) % step == 0 for index in range(layers))


def _shared(fields: Fields, hidden: int, width: int) -> int:
    """The shared expert of one layer: DeepSeek counts them in experts, Qwen2-MoE gives a width and a gate."""
    count = _first(fields, "n_shared_experts")
    if count is not None:
        return 3 * hidden * width * count
    wide = _first(fields, "shared_expert_intermediate_size")
    return 0 if not wide else 3 * hidden * wide + hidden


def _attention(fields: Fields, hidden: int) -> tuple[int, int]:
    """Parameters of one layer's attention, and of the norms inside it."""
    heads = fields.whole("num_attention_heads")
    family = fields.get("model_type")
    if _first(fields, "kv_lora_rank"):
        return _latent_attention(fields, hidden, heads)
    kv_heads = fields.whole("num_key_value_heads", default=heads)
    head = fields.whole("head_dim", default=hidden // heads)
    queries, keys = heads * head, kv_heads * head
    matrices = hidden * (2 * queries + 2 * keys)
    if family == "qwen2_moe" or fields.get("attention_bias"):
        matrices += queries + 2 * keys
    if fields.get("attention_bias"):
        matrices += hidden
    if family == "gpt_oss":
        matrices += heads  # one sink per head
    norms = {"qwen3_moe": 2 * head, "olmoe": queries + keys}.get(str(family), 0)
    return matrices, norms


def _latent_attention(fields: Fields, hidden: int, heads: int) -> tuple[int, int]:
    """Multi-head latent attention (DeepSeek-V2): compressed queries and keys, each with a norm."""
    kv_rank, rope = fields.whole("kv_lora_rank"), fields.whole("qk_rope_head_dim")
    nope, value = fields.whole("qk_nope_head_dim"), fields.whole("v_head_dim")
    query = heads * (nope + rope)
    rank = _first(fields, "q_lora_rank") or 0
    queries = hidden * rank + rank * query if rank else hidden * query
    keys = hidden * (kv_rank + rope) + kv_rank * heads * (nope + value)
    return queries + keys + heads * value * hidden, rank + kv_rank


def _first(fields: Fields, *names: str) -> int | None:
    for name in names:
        if name in fields:
            return whole_number(fields.get(name), name, fields.where, min=0)
    return None


@dataclass(frozen=True, slots=True)
class Replacement:
    """What moving experts gains and costs. `pays_after_steps` is None when the new placement is not faster."""

    gain_per_step: float  # seconds
    moving: float  # seconds, all GPUs at once
    pays_after_steps: float | None


def replacement(
    expert_seconds: float,
    balancedness_before: float,
    balancedness_after: float,
    max_moved_bytes: float,
    bytes_per_second: float,
) -> Replacement:
    """Weigh a re-placement. The slowest GPU sets the step: experts take `expert_seconds` / balancedness.

    expert_seconds: of the experts in one step, if all GPUs were equally loaded.
    max_moved_bytes: what the GPU that fetches most has to fetch.
    """
    gain = expert_seconds * (1.0 / balancedness_before - 1.0 / balancedness_after)
    moving = max_moved_bytes / bytes_per_second
    return Replacement(gain, moving, moving / gain if gain > 0.0 else None)
