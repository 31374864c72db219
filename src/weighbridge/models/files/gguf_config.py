"""GGUF metadata to `ModelConfig`; what the engine cannot run is refused by name."""

from __future__ import annotations

import math
from typing import Any

from weighbridge.errors import BadInput, UnsupportedModel
from weighbridge.models.files.config import ExpertsConfig, ModelConfig, RopeConfig
from weighbridge.models.files.fields import whole_number
from weighbridge.models.files.gguf import GgufFile

#: GGUF architectures. Mistral and Mixtral files call themselves llama.
ARCHITECTURES = ("llama", "qwen2", "qwen3", "smollm3", "qwen2moe", "qwen3moe", "olmoe")

#: Those with experts: their Hugging Face family, and whether a token's weights are normalised. llama.cpp has that in
#: its code for the architecture, not in the file.
MIXTURES = {
    "llama": ("mixtral", True),
    "qwen2moe": ("qwen2_moe", False),
    "qwen3moe": ("qwen3_moe", True),
    "olmoe": ("olmoe", False),
}


def read_config(file: GgufFile) -> ModelConfig:
    """Return the shape of the model in `file`. Raises UnsupportedModel naming what cannot be run."""
    architecture = file.architecture
    if architecture not in ARCHITECTURES:
        supported = ", ".join(ARCHITECTURES)
        raise UnsupportedModel(f"GGUF architecture {architecture!r} is not supported ({supported} are)")
    heads, hidden, layers = (
        _whole(file, key) for key in ("attention.head_count", "embedding_length", "block_count")
    )
    window = _whole(file, "attention.sliding_window", 0) if architecture == "llama" else 0
    count = _whole(file, "expert_count", 0)
    if count and architecture not in MIXTURES:
        raise UnsupportedModel(
            f"a mixture of {count} experts of architecture {architecture} is not supported"
        )
    normed = "model.layers.0.self_attn.q_norm.weight" in file
    return ModelConfig(
        architecture=MIXTURES[architecture][0] if count else architecture,
        vocab_size=file.shape("model.embed_tokens.weight")[0],
        hidden_size=hidden,
        intermediate_size=_whole(file, "feed_forward_length"),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=_whole(file, "attention.head_count_kv", heads),
        head_dim=_head_dim(file, hidden // heads),
        max_position_embeddings=_whole(file, "context_length"),
        rms_norm_eps=_number(file, "attention.layer_norm_rms_epsilon"),
        rope=_rope(file),
        # The file does not say it: every fourth layer of SmolLM3 has no rotary embedding.
        rotary_layers=tuple(architecture != "smollm3" or (index + 1) % 4 != 0 for index in range(layers)),
        sliding_windows=(window,) * layers,
        tie_word_embeddings="lm_head.weight" not in file,
        qkv_bias="model.layers.0.self_attn.q_proj.bias" in file,
        output_bias="model.layers.0.self_attn.o_proj.bias" in file,
        mlp_bias="model.layers.0.mlp.down_proj.bias" in file,
        qk_norm=normed and architecture != "olmoe",
        qk_norm_all_heads=normed and architecture == "olmoe",
        clip_qkv=_number(file, "attention.clamp_kqv", 0.0) or None,
        experts=_experts(file, layers, count, _whole(file, "expert_used_count")) if count else None,
        eos_token_ids=file.end_token_ids(),
        bos_token_id=file.index("tokenizer.ggml.bos_token_id"),
    )


def _experts(file: GgufFile, layers: int, count: int, top_k: int) -> ExpertsConfig:
    """Return the experts of `file`, which has `count` and uses `top_k`. Raises BadInput for sizes that do not fit."""
    if not 1 <= top_k <= count:
        raise BadInput(f"{file.path.name}: a token cannot use {top_k} of {count} experts")
    sparse = tuple(f"model.layers.{layer}.mlp.gate.weight" in file for layer in range(layers))
    if True not in sparse:
        raise BadInput(f"{file.path.name} declares {count} experts and has no router (ffn_gate_inp)")
    prefix = f"model.layers.{sparse.index(True)}.mlp."
    routed = file.shape(f"{prefix}gate.weight")[0]
    if routed != count:
        raise BadInput(f"{file.path.name} declares {count} experts, its router knows {routed}")
    shared = f"{prefix}shared_expert.gate_proj.weight"
    normalize = MIXTURES[file.architecture][1]
    return ExpertsConfig(
        count=count,
        top_k=top_k,
        intermediate_size=file.shape(f"{prefix}experts.{count - 1}.gate_proj.weight")[0],
        normalize=file.flag(f"{file.architecture}.expert_weights_norm", normalize),
        sparse_layers=sparse,
        shared_intermediate_size=file.shape(shared)[0] if shared in file else 0,
    )


def _whole(file: GgufFile, key: str, default: int | None = None) -> int:
    """Return a count; some files give it for each layer, which is fine when all layers agree."""
    value: Any = file.value(f"{file.architecture}.{key}")
    if value is None:
        value = default
    if isinstance(value, list) and value:
        if len(set(value)) != 1:
            raise UnsupportedModel(
                f"{file.path.name} has a different {key} in each layer, which is not supported"
            )
        value = value[0]
    name = f"{file.architecture}.{key}"
    return whole_number(value, name, file.path.name, min=1 if default is None else 0)


def _number(file: GgufFile, key: str, default: float | None = None) -> float:
    """Return a number under the architecture's own prefix. Raises BadInput when it is neither there nor optional."""
    name = f"{file.architecture}.{key}"
    if default is None and file.value(name) is None:
        raise BadInput(f"{file.path.name} lacks the metadata key {name}")
    return file.number(name, 0.0 if default is None else default)


def _head_dim(file: GgufFile, default: int) -> int:
    head_dim = _whole(file, "attention.key_length", default)
    value_dim = _whole(file, "attention.value_length", head_dim)
    rotated = _whole(file, "rope.dimension_count", head_dim)
    if value_dim != head_dim:
        raise UnsupportedModel(
            f"keys of {head_dim} and values of {value_dim} elements a head are not supported"
        )
    if rotated != head_dim:
        raise UnsupportedModel(
            f"a rotary embedding of {rotated} of {head_dim} elements a head is not supported"
        )
    return head_dim


def _rope(file: GgufFile) -> RopeConfig:
    theta = _number(file, "rope.freq_base", 10_000.0)
    divisors = None
    if "rope_freqs.weight" in file:
        divisors = tuple(file.tensor("rope_freqs.weight").tolist())
    old_factor = _number(file, "rope.scale_linear", 1.0)
    scaling = file.text(f"{file.architecture}.rope.scaling.type", "none" if old_factor == 1.0 else "linear")
    factor = _number(file, "rope.scaling.factor", old_factor)
    if scaling == "none":
        return RopeConfig(theta, divisors=divisors)
    if scaling not in ("linear", "yarn"):
        raise UnsupportedModel(f"rope scaling {scaling!r} is not supported (none, linear and yarn are)")
    if _number(file, "rope.scaling.yarn_log_multiplier", 0.0):
        raise UnsupportedModel("yarn with a log multiplier (mscale) is not supported")
    return RopeConfig(
        theta,
        scaling=scaling,
        factor=factor,
        original_max_position_embeddings=_whole(
            file, "rope.scaling.original_context_length", _whole(file, "context_length")
        ),
        attention_factor=_attention_factor(file, factor),
        beta_fast=_number(file, "rope.scaling.yarn_beta_fast", 32.0),
        beta_slow=_number(file, "rope.scaling.yarn_beta_slow", 1.0),
        divisors=divisors,
    )


def _attention_factor(file: GgufFile, factor: float) -> float | None:
    """llama.cpp multiplies yarn's own amplitude by the file's factor; ours replaces it."""
    prefix = f"{file.architecture}.rope.scaling"
    for key in (f"{prefix}.attn_factor", f"{prefix}.yarn_attn_factor"):
        if file.value(key) is not None:
            return file.number(key, 1.0) * (0.1 * math.log(factor) + 1.0 if factor > 1.0 else 1.0)
    return None
