"""GGUF metadata to the fields of a `config.json`, so that one reader understands both. Torch is not needed."""

from __future__ import annotations

from typing import Any

from weighbridge.errors import BadInput
from weighbridge.models.files.gguf_format import Contents

_FAMILIES = {
    "llama": "llama", "llama4": "llama4_text", "qwen2": "qwen2", "qwen2moe": "qwen2_moe", "qwen3": "qwen3",
    "qwen3moe": "qwen3_moe", "qwen3next": "qwen3_next", "qwen35": "qwen3_5_text", "qwen35moe": "qwen3_5_moe_text",
    "gemma": "gemma", "gemma2": "gemma2", "gemma3": "gemma3_text", "gemma4": "gemma4_text", "phi3": "phi3",
    "gpt-oss": "gpt_oss", "deepseek2": "deepseek_v3", "olmoe": "olmoe", "glm4moe": "glm4_moe", "smollm3": "smollm3",
    "nemotron_h": "nemotron_h", "mistral3": "mistral", "minimax-m2": "minimax_m2", "starcoder2": "starcoder2",
}  # fmt: skip
#: config.json's name, and GGUF's after the architecture.
_FIELDS = (
    ("hidden_size", "embedding_length"),
    ("intermediate_size", "feed_forward_length"),
    ("num_hidden_layers", "block_count"),
    ("num_attention_heads", "attention.head_count"),
    ("head_dim", "attention.key_length"),
    ("v_head_dim", "attention.value_length"),
    ("max_position_embeddings", "context_length"),
    ("sliding_window", "attention.sliding_window"),
    ("num_experts", "expert_count"),
    ("num_experts_per_tok", "expert_used_count"),
    ("moe_intermediate_size", "expert_feed_forward_length"),
    ("shared_expert_intermediate_size", "expert_shared_feed_forward_length"),
    ("n_shared_experts", "expert_shared_count"),
    ("first_k_dense_replace", "leading_dense_block_count"),
    ("q_lora_rank", "attention.q_lora_rank"),
    ("kv_lora_rank", "attention.kv_lora_rank"),
    ("qk_rope_head_dim", "rope.dimension_count"),
    ("full_attention_interval", "full_attention_interval"),
    ("linear_conv_kernel_dim", "ssm.conv_kernel"),
)


def config_fields(contents: Contents) -> dict[str, Any]:
    """Return what a config.json of the same model would hold. Raises BadInput for an unknown architecture."""
    metadata = contents.metadata
    name = str(metadata.get("general.architecture"))
    if name not in _FAMILIES:
        raise BadInput(
            f"GGUF architecture {name!r} is not known to the planner; known: {', '.join(_FAMILIES)}"
        )
    fields: dict[str, Any] = {"model_type": _FAMILIES[name]}
    for ours, theirs in _FIELDS:
        value = metadata.get(f"{name}.{theirs}")
        if value is not None:
            fields[ours] = _largest(value)
    embedding = contents.tensors.get("token_embd.weight")
    if embedding is None:
        raise BadInput("the GGUF file has no token_embd.weight: it is no language model")
    fields["vocab_size"] = embedding.shape[0]
    fields["tie_word_embeddings"] = "output.weight" not in contents.tensors
    _latent(fields, metadata, name)
    _heads(fields, metadata, name)
    if f"{name}.ssm.time_step_rank" in metadata:
        _recurrent(fields, metadata, name)
    if fields.get("num_experts") and not fields.get("intermediate_size"):
        fields["intermediate_size"] = fields.get("moe_intermediate_size")
    return fields


def _largest(value: Any) -> Any:
    """Some files give a number for each layer; the largest is what memory is planned for."""
    if isinstance(value, list):
        numbers = [x for x in value if isinstance(x, int | float) and x]
        return max(numbers) if numbers else None
    return value


def _heads(fields: dict[str, Any], metadata: dict[str, Any], name: str) -> None:
    value = metadata.get(f"{name}.attention.head_count_kv")
    fields["num_key_value_heads"] = _largest(value) or fields.get("num_attention_heads")
    if isinstance(value, list) and 0 in value:
        fields["layer_types"] = ["full_attention" if x else "linear_attention" for x in value]


def _latent(fields: dict[str, Any], metadata: dict[str, Any], name: str) -> None:
    """DeepSeek files give the sizes of heads with and without compression; the former are what is stored."""
    if "kv_lora_rank" not in fields:
        fields.pop("qk_rope_head_dim", None)
        return
    key = metadata.get(f"{name}.attention.key_length_mla") or fields.get("head_dim")
    value = metadata.get(f"{name}.attention.value_length_mla") or fields.get("v_head_dim")
    rotated = fields.get("qk_rope_head_dim")
    if not isinstance(key, int) or not isinstance(value, int) or not isinstance(rotated, int):
        raise BadInput("the GGUF file does not say the key and value sizes of its latent attention")
    fields["qk_nope_head_dim"] = key - rotated
    fields["v_head_dim"] = value


def _recurrent(fields: dict[str, Any], metadata: dict[str, Any], name: str) -> None:
    """Gated delta nets, which llama.cpp describes with its state-space keys."""
    keys = ("state_size", "group_count", "time_step_rank", "inner_size")
    sizes = [size for key in keys if isinstance(size := metadata.get(f"{name}.ssm.{key}"), int) and size > 0]
    if not name.startswith("qwen3") or len(sizes) < len(keys):
        return
    state, groups, heads, inner = sizes
    fields |= {
        "linear_num_key_heads": groups,
        "linear_num_value_heads": heads,
        "linear_key_head_dim": state,
        "linear_value_head_dim": inner // heads,
    }
