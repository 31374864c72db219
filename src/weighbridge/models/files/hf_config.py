"""Hugging Face `config.json` to `ModelConfig`; what the engine cannot run is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from weighbridge.errors import BadInput, UnsupportedModel, said
from weighbridge.models.files.config import ExpertsConfig, ModelConfig, RopeConfig
from weighbridge.models.files.fields import Fields, shown
from weighbridge.models.files.gemma import GEMMA_PATTERN, gemma_fields, local_windows
from weighbridge.models.files.packing import packing_of

Json = dict[str, Any]

#: The largest JSON file that belongs to a model, with room: an index of tensors has a few megabytes.
MAX_JSON_BYTES = 64 << 20

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
    "gemma3_text": {
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 131_072,
        "sliding_window": 4096,
        "tie_word_embeddings": True,
        "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10_000.0,
        "query_pre_attn_scalar": 256,
    },
}
FAMILIES = tuple(_DEFAULTS)
GEMMA = "gemma3_text"

#: Names of the activations that are computed.
_SILU, _GELU_TANH = ("silu", "swish"), ("gelu_pytorch_tanh", "gelu_new")

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
    family = fields.values["model_type"]
    heads, layers = fields.whole("num_attention_heads"), fields.layers("num_hidden_layers")
    hidden = fields.whole("hidden_size")
    no_bias = ("mistral", "mixtral", "qwen2", "qwen2_moe")
    attention_bias = family not in no_bias and fields.flag("attention_bias")
    qkv_bias = family == "qwen2" or (family == "qwen2_moe" and fields.flag("qkv_bias"))
    config = ModelConfig(
        architecture=family,
        vocab_size=fields.whole("vocab_size"),
        hidden_size=hidden,
        intermediate_size=fields.whole("intermediate_size"),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=fields.whole("num_key_value_heads", default=heads),
        head_dim=_head_dim(fields, hidden, heads),
        max_position_embeddings=fields.whole("max_position_embeddings"),
        rms_norm_eps=fields.positive("rms_norm_eps", 1e-6),
        rope=_rope(fields),
        rotary_layers=_rotary_layers(fields, layers),
        sliding_windows=_sliding_windows(fields, layers),
        tie_word_embeddings=fields.flag("tie_word_embeddings"),
        qkv_bias=attention_bias or qkv_bias,
        output_bias=attention_bias,
        mlp_bias=family in ("llama", "smollm3") and fields.flag("mlp_bias"),
        qk_norm=family in ("qwen3", "qwen3_moe", GEMMA),
        norms_from_one=family == GEMMA,
        **_gemma(fields, hidden),
        qk_norm_all_heads=family == "olmoe",
        clip_qkv=fields.positive("clip_qkv", 1.0) if family == "olmoe" and "clip_qkv" in fields else None,
        experts=_experts(fields, layers),
        eos_token_ids=end_token_ids(directory),
        bos_token_id=fields.whole("bos_token_id", min=0) if "bos_token_id" in fields else None,
    )
    config.check("config.json")
    return config


def is_native_body(directory: Path) -> bool:
    """Whether the model in `directory` is of a family that is computed here, also where its head was not saved."""
    values = read_json(directory / "config.json")
    defaults = _DEFAULTS.get(str(values.get("model_type")))
    return defaults is not None and Fields({**defaults, **values}).flag("tie_word_embeddings")


def _head_dim(fields: Fields, hidden: int, heads: int) -> int:
    if "head_dim" not in fields and hidden % heads:
        raise BadInput(
            f"config.json: hidden_size {hidden} does not divide among {heads} attention heads, and there is no head_dim"
        )
    return fields.whole("head_dim", default=hidden // heads)


def _supported(values: Json) -> Fields:
    """Return `values` with the defaults of their family. Raises UnsupportedModel for what the engine cannot run."""
    family = values.get("model_type")
    if not isinstance(family, str) or family not in _DEFAULTS:
        raise UnsupportedModel(f"model type {shown(family)} is not supported ({', '.join(FAMILIES)} are)")
    name, known = ("hidden_activation", _GELU_TANH) if family == GEMMA else ("hidden_act", _SILU)
    activation = values.get(name) or known[0]
    if activation not in known:
        raise UnsupportedModel(f"activation {shown(activation)} is not supported ({known[0]} is)")
    packing_of(Fields(values))  # refuses what cannot be read
    return Fields({**_DEFAULTS[family], **values})


def read_json(path: Path) -> Json:
    """Read a JSON object from a file. Raises BadInput when it is missing or is not one."""
    try:
        value = json.loads(read_text(path))
    except FileNotFoundError:
        raise BadInput(
            f"{path.parent} has no {path.name}: it is not a Hugging Face model directory"
        ) from None
    except RecursionError:
        raise BadInput(f"{path} cannot be read: it is nested too deeply") from None
    except ValueError as error:
        raise BadInput(f"{path} cannot be read: {said(error)}") from error
    if not isinstance(value, dict):
        raise BadInput(f"{path} must hold a JSON object")
    return value


def read_text(path: Path) -> str:
    """Return the text of a file of a model. Raises FileNotFoundError, or BadInput for one that no model would have."""
    if path.exists() and not path.is_file():
        raise BadInput(f"{path} is not a regular file")
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise BadInput(f"{path} has more than {MAX_JSON_BYTES >> 20} MiB, which is not a configuration")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise
    except (OSError, UnicodeError) as error:
        raise BadInput(f"{path} cannot be read: {said(error)}") from error


def _experts(fields: Fields, layers: int) -> ExpertsConfig | None:
    """Return the experts of a supported family, or None for a dense one. Raises BadInput naming the field."""
    family = fields.values["model_type"]
    if family not in _EXPERT_DEFAULTS:
        return None
    defaults = _EXPERT_DEFAULTS[family]
    count = fields.whole("num_local_experts", "num_experts", default=defaults["experts"])
    top_k = fields.whole("num_experts_per_tok", default=defaults["num_experts_per_tok"])
    size_name = "moe_intermediate_size" if "moe_intermediate_size" in defaults else "intermediate_size"
    shared = 0
    if "shared_expert_intermediate_size" in defaults:
        name = "shared_expert_intermediate_size"
        shared = fields.whole(name, default=defaults[name])
    return ExpertsConfig(
        count=count,
        top_k=top_k,
        intermediate_size=fields.whole(size_name, default=defaults.get(size_name)),
        normalize=family == "mixtral" or fields.flag("norm_topk_prob"),
        sparse_layers=_sparse_layers(fields, layers),
        shared_intermediate_size=shared,
        mixtral_names=family == "mixtral",
    )


def _sparse_layers(fields: Fields, layers: int) -> tuple[bool, ...]:
    """Qwen has experts in every `decoder_sparse_step`-th layer that `mlp_only_layers` does not exclude."""
    if not fields.values["model_type"].startswith("qwen"):
        return (True,) * layers
    step = fields.whole("decoder_sparse_step", default=1)
    dense = fields.get("mlp_only_layers") or []
    if not isinstance(dense, list) or not all(isinstance(index, int) for index in dense):
        raise BadInput(f"config.json: mlp_only_layers must be a list of layers, not {shown(dense)}")
    excluded = set(dense)
    return tuple(index not in excluded and (index + 1) % step == 0 for index in range(layers))


def _gemma(fields: Fields, hidden: int) -> dict[str, Any]:
    """Return what Gemma 3 computes otherwise. Raises UnsupportedModel for what Gemma 2 and its embedder had."""
    if fields.values["model_type"] != GEMMA:
        return {}
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if fields.number(name, 0.0):
            raise UnsupportedModel(f"config.json: {name} is not supported")
    if fields.flag("use_bidirectional_attention"):
        raise UnsupportedModel("config.json: use_bidirectional_attention is not supported: it is no decoder")
    rope = _parameters_of(fields, "sliding_attention")
    theta = rope.positive("rope_theta", fields.positive("rope_local_base_freq", 10_000.0))
    return gemma_fields(hidden, fields.positive("query_pre_attn_scalar", 256.0), theta)


def _parameters_of(fields: Fields, kind: str) -> Fields:
    """Return the parameters of the rotary embedding of layers of one kind, where they differ by it."""
    rope = fields.nested("rope_parameters") or {}
    return Fields(Fields(rope, "config.json: rope").nested(kind) or {}, f"config.json: rope {kind}")


def _rope(fields: Fields) -> RopeConfig:
    """transformers 5 writes `rope_parameters`; before it was `rope_theta` and `rope_scaling`."""
    rope = _parameters_of(fields, "full_attention")
    if not rope.values:
        rope = Fields(
            fields.nested("rope_parameters") or fields.nested("rope_scaling") or {}, "config.json: rope"
        )
    theta = rope.positive("rope_theta", fields.positive("rope_theta", 10_000.0))
    kind = rope.get("rope_type", "type") or "default"
    if rope.number("partial_rotary_factor", fields.number("partial_rotary_factor", 1.0)) != 1.0:
        raise UnsupportedModel("a partial rotary embedding (partial_rotary_factor below 1) is not supported")
    if kind == "default":
        return RopeConfig(theta)
    if kind not in ("linear", "llama3", "yarn"):
        raise UnsupportedModel(
            f"rope type {shown(kind)} is not supported (default, linear, llama3 and yarn are)"
        )
    if rope.get("mscale") or rope.get("mscale_all_dim") or rope.get("truncate") is False:
        raise UnsupportedModel("yarn with mscale, mscale_all_dim or truncate: false is not supported")
    longest = fields.whole("max_position_embeddings")
    name = "original_max_position_embeddings"  # some files keep it outside
    original = fields.whole(name) if name in fields else rope.whole(name, default=longest)
    return RopeConfig(
        theta,
        scaling=kind,
        factor=rope.positive("factor", longest / original),
        low_freq_factor=rope.positive("low_freq_factor", 1.0),
        high_freq_factor=rope.positive("high_freq_factor", 4.0),
        original_max_position_embeddings=original,
        attention_factor=rope.positive("attention_factor", 1.0) if "attention_factor" in rope else None,
        beta_fast=rope.positive("beta_fast", 32.0),
        beta_slow=rope.positive("beta_slow", 1.0),
    )


def _rotary_layers(fields: Fields, layers: int) -> tuple[bool, ...]:
    """SmolLM3 names the list after its exceptions, yet 1 in it means that the layer rotates."""
    if fields.values["model_type"] != "smollm3":
        return (True,) * layers
    flags = fields.get("no_rope_layers")
    if flags is None:
        interval = fields.whole("no_rope_layer_interval", default=4)
        return tuple((index + 1) % interval != 0 for index in range(layers))
    return tuple(bool(flag) for flag in _per_layer(flags, "no_rope_layers", layers))


def _sliding_windows(fields: Fields, layers: int) -> tuple[int, ...]:
    """Mistral and Mixtral limit every layer; Qwen and SmolLM3 only where `use_sliding_window` switches it on."""
    window = fields.whole("sliding_window", default=0, min=0)
    family = fields.values["model_type"]
    if family in ("mistral", "mixtral"):
        return (window,) * layers
    if family in ("llama", "olmoe") or not window:
        return (0,) * layers
    if family == GEMMA and fields.get("layer_types") is None:
        return local_windows(layers, window, fields.whole("sliding_window_pattern", default=GEMMA_PATTERN))
    if family != GEMMA and not fields.flag("use_sliding_window"):
        return (0,) * layers
    if family == "qwen3_moe":
        return (window,) * layers
    kinds = fields.get("layer_types")
    if kinds is not None:
        known = ("sliding_attention", "full_attention")
        unknown = [kind for kind in _per_layer(kinds, "layer_types", layers) if kind not in known]
        if unknown:
            raise UnsupportedModel(f"attention of type {shown(unknown[0])} is not supported")
        return tuple(window if kind == "sliding_attention" else 0 for kind in kinds)
    if family == "smollm3":
        return tuple(0 if rotates else window for rotates in _rotary_layers(fields, layers))
    first = fields.whole("max_window_layers", min=0)
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
            if isinstance(token_id, int) and not isinstance(token_id, bool):
                ends[token_id] = None
    return tuple(ends)
