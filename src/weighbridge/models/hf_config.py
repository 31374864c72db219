"""Hugging Face `config.json` to `ModelConfig`; what the engine cannot run is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from weighbridge.errors import BadInput, UnsupportedModel
from weighbridge.models.config import ModelConfig, RopeConfig

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "smollm3")

Fields = dict[str, Any]


def read_config(directory: Path) -> ModelConfig:
    """The shape of the model in `directory`. Raises BadInput or UnsupportedModel naming the field."""
    fields = read_json(directory / "config.json")
    family = fields.get("model_type")
    if family not in FAMILIES:
        raise UnsupportedModel(f"model type {family!r} is not supported ({', '.join(FAMILIES)} are)")
    activation = fields.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise UnsupportedModel(f"activation {activation!r} is not supported (silu is)")
    if fields.get("quantization_config"):
        method = fields["quantization_config"].get("quant_method", "unknown")
        raise UnsupportedModel(f"weights quantised by {method!r} are not supported; use a GGUF or the original")
    heads, layers = _whole(fields, "num_attention_heads"), _whole(fields, "num_hidden_layers")
    hidden = _whole(fields, "hidden_size")
    return ModelConfig(
        architecture=family,
        vocab_size=_whole(fields, "vocab_size"),
        hidden_size=hidden,
        intermediate_size=_whole(fields, "intermediate_size"),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=fields.get("num_key_value_heads") or heads,
        head_dim=fields.get("head_dim") or hidden // heads,
        max_position_embeddings=_whole(fields, "max_position_embeddings"),
        rms_norm_eps=float(fields.get("rms_norm_eps", 1e-6)),
        rope=_rope(fields),
        rotary_layers=_rotary_layers(fields, layers),
        sliding_windows=_sliding_windows(fields, layers),
        tie_word_embeddings=bool(fields.get("tie_word_embeddings", False)),
        qkv_bias=bool(fields.get("attention_bias", family == "qwen2")),
        output_bias=bool(fields.get("attention_bias", False)),
        mlp_bias=bool(fields.get("mlp_bias", False)),
        qk_norm=family == "qwen3",
        eos_token_ids=_ends(directory, fields),
        bos_token_id=fields.get("bos_token_id"),
    )


def read_json(path: Path) -> Fields:
    """A JSON object from a file. Raises BadInput when it is missing or is not one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(f"{path.parent} has no {path.name}: it is not a Hugging Face model directory") from None
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise BadInput(f"{path} must hold a JSON object")
    return value


def _whole(fields: Fields, name: str) -> int:
    value = fields.get(name)
    if not isinstance(value, int) or value < 1:
        raise BadInput(f"config.json: {name} must be a positive whole number, not {value!r}", param=name)
    return value


def _rope(fields: Fields) -> RopeConfig:
    """transformers 5 writes `rope_parameters`; before it was `rope_theta` and `rope_scaling`."""
    rope: Fields = fields.get("rope_parameters") or fields.get("rope_scaling") or {}
    theta = float(rope.get("rope_theta") or fields.get("rope_theta") or 10_000.0)
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if float(rope.get("partial_rotary_factor") or fields.get("partial_rotary_factor") or 1.0) != 1.0:
        raise UnsupportedModel("a partial rotary embedding (partial_rotary_factor below 1) is not supported")
    if kind == "default":
        return RopeConfig(theta)
    if kind not in ("linear", "llama3", "yarn"):
        raise UnsupportedModel(f"rope type {kind!r} is not supported (default, linear, llama3 and yarn are)")
    if rope.get("mscale") or rope.get("mscale_all_dim"):
        raise UnsupportedModel("yarn with mscale is not supported")
    original = rope.get("original_max_position_embeddings") or fields["max_position_embeddings"]
    return RopeConfig(
        theta,
        scaling=kind,
        factor=float(rope.get("factor", 1.0)),
        low_freq_factor=float(rope.get("low_freq_factor", 1.0)),
        high_freq_factor=float(rope.get("high_freq_factor", 4.0)),
        original_max_position_embeddings=int(original),
        attention_factor=rope.get("attention_factor"),
        beta_fast=float(rope.get("beta_fast") or 32.0),
        beta_slow=float(rope.get("beta_slow") or 1.0),
    )


def _rotary_layers(fields: Fields, layers: int) -> tuple[bool, ...]:
    """SmolLM3 names the list after its exceptions, yet 1 in it means that the layer rotates."""
    flags = fields.get("no_rope_layers")
    if fields["model_type"] != "smollm3":
        return (True,) * layers
    if flags is None:
        interval = fields.get("no_rope_layer_interval", 4)
        return tuple((index + 1) % interval != 0 for index in range(layers))
    return tuple(bool(flag) for flag in flags)


def _sliding_windows(fields: Fields, layers: int) -> tuple[int, ...]:
    window = fields.get("sliding_window") or 0
    if fields["model_type"] == "mistral":
        return (window,) * layers
    if not window or not fields.get("use_sliding_window"):
        return (0,) * layers
    kinds = fields.get("layer_types")
    if kinds is None:
        first = fields.get("max_window_layers", 0)
        return tuple(window if index >= first else 0 for index in range(layers))
    return tuple(window if kind == "sliding_attention" else 0 for kind in kinds)


def _ends(directory: Path, fields: Fields) -> tuple[int, ...]:
    """End-of-sequence ids of config.json and generation_config.json together, in that order."""
    sources = [fields]
    if (directory / "generation_config.json").exists():
        sources.append(read_json(directory / "generation_config.json"))
    ends: dict[int, None] = {}
    for source in sources:
        value = source.get("eos_token_id")
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, int):
                ends[one] = None
    return tuple(ends)
