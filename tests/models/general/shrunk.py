"""A tiny random model of any type that transformers has a head for text for, saved as it saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

from tests.tiny import VOCABULARY, save_tokenizer

#: Names of sizes, whatever a family calls them. Windows are short, so that a text is longer than one.
_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "sliding_window": 24,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "num_experts_per_token": 2,
    "moe_k": 2,
    "moe_topk": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 32,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "qk_head_dim": 24,
    "v_head_dim": 16,
    "num_kv_heads": 2,
    "ffn_dim": 96,
    "d_model": 64,
    "d_ff": 96,
    "dff": 96,
    "decoder_layers": 4,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 96,
    "word_embed_proj_dim": 64,
    "rotary_dim": 8,
    "n_inner": 96,
    "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size_per_layer_input": 16,
    "laurel_rank": 8,
    "altup_num_inputs": 2,
    "global_head_dim": 32,
    "dim_model": 64,
    "dim_ff": 96,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.2,
}
_EVERY_OTHER = ["linear_attention", "full_attention"] * 2
_MLPS = ["dense", "sparse", "sparse", "sparse"]
_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16}
_KDA = {"linear_head_dim": 16, "linear_num_heads": 4}
_DELTA = {
    "layer_types": _EVERY_OTHER,
    **{"linear_num_key_heads": 2, "linear_num_value_heads": 4},
    **{"linear_key_head_dim": 16, "linear_value_head_dim": 16},
}
#: What single types need otherwise.
_OWN: dict[str, dict[str, Any]] = {
    "gemma": {"hidden_activation": "gelu_pytorch_tanh"},
    "gemma3n_text": {
        "num_hidden_layers": 6,
        "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 3,
        "activation_sparsity_pattern": [0.95, 0.95, 0.0, 0.0, 0.0, 0.0],
        "intermediate_size": [96] * 6,
    },
    "gemma4_text": {
        "num_hidden_layers": 6,
        "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 3,
        "initializer_range": 0.1,  # its products of queries and keys are not scaled
    },
    "hrm_text": {"initializer_range": 0.1},  # it runs through its layers again and again
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    "ministral": {"head_dim": 16},
    "nemotron": {"num_key_value_heads": 2},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    # States multiply rounding: weights of a usual size, and every other layer is attention.
    "qwen3_next": {"initializer_range": 0.1, **_DELTA},
    "qwen3_5_text": {"initializer_range": 0.1, **_DELTA},
    "qwen3_5_moe_text": {"initializer_range": 0.1, **_DELTA},
    "olmo_hybrid": _DELTA,
    "bamba": {"attn_layer_indices": [1, 3], **_MAMBA},
    "granitemoehybrid": {"layer_types": _EVERY_OTHER, "attention_multiplier": 0.0625, **_MAMBA},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_dt_rank": 4},
    "kimi_linear": {"layer_types": _EVERY_OTHER, "mlp_layer_types": _MLPS, **_KDA},
    "bailing_hybrid": {"layer_types": _EVERY_OTHER, "mlp_layer_types": _MLPS, **_KDA},
    "falcon_h1": {**_MAMBA, "mamba_d_ssm": 128},
    "nemotron_h": {
        "initializer_range": 0.1,
        "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"],
        **{"mamba_num_heads": 8, "mamba_head_dim": 16, "ssm_state_size": 16, "n_groups": 2},
    },
    "mamba2": {"num_heads": 8, "head_dim": 16, "state_size": 16, "n_groups": 2},
    "zamba": {
        "initializer_range": 0.1,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        **{"mamba_dt_rank": 4, "attention_hidden_size": 128, "attention_head_dim": 32},
    },
    "zamba2": {
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        **{"hybrid_layer_ids": [1, 3], "n_mamba_heads": 8, "mamba_headdim": 16, "mamba_d_state": 16},
    },
    "granite": {"attention_multiplier": 0.0625},
    "granitemoe": {"attention_multiplier": 0.0625},
    "granitemoeshared": {"attention_multiplier": 0.0625},
    "gpt_neo": {"attention_types": [[["global"], 4]]},
    "phi3": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5}
    },
    "deepseek_v2": {"topk_method": "greedy", "num_experts_per_tok": 2},
    "openai-gpt": {"n_embd": 64},
}


#: Parts of a configuration whose sizes are a text model's.
_PARTS = (
    *("text_config", "decoder"),
    *("patcher_config", "encoder_config", "decoder_config", "global_config"),  # of models of bytes
)


def shrunk_config(kind: str) -> Any:
    """Return a small configuration of a type: its own defaults, with the sizes that it knows made small."""
    return _shrunk(CONFIG_MAPPING[kind], kind)


def _shrunk(of_class: Any, kind: str) -> Any:
    known = of_class()
    sizes = {name: value for name, value in _SIZES.items() if _has(known, name)}
    if "qk_rope_head_dim" in sizes:
        sizes["head_dim"] = sizes["qk_rope_head_dim"]  # what rotates
        sizes["num_key_value_heads"] = sizes["num_attention_heads"]
    parts = {
        name: _shrunk(type(part), part.model_type)
        for name in getattr(of_class, "sub_configs", {})
        if name in _PARTS and (part := getattr(known, name, None)) is not None
    }
    return of_class(**{**sizes, **parts, **_OWN.get(kind, {})})


def _has(config: Any, name: str) -> bool:
    computed = getattr(type(config), name, None)
    if isinstance(computed, property) and computed.fset is None:
        return False
    try:
        return getattr(config, name, None) is not None
    except Exception:  # it differs by layer
        return True


def save_shrunk(kind: str, directory: Path) -> Path:
    """Save a random model of a type, with a tokenizer; same seed, same weights."""
    config = shrunk_config(kind)
    torch.manual_seed(0)
    model = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]._from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:  # norms and biases start as constants, which would hide mistakes
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(directory)
    save_tokenizer(directory)
    return directory
