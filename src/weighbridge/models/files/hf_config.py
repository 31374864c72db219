"""Hugging Face `config.json` to `ModelConfig`; what the engine cannot run is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from weighbridge.errors import BadInput, UnsupportedModel
from weighbridge.models.files.config import ExpertsConfig, ModelConfig, RopeConfig
from weighbridge.models.files.fields import Fields

Json = dict[str, Any]

#: What transformers assumes when config.json of a family does not say; its configuration classes.
_DEFAULTS: dict[str, Json] = {
    "llama": {"max_position_embeddings": 2048},
    "mistral": {"num_key_value_heads": 8, "max_position_embeddings": 131_072, "sliding_window": 4096},
    "qwen2": {"max_position_embeddings": 32_768, "sliding_window": 4096, "max_window_layers": 28},
    "qwen3": {
        "max_position_embeddings": 32_768,
        "sliding_window": 4096,
        "max_window_layers": 28,
        "head_dim": 128,
    },
    "smollm3": {
        "num_key_value_heads": 4,
        "max_position_embeddings": 32_768,
        "tie_word_embeddings": True,
        "rope_theta": 2_000_000.0,
    },
    "mixtral": {
        "num_key_value_heads": 8,
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1_000_000.0,
    },
    "qwen2_moe": {
        "num_key_value_heads": 16,
        "max_position_embeddings": 32_768,
        "sliding_window": 4096,
        "max_window_layers": 28,
        "qkv_bias": True,
    },
    "qwen3_moe": {"num_key_value_heads": 4, "max_position_embeddings": 32_768, "sliding_window": 4096},
    "olmoe": {"max_position_embeddings": 4096, "rms_norm_eps": 1e-5},
}
FAMILIES = tuple(_DEFAULTS)

#: What transformers assumes for the experts of a family when config.json does not say.
_EXPERT_DEFAULTS: dict[str, Json] = {
    "mixtral": {"experts": 8, "num_experts_per_tok": 2},
    "qwen2_moe": {
        "experts": 60,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632,
    },
    "qwen3_moe": {"experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768},
    "olmoe": {"experts": 64, "num_experts_per_tok": 8},
}


def read_config(directory: Path) -> ModelConfig:
    """Return the shape of the model in `directory`. Raises BadInput or UnsupportedModel naming the field."""
    fields = _supported(read_json(directory / "config.json"))
    family = fields["model_type"]
    heads, layers = _whole(fields, "num_attention_heads"), _whole(fields, "num_hidden_layers")
    hidden = _whole(fields, "hidden_size")
    kv_heads = _whole(fields, "num_key_value_heads", default=heads)
    if heads % kv_heads:
        raise BadInput(f"config.json: {heads} attention heads cannot share {kv_heads} key/value heads evenly")
    no_bias = ("mistral", "mixtral", "qwen2", "qwen2_moe")
    attention_bias = family not in no_bias and bool(fields.get("attention_bias"))
    qkv_bias = family == "qwen2" or (family == "qwen2_moe" and bool(fields["qkv_bias"]))
    clip = fields.get("clip_qkv") if family == "olmoe" else None
    return ModelConfig(
        architecture=family,
        vocab_size=_whole(fields, "vocab_size"),
        hidden_size=hidden,
        intermediate_size=_whole(fields, "intermediate_size"),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=_whole(fields, "head_dim", default=hidden // heads),
        max_position_embeddings=_whole(fields, "max_position_embeddings"),
        rms_norm_eps=float(fields.get("rms_norm_eps", 1e-6)),
        rope=_rope(fields),
        rotary_layers=_rotary_layers(fields, layers),
        sliding_windows=_sliding_windows(fields, layers),
        tie_word_embeddings=bool(fields.get("tie_word_embeddings")),
        qkv_bias=attention_bias or qkv_bias,
        output_bias=attention_bias,
        mlp_bias=family in ("llama", "smollm3") and bool(fields.get("mlp_bias")),
        qk_norm=family in ("qwen3", "qwen3_moe"),
        qk_norm_all_heads=family == "olmoe",
        clip_qkv=None if clip is None else float(clip),
        experts=_experts(fields, layers),
        eos_token_ids=end_token_ids(directory),
        bos_token_id=fields.get("bos_token_id"),
    )


def _supported(fields: Json) -> Json:
    """Return `fields` with the defaults of their family. Raises UnsupportedModel for what the engine cannot run."""
    family = fields.get("model_type")
    if not isinstance(family, str) or family not in _DEFAULTS:
        raise UnsupportedModel(f"model type {family!r} is not supported ({', '.join(FAMILIES)} are)")
    activation = fields.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise UnsupportedModel(f"activation {activation!r} is not supported (silu is)")
    quantization = fields.get("quantization_config")
    if quantization:
        method = quantization.get("quant_method", "unknown")
        raise UnsupportedModel(
            f"weights quantised by {method!r} are not supported; use a GGUF file or the original weights"
        )
    return {**_DEFAULTS[family], **fields}


def read_json(path: Path) -> Json:
    """Read a JSON object from a file. Raises BadInput when it is missing or is not one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(
            f"{path.parent} has no {path.name}: it is not a Hugging Face model directory"
        ) from None
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise BadInput(f"{path} must hold a JSON object")
    return value


def _whole(fields: Json, *names: str, default: int | None = None) -> int:
    """Return the count under the first of `names` that is there; `default` is for what may be missing or null."""
    return Fields(fields).whole(*names, default=default)


