"""config.json to the mixer of a layer: attention, latent attention or a recurrent state."""

from __future__ import annotations

import re

from weighbridge.errors import BadInput
from weighbridge.planner.model.architecture import Assumption, Attention, Indexer, Latent, Mixer, Recurrent
from weighbridge.planner.model.fields import ModelFields

_BIASED = {"qwen2", "qwen2_moe", "gpt_oss", "opt", "gpt2", "starcoder2", "phi"}
_GATED = {"qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", "qwen3_5", "qwen3_5_moe"}


def mixer(fields: ModelFields, family: str, kind: str, index: int, layers: int) -> Mixer | None:
    """Return the mixer of layer `index`, whose kind `layer_kinds` has named."""
    if kind == "none":
        return None
    if kind == "linear":
        return recurrent(fields, family)
    if "kv_lora_rank" in fields:
        return _latent(fields, index, layers)
    return _attention(fields, family, kind, index, layers)


def head_dim(fields: ModelFields) -> int:
    heads = fields.whole("num_attention_heads", "n_head")
    hidden = fields.whole("hidden_size", "n_embd", "d_model")
    return fields.whole("head_dim", "attention_head_dim", "kv_channels", default=hidden // heads)


def _attention(fields: ModelFields, family: str, kind: str, index: int, layers: int) -> Attention:
    heads = fields.whole("num_attention_heads", "n_head")
    default = 1 if fields.flag("multi_query") else heads
    kv_heads = fields.whole("num_key_value_heads", "num_kv_heads", "multi_query_group_num", default=default)
    key = head_dim(fields)
    value = fields.whole("v_head_dim", default=key)
    twins = False
    if kind == "sliding" and "swa_num_key_value_heads" in fields:
        kv_heads = fields.whole("swa_num_key_value_heads")
        heads = fields.whole("swa_num_attention_heads", default=heads)
        key = fields.whole("swa_head_dim", default=key)
        value = fields.whole("swa_v_head_dim", default=value)
    elif kind == "full" and "global_head_dim" in fields:  # Gemma 4
        key = value = fields.whole("global_head_dim")
        twins = fields.flag("attention_k_eq_v")
        if twins and "num_global_key_value_heads" not in fields:
            fields.assume(
                Assumption(
                    "num_global_key_value_heads",
                    kv_heads,
                    "num_global_key_value_heads is not given; num_key_value_heads assumed",
                )
            )
        kv_heads = fields.whole("num_global_key_value_heads", default=kv_heads)
    if heads % kv_heads:
        raise BadInput(f"config.json: {heads} attention heads cannot share {kv_heads} key/value heads evenly")
    shared = fields.whole("num_kv_shared_layers", default=0, min=0)
    biased = fields.flag("attention_bias") or fields.flag("qkv_bias") or family in _BIASED
    norms = {"olmoe": heads * key + kv_heads * key}.get(family, 2 * key if family.startswith("qwen3") else 0)
    return Attention(
        heads,
        kv_heads,
        key,
        value,
        window=fields.whole("sliding_window", "sliding_window_size") if kind == "sliding" else 0,
        chunk=fields.whole("attention_chunk_size", default=8192) if kind == "chunked" else 0,
        bias=biased,
        output_bias=biased and family not in ("qwen2", "qwen2_moe"),
        gated=fields.flag("attn_output_gate", family in _GATED),
        keys_are_values=twins,
        norms=norms,
        sinks=family == "gpt_oss",
        owns_cache=index < layers - shared,
    )


def _latent(fields: ModelFields, index: int, layers: int) -> Latent:
    indexer = None
    if "index_head_dim" in fields and _has_indexer(fields, index, layers):
        indexer = Indexer(fields.whole("index_n_heads"), fields.whole("index_head_dim"))
    return Latent(
        fields.whole("num_attention_heads"),
        fields.whole("q_lora_rank", default=0, min=0),
        fields.whole("kv_lora_rank"),
        fields.whole("qk_rope_head_dim"),
        fields.whole("qk_nope_head_dim"),
        fields.whole("v_head_dim"),
        indexer,
    )


def _has_indexer(fields: ModelFields, index: int, layers: int) -> bool:
    """Some models compute indices in some layers and share them with the layers that follow."""
    kinds = fields.listed("indexer_types", layers)
    if kinds is not None:
        return bool(kinds[index] == "full")
    counts = fields.get("indexer_types_counts")
    if isinstance(counts, dict):  # spread evenly: only the number matters
        full = int(counts.get("full", layers))
        return (index * full) // layers != ((index - 1) * full) // layers if index else True
    return True


def recurrent(fields: ModelFields, family: str) -> Recurrent:
    """Return the recurrent mixer that the fields describe. Raises BadInput when they describe none."""
    if "linear_num_value_heads" in fields:
        return _gated_delta_net(fields)
    linear = fields.inner("linear_attn_config")
    if linear is not None:
        return _kimi_delta(fields, linear)
    if family == "kimi_linear":  # as transformers writes it
        names = {"head_dim": "linear_head_dim", "num_heads": "linear_num_heads"}
        names["short_conv_kernel_size"] = "linear_conv_kernel_dim"
        flat = {name: fields.get(written) for name, written in names.items()}
        return _kimi_delta(fields, ModelFields(flat, fields.assumptions))
    if family.startswith("jamba"):
        return _mamba1(fields)
    if family.startswith("lfm2"):
        return _short_conv(fields)
    if family.startswith("minimax"):
        return _lightning(fields)
    return _mamba2(fields)


def _gated_delta_net(fields: ModelFields) -> Recurrent:
    hidden = fields.whole("hidden_size")
    key = fields.whole("linear_num_key_heads") * fields.whole("linear_key_head_dim")
    value_heads, value_dim = fields.whole("linear_num_value_heads"), fields.whole("linear_value_head_dim")
    value = value_heads * value_dim
    return Recurrent(
        "gdn",
        2 * key + value,
        fields.whole("linear_conv_kernel_dim", default=4),
        value_heads,
        fields.whole("linear_key_head_dim") * value_dim,
        (
            ("linear_qkv", 2 * key + value, hidden),
            ("linear_gate", value, hidden),
            ("linear_ba", 2 * value_heads, hidden),
            ("linear_out", hidden, value),
        ),
        state_bytes=_state_bytes(fields, 4),
    )


def _kimi_delta(fields: ModelFields, linear: ModelFields) -> Recurrent:
    hidden, dim = fields.whole("hidden_size"), linear.whole("head_dim")
    heads = linear.whole("num_heads")
    inner = heads * dim
    return Recurrent(
        "kda",
        3 * inner,
        linear.whole("short_conv_kernel_size", default=4),
        heads,
        dim * dim,
        (
            ("linear_qkv", 3 * inner, hidden),
            ("linear_out", hidden, inner),
            ("linear_gate", inner, 2 * dim),
            ("linear_gate_in", 2 * dim, hidden),
            ("linear_ba", heads, hidden),
        ),
        state_bytes=4,
    )


def _mamba2(fields: ModelFields) -> Recurrent:
    hidden = fields.whole("hidden_size")
    heads = fields.whole("mamba_num_heads", "mamba_n_heads")
    dim = fields.get("mamba_head_dim", "mamba_d_head")
    if not isinstance(dim, int):  # "auto" in some configurations
        dim = int(fields.number("mamba_expand", fields.number("expand", 2)) * hidden) // heads
    state = fields.whole("ssm_state_size", "mamba_d_state")
    groups = fields.whole("n_groups", "mamba_n_groups", default=1)
    inner = heads * dim
    if "mamba_ssm_dtype" not in fields and "mamba_ssm_cache_dtype" not in fields:
        sentence = "the type of the Mamba state is not given: the model's own (16 bits) assumed for vLLM"
        fields.assume(Assumption("mamba_ssm_dtype", "float16", sentence))
    return Recurrent(
        "mamba2",
        inner + 2 * groups * state,
        fields.whole("conv_kernel", "mamba_d_conv", default=4),
        heads,
        dim * state,
        (
            ("ssm_in", 2 * inner + 2 * groups * state + heads, hidden),
            ("ssm_out", hidden, inner),
        ),
        state_bytes=_state_bytes(fields, 2),
    )


def _mamba1(fields: ModelFields) -> Recurrent:
    hidden = fields.whole("hidden_size")
    inner = int(fields.number("mamba_expand", 2) * hidden)
    state, rank = (
        fields.whole("mamba_d_state", default=16),
        fields.whole("mamba_dt_rank", default=hidden // 16),
    )
    return Recurrent(
        "mamba1",
        inner,
        fields.whole("mamba_d_conv", default=4),
        inner,
        state,
        (
            ("ssm_in", 2 * inner, hidden),
            ("ssm_x", rank + 2 * state, inner),
            ("ssm_dt", inner, rank),
            ("ssm_out", hidden, inner),
        ),
        state_bytes=_state_bytes(fields, 2),
    )


def _short_conv(fields: ModelFields) -> Recurrent:
    hidden = fields.whole("hidden_size")
    kernel = fields.whole("conv_L_cache", default=3)
    return Recurrent(
        "short_conv", hidden, kernel, 1, 0, (("conv_in", 3 * hidden, hidden), ("conv_out", hidden, hidden))
    )


def _lightning(fields: ModelFields) -> Recurrent:
    hidden, heads, dim = fields.whole("hidden_size"), fields.whole("num_attention_heads"), head_dim(fields)
    inner = heads * dim
    projections = (
        ("linear_qkv", 3 * inner, hidden),
        ("linear_gate", inner, hidden),
        ("linear_out", hidden, inner),
    )
    return Recurrent("lightning", 0, 1, heads, dim * dim, projections)


def _state_bytes(fields: ModelFields, default: int) -> int:
    name = fields.get("mamba_ssm_dtype", "mamba_ssm_cache_dtype")
    if name is None:
        return default
    match = re.fullmatch(r"b?float(32|16)", str(name))
    if match is None:
        raise BadInput(f"config.json: mamba_ssm_dtype {name!r} is not float32, float16 or bfloat16")
    return int(match.group(1)) // 8