def _experts(fields: Json, layers: int) -> ExpertsConfig | None:
    """Return the experts of a supported family, or None for a dense one. Raises BadInput naming the field."""
    family = fields["model_type"]
    if family not in _EXPERT_DEFAULTS:
        return None
    defaults = _EXPERT_DEFAULTS[family]
    count = _whole(fields, "num_local_experts", "num_experts", default=defaults["experts"])
    top_k = _whole(fields, "num_experts_per_tok", default=defaults["num_experts_per_tok"])
    if top_k > count:
        raise BadInput(f"config.json: num_experts_per_tok {top_k} is more than the {count} experts there are")
    size_name = "moe_intermediate_size" if "moe_intermediate_size" in defaults else "intermediate_size"
    shared = 0
    if "shared_expert_intermediate_size" in defaults:
        name = "shared_expert_intermediate_size"
        shared = _whole(fields, name, default=defaults[name])
    return ExpertsConfig(
        count=count,
        top_k=top_k,
        intermediate_size=_whole(fields, size_name, default=defaults.get(size_name)),
        normalize=family == "mixtral" or bool(fields.get("norm_topk_prob")),
        sparse_layers=_sparse_layers(fields, layers),
        shared_intermediate_size=shared,
        mixtral_names=family == "mixtral",
    )


def _sparse_layers(fields: Json, layers: int) -> tuple[bool, ...]:
    """Qwen has experts in every `decoder_sparse_step`-th layer that `mlp_only_layers` does not exclude."""
    if not fields["model_type"].startswith("qwen"):
        return (True,) * layers
    step = _whole(fields, "decoder_sparse_step", default=1)
    dense = fields.get("mlp_only_layers") or []
    if not isinstance(dense, list):
        raise BadInput(f"config.json: mlp_only_layers must be a list of layers, not {dense!r}")
    return tuple(index not in dense and (index + 1) % step == 0 for index in range(layers))


def _rope(fields: Json) -> RopeConfig:
    """transformers 5 writes `rope_parameters`; before it was `rope_theta` and `rope_scaling`."""
    rope: Json = fields.get("rope_parameters") or fields.get("rope_scaling") or {}
    theta = float(rope.get("rope_theta") or fields.get("rope_theta") or 10_000.0)
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if float(rope.get("partial_rotary_factor") or fields.get("partial_rotary_factor") or 1.0) != 1.0:
        raise UnsupportedModel("a partial rotary embedding (partial_rotary_factor below 1) is not supported")
    if kind == "default":
        return RopeConfig(theta)
    if kind not in ("linear", "llama3", "yarn"):
        raise UnsupportedModel(f"rope type {kind!r} is not supported (default, linear, llama3 and yarn are)")
    if rope.get("mscale") or rope.get("mscale_all_dim") or rope.get("truncate") is False:
        raise UnsupportedModel("yarn with mscale, mscale_all_dim or truncate: false is not supported")
    longest = _whole(fields, "max_position_embeddings")
    outer = fields.get("original_max_position_embeddings")  # where some files keep it
    original = int(outer or rope.get("original_max_position_embeddings") or longest)
    return RopeConfig(
        theta,
        scaling=kind,
        factor=float(rope.get("factor") or longest / original),
        low_freq_factor=float(rope.get("low_freq_factor", 1.0)),
        high_freq_factor=float(rope.get("high_freq_factor", 4.0)),
        original_max_position_embeddings=original,
        attention_factor=rope.get("attention_factor"),
        beta_fast=float(rope.get("beta_fast") or 32.0),
        beta_slow=float(rope.get("beta_slow") or 1.0),
    )


def _rotary_layers(fields: Json, layers: int) -> tuple[bool, ...]:
    """SmolLM3 names the list after its exceptions, yet 1 in it means that the layer rotates."""
    if fields["model_type"] != "smollm3":
        return (True,) * layers
    flags = fields.get("no_rope_layers")
    if flags is None:
        interval = _whole(fields, "no_rope_layer_interval", default=4)
        return tuple((index + 1) % interval != 0 for index in range(layers))
    return tuple(bool(flag) for flag in _per_layer(flags, "no_rope_layers", layers))


def _sliding_windows(fields: Json, layers: int) -> tuple[int, ...]:
    """Mistral and Mixtral limit every layer; Qwen and SmolLM3 only where `use_sliding_window` switches it on."""
    window = fields.get("sliding_window") or 0
    family = fields["model_type"]
    if family in ("mistral", "mixtral"):
        return (window,) * layers
    if family in ("llama", "olmoe") or not window or not fields.get("use_sliding_window"):
        return (0,) * layers
    if family == "qwen3_moe":
        return (window,) * layers
    kinds = fields.get("layer_types")
    if kinds is not None:
        unknown = set(_per_layer(kinds, "layer_types", layers)) - {"sliding_attention", "full_attention"}
        if unknown:
            raise UnsupportedModel(f"attention of type {min(unknown, key=str)!r} is not supported")
        return tuple(window if kind == "sliding_attention" else 0 for kind in kinds)
    if family == "smollm3":
        return tuple(0 if rotates else window for rotates in _rotary_layers(fields, layers))
    first = fields["max_window_layers"]
    return tuple(window if index >= first else 0 for index in range(layers))


def _per_layer(value: object, name: str, layers: int) -> list[Any]:
    if not isinstance(value, list) or len(value) != layers:
        raise BadInput(f"config.json: {name} must be a list with an entry for each of the {layers} layers")
    return value


def end_token_ids(directory: Path) -> tuple[int, ...]:
    """Return the end-of-sequence ids of generation_config.json and config.json together, in that order."""
    ends: dict[int, None] = {}
    for name in ("generation_config.json", "config.json"):
        value = read_json(directory / name).get("eos_token_id") if (directory / name).exists() else None
        for token_id in value if isinstance(value, list) else [value]:
            if isinstance(token_id, int):
                ends[token_id] = None
    return tuple(ends)
